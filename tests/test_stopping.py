"""Tests of a stop with many clients: none is reset before the deadline, all are ended at it."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from typing import Any

import pytest
from clients import (
    connect,
    echo_exactly,
    fill,
    finish_exactly,
    half_close,
    has_ended,
    not_zero,
    receive_exactly,
    tagged,
)
from implementations import Implementation

KIB = 1024
MAY_OVERSHOOT = 2.0  # seconds; the figure that is printed is a thousandth of it


def stop_mid_echo(serve_process: Any, connected: int, queued: int, **options: Any) -> Any:
    """Stop a server with `connected` clients mid-echo and `queued` ones not accepted yet.

    Returns how the connections ended; every client gets what it sent before and after the signal.
    """
    server = serve_process(drain_timeout=20.0, **options)
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(server.endpoint)) for _ in range(connected)]
        for number, sock in enumerate(socks):
            echo_exactly(sock, b"accepted")
            sock.sendall(tagged(number, 8 * KIB))
        server.pause()
        socks += [stack.enter_context(connect(server.endpoint)) for _ in range(queued)]
        for number, sock in enumerate(socks):
            sock.sendall(tagged(number, KIB))
        server.signal(signal.SIGTERM)
        server.resume()
        for number, sock in enumerate(socks):
            size = 9 * KIB if number < connected else KIB
            assert receive_exactly(sock, size) == tagged(number, size)
            finish_exactly(sock, b"and more")
        return not_zero(server.finish()["stats"]["closed"])


@pytest.mark.many_clients
@pytest.mark.parametrize("connected", [100, pytest.param(1000, marks=[pytest.mark.slow])])
def test_drain_of_many_clients_in_mid_echo(serve_process: Any, connected: int) -> None:
    """No client is reset: none of those mid-echo, and none of 150, several bursts, in the queue."""
    assert stop_mid_echo(serve_process, connected, 150) == {"eof": connected + 150}


@pytest.mark.native
@pytest.mark.many_clients
def test_drain_of_several_queues(serve_process: Any) -> None:
    """With workers every queue of the SO_REUSEPORT group is served before it is closed."""
    assert stop_mid_echo(serve_process, 50, 200, workers=4) == {"eof": 250}


@pytest.mark.many_clients
def test_every_kind_of_client_is_ended_at_the_deadline(implementation: Implementation) -> None:
    """Idle clients, half-closed ones and ones that never read are all cut off at the time."""
    with implementation.server() as server, ExitStack() as stack:
        idle = [stack.enter_context(connect(server.endpoint)) for _ in range(20)]
        for sock in idle:
            echo_exactly(sock, b"hello")
        stuck = [stack.enter_context(connect(server.endpoint, rcvbuf=4096)) for _ in range(8)]
        for number, sock in enumerate(stuck):
            fill(sock)
            if number % 2:
                half_close(sock)
        start = time.monotonic()
        server.stop(drain=0.2)
        overshoot = time.monotonic() - start - 0.2
        print(f"{implementation.name}: {overshoot * 1000:.1f} ms past the deadline")
        assert 0 <= overshoot < MAY_OVERSHOOT
        for sock in idle:
            assert has_ended(sock)
        assert server.stats().open == 0
