"""Tests of what is limited: connections, idle time, addresses and descriptors; and of workers."""

from __future__ import annotations

import errno
import os
import re
import socket
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from clients import (
    connect,
    echo_exactly,
    fill,
    finish_exactly,
    half_close,
    has_ended,
    receive_all,
    wait_until,
)
from load_runs import faults

import fastsock
from fastsock import pure
from fastsock.pure.acceptor import Acceptor


@pytest.mark.native
@pytest.mark.many_clients
def test_more_clients_than_allowed_wait_their_turn(serve: Any) -> None:
    """At max_connections new connections wait in the backlog, unreset, until one closes."""
    server = serve(max_connections=3)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server.endpoint)) for _ in range(6)]
        for sock in clients:
            sock.sendall(b"hello")
        for sock in clients[:3]:
            assert sock.recv(5) == b"hello"
        assert server.stats().accepted == 3
        assert server.stats().accept_pauses == 0
        for closing, next_one in zip(clients[:3], clients[3:], strict=True):
            closing.close()
            assert next_one.recv(5) == b"hello"
        assert server.stats().accepted == 6


@pytest.mark.native
@pytest.mark.many_clients
def test_drain_at_max_connections_serves_the_queue(serve: Any) -> None:
    """Clients in the backlog are served too."""
    server = serve(max_connections=1, drain_timeout=20.0)
    with connect(server.endpoint) as first, connect(server.endpoint) as second:
        echo_exactly(first, b"one")
        second.sendall(b"two")
        server._request_stop(server._deadline(20))
        half_close(first)
        assert receive_all(first) == b""
        assert second.recv(3) == b"two"
        half_close(second)
        assert receive_all(second) == b""
        server.stop()
    assert server.stats().closed["eof"] == 2


@pytest.mark.native
@pytest.mark.many_clients
def test_idle_clients_are_closed(serve: Any) -> None:
    """A client that neither sends nor takes a byte for idle_timeout is closed, counted as idle."""
    server = serve(idle_timeout=0.2)
    with connect(server.endpoint) as idle, connect(server.endpoint) as stuck:
        echo_exactly(idle, b"hello")
        fill(stuck)
        assert has_ended(idle)
        wait_until(lambda: server.stats().closed["idle"] == 2)


@pytest.mark.native
@pytest.mark.many_clients
@pytest.mark.parametrize(
    ("endpoint", "source", "ranges", "allowed"),
    [
        ("tcp://127.0.0.1:0", "127.0.0.1", ["127.0.0.1/32"], True),
        ("tcp://127.0.0.1:0", "127.0.0.2", ["127.0.0.1/32"], False),
        ("tcp://127.0.0.1:0", "127.0.0.2", ["10.0.0.0/8", "127.0.0.0/30"], True),
        ("tcp://127.0.0.1:0", "127.0.0.4", ["10.0.0.0/8", "127.0.0.0/30"], False),
        ("tcp://127.0.0.1:0", "127.0.0.1", ["0.0.0.0/0"], True),
        ("tcp://127.0.0.1:0", "127.0.0.1", ["::1/128"], False),
        ("tcp://[::1]:0", "::1", ["::1"], True),
        ("tcp://[::1]:0", "::1", ["127.0.0.0/8"], False),
        ("tcp://[::]:0?dual_stack=1", "127.0.0.1", ["127.0.0.0/8"], True),
        ("tcp://[::]:0?dual_stack=1", "127.0.0.1", ["::1/128"], False),
    ],
)
def test_only_allowed_addresses_are_served(
    implementation: Any, endpoint: str, source: str, ranges: list[str], allowed: bool
) -> None:
    """A client outside `allow` is closed at once and counted, also an IPv4-mapped one."""
    with implementation.server(endpoint, allow=ranges) as server:
        host = "127.0.0.1" if "." in source else "::1"
        with socket.create_connection((host, server.endpoint.port), 20, (source, 0)) as sock:
            if allowed:
                echo_exactly(sock, b"hello")
            else:
                assert has_ended(sock)
            wait_until(lambda: server.stats().rejected == (0 if allowed else 1))
            assert ("(1 more rejected)" in str(server.stats())) is not allowed
            assert server.stats().accepted == (1 if allowed else 0)


@pytest.mark.native
@pytest.mark.many_clients
def test_workers_share_the_connections(serve: Any) -> None:
    """With several workers each accepts some, and every client is served."""
    server = serve(workers=3, cpus=[min(os.sched_getaffinity(0))])
    report = fastsock.load(server.endpoint, connections=60, messages=6000, wait="block")
    assert not faults(report)
    per_worker = server.stats().accepted_per_worker
    assert len(per_worker) == 3
    assert sum(per_worker) == 60
    assert min(per_worker) > 0


@pytest.mark.native
@pytest.mark.many_clients
def test_drain_of_several_workers_resets_no_connection(serve: Any) -> None:
    """Connections that wait in the accept queues of several workers are served."""
    server = serve(workers=4)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server.endpoint)) for _ in range(200)]
        server._request_stop(server._deadline(20))
        for sock in clients:
            sock.sendall(b"hello")
            half_close(sock)
        for sock in clients:
            assert receive_all(sock) == b"hello"
        server.stop()
    assert server.stats().closed["eof"] == 200


@pytest.mark.native
@pytest.mark.many_clients
def test_several_endpoints_and_workers(implementation: Any) -> None:
    """Every endpoint has all its workers, and the port is free afterwards."""
    ports = ("tcp://127.0.0.1:0", "tcp://[::1]:0")
    with implementation.package.Server(*ports, engine=implementation.engine, workers=2) as server:
        for endpoint in server.endpoints:
            with connect(endpoint) as sock:
                echo_exactly(sock, b"hello")
        bound = server.endpoints
        assert len(server.stats().accepted_per_worker) == 4
    with implementation.package.Server(*bound, engine=implementation.engine) as again:
        assert again.endpoints == bound


@pytest.mark.parametrize("engine", ["selectors", "asyncio"])
def test_a_closed_connection_ends_the_pause(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops of the twin accept again as soon as a descriptor has come free."""
    accept = Acceptor.accept

    def accept_one_at_a_time(acceptor: Acceptor) -> socket.socket | None:
        if server.stats().open:
            acceptor._pause_after(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
            return None
        return accept(acceptor)

    monkeypatch.setattr("fastsock.pure.acceptor.PAUSE", 3600.0)
    monkeypatch.setattr(Acceptor, "accept", accept_one_at_a_time)
    with pure.Server("tcp://127.0.0.1:0", engine=engine) as server:
        with connect(server.endpoint) as first:
            echo_exactly(first, b"first")
            waiting = connect(server.endpoint)
            wait_until(lambda: server.stats().accept_pauses > 0)
        with waiting:
            finish_exactly(waiting, b"at last")


@pytest.mark.parametrize("engine", pure.ENGINES)
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM, errno.ENOSYS])
def test_the_twin_ends_on_an_error_that_cannot_pass(
    engine: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accept() that is forbidden, or whose listener is gone, is not tried again for ever."""

    def refuse(_: socket.socket) -> None:
        raise OSError(number, os.strerror(number))

    server = pure.Server("tcp://127.0.0.1:0", engine=engine)
    server.start()
    with connect(server.endpoint) as sock:
        echo_exactly(sock, b"before")
        monkeypatch.setattr(socket.socket, "accept", refuse)
        if engine == "serial":  # it accepts when its client has ended
            half_close(sock)
        with suppress(ConnectionError):  # it may have called accept() once more by now
            connect(server.endpoint).close()
        expected = f"accept {server.endpoint}: {os.strerror(number)}"
        with pytest.raises(OSError, match=re.escape(expected)):
            server.serve_forever()
        assert has_ended(sock)
    assert server.stats().open == 0


@pytest.mark.parametrize("engine", pure.ENGINES)
def test_the_twin_pauses_after_many_failures(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that may pass and does not is no reason to spin."""

    def fail(_: socket.socket) -> None:
        raise ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))

    monkeypatch.setattr(socket.socket, "accept", fail)
    with pure.Server("tcp://127.0.0.1:0", engine=engine) as server, connect(server.endpoint):
        wait_until(lambda: server.stats().accept_pauses >= 2)
    stats = server.stats()
    assert stats.errors == {"ECONNABORTED": 64 * stats.accept_pauses}


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"max_connections": -1}, ValueError, "max_connections -1"),
        ({"max_connections": 1, "workers": 2}, ValueError, "shared by 2 workers"),
        ({"idle_timeout": -0.5}, ValueError, "idle_timeout -0.5"),
        ({"idle_timeout": b"1"}, TypeError, "idle_timeout b'1'"),
        ({"allow": ["10.0.0.1/8"]}, ValueError, "has host bits set"),
        ({"allow": ["localhost"]}, ValueError, "'localhost'"),
        ({"allow": "10.0.0.0/8"}, TypeError, "list of ranges"),
        ({"allow": [7]}, TypeError, "allow 7"),
        ({"workers": 0}, ValueError, "workers 0"),
        ({"cpus": [4096]}, ValueError, "cpu 4096 cannot be used"),
        ({"cpus": [True]}, TypeError, "cpu True"),
    ],
    ids=str,
)
def test_bad_limits(options: dict[str, Any], error: type[Exception], text: str) -> None:
    """A bad limit is refused in one line that says what is allowed."""
    with pytest.raises(error, match=text) as caught:
        fastsock.Server("tcp://127.0.0.1:0", **options)
    assert "\n" not in str(caught.value)
