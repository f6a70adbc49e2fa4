"""Tests of the fork engine's child processes: what they hold and ignore, and how they end."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from clients import (
    TIMEOUT,
    connect,
    echo_exactly,
    half_close,
    has_ended,
    stall,
    wait_until,
)
from implementations import ANY_PORT, IMPLEMENTATIONS, ServedProcess, in_fresh_process
from leftovers import children

from fastsock import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(ANY_PORT, engine="fork") as server:
        yield server


@pytest.fixture
def sock(server: Server) -> Iterator[socket.socket]:
    """A client of the server that has had an echo: the server has a child for it."""
    with connect(server.endpoint) as sock:
        echo_exactly(sock, b"hello")
        yield sock


def test_children_of_the_application() -> None:
    """The server and the application each wait for their own, and the server's raise no SIGCHLD."""
    in_fresh_process(serve_beside_children)


def serve_beside_children() -> None:
    signals: list[int] = []
    with Server(ANY_PORT, engine="fork") as server:
        with connect(server.endpoint) as one, connect(server.endpoint) as other:
            echo_exactly(one, b"a child")
            echo_exactly(other, b"another")
            of_server = children()
            assert len(of_server) == 2
            first = os.spawnlp(os.P_NOWAIT, "true", "true")
            assert os.waitpid(first, 0) == (first, 0)
            signal.signal(signal.SIGCHLD, lambda number, frame: signals.append(number))
            half_close(one)
            assert has_ended(one)
            wait_until(lambda: children() != of_server)
            with pytest.raises(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            second = os.spawnlp(os.P_NOWAIT, "false", "false")
            assert os.wait()[0] == second
        wait_until(lambda: not children())
    assert len(signals) == 1  # of the application's own


def test_children_die_with_the_server() -> None:
    """When the server is killed, the kernel ends its children, idle or not, and their clients."""
    with (
        closing(ServedProcess(IMPLEMENTATIONS["native-fork"])) as server,
        connect(server.endpoint) as idle,
        connect(server.endpoint) as stalled,
    ):
        echo_exactly(idle, b"hello")
        stall(lambda: server.stats()["bytes_in"], stalled)
        pidfds = [os.pidfd_open(pid) for pid in children(server.pid)]
        assert len(pidfds) == 2
        server.signal(signal.SIGKILL)
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], TIMEOUT)[0]
            os.close(pidfd)
        assert has_ended(idle)


def test_child_is_killed(server: Server, sock: socket.socket) -> None:
    """Its client alone is gone, and that is counted as an error."""
    (pid,) = children()
    with connect(server.endpoint) as other:
        echo_exactly(other, b"hello")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.stats().closed["error"] == 1)
        assert has_ended(sock)
        echo_exactly(other, b"still there")
        assert server.stats().bytes_in == 21


def test_child_that_cannot_end(server: Server, sock: socket.socket) -> None:
    """A child stopped by SIGSTOP does not hold up stop() for ever."""
    os.kill(children()[0], signal.SIGSTOP)
    server.stop()
    assert has_ended(sock)
    assert server.stats().closed["stopped"] == 1
    assert children() == []


@pytest.mark.usefixtures("sock")
def test_child_holds_its_connection_alone() -> None:
    """A copy of any other descriptor would hold open what the server closes."""
    (pid,) = children()
    (fd,) = Path(f"/proc/{pid}/fd").iterdir()
    assert str(fd.readlink()).startswith("socket:")


def test_child_takes_no_signal(sock: socket.socket) -> None:
    """The parent alone answers what a terminal sends to every process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(children()[0], number)
    echo_exactly(sock, b"still there")
