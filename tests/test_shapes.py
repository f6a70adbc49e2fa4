"""Tests of the server engines: those that block first of all, beside the loops that never do."""

from __future__ import annotations

import os
import random
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from clients import wait_until
from implementations import Implementation, usable_engines
from leftovers import children

import fastsock

pytestmark = pytest.mark.native

ENGINES = usable_engines()
MIB = 1 << 20
TIMEOUT = 25.0  # seconds; only something that hangs takes so long
FEW_DESCRIPTORS = 64


@pytest.fixture
def server(implementation: Implementation) -> Iterator[fastsock.Server]:
    with implementation.server() as server:
        yield server


def connect(server: Any, **options: int) -> socket.socket:
    sock = socket.socket()
    sock.settimeout(TIMEOUT)
    for name, value in options.items():
        sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    try:
        sock.connect((server.endpoint.host, server.endpoint.port))
    except OSError:
        sock.close()
        raise
    return sock


def receive(sock: socket.socket, size: int = sys.maxsize) -> bytes:
    """Receive `size` bytes, or up to the end of the stream."""
    data = bytearray()
    while len(data) < size and (part := sock.recv(min(size - len(data), 1 << 16))):
        data += part
    return bytes(data)


def assert_echo(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    assert receive(sock, len(data)) == data


def has_ended(sock: socket.socket) -> bool:
    try:
        return receive(sock) == b""
    except ConnectionResetError:
        return True


@contextmanager
def beside(work: Callable[..., object], *arguments: Any) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    yield thread
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def send_and_finish(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def fill(sock: socket.socket) -> int:
    """Send until nothing more is taken: the server is stuck in its own send() then."""
    sock.setblocking(False)
    sent = 0
    while select.select([], [sock], [], 0.2)[1]:
        sent += sock.send(bytes(1 << 16))
    sock.settimeout(TIMEOUT)
    return sent


# --- bytes --------------------------------------------------------------------------------------


def test_echo(server: fastsock.Server) -> None:
    """Every size comes back byte by byte, from one client after the other."""
    rng = random.Random(1)
    for _ in range(3):
        with connect(server) as sock:
            for size in (1, 64, 1000, 65535, 65536, 65537, 200_000):
                with beside(sock.sendall, data := rng.randbytes(size)):
                    assert receive(sock, size) == data


def test_reset(server: fastsock.Server) -> None:
    """A reset in the middle of a transfer ends that connection, and is counted as one."""
    for _ in range(3):
        sock = connect(server)
        fill(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    wait_until(lambda: server.stats().closed["reset"] == 3)
    with connect(server) as sock:
        assert_echo(sock, b"still there")


def test_stats_are_live(server: fastsock.Server) -> None:
    """What an open connection has moved is counted while it is open, and stays after its end."""
    with connect(server) as sock:
        assert_echo(sock, bytes(1000))
        wait_until(lambda: server.stats().bytes_out == 1000)
        assert (server.stats().open, server.stats().bytes_in) == (1, 1000)
    wait_until(lambda: server.stats().open == 0)
    server.stop()
    stats = server.stats()
    assert (stats.accepted, stats.closed["eof"], stats.bytes_in) == (1, 1, 1000)
    assert stats.errors == {}


# --- stopping -----------------------------------------------------------------------------------


def test_stop(server: fastsock.Server) -> None:
    """stop() ends clients that are idle, stuck, waiting to be accepted, or never stop sending."""
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(server)) for _ in range(10)]
        assert_echo(socks[0], b"idle")
        fill(socks[1])
        wait_until(lambda: server.stats().accepted in (1, 10))
        server.stop()
        for sock in socks[2:]:
            assert has_ended(sock)
    stats = server.stats()
    assert stats.accepted == stats.closed["stopped"] == 10
    assert stats.errors == {}


def test_stop_while_stuck(server: fastsock.Server) -> None:
    """stop() ends a client that is served, has filled every buffer and reads nothing."""
    with connect(server, SO_RCVBUF=8192) as sock:
        fill(sock)
        server.stop()
    assert server.stats().closed["stopped"] == 1


def test_drain(server: fastsock.Server) -> None:
    """stop(drain) takes in who waits, refuses newcomers, and lets everybody finish."""
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(server)) for _ in range(5)]
        assert_echo(socks[0], b"in")
        with beside(server.stop, 60):
            wait_until(lambda: refused(server))
            for sock in socks:
                with beside(send_and_finish, sock, bytes(MIB)):
                    assert receive(sock) == bytes(MIB)
    closed = dict(server.stats().closed)
    assert closed.pop("eof") >= 5  # those who asked whether they are refused may have been early
    assert not any(closed.values())


def test_drain_ends(server: fastsock.Server) -> None:
    """Who does not finish is ended at the deadline, and a shorter one counts at once."""
    with connect(server) as idle:
        assert_echo(idle, b"in")
        with beside(server.stop, 60):
            wait_until(lambda: refused(server))
            assert_echo(idle, b"still in")
            server.stop(drain=0.01)
        assert has_ended(idle)
    assert server.stats().closed["stopped"] == 1


def refused(server: fastsock.Server) -> bool:
    try:
        connect(server).close()
    except ConnectionError:
        return True
    return False


# --- limits, in a process of its own ------------------------------------------------------------


@contextmanager
def in_process(function: Callable[..., None], *arguments: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a function of this file in a new interpreter, and talk to it line by line."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); " + (
        f"import test_shapes; test_shapes.{function.__name__}(*{arguments!r})"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(process: subprocess.Popen[str], line: str = "") -> list[int]:
    assert process.stdin is not None
    assert process.stdout is not None
    if line:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    return [int(word) for word in process.stdout.readline().split()]


def serve_at_the_limit(engine: str, resource_name: str) -> None:
    """Serve; when told so, with no descriptor (or process) to be had any more."""
    if resource_name == "RLIMIT_NPROC" and os.geteuid() == 0:
        os.setuid(65534)  # the limit does not bind root
    limit = getattr(resource, resource_name)
    before = resource.getrlimit(limit)
    if limit == resource.RLIMIT_NOFILE:
        # Before it serves: a multishot accept keeps to the limit that was when it began.
        resource.setrlimit(limit, (FEW_DESCRIPTORS, before[1]))
    with fastsock.Server("tcp://127.0.0.1:0", engine=engine) as server:
        print(server.endpoint.port, flush=True)
        for line in sys.stdin:
            if line == "limit\n":
                if limit == resource.RLIMIT_NOFILE:
                    take_all_descriptors()
                else:
                    resource.setrlimit(limit, (0, before[1]))
            elif line == "lift\n":
                resource.setrlimit(limit, before)
            stats = server.stats()
            print(stats.accept_pauses, int(time.process_time() * 1000), stats.accepted, flush=True)


def take_all_descriptors() -> None:
    with suppress(OSError):
        while True:
            os.dup(0)


def connect_to(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), TIMEOUT)


@pytest.mark.parametrize("engine", ENGINES)
def test_descriptor_limit(engine: str) -> None:
    """Without descriptors the listener rests, which costs no CPU, and comes back by itself."""
    with in_process(serve_at_the_limit, engine, "RLIMIT_NOFILE") as process:
        (port,) = ask(process)
        _, before, _ = ask(process, "limit")
        fds = [connect_to(port) for _ in range(3)]
        wait_until(lambda: ask(process, "?")[0] >= 5)  # 0.1 s of rest between two of them
        assert ask(process, "?")[1] - before < 250
        ask(process, "lift")
        for sock in fds:
            with sock:
                assert_echo(sock, b"patience")


# --- the application's forks --------------------------------------------------------------------


def fork_beside_a_server(engine: str) -> None:
    with fastsock.Server("tcp://127.0.0.1:0", engine=engine) as server, connect(server) as sock:
        assert_echo(sock, b"hello")
        in_parent, in_child = socket.socketpair()
        child = os.fork()
        if child == 0:
            in_parent.close()  # so that it also ends when the parent fails
            in_child.send(b"x")  # Python's hooks have run by now
            in_child.recv(1)  # live on until the parent is done
            with fastsock.Server("tcp://127.0.0.1:0", engine=engine) as own, connect(own) as mine:
                assert_echo(mine, b"a server of its own")
            os._exit(0)
        in_parent.recv(1)
        assert_echo(sock, b"the parent serves on")
        server.stop()
        assert has_ended(sock)  # though the child had a copy of the connection
        with fastsock.Server(server.endpoint, engine=engine):  # and of the listener
            in_parent.send(b"x")
            assert os.waitpid(child, 0)[1] == 0
    print(0, flush=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="os.fork() warns when there are threads")
def test_fork_of_the_application(engine: str) -> None:
    """A forked child keeps nothing of the server open, and can have one of its own."""
    with in_process(fork_beside_a_server, engine) as process:
        assert ask(process) == [0]


@pytest.mark.parametrize("engine", ["threads", "fork"])
def test_nobody_to_serve_a_client(engine: str) -> None:
    """Where no thread or process can be made, accepting rests, and that client waits."""
    with in_process(serve_at_the_limit, engine, "RLIMIT_NPROC") as process:
        (port,) = ask(process)
        ask(process, "limit")
        with connect_to(port) as first, connect_to(port) as second:
            wait_until(lambda: ask(process, "?")[0] >= 2)
            ask(process, "lift")
            assert_echo(first, b"at last")
            assert_echo(second, b"me too")
        assert ask(process, "?")[2] == 2


def test_signals_are_left_alone(server: fastsock.Server) -> None:
    """No engine changes what a signal does to the process."""
    numbers = (signal.SIGCHLD, signal.SIGPIPE, signal.SIGUSR1, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with connect(server) as sock:
        assert_echo(sock, b"hello")
    assert [signal.getsignal(number) for number in numbers] == before


# --- fork: the children -------------------------------------------------------------------------


def serve_among_children() -> None:
    """Two children of the application end beside those of the server: it alone gets them."""
    signals: list[int] = []
    with fastsock.Server("tcp://127.0.0.1:0", engine="fork") as server:
        with connect(server) as one, connect(server) as other:
            assert_echo(one, b"a child")
            assert_echo(other, b"another")
            of_server = children()
            assert len(of_server) == 2
            first = os.spawnlp(os.P_NOWAIT, "true", "true")
            assert os.waitpid(first, 0) == (first, 0)
            signal.signal(signal.SIGCHLD, lambda number, frame: signals.append(number))
            one.shutdown(socket.SHUT_WR)
            assert has_ended(one)
            wait_until(lambda: children() != of_server)
            with pytest.raises(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            second = os.spawnlp(os.P_NOWAIT, "false", "false")
            assert os.wait()[0] == second
        wait_until(lambda: not children())
    assert len(signals) == 1  # of the application's own
    print(0, flush=True)


def test_children_of_the_application() -> None:
    """Neither takes the other's children, and ours raise no SIGCHLD."""
    with in_process(serve_among_children) as process:
        assert ask(process) == [0]


def serve_until_killed() -> None:
    with fastsock.Server("tcp://127.0.0.1:0", engine="fork") as server:
        print(server.endpoint.port, flush=True)
        for _ in sys.stdin:
            print(*children(), flush=True)


def test_children_die_with_the_server() -> None:
    """When the server is killed, the kernel ends its children, idle or stuck, and their clients."""
    with in_process(serve_until_killed) as process:
        (port,) = ask(process)
        with connect_to(port) as idle, connect_to(port) as stuck:
            assert_echo(idle, b"hello")
            fill(stuck)
            pidfds = [os.pidfd_open(pid) for pid in ask(process, "?")]
            assert len(pidfds) == 2
            process.kill()
            for pidfd in pidfds:
                assert select.select([pidfd], [], [], TIMEOUT)[0]
                os.close(pidfd)
            assert has_ended(idle)


@pytest.fixture
def forking() -> Iterator[fastsock.Server]:
    with fastsock.Server("tcp://127.0.0.1:0", engine="fork") as server:
        yield server


def test_child_is_killed(forking: fastsock.Server) -> None:
    """Somebody kills a child: its client alone is gone, and that is counted as an error."""
    with connect(forking) as sock:
        assert_echo(sock, b"hello")
        (pid,) = children()
        with connect(forking) as other:
            assert_echo(other, b"hello")
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: forking.stats().closed["error"] == 1)
            assert has_ended(sock)
            assert_echo(other, b"still there")
    assert forking.stats().bytes_in == 21


def test_child_that_cannot_end(forking: fastsock.Server) -> None:
    """A child that somebody has stopped does not hold up stop() for ever."""
    with connect(forking) as sock:
        assert_echo(sock, b"hello")
        os.kill(children()[0], signal.SIGSTOP)
        forking.stop()
        assert has_ended(sock)
    assert forking.stats().closed["stopped"] == 1
    assert children() == []


def test_child_holds_its_connection_alone(forking: fastsock.Server) -> None:
    """No child has a copy of what is not its own, so nothing is held open by it."""
    with connect(forking) as sock:
        assert_echo(sock, b"hello")
        (pid,) = children()
        (fd,) = Path(f"/proc/{pid}/fd").iterdir()
        assert str(fd.readlink()).startswith("socket:")


def test_child_takes_no_signal(forking: fastsock.Server) -> None:
    """What a terminal sends to all processes is the parent's to answer."""
    with connect(forking) as sock:
        assert_echo(sock, b"hello")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(children()[0], number)
        assert_echo(sock, b"still there")
