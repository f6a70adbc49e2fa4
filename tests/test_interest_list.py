"""Tests of what the epoll engine waits for: by epoll, or in a poll list where that is cheaper."""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from clients import connect, echo_exactly, finish_exactly, random_chunks, wait_until
from implementations import ServedProcess

ServeProcess = Callable[..., ServedProcess]

pytestmark = pytest.mark.native("epoll")

CROWD = 64
OTHERS = 2  # in epoll beside the connections: the listener and the eventfd
ROUNDS = 60  # more than enough to move, and to move back

ways = pytest.mark.parametrize("way", ["epoll", "poll", "alternate"])


def in_epoll(server: ServedProcess) -> int:
    """How many connections epoll watches (proc(5), /proc/PID/fdinfo)."""
    for path in Path(f"/proc/{server.pid}/fdinfo").iterdir():
        found = path.read_text().count("tfd:")
        if found:
            return found - OTHERS
    raise AssertionError("no epoll")


@contextmanager
def crowd(server: ServedProcess) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(connect(server.endpoint)) for _ in range(CROWD)]


def echo_together(server: ServedProcess, peers: list[socket.socket], times: int) -> None:
    """Echo on all connections; the server finds all of them ready in one turn."""
    for number in range(times):
        server.pause()
        for peer in peers:
            peer.sendall(b"%4d" % number)
        server.resume()
        for peer in peers:
            assert peer.recv(4, socket.MSG_WAITALL) == b"%4d" % number


def test_a_crowd_moves_to_the_poll_list_and_back(serve_process: ServeProcess) -> None:
    server = serve_process(busy_poll=0)
    with crowd(server) as peers:
        wait_until(lambda: in_epoll(server) == CROWD)
        echo_together(server, peers, ROUNDS)
        wait_until(lambda: in_epoll(server) == 0)
        for _ in range(ROUNDS):
            echo_exactly(peers[0], b"one alone")
        wait_until(lambda: in_epoll(server) == CROWD)
        echo_together(server, peers, ROUNDS)
        wait_until(lambda: in_epoll(server) == 0)


def test_those_that_are_seldom_ready_stay_in_epoll(serve_process: ServeProcess) -> None:
    server = serve_process(busy_poll=0)
    with crowd(server) as peers:
        for _ in range(ROUNDS // 2):
            for peer in peers:
                echo_exactly(peer, b"in turn")
        wait_until(lambda: in_epoll(server) == CROWD)


def test_a_newcomer_is_served_beside_the_poll_list(serve_process: ServeProcess) -> None:
    server = serve_process(busy_poll=0)
    with crowd(server) as peers:
        echo_together(server, peers, ROUNDS)
        with connect(server.endpoint) as newcomer:
            echo_exactly(newcomer, b"new")
            finish_exactly(newcomer, b"and gone")
        for peer in peers[::2]:
            peer.close()
        wait_until(lambda: server.stats()["open"] == CROWD // 2)
        echo_together(server, peers[1::2], 2)


def test_a_lowered_descriptor_limit(serve_process: ServeProcess) -> None:
    """poll() refuses a list that is longer than RLIMIT_NOFILE; epoll does not."""
    server = serve_process(busy_poll=0)
    with crowd(server) as peers:
        echo_together(server, peers, ROUNDS)
        wait_until(lambda: in_epoll(server) == 0)
        hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (CROWD // 2, hard))
        echo_together(server, peers, 2)
        assert in_epoll(server) == CROWD
        echo_together(server, peers, ROUNDS)
        for peer in peers:
            finish_exactly(peer, b"to the end")


@ways
def test_forced(way: str, serve_process: ServeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests may force does what it says: one connection is enough for the poll list."""
    monkeypatch.setenv("FASTSOCK_TEST_WATCH", way)
    server = serve_process(busy_poll=0)
    with connect(server.endpoint) as peer:

        def watched_as_forced() -> bool:
            """Echoes may come before the connection is watched, and a move follows an answer."""
            echo_exactly(peer, b"hello")
            return in_epoll(server) == (way != "poll")

        wait_until(watched_as_forced)
        places: set[int] = set()
        for chunk in random_chunks(seed=7, total=1 << 18, largest=1 << 15):
            echo_exactly(peer, chunk)
            places.add(in_epoll(server))
    assert places == {"epoll": {1}, "poll": {0}, "alternate": {0, 1}}[way]


@ways
def test_slow_readers(
    way: str, serve_process: ServeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full socket is watched for room in either place."""
    monkeypatch.setenv("FASTSOCK_TEST_WATCH", way)
    server: Any = serve_process(busy_poll=0)
    data = bytes(range(256)) * 16384
    with connect(server.endpoint, rcvbuf=4096) as peer:
        echo_exactly(peer, b"first")
        finish_exactly(peer, data)


def test_what_has_come_with_the_connection_is_served_at_once(
    serve_process: ServeProcess, tmp_path: Path
) -> None:
    """A connection whose end has come too is never watched."""
    log = tmp_path / "calls"
    tracer = ("strace", "-f", "-qq", "-o", str(log), "-e", "trace=epoll_ctl")
    server = serve_process(busy_poll=0, under=tracer)
    before = log.read_text().count("EPOLL_CTL_ADD")
    with ExitStack() as stack:
        server.pause()
        peers = [stack.enter_context(connect(server.endpoint)) for _ in range(10)]
        for peer in peers:
            peer.sendall(b"all of it")
            peer.shutdown(socket.SHUT_WR)
        server.resume()
        for peer in peers:
            assert peer.recv(100, socket.MSG_WAITALL) == b"all of it"
    wait_until(lambda: server.stats()["closed"]["eof"] == len(peers))
    assert log.read_text().count("EPOLL_CTL_ADD") == before == OTHERS
