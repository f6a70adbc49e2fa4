"""`sources`: the connections come from chosen addresses, in turn, as the server sees them."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import misbehaving
import pytest
from load_runs import QUIET, SERVED, assert_bad, assert_good, failures
from misbehaving import MisbehavingServer
from networks import own_network

import fastsock
from fastsock.cli import run

TWO = ["127.0.0.2", "127.0.0.3"]


class Seen(MisbehavingServer):
    """An echo server that remembers the clients' addresses, one for each connection."""

    def __init__(self) -> None:
        self.addresses: Counter[str] = Counter()
        super().__init__(self._remember)

    def _remember(self, server: MisbehavingServer, connection: socket.socket) -> None:
        with self.arrival:
            self.addresses[connection.getpeername()[0]] += 1
        misbehaving.echoes(server, connection)


@pytest.mark.parametrize("threads", [1, 3])
def test_connections_take_them_in_turn(threads: int) -> None:
    with Seen() as server:
        report = fastsock.load(
            server.address, connections=7, threads=threads, messages=70, sources=TWO, **QUIET
        )
    assert_good(report)
    assert server.addresses == {"127.0.0.2": 4, "127.0.0.3": 3}
    assert list(report.options["sources"]) == TWO


def test_every_opening_of_a_connection_has_its_address() -> None:
    """They are not varied then, as they are on loopback without `sources`."""
    with Seen() as server:
        report = fastsock.load(
            server.address, connections=2, messages=20, reconnect_every=1, sources=TWO, **QUIET
        )
    assert_good(report)
    assert set(server.addresses) == set(TWO)
    assert min(server.addresses.values()) >= 10


def test_connections_after_an_outage_have_their_address() -> None:
    seen = set()

    def remember(server: MisbehavingServer, connection: socket.socket) -> None:
        seen.add(connection.getpeername()[0])
        misbehaving.resets_after(640)(server, connection)

    with MisbehavingServer(remember) as server:
        report = fastsock.load(
            server.address, messages=50, sources=TWO[:1], on_disconnect="reconnect", **QUIET
        )
    assert report.outages is not None
    assert report.outages.count >= 1
    assert seen == {"127.0.0.2"}


@pytest.mark.parametrize("threads", [1, 2])
def test_datagrams(threads: int) -> None:
    seen = set()
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(0.05)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                try:
                    data, address = sock.recvfrom(65536)
                except TimeoutError:
                    continue
                seen.add(address)
                sock.sendto(data, address)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            report = fastsock.load(
                f"udp://127.0.0.1:{sock.getsockname()[1]}",
                connections=5,
                threads=threads,
                messages=50,
                sources=TWO,
                loss_timeout=5,
                wait="block",
            )
        finally:
            over.set()
            thread.join()
    assert_good(report)
    assert Counter(host for host, _ in seen) == {"127.0.0.2": 3, "127.0.0.3": 2}


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_ipv6(scheme: str) -> None:
    with fastsock.Server(f"{scheme}://[::1]:0") as server:
        report = fastsock.load(
            server.endpoint, connections=3, messages=30, sources=["0:0::1"], **QUIET
        )
    assert_good(report)
    assert report.options["sources"] == ("::1",)


def test_a_server_that_lets_in_one_of_them() -> None:
    """By its ranges: the connections of the other address are closed."""
    with fastsock.Server("tcp://127.0.0.1:0", allow=["127.0.0.2"]) as server:
        good = fastsock.load(server.endpoint, messages=10, sources=TWO[:1], **QUIET)
        both = fastsock.load(server.endpoint, connections=4, messages=40, sources=TWO, **QUIET)
    assert_good(good)
    assert_bad(both)
    assert sum(failures(both).values()) == 2
    assert both.messages == 20


@pytest.mark.parametrize("source", ["127.0.0.2", "::1"])
def test_localhost_is_connected_to_in_their_family(source: str) -> None:
    with fastsock.Server("tcp://localhost:0") as server:
        port = server.endpoint.port
        report = fastsock.load(f"localhost:{port}", messages=10, sources=[source], **QUIET)
    assert_good(report)
    assert report.address == (f"[::1]:{port}" if ":" in source else f"127.0.0.1:{port}")


def test_an_ipv4_mapped_address_is_ipv4() -> None:
    with Seen() as server:
        assert_good(
            fastsock.load(server.address, messages=10, sources=["::ffff:127.0.0.4"], **QUIET)
        )
    assert set(server.addresses) == {"127.0.0.4"}


# --- ports --------------------------------------------------------------------------------------


def few_ports(count: int) -> None:
    """In a network of our own."""
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"50000 {50000 + count - 1}")


def test_more_connections_than_one_address_has_ports() -> None:
    """Each address has them all, also where they are of one server."""
    options: dict[str, Any] = {"connections": 12, "messages": 120, **QUIET}
    with own_network():
        few_ports(4)
        with fastsock.Server("tcp://127.0.0.1:7007") as server:
            report = fastsock.load(server.endpoint, sources=[*TWO, "127.0.0.4"], **options)
    assert_good(report)
    assert report.messages == 120


@pytest.mark.parametrize("reconnect_every", [None, 1])
def test_ports_that_run_out(reconnect_every: int | None) -> None:
    """The run says so, and of which addresses; closed connections keep theirs (TIME_WAIT)."""
    connections = 2 if reconnect_every else 12
    with own_network():
        few_ports(4)
        with fastsock.Server("tcp://127.0.0.1:7007") as server:
            report = fastsock.load(
                server.endpoint,
                connections=connections,
                messages=120,
                sources=TWO,
                reconnect_every=reconnect_every,
                **QUIET,
            )
    assert_bad(report)
    assert set(failures(report)) == {"other"}
    assert "no local port is free at 127.0.0.2 and 127.0.0.3" in " ".join(report.reasons)


def test_ports_that_run_out_for_datagrams() -> None:
    with own_network():
        few_ports(4)
        with (
            fastsock.Server("udp://127.0.0.1:7007") as server,
            pytest.raises(OSError, match="no local port is free"),
        ):
            fastsock.load(server.endpoint, connections=12, messages=120, sources=TWO, **QUIET)


# --- refused before the load begins -------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_an_address_of_another_machine(scheme: str, threads: int) -> None:
    with fastsock.Server(f"{scheme}://127.0.0.1:0") as server:
        with pytest.raises(OSError, match=r"source 192\.0\.2\.7: .*this machine does not have it"):
            fastsock.load(
                server.endpoint,
                connections=2,
                threads=threads,
                sources=["127.0.0.2", "192.0.2.7"],
            )
        assert server.stats().accepted == 0


@pytest.mark.parametrize("endpoint", ["unix:@none", "unixgram:@none"])
def test_not_on_a_unix_socket(endpoint: str) -> None:
    with pytest.raises(ValueError, match="sources go with tcp and udp"):
        fastsock.load(endpoint, sources=TWO)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ("--source ::1", 2, "--source ::1 are IPv6, and tcp://127.0.0.1:9 has only IPv4 addresses"),
        ("--source 127.0.0.2 --source ::1", 2, "--source 127.0.0.2, ::1: expected IPv4 or IPv6"),
        ("--source nohost", 2, "--source 'nohost' is no address; expected one such as 127.0.0.2"),
        ("--source fe80::1", 2, "'fe80::1' is link-local; write its interface too"),
        ("--source fe80::1%none0", 1, "no network interface 'none0'"),
        ("--source 192.0.2.7", 1, "source 192.0.2.7: Cannot assign requested address"),
    ],
)
def test_a_bad_source(
    arguments: str, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["load", "127.0.0.1:9", *arguments.split()]) == code
    shown = capsys.readouterr().err
    assert text in " ".join(shown.split())
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSOCK_LOAD_SOURCE", "127.0.0.2 127.0.0.3")
    with Seen() as server:
        host, port = server.address
        command = ["load", f"{host}:{port}", "-c", "2", "-n", "20", "--wait", "block", "-q"]
        assert run(command) in SERVED
    assert set(server.addresses) == set(TWO)
