"""Tests of how a datagram server waits: in recvmmsg(), which shutdown() ends, or in poll().

strace(1) shows the calls.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from clients import not_zero, running, wait_until
from implementations import IMPLEMENTATIONS, ServedProcess, in_fresh_process
from test_datagram import client, echo

from fastsock import Server

LOOPBACK = "udp://127.0.0.1:0"
ECHOES = 100
LAST = (ECHOES, ECHOES + 1)  # calls of one kind; the stop may come before the last wait


def traced_calls(log: Path, *faults: str, **options: Any) -> dict[str, int]:
    """How often a server makes each call in the thread that answers 100 datagrams, and stops."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    tracing = ("-e", "trace=poll,recvmmsg,sendmmsg,shutdown", *faults, "-e", "signal=none")
    with ServedProcess(
        IMPLEMENTATIONS["native-epoll"],
        under=(strace, "-D", "-f", "-qq", "-o", str(log), *tracing),
        **{"busy_poll": 0, **options},
    ) as server:
        with client(server.endpoint) as sock:
            for number in range(ECHOES):
                assert echo(sock, b"%d" % number) == b"%d" % number
        server.signal(signal.SIGTERM)
        stats = server.finish()["stats"]
    assert stats["datagrams_in"] == stats["datagrams_out"] == ECHOES
    assert not_zero(stats["dropped"]) == stats["errors"] == {}
    lines = [line.split(maxsplit=1) for line in log.read_text().splitlines()]
    worker = next(thread for thread, call in lines if "sendmmsg(" in call and ", 1, " in call)
    names = ("poll", "recvmmsg", "sendmmsg")
    own = [call for thread, call in lines if thread == worker]
    return {name: sum(call.startswith(f"{name}(") for call in own) for name in names}


@pytest.mark.parametrize("url", [LOOPBACK, "udp://[::1]:0"])
def test_a_lone_datagram_costs_two_calls(tmp_path: Path, url: str) -> None:
    """It is waited for by the call that receives it. The wake-up at the end is not counted."""
    calls = traced_calls(tmp_path / "log", endpoint=url)
    assert (calls["poll"], calls["sendmmsg"]) == (0, ECHOES)
    assert calls["recvmmsg"] in LAST


def test_an_inherited_socket_is_polled(tmp_path: Path) -> None:
    """Another process may use it, so it is neither shut down nor blocked on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        calls = traced_calls(tmp_path / "log", fds=[sock.fileno()])
        assert calls["poll"] in LAST
        with client_of(sock) as other:
            other.send(b"still open")
            assert sock.recv(100) == b"still open"
    assert "shutdown(" not in without_the_probe(tmp_path / "log")


def client_of(sock: socket.socket) -> socket.socket:
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    other.connect(sock.getsockname())
    return other


def without_the_probe(log: Path) -> str:
    """From the first datagram on: what shutdown() does is tried at the start."""
    return log.read_text().partition("sendmmsg(")[2]


@pytest.mark.parametrize("error", ["ENOTCONN", "EPERM"])
def test_where_shutdown_does_nothing(tmp_path: Path, error: str) -> None:
    """A sandbox may only refuse it; then poll() waits, and the server stops all the same."""
    calls = traced_calls(
        tmp_path / "log", "-e", f"inject=shutdown:error={error}", endpoint=LOOPBACK
    )
    assert calls["poll"] in LAST


def test_the_start_and_the_stop_are_no_race() -> None:
    """The wake-up ends a wait also if it comes before it; and it ends no other server's."""
    with Server(LOOPBACK) as other, client(other.endpoint) as sock:
        for number in range(300):
            server = Server(LOOPBACK)
            server.start()
            if number % 3 == 0:
                with client(server.endpoint) as own:
                    assert echo(own) == b"probe"
            elif number % 3 == 1:
                time.sleep(number / 1e6)
            server.stop(drain=20.0 if number % 2 else 0)
            assert server.stats().datagrams_in == (number % 3 == 0)
            assert echo(sock) == b"probe"
    assert other.stats().datagrams_in == other.stats().datagrams_out == 300


def test_stops_of_many_threads() -> None:
    """The socket's number may belong to another socket as soon as it is closed."""
    with Server(LOOPBACK) as other, client(other.endpoint) as sock:
        for _ in range(50):
            server = Server(LOOPBACK)
            server.start()
            with (
                running(partial(server.stop, 0)),
                running(partial(server.stop, 1.0)),
                client(server.endpoint) as own,
                suppress(ConnectionRefusedError),
            ):
                own.send(b"")
            assert echo(sock) == b"probe"


def test_empty_datagrams_are_no_wake_up() -> None:
    with Server(LOOPBACK) as server, client(server.endpoint) as sock:
        for _ in range(100):
            assert echo(sock, b"") == b""
    assert server.stats().datagrams_in == server.stats().datagrams_out == 100


def test_a_socket_that_other_code_shuts_down(caplog: pytest.LogCaptureFixture) -> None:
    """The server ends with an error instead of asking again and again."""
    with Server(LOOPBACK) as server, client(server.endpoint) as sock:
        assert echo(sock) == b"probe"
        with duplicate_of(server) as copy, pytest.raises(OSError, match="not connected"):
            copy.shutdown(socket.SHUT_RD)
        expected = f"recvmmsg {server.endpoint}: Invalid argument (the socket was shut)"
        wait_until(lambda: server.stats() and expected in caplog.text)
    assert server.stats().datagrams_in == 1


def duplicate_of(server: Server) -> socket.socket:
    for path in Path("/proc/self/fd").iterdir():
        if os.path.realpath(path).partition("socket:")[1]:
            copy = socket.socket(fileno=os.dup(int(path.name)))
            if copy.type == socket.SOCK_DGRAM and copy.getsockname() == server.address:
                return copy
            copy.close()
    raise AssertionError(f"no socket of {server}")


def test_a_forked_child_does_not_stop_its_parent() -> None:
    """Also before fork's hooks have run in it: a signal may come that early."""
    in_fresh_process(stop_in_a_forked_child)


def stop_in_a_forked_child() -> None:
    with Server(LOOPBACK) as server, client(server.endpoint) as sock:
        assert echo(sock) == b"probe"
        child = ctypes.PyDLL(None).fork()  # without the hooks of os.fork()
        if child == 0:
            for worker in server._workers:
                worker.request_stop(0)
            os._exit(0)
        os.waitpid(child, 0)
        for _ in range(3):
            assert echo(sock) == b"probe"
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        for _ in range(3):
            assert echo(sock) == b"probe"
    assert server.stats().datagrams_out == 7
