"""Tests of what the load client reads from TCP itself at the end of each connection."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import misbehaving
import pytest
from clients import wait_until
from misbehaving import MisbehavingServer
from test_network_faults import preloading, run

from fastsock import Endpoint, Server
from fastsock._native.client.stream import Loader
from fastsock.client.options import LoadOptions

#: Loads argv[2] with ten messages and prints TCP's figures.
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_load_tcp_info import loaded
print(json.dumps(loaded(sys.argv[2], messages=10)))
"""
NOTHING = {
    "connections": 0,
    "retransmits": 0,
    "rtt_us_sum": 0,
    "rtt_us_max": 0,
    "min_rtt_us": None,
}


def loader_of(endpoint: Any, **options: Any) -> Loader:
    given = {"wait": "block", "timeout": 0.5, **options}
    checked = LoadOptions(**given)
    target = Endpoint.parse(endpoint)
    return Loader(target.resolve(), str(target), checked, first=0, count=checked.connections)


def loaded(endpoint: Any, **options: Any) -> Any:
    """TCP's figures after a run of a fixed number of messages."""
    loader = loader_of(endpoint, **options)
    loader.connect()
    loader.run(time.monotonic_ns(), 0, 0)
    return loader.result()["tcp"]


@pytest.fixture(params=["tcp://127.0.0.1:0", "tcp://[::1]:0"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(request.param) as server:
        yield server


def assert_measured(figures: dict[str, Any], connections: int) -> None:
    assert figures["connections"] == connections
    assert figures["retransmits"] == 0  # loopback loses nothing
    assert 0 < figures["min_rtt_us"] <= figures["rtt_us_max"] < 1e6
    assert figures["rtt_us_max"] <= figures["rtt_us_sum"]
    assert figures["rtt_us_sum"] <= connections * figures["rtt_us_max"]


def test_each_connection_is_read_once(server: Server) -> None:
    """Every connection counts, over IPv4 and IPv6."""
    assert_measured(loaded(server.endpoint, connections=5, messages=50), 5)


def test_each_opening_is_read_once(server: Server) -> None:
    """A connection that is opened again counts each time."""
    figures = loaded(server.endpoint, connections=2, messages=20, reconnect_every=2)
    assert_measured(figures, 10)


def test_a_download_is_read_too() -> None:
    """A download ends in another way."""
    with Server("tcp://127.0.0.1:0", service="chargen") as server:
        figures = loaded(server.endpoint, connections=2, messages=20, size=720, mode="receive")
    assert_measured(figures, 2)


def test_before_a_run_nothing_is_known(server: Server) -> None:
    """Without connections every figure is 0, and the smallest rtt is not known."""
    assert loader_of(server.endpoint).result()["tcp"] == NOTHING


def test_open_connections_of_an_aborted_run_are_read() -> None:
    """What an aborted run leaves open counts as well, and not twice."""
    with MisbehavingServer(misbehaving.stalls_after(100)) as server:
        loader = loader_of(server.address, connections=3, duration=60, timeout=60)
        loader.connect()
        thread = threading.Thread(target=loader.run, args=(time.monotonic_ns(), 0, 60 * 10**9))
        thread.start()
        try:
            wait_until(lambda: len(server.sockets) == 3, "three connections")
        finally:
            loader.cancel(drop_everything=True)
            thread.join(30)
        assert_measured(loader.result()["tcp"], 3)
        assert loader.result()["tcp"] == loader.result()["tcp"]


def test_a_reset_connection_is_read() -> None:
    """A socket that was reset still has its figures."""
    with MisbehavingServer(misbehaving.resets_after(1000)) as server:
        assert_measured(loaded(server.address, connections=2, messages=200), 2)


def test_a_refused_connection_has_no_rtt() -> None:
    """A connection that was refused is not one whose rtt was measured."""
    with misbehaving.refusing_address() as address:
        assert loaded(address, connections=2, messages=10) == NOTHING


def test_retransmits_are_counted() -> None:
    """A connect that gets no answer sends its SYN again after 1 s (RFC 6298)."""
    with misbehaving.full_address() as address:
        figures = loaded(address, connections=3, messages=10, timeout=1.5)
    # The queue may take one more connection.
    assert figures["connections"] <= 1
    assert 2 <= figures["retransmits"] <= 6


def test_unix_sockets_have_none(tmp_path: Path) -> None:
    """A Unix socket has no such figures."""
    with Server(f"unix://{tmp_path}/socket") as server:
        assert loaded(server.endpoint, messages=10) is None


@pytest.mark.parametrize(
    ("known", "names"),
    [
        (0, set()),
        (60, set()),
        (100, {"connections", "rtt_us_sum", "rtt_us_max"}),
        (104, {"connections", "rtt_us_sum", "rtt_us_max"}),
    ],
)
def test_an_old_kernel(tmp_path: Path, known: int, names: set[str]) -> None:
    """What the kernel does not fill in is not known; what it does is."""
    library = tmp_path / "short_tcp_info.so"
    under = preloading(Path(__file__).with_name("short_tcp_info.c"), library)
    under = (*under, f"SHORT_TCP_INFO={known}")
    with Server("tcp://127.0.0.1:0") as server:
        arguments = (str(Path(__file__).parent), str(server.endpoint))
        figures = json.loads(run(*under, sys.executable, "-c", SCRIPT, *arguments))
    assert {name for name, value in figures.items() if value} == names
    assert figures["min_rtt_us"] is None
