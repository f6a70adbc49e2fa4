"""What every server promises: each test runs on every implementation that it is meant for."""

from __future__ import annotations

import random
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from clients import (
    TIMEOUT,
    assert_same,
    assert_serves,
    connect,
    echo_exactly,
    finish_exactly,
    half_close,
    idle_cpu_seconds,
    not_zero,
    nothing_comes,
    random_bytes,
    random_chunks,
    receive_all,
    receive_exactly,
    reset,
    running,
    sending,
    stall,
    tagged,
    wait_until,
    wait_until_still,
)
from implementations import KINDS, ServedProcess
from leftovers import descriptors

# Each case on each kind of socket where that makes a difference; what costs seconds and is about
# signals, memory or descriptors, not about the socket, on one.
pytestmark = pytest.mark.kinds(*KINDS)
one_kind = pytest.mark.kinds("tcp")
two_kinds = pytest.mark.kinds("tcp", "unix")  # TCP is the same over IPv6 there

KIB, MIB = 1 << 10, 1 << 20

Serve = Callable[..., Any]
ServeProcess = Callable[..., ServedProcess]


# --- bytes --------------------------------------------------------------------------------------


@two_kinds
@pytest.mark.parametrize("seed", range(3))
def test_echoes_every_byte_in_order(serve: Serve, seed: int) -> None:
    """8 MiB in chunks of 1 B to 1 MiB come back the same."""
    with connect(serve().endpoint) as sock:
        echo_exactly(sock, *random_chunks(seed, 8 * MIB, MIB))


@pytest.mark.parametrize("buffer_size", [1, 7, 4096, 1 << 20])
def test_echoes_with_any_buffer_size(serve: Serve, buffer_size: int) -> None:
    """The size of the server's buffer decides how often it calls, never what comes back."""
    with connect(serve(buffer_size=buffer_size).endpoint) as sock:
        finish_exactly(sock, *random_chunks(1, 200 * max(1, min(buffer_size, 8 * KIB)), 64 * KIB))


@two_kinds
def test_half_close_gets_everything_back(serve: Serve) -> None:
    """4 MiB sent and half-closed before anything is read come back whole, 10 times."""
    endpoint = serve().endpoint
    block = random_bytes(1, 5 * MIB)
    for run in range(10):
        data = block[run * 999 :][: 4 * MIB]
        with connect(endpoint) as sock:
            finish_exactly(sock, data)


def test_half_close_of_an_empty_connection(serve: Serve) -> None:
    """A client that sends nothing and half-closes gets end-of-file, not a reset."""
    with connect(serve().endpoint) as sock:
        half_close(sock)
        assert sock.recv(1) == b""


@two_kinds
def test_slow_reader_gets_everything(serve: Serve) -> None:
    """16 MiB reach a client with a small window that starts to read only when all has stalled."""
    server = serve()
    chunks = random_chunks(4, 16 * MIB, MIB)
    with connect(server.endpoint, rcvbuf=64 * KIB) as sock:
        with sending(sock, chunks, then_half_close=True):
            wait_until(lambda: server.stats().bytes_in > 0)
            assert wait_until_still(lambda: server.stats().bytes_in) < 16 * MIB
            first = receive_exactly(sock, 3)
            received = first + receive_all(sock)
        assert_same(received, b"".join(chunks))


# --- several clients ----------------------------------------------------------------------------


@two_kinds
@pytest.mark.many_clients
def test_clients_that_never_read_do_not_disturb_others(serve: Serve) -> None:
    """While 20 clients send and never read, the next one gets its echo."""
    server = serve()
    with ExitStack() as stack:
        stall(
            lambda: server.stats().bytes_in,
            *(stack.enter_context(connect(server.endpoint, rcvbuf=4 * KIB)) for _ in range(20)),
        )
        with connect(server.endpoint) as sock:
            echo_exactly(sock, *random_chunks(5, MIB, 64 * KIB))
        assert server.stats().open >= 20


@one_kind
@pytest.mark.memory
@pytest.mark.native
@pytest.mark.many_clients
def test_memory_of_clients_that_never_read_is_bounded(serve_process: ServeProcess) -> None:
    """1000 clients that send and never read cost at most a buffer of 64 KiB and a little each."""
    clients = 1000
    server = serve_process(sndbuf=16 * KIB, rcvbuf=16 * KIB)
    assert_serves(server.endpoint)
    before = server.resident_bytes()
    with ExitStack() as stack:
        socks = [
            stack.enter_context(connect(server.endpoint, rcvbuf=4 * KIB, sndbuf=64 * KIB))
            for _ in range(clients)
        ]
        sent = sum(stall(lambda: server.stats()["bytes_in"], *socks))
        grown = server.resident_bytes() - before
        assert server.stats()["open"] == clients
        assert sent > clients * 64 * KIB, "not enough was sent for this test to mean anything"
        assert grown <= clients * 80 * KIB
        assert_serves(server.endpoint)


@one_kind
@pytest.mark.memory
@pytest.mark.native
@pytest.mark.many_clients
def test_memory_of_clients_that_read_at_last_is_freed(serve_process: ServeProcess) -> None:
    """After 80 more clients that stall and then read everything, memory is what it was."""
    server = serve_process(sndbuf=16 * KIB, rcvbuf=16 * KIB)
    stall_and_finish(server, 40)
    before = server.resident_bytes()
    for _ in range(2):
        stall_and_finish(server, 40)
    assert server.resident_bytes() - before < 2 * MIB


@pytest.mark.kinds("unix")  # where the most bytes stay unsent
@pytest.mark.memory
@pytest.mark.native("epoll", "poll", "io_uring")
def test_memory_of_clients_that_do_not_read_is_given_back(serve_process: ServeProcess) -> None:
    """Once 10 have closed, half of which had read everything, memory is what it was."""
    server = serve_process()
    stall_and_close(server, 1)  # what is allocated the first time may stay
    before = server.own_bytes()
    stall_and_close(server, 10)
    assert server.own_bytes() - before < 64 * KIB


def stall_and_close(server: ServedProcess, clients: int) -> None:
    before = server.own_bytes()
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(server.endpoint)) for _ in range(clients)]
        sent = stall(lambda: server.stats()["bytes_in"], *socks)
        assert server.own_bytes() - before > clients * 16 * KIB, "nothing had to be kept"
        for sock, size in list(zip(socks, sent, strict=True))[::2]:
            sock.settimeout(TIMEOUT)
            receive_exactly(sock, size)
    wait_until(lambda: server.stats()["open"] == 0, "all closed")


def stall_and_finish(server: ServedProcess, clients: int) -> None:
    with ExitStack() as stack:
        socks = [
            stack.enter_context(connect(server.endpoint, rcvbuf=64 * KIB, sndbuf=64 * KIB))
            for _ in range(clients)
        ]
        sent = stall(lambda: server.stats()["bytes_in"], *socks)
        for sock, size in zip(socks, sent, strict=True):
            sock.settimeout(TIMEOUT)
            assert len(receive_exactly(sock, size)) == size


@two_kinds
@pytest.mark.many_clients
def test_many_clients_at_once_never_get_each_others_bytes(serve: Serve) -> None:
    """200 connections with a payload of their own each, all sending at once."""
    endpoint = serve().endpoint
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(endpoint)) for _ in range(200)]
        for turn in range(5):
            payloads = [tagged(turn * 1000 + n, 1000 + n) for n in range(len(socks))]
            for sock, payload in zip(socks, payloads, strict=True):
                sock.sendall(payload)
            for sock, payload in zip(socks, payloads, strict=True):
                assert receive_exactly(sock, len(payload)) == payload


# --- abrupt ends --------------------------------------------------------------------------------


@two_kinds
def test_reset_in_the_middle_of_a_transfer(serve: Serve) -> None:
    """Clients that reset at 150 different moments end their own connection only."""
    server = serve()
    rng = random.Random(6)
    block = random_bytes(6, 100_000)
    for _ in range(150):
        sock = connect(server.endpoint)
        sock.sendall(block[: rng.randrange(1, 100_000)])
        receive_exactly(sock, rng.choice((0, 0, 1, 100)))
        reset(sock)
    assert_serves(server.endpoint)
    wait_until(lambda: server.stats().open == 0)
    stats = server.stats()
    assert stats.accepted == sum(stats.closed.values()) == 151
    assert stats.closed["reset"] > 0


@two_kinds
def test_reset_while_bytes_are_unsent(serve: Serve) -> None:
    """A client that never read and then resets is noticed, though nothing can be sent to it."""
    server = serve()
    sock = connect(server.endpoint, rcvbuf=4 * KIB)
    stall(lambda: server.stats().bytes_in, sock)
    assert server.stats().bytes_out < server.stats().bytes_in
    reset(sock)
    wait_until(lambda: server.stats().closed["reset"] == 1)
    assert_serves(server.endpoint)


@two_kinds
def test_end_that_is_seen_with_the_last_bytes(serve_process: ServeProcess) -> None:
    """The last bytes and the end are both noticed when the server sees them at once."""
    server = serve_process()
    with connect(server.endpoint) as sock:
        echo_exactly(sock, b"hello")
        server.pause()
        sock.sendall(b"the last")
        half_close(sock)
        server.resume()
        assert receive_all(sock) == b"the last"
    wait_until(lambda: server.stats()["closed"]["eof"] == 1)


@two_kinds
def test_reset_before_accept(serve_process: ServeProcess) -> None:
    """100 clients that reset while they wait to be accepted do no harm."""
    server = serve_process()
    server.pause()
    for _ in range(100):
        reset(connect(server.endpoint))
    server.resume()
    assert_serves(server.endpoint)
    wait_until(lambda: server.stats()["open"] == 0)


def test_connect_and_close(serve: Serve) -> None:
    """100 clients that connect and close without a byte are counted as a normal end."""
    server = serve()
    for _ in range(100):
        connect(server.endpoint).close()
    wait_until(lambda: server.stats().closed["eof"] == 100)
    assert_serves(server.endpoint)


@one_kind
def test_urgent_byte_does_not_spin(serve: Serve) -> None:
    """An urgent byte is not part of the stream (tcp(7)), and costs no CPU while it is not read."""
    with connect(serve().endpoint) as sock:
        echo_exactly(sock, b"before")
        sock.send(b"!", socket.MSG_OOB)
        assert idle_cpu_seconds(sock, 0.5) < 0.2
        echo_exactly(sock, b"after")


# --- descriptors run out ------------------------------------------------------------------------


@one_kind
@pytest.mark.many_clients
def test_descriptor_limit(serve_process: ServeProcess) -> None:
    """At the limit the server does not spin, serves open connections, logs little, recovers."""
    server = serve_process()
    with ExitStack() as stack, connect(server.endpoint) as early:
        echo_exactly(early, b"early")
        server.leave_descriptors(3)
        socks = [stack.enter_context(connect(server.endpoint)) for _ in range(20)]
        wait_until(lambda: server.stats()["accept_pauses"] > 0)
        assert starved_cpu_seconds(server, early) < 0.2
        for sock in socks:  # each that closes makes room for one that waits
            finish_exactly(sock, b"patience")
            sock.close()
    stats = server.stats()
    assert stats["accepted"] == 21
    assert stats["errors"]["EMFILE"] == stats["accept_pauses"] > 0
    lines = server.errors().splitlines()
    assert 1 <= len(lines) < 10
    assert "Too many open files" in lines[0]


def starved_cpu_seconds(server: ServedProcess, sock: socket.socket) -> float:
    """CPU time that the server takes in a second in which it echoes only ten times."""
    before = server.cpu_seconds()
    for _ in range(10):
        echo_exactly(sock, b"ping")
        nothing_comes(sock, 0.1)
    return server.cpu_seconds() - before


@one_kind
def test_recovers_when_the_limit_is_raised(serve_process: ServeProcess) -> None:
    """Clients that wait at the descriptor limit are served soon after that is raised.

    The first one may still be accepted: a multishot accept keeps to the limit of its beginning.
    """
    server = serve_process()
    assert_serves(server.endpoint)
    wait_until(lambda: server.stats()["open"] == 0)
    wait_until_still(lambda: len(descriptors(server.pid)), quiet=0.1)
    server.leave_descriptors(0)
    with connect(server.endpoint) as first:
        wait_until(lambda: server.stats()["accept_pauses"] > 0)
        before = server.cpu_seconds()
        with connect(server.endpoint) as second:
            wait_until(lambda: server.stats()["accept_pauses"] > 3)
            assert server.cpu_seconds() - before < 0.2
            server.leave_descriptors(10)
            for sock in (first, second):
                finish_exactly(sock, b"at last")
                sock.close()


@one_kind
@pytest.mark.many_clients
def test_drain_at_the_descriptor_limit(serve_process: ServeProcess) -> None:
    """A drain waits for descriptors too: clients queued at the limit are served before the end."""
    server = serve_process(drain_timeout=60)
    with ExitStack() as stack, connect(server.endpoint) as early:
        echo_exactly(early, b"early")
        server.leave_descriptors(0)
        socks = [stack.enter_context(connect(server.endpoint)) for _ in range(5)]
        wait_until(lambda: server.stats()["accept_pauses"] > 0)
        server.signal(signal.SIGTERM)
        finish_exactly(early, b"good-bye")
        early.close()
        for sock in socks:
            finish_exactly(sock, b"patience")
            sock.close()
        assert server.finish()["stats"]["closed"]["eof"] == 6


# --- counters -----------------------------------------------------------------------------------


def test_counters_count_every_byte_and_end(serve: Serve) -> None:
    """Each way to end a connection is counted under its own name."""
    server = serve()
    with connect(server.endpoint) as sock:
        finish_exactly(sock, bytes(1000))
    wait_until(lambda: server.stats().closed["eof"] == 1)
    sock = connect(server.endpoint)
    sock.sendall(bytes(200))
    wait_until(lambda: server.stats().bytes_out == 1200)
    reset(sock)
    wait_until(lambda: server.stats().closed["reset"] == 1)
    with connect(server.endpoint) as sock:
        echo_exactly(sock, bytes(30))
        # The client may have its bytes before the server has counted them.
        wait_until(lambda: server.stats().bytes_out == 1230)
        assert (server.stats().accepted, server.stats().open) == (3, 1)
        server.stop()
    stats = server.stats()
    assert (stats.accepted, stats.open) == (3, 0)
    assert not_zero(stats.closed) == {"eof": 1, "reset": 1, "stopped": 1}
    assert stats.errors == {"ECONNRESET": 1}
    assert (stats.bytes_in, stats.bytes_out, stats.accept_pauses) == (1230, 1230, 0)
    assert stats.endpoints == (str(server.endpoint),)


@one_kind
def test_counters_can_be_read_under_load(serve: Serve) -> None:
    """While bytes flow, every reading is whole, and none goes back."""
    server = serve()
    done = threading.Event()

    def echo() -> None:
        try:
            with connect(server.endpoint) as sock:
                finish_exactly(sock, *random_chunks(8, 8 * MIB, MIB))
        finally:
            done.set()

    last = server.stats()
    with running(echo):
        while not done.is_set():
            for _ in range(100):
                stats = server.stats()
                assert stats.bytes_in >= last.bytes_in
                assert stats.bytes_out >= last.bytes_out
                assert stats.accepted == stats.open + sum(stats.closed.values()) <= 1
                last = stats
            done.wait(0.001)  # else the client, and a server in Python, wait for the GIL
    wait_until(lambda: server.stats().closed["eof"] == 1)
    assert server.stats().bytes_in == server.stats().bytes_out == 8 * MIB
