"""What every server promises of stops, drains and signals."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from clients import (
    TIMEOUT,
    assert_serves,
    connect,
    echo_exactly,
    finish_exactly,
    has_ended,
    not_zero,
    random_bytes,
    receive_all,
    receive_exactly,
    refuses,
    running,
    stall,
    tagged,
    wait_until,
)
from implementations import (
    IMPLEMENTATIONS,
    KINDS,
    Implementation,
    ServedProcess,
    any_endpoint,
    in_fresh_process,
)

# Each case on each kind of socket where that makes a difference; what costs seconds and is about
# signals, memory or descriptors, not about the socket, on one.
pytestmark = pytest.mark.kinds(*KINDS)
one_kind = pytest.mark.kinds("tcp")
two_kinds = pytest.mark.kinds("tcp", "unix")  # TCP is the same over IPv6 there

KIB, MIB = 1 << 10, 1 << 20

STILL_ACCEPTS = 0.05  # seconds for which a stop without a drain goes on accepting

Serve = Callable[..., Any]
ServeProcess = Callable[..., ServedProcess]


# --- stopping -----------------------------------------------------------------------------------


def test_stop_ends_every_connection(serve: Serve) -> None:
    """After stop() every client sees the end, new ones are refused, another stop() does nothing."""
    server = serve()
    with connect(server.endpoint) as first, connect(server.endpoint) as second:
        echo_exactly(first, b"hello")
        server.stop()
        assert has_ended(first)
        assert has_ended(second)
        assert refuses(server.endpoint)
    server.stop()
    assert server.stats().open == 0


def test_stop_before_start_does_nothing(implementation: Implementation, socket_kind: str) -> None:
    """stop() returns at once on a server that was never started."""
    server = implementation.server(any_endpoint(socket_kind))
    server.stop()
    server.stop(drain=60)


def test_stop_from_several_threads(serve: Serve) -> None:
    """stop() from 8 threads at once returns in each of them, with the server stopped."""
    server = serve()
    with connect(server.endpoint) as sock, ExitStack() as stack:
        echo_exactly(sock, b"hello")
        for _ in range(8):
            stack.enter_context(running(server.stop))
        stack.close()
        assert has_ended(sock)
        assert refuses(server.endpoint)


@two_kinds
def test_stop_ends_a_client_that_does_not_read(serve: Serve) -> None:
    """stop() does not wait for a client that has filled every buffer."""
    server = serve()
    with connect(server.endpoint, rcvbuf=4 * KIB) as sock:
        stall(lambda: server.stats().bytes_in, sock)
        server.stop()
    assert server.stats().closed["stopped"] == 1


@two_kinds
def test_stop_during_a_burst_of_connects(serve: Serve) -> None:
    """stop() returns while clients connect as fast as they can; then they are refused."""
    server = serve()
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(running(lambda: connect_until_refused(server.endpoint)))
        wait_until(lambda: server.stats().accepted > 100)
        server.stop()
    assert server.stats().errors == {}


def connect_until_refused(endpoint: Any) -> None:
    """Connect over and over; a connection that waited to be accepted at the stop is reset."""
    while True:
        try:
            connect(endpoint).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue


def test_port_can_be_bound_again_at_once(implementation: Implementation, socket_kind: str) -> None:
    """20 restarts on one port succeed, though the server's side closed first (TIME_WAIT)."""
    with implementation.server(any_endpoint(socket_kind)) as server:
        endpoint = server.endpoint
    for _ in range(20):
        with implementation.server(endpoint) as server, connect(endpoint) as sock:
            echo_exactly(sock, b"hello")
            server.stop()
            assert sock.recv(1) == b""


@pytest.mark.native
def test_stop_answers_what_has_arrived(implementation: Implementation, socket_kind: str) -> None:
    """Without a drain too, a client that has connected and sent gets that back, accepted or not.

    One that is not accepted within STILL_ACCEPTS may be reset instead, so longer rounds show
    nothing: a busy machine has them, above all where each client takes a process.
    """
    in_time = 0
    for _ in range(50):
        with ExitStack() as stack, implementation.server(any_endpoint(socket_kind)) as server:
            socks = [stack.enter_context(connect(server.endpoint)) for _ in range(10)]
            for number, sock in enumerate(socks):
                sock.sendall(tagged(number, 100))
            began = time.monotonic()
            server.stop()
            if time.monotonic() - began < STILL_ACCEPTS:
                in_time += 1
                for number, sock in enumerate(socks):
                    assert receive_all(sock) == tagged(number, 100)
    if not in_time:
        pytest.skip(f"this machine is too busy: no stop() in less than {STILL_ACCEPTS} s")


def test_drain_serves_every_client_to_its_end(serve: Serve) -> None:
    """A drain resets no connection, accepted or queued: each gets all its bytes, then it ends.

    A server of one client at a time still has the others waiting to be accepted.
    """
    server = serve()
    data = random_bytes(7, MIB)
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(server.endpoint)) for _ in range(6)]
        echo_exactly(socks[0], b"first")
        stopping = running(lambda: server.stop(drain=60))
        stack.callback(stopping.__exit__, None, None, None)
        assert stopping.__enter__().is_alive()
        for sock in socks:
            echo_exactly(sock, data)
            finish_exactly(sock, data)
    stats = server.stats()
    assert not_zero(stats.closed) == {"eof": 6}
    assert refuses(server.endpoint)


@two_kinds
def test_drain_serves_the_accept_queue(serve_process: ServeProcess) -> None:
    """Connections made before the signal but not yet accepted are served, not reset."""
    server = serve_process(drain_timeout=60)
    with ExitStack() as stack:
        server.pause()
        socks = [stack.enter_context(connect(server.endpoint)) for _ in range(50)]
        for number, sock in enumerate(socks):
            sock.sendall(tagged(number, KIB))
        server.signal(signal.SIGTERM)
        server.resume()
        for number, sock in enumerate(socks):
            assert receive_exactly(sock, KIB) == tagged(number, KIB)
            finish_exactly(sock, b"and more")
        assert server.finish()["stats"]["closed"]["eof"] == 50


@two_kinds
@pytest.mark.native
@pytest.mark.many_clients
def test_drain_begins_in_the_middle_of_accepting(serve: Serve) -> None:
    """It accepts many more than the server does in one turn, also where it begins in that turn."""
    server = serve()
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(server.endpoint)) for _ in range(150)]
        stack.enter_context(running(lambda: server.stop(drain=60)))
        for sock in socks:
            finish_exactly(sock, b"hello")
    assert not_zero(server.stats().closed) == {"eof": 150}


@one_kind
def test_drain_ends_at_its_deadline(serve: Serve) -> None:
    """A client that never closes is ended at the deadline, and not before."""
    server = serve()
    with connect(server.endpoint) as stuck:
        echo_exactly(stuck, b"hello")
        start = time.monotonic()
        server.stop(drain=0.3)
        assert 0.3 <= time.monotonic() - start < 5
        assert has_ended(stuck)
    assert server.stats().closed["stopped"] == 1


def test_drain_is_cut_short_by_another_stop(serve: Serve) -> None:
    """stop(0) from another thread ends a drain that has a minute left."""
    server = serve()
    with connect(server.endpoint) as stuck:
        echo_exactly(stuck, b"hello")
        with running(lambda: server.stop(drain=60)) as draining:
            echo_exactly(stuck, b"still served")
            server.stop(0)
            draining.join(5)
            assert not draining.is_alive()
        assert has_ended(stuck)


@pytest.mark.many_clients
def test_drain_listens_no_more(serve: Serve) -> None:
    """While connected clients are served to their end, new ones are refused."""
    assert_drain_listens_no_more(serve())


@one_kind
@pytest.mark.native("serial")
def test_drain_of_one_client_at_a_time_listens_no_more(serve: Serve) -> None:
    assert_drain_listens_no_more(serve())


def assert_drain_listens_no_more(server: Any) -> None:
    with connect(server.endpoint) as sock:
        echo_exactly(sock, b"hello")
        with running(lambda: server.stop(drain=60)):
            wait_until(lambda: refuses(server.endpoint))
            finish_exactly(sock, b"good-bye")


# --- serve() and signals ------------------------------------------------------------------------


@one_kind
@pytest.mark.parametrize(
    ("number", "clients"), [(signal.SIGINT, 0), (signal.SIGTERM, 3)], ids=["SIGINT", "SIGTERM"]
)
def test_signal_ends_serve(
    serve_process: ServeProcess, number: signal.Signals, clients: int
) -> None:
    """Ctrl-C and SIGTERM end serve() cleanly, idle or not, and the handlers are put back."""
    server = serve_process()
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(server.endpoint)) for _ in range(clients)]
        for sock in socks[:1]:
            echo_exactly(sock, b"hello")
        server.signal(number)
        for sock in socks:
            assert has_ended(sock)
        last = server.finish()
    assert last["handlers_restored"]
    assert last["stats"]["open"] == 0
    assert server.errors() == ""


@pytest.mark.parametrize("times", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_signal_at_the_wrong_moment(implementation: Implementation, times: int) -> None:
    """A signal that comes just as the main thread begins to wait ends the wait, each time."""
    in_fresh_process(serve_until_signal_often, implementation.name, times)


def serve_until_signal_often(name: str, times: int) -> None:
    for _ in range(times):
        ready = threading.Event()

        def interrupt(ready: threading.Event = ready) -> None:
            ready.wait(TIMEOUT)
            # Python runs this thread when the main one releases the GIL to wait.
            os.kill(os.getpid(), signal.SIGTERM)

        with running(interrupt):
            IMPLEMENTATIONS[name].serve(ready=lambda _, ready=ready: ready.set())


@one_kind
@pytest.mark.many_clients
def test_second_signal_ends_a_drain(serve_process: ServeProcess) -> None:
    """The first signal drains, for a minute here; the second ends it."""
    server = serve_process(drain_timeout=60)
    with connect(server.endpoint) as sock:
        echo_exactly(sock, b"hello")
        server.signal(signal.SIGTERM)
        wait_until(lambda: refuses(server.endpoint))
        wait_until(lambda: server.stats()["open"] == 1)  # those of refuses() have closed
        echo_exactly(sock, b"still served")
        server.signal(signal.SIGTERM)
        assert has_ended(sock)
        assert server.finish()["stats"]["closed"]["stopped"] == 1


def test_serve_in_a_thread_leaves_signals_alone(implementation: Implementation) -> None:
    """Outside the main thread serve() handles and ignores no signal, and ends by stop()."""
    before = handled_and_ignored_signals()
    started = threading.Event()
    servers: list[Any] = []

    def ready(server: Any) -> None:
        servers.append(server)
        started.set()

    with running(lambda: implementation.serve(ready=ready)):
        assert started.wait(20)
        assert_serves(servers[0].endpoint)
        assert handled_and_ignored_signals() == before
        servers[0].stop()
    assert handled_and_ignored_signals() == before


def handled_and_ignored_signals() -> list[str]:
    """The masks of this process (proc(5)), as the kernel has them whatever Python knows."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return [line for line in lines if line.startswith(("SigCgt:", "SigIgn:"))]
