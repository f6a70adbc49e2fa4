"""Tests of busy-polling: it polls while waits are short, blocks when they are long, is exact."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clients import TIMEOUT, connect, echo_exactly, finish_exactly, random_chunks, wait_until
from implementations import Implementation, ServedProcess

import fastsock

Serve = Callable[..., Any]
ServeProcess = Callable[..., ServedProcess]

LONGEST = 0.01  # seconds
WAITS_IN_ONE_PLACE = pytest.mark.native("epoll", "poll", "serial", "io_uring")


@WAITS_IN_ONE_PLACE
def test_polls_without_blocking_while_waits_are_short(
    serve_process: ServeProcess, tmp_path: Path
) -> None:
    assert polls(serve_process, tmp_path / "without", busy_poll=0) == 0
    assert polls(serve_process, tmp_path / "with", busy_poll=LONGEST) > 0


def polls(serve_process: ServeProcess, log: Path, **options: Any) -> int:
    """How often a server polled without waiting while it echoed 100 messages."""
    calls = "trace=/^(epoll_wait|poll|io_uring_enter)$"
    server = serve_process(under=("strace", "-f", "-qq", "-o", str(log), "-e", calls), **options)
    with connect(server.endpoint) as sock:
        for _ in range(100):
            echo_exactly(sock, b"short")
    server.close()
    return len(re.findall(r"(?:epoll_wait|poll|io_uring_enter)\(.*, \d+, 0\b", log.read_text()))


@pytest.mark.native("epoll")  # one is enough: datagrams have an engine of their own
def test_polls_for_datagrams_too(serve_process: ServeProcess, tmp_path: Path) -> None:
    assert unprompted_receives(serve_process, tmp_path / "without", busy_poll=0) <= 0
    assert unprompted_receives(serve_process, tmp_path / "with", busy_poll=LONGEST) > 0


def unprompted_receives(serve_process: ServeProcess, log: Path, **options: Any) -> int:
    """How often a server received without poll() before it, while it answered 100 datagrams."""
    server = serve_process(
        under=("strace", "-f", "-qq", "-o", str(log), "-e", "trace=poll,recvmmsg"),
        endpoint="udp://127.0.0.1:0",
        **options,
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect((server.endpoint.host, server.endpoint.port))
        for number in range(100):
            sock.send(b"%d" % number)
            assert sock.recv(100) == b"%d" % number
    server.close()
    calls = log.read_text()
    # Of a batch: the call at the start, which shows that it is allowed, asks for none.
    receives = re.findall(r", 16, MSG_DONTWAIT", calls)
    return len(receives) - len(re.findall(r"poll\(.*, 2, -1", calls))


@WAITS_IN_ONE_PLACE
def test_blocks_when_nothing_comes(serve_process: ServeProcess) -> None:
    server = serve_process(busy_poll=LONGEST)
    with connect(server.endpoint) as sock:
        for _ in range(100):
            echo_exactly(sock, b"short")
        wait_until(lambda: cpu_share(server) < 0.02)


def cpu_share(server: ServedProcess) -> float:
    began, before = time.monotonic(), server.cpu_seconds()
    time.sleep(0.1)
    return (server.cpu_seconds() - before) / (time.monotonic() - began)


@WAITS_IN_ONE_PLACE
def test_loses_nothing(serve: Serve) -> None:
    server = serve(busy_poll="auto")
    with connect(server.endpoint) as sock:
        for chunk in random_chunks(seed=5, total=1 << 20, largest=1 << 16):
            echo_exactly(sock, chunk)
    with connect(server.endpoint) as sock:
        finish_exactly(sock, b"all of it" * 10_000)


@WAITS_IN_ONE_PLACE
def test_stops_while_it_polls(implementation: Implementation) -> None:
    with implementation.server(busy_poll=LONGEST) as server, connect(server.endpoint) as sock:
        echo_exactly(sock, b"short")
        server.stop()
        assert server.stats().open == 0


@pytest.mark.native("threads", "fork")
def test_refused_where_each_connection_waits_by_itself(implementation: Implementation) -> None:
    with pytest.raises(ValueError, match="busy_poll 5e-05 is not for engine"):
        implementation.server(busy_poll="50us")
    implementation.server(busy_poll="auto")


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("always", ValueError, "busy_poll 'always' is not a duration"),
        (-1, ValueError, "expected 0 to 10ms"),
        (200, ValueError, "expected 0 to 10ms"),
        ("11ms", ValueError, "expected 0 to 10ms"),
        (True, TypeError, "expected a number of seconds"),
    ],
)
def test_refuses_other_values(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fastsock.Server(busy_poll=value)
