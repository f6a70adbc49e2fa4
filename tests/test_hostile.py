"""Tests with hostile clients: floods, slow writers, tiny windows and segments, overload."""

from __future__ import annotations

import os
import random
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from clients import (
    TIMEOUT,
    assert_same,
    connect,
    echo_exactly,
    half_close,
    has_ended,
    nothing_comes,
    receive_all,
    running,
    sending,
    wait_until,
)
from implementations import IMPLEMENTATIONS, Implementation, ServedProcess, in_fresh_process

import fastsock

KIB = 1024
MIB = 1024 * KIB
TCP_MAXSEG_MIN = 88  # bytes; below it setsockopt() says EINVAL, TCP_MIN_MSS in <net/tcp.h>


# --- slow writers -------------------------------------------------------------------------------


@pytest.mark.native
@pytest.mark.many_clients
@pytest.mark.parametrize(
    ("clients", "idle_timeout"),
    [
        pytest.param(40, 2.0, id="40"),
        pytest.param(5000, 5.0, id="5000", marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
    ],
)
def test_slow_writers_are_closed(serve: Any, clients: int, idle_timeout: float) -> None:
    """A client that sends nothing for idle_timeout is closed; one that goes on sending is not."""
    need_descriptors(2 * clients + 100)
    server = serve(idle_timeout=idle_timeout)
    with ExitStack() as stack:
        busy = [stack.enter_context(connect(server.endpoint)) for _ in range(8)]
        socks = []
        for _ in range(clients):
            socks.append(stack.enter_context(connect(server.endpoint)))
            socks[-1].sendall(b"s")
            keep_busy(busy)
        while server.stats().closed["idle"] < clients:
            keep_busy(busy)
            nothing_comes(busy[0], 0.02)
        for sock in socks:
            assert receive_all(sock) == b"s"
        keep_busy(busy)
        assert server.stats().open == len(busy)


def keep_busy(socks: list[socket.socket]) -> None:
    for sock in socks:
        echo_exactly(sock, b"still here")


def need_descriptors(count: int) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < count:
        pytest.skip(f"needs a limit of {count} descriptors: ulimit -n")


# --- floods -------------------------------------------------------------------------------------


@pytest.mark.native
@pytest.mark.many_clients
@pytest.mark.parametrize(
    ("limit", "seconds", "timeout"),
    [
        pytest.param(50, 1.0, TIMEOUT, id="50"),
        pytest.param(
            1000, 20.0, 180.0, id="1000", marks=[pytest.mark.slow, pytest.mark.timeout(300)]
        ),
    ],
)
def test_flood_of_twice_as_many_as_allowed(
    serve: Any, limit: int, seconds: float, timeout: float
) -> None:
    """Twice max_connections come again and again: never more are open, and all are served."""
    server = serve(max_connections=limit)
    most = 0
    over = threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.001):
            most = max(most, server.stats().open)

    with running(watch):
        try:
            report = fastsock.load(
                server.endpoint,
                connections=2 * limit,
                duration=seconds,
                warmup=0,
                reconnect_every=10,
                wait="block",
                timeout=timeout,  # the last client waits until each of the others had a process
            )
        finally:
            over.set()
    assert not report.failed, report.reasons
    assert server.stats().accepted > 2 * limit
    assert 0 < most <= limit
    assert server.stats().accept_pauses == 0


@pytest.mark.native
@pytest.mark.many_clients
def test_200_addresses_at_once(implementation: Implementation) -> None:
    """Of 200 addresses each in `allow` is served, and each of the others is closed."""
    with implementation.server(allow=["127.0.0.0/25"]) as server, ExitStack() as stack:
        where = (server.endpoint.host, server.endpoint.port)
        socks = [
            stack.enter_context(socket.create_connection(where, TIMEOUT, (f"127.0.0.{number}", 0)))
            for number in range(1, 201)
        ]
        for sock in socks[:127]:
            echo_exactly(sock, b"allowed")
        for sock in socks[127:]:
            assert has_ended(sock)
        wait_until(lambda: server.stats().rejected == 73)
        assert server.stats().accepted == 127


# --- odd TCP ------------------------------------------------------------------------------------


def test_tiny_segments(serve: Any) -> None:
    """A client that takes no segment over 88 bytes gets every byte all the same."""
    data = random.Random(1).randbytes(128 * KIB)
    endpoint = serve().endpoint
    with socket.socket() as sock:
        sock.settimeout(TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, TCP_MAXSEG_MIN)
        sock.connect((endpoint.host, endpoint.port))
        echo_exactly(sock, data)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= TCP_MAXSEG_MIN


def test_a_window_that_is_zero_again_and_again(serve: Any) -> None:
    """A client that opens its window by a few bytes at a time gets every byte, in order."""
    data = random.Random(2).randbytes(64 * KIB)
    with connect(serve().endpoint, rcvbuf=1) as sock, sending(sock, [data], then_half_close=True):
        parts = [sock.recv(1) for _ in range(500)]
        while part := sock.recv(100):
            parts.append(part)
    assert_same(b"".join(parts), data)


def test_urgent_bytes_between_the_others(serve: Any) -> None:
    """Urgent bytes are not part of the stream (tcp(7)), however many there are.

    One at a time: an urgent byte that a second one overtakes becomes part of the stream.
    """
    with connect(serve().endpoint) as sock:
        for _ in range(200):
            echo_exactly(sock, b"data")
            sock.send(b"!", socket.MSG_OOB)
        half_close(sock)
        assert receive_all(sock) == b""


# --- the application itself ---------------------------------------------------------------------


@pytest.mark.many_clients
def test_stats_and_stop_from_64_threads(serve: Any) -> None:
    """32 threads calling stats() all the time and 32 calling stop() at once all return."""
    server = serve()
    barrier = threading.Barrier(64)

    def look() -> None:
        barrier.wait(TIMEOUT)
        while True:
            stats = server.stats()
            assert stats.open >= 0
            if stats.accepted and not stats.open:
                return

    def stop() -> None:
        barrier.wait(TIMEOUT)
        server.stop()

    with connect(server.endpoint) as sock, ExitStack() as stack:
        echo_exactly(sock, b"hello")
        for work in (look, stop) * 32:
            stack.enter_context(running(work))
    assert server.stats().closed["stopped"] == 1


def test_forks_under_load() -> None:
    """50 forks of a busy serving process cost its clients nothing."""
    assert in_fresh_process(fork_under_load).split() == ["valid", "errors", "{}"]


def fork_under_load() -> None:
    import warnings

    warnings.simplefilter("ignore", DeprecationWarning)
    reports = []
    with fastsock.Server("tcp://127.0.0.1:0") as server:

        def load() -> None:
            reports.append(
                fastsock.load(
                    server.endpoint,
                    connections=16,
                    messages=20_000,
                    reconnect_every=50,
                    wait="block",
                    timeout=TIMEOUT,
                )
            )

        with running(load):
            for _ in range(50):
                child = os.fork()
                if child == 0:
                    os._exit(0)
                assert os.waitpid(child, 0)[1] == 0
    assert not reports[0].failed, reports[0].errors
    print("valid errors", server.stats().errors)


# --- more datagrams than the server can take ----------------------------------------------------


@pytest.mark.memory
@pytest.mark.parametrize("name", ["native-epoll", "pure-threads"])
def test_udp_overload_is_dropped_by_the_kernel_alone(name: str) -> None:
    """The kernel counts what the queue cannot hold; all else is answered; memory stays bounded."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made, ExitStack() as stack:
        made.bind(("127.0.0.1", 0))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * KIB)
        server = ServedProcess(IMPLEMENTATIONS[name], fds=[made.fileno()])
        stack.enter_context(closing(server))
        socks = [stack.enter_context(udp_client(made.getsockname())) for _ in range(4)]
        blast(socks, 100)
        wait_until(lambda: server.stats()["datagrams_in"] + kernel_drops(made) == 400)
        before = server.resident_bytes()
        server.pause()
        blast(socks, 2000)  # far more than the queue holds
        server.resume()
        blast(socks, 2000)
        sent = 4 * (100 + 2000 + 2000)
        wait_until(
            lambda: server.stats()["datagrams_in"] + kernel_drops(made) == sent, "all accounted for"
        )
        assert kernel_drops(made) > 0
        stats = server.stats()
        assert stats["datagrams_out"] == stats["datagrams_in"]
        assert sum(stats["dropped"].values()) == 0
        assert server.resident_bytes() - before < 4 * MIB
        with udp_client(made.getsockname()) as sock:
            sock.send(b"are you there?")
            assert sock.recv(100) == b"are you there?"


@contextmanager
def udp_client(server: Any) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect(server)
        yield sock


def blast(socks: list[socket.socket], count: int) -> None:
    """Send so many datagrams from each, as fast as it goes, and read no answer."""
    for _ in range(count):
        for sock in socks:
            sock.send(bytes(1000))


def kernel_drops(sock: socket.socket) -> int:
    """How many datagrams the kernel dropped as the queue was full (/proc/net/udp)."""
    inode = str(os.fstat(sock.fileno()).st_ino)
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] == inode:
            return int(fields[12])
    raise AssertionError("the socket is not in /proc/net/udp")
