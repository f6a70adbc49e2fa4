"""Many short connections: none gets another's bytes, and no descriptor or memory is left.

The next connection takes the descriptor number and the record of one that has closed, while bytes
and events of that one may still be on their way. Each payload repeats 16 bytes of its connection's
own, so that a byte of another one is seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from clients import (
    assert_same,
    connect,
    half_close,
    not_zero,
    receive_all,
    receive_exactly,
    reset,
    running,
    tagged,
    wait_until,
    wait_until_still,
)
from implementations import Implementation, ServedProcess
from leftovers import everything

Serve = Callable[..., Any]
ServeProcess = Callable[..., ServedProcess]

THREADS = 4
MIB = 1 << 20
LARGEST = 2000  # bytes sent by one connection
#: Addresses of clients by turns: a port stays in TIME_WAIT for a minute.
SOURCES = [f"127.1.0.{number}" for number in range(1, 51)]


def churn(endpoint: Any, connections: int, *, orderly: bool = False) -> None:
    """Run so many clients from a few threads, ended in every way, or all by a half-close."""
    each = connections // THREADS
    with ExitStack() as stack:
        threads = [
            stack.enter_context(
                running(
                    lambda first=first: connect_in_turn(
                        endpoint, range(first, first + each), orderly
                    )
                )
            )
            for first in range(0, connections, each)
        ]
        for thread in threads:
            thread.join()  # however long so many take


def connect_in_turn(endpoint: Any, numbers: range, orderly: bool) -> None:
    rng = random.Random(numbers.start)
    for number in numbers:
        payload = tagged(number, rng.randrange(4, LARGEST))
        source = SOURCES[number % len(SOURCES)] if endpoint.host == "127.0.0.1" else ""
        with connect(endpoint, source=source) as sock:
            sock.sendall(payload)
            ending = "finish" if orderly else rng.choice(("finish", "reset", "close"))
            if ending == "finish":
                half_close(sock)
                assert_same(receive_all(sock), payload)
                continue
            size = rng.randrange(len(payload))  # the other bytes are never read
            assert_same(receive_exactly(sock, size), payload[:size])
            if ending == "reset":
                reset(sock)


@pytest.mark.kinds("tcp", "unix")
def test_no_connection_gets_the_bytes_of_another(
    implementation: Implementation, socket_kind: str, serve: Serve
) -> None:
    """800 connections; fewer if each is a process, which takes longer the larger this one is."""
    connections = 200 if implementation.engine == "fork" else 800
    server = serve()
    churn(server.endpoint, connections)
    wait_until(lambda: sum(server.stats().closed.values()) == connections, "all closed")
    stats = server.stats()
    assert (stats.accepted, stats.open) == (connections, 0)
    assert not stats.closed["error"]


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.kinds("tcp", "unix")
def test_no_connection_gets_the_bytes_of_another_at_length(
    implementation: Implementation,
    socket_kind: str,
    serve_process: ServeProcess,
    figure: Callable[[str], None],
) -> None:
    """100,000 connections, more than a million with every engine and kind."""
    connections = 100_000
    server = serve_process()
    churn(server.endpoint, connections)
    wait_until(lambda: sum(server.stats()["closed"].values()) == connections, "all closed")
    closed = not_zero(server.stats()["closed"])
    assert "error" not in closed
    figure(
        f"churn, {implementation.name}, {socket_kind}: {connections} connections, closed "
        f"{', '.join(f'{reason} {count}' for reason, count in closed.items())}, cross-talk 0"
    )


@pytest.mark.slow
def test_nothing_is_left_after_20000_clients(
    implementation: Implementation,
    serve_process: ServeProcess,
    figure: Callable[[str], None],
) -> None:
    """Connect, echo, close: descriptors, threads, processes and memory are what they were."""
    connections = 20_000
    server = serve_process()
    churn(server.endpoint, 1000, orderly=True)  # what is allocated the first time may stay

    def holds() -> int:
        return len(everything(server.pid))

    before, memory = wait_until_still(holds), server.resident_bytes()
    churn(server.endpoint, connections, orderly=True)
    wait_until(lambda: holds() == before, "holds what it held before")
    grown = server.resident_bytes() - memory
    assert not_zero(server.stats()["closed"]) == {"eof": 1000 + connections}
    assert grown < MIB
    figure(
        f"20,000 clients, {implementation.name}: descriptors, threads and processes {before} "
        f"before and after, memory {grown / 1024:+.0f} KiB"
    )
