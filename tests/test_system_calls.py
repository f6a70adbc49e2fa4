"""Tests of the native engines against what system calls may do: late events, errors, signals.

Errors are injected into the real system calls of a server process with strace(1). Run as a program,
this file is a server process that sets its own RLIMIT_NPROC.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from clients import (
    assert_same,
    assert_serves,
    connect,
    echo_exactly,
    finish_exactly,
    has_ended,
    not_zero,
    random_chunks,
    receive_exactly,
    reset,
    running,
    tagged,
    wait_until,
)
from implementations import ANY_PORT, Child, Implementation, ServedProcess, say
from test_interest_list import in_epoll

from fastsock import Endpoint, Server

Serve = Callable[..., Any]
ServeProcess = Callable[..., ServedProcess]

pytestmark = [pytest.mark.native, pytest.mark.many_clients]


# --- late events --------------------------------------------------------------------------------


def test_one_batch_of_ends_data_and_beginnings(serve_process: ServeProcess) -> None:
    """Ends, data and new clients that the server sees all at once are not confused.

    New connections take the descriptor numbers and records of ended ones, while events of the old
    ones may still be in the list.
    """
    server = serve_process()
    rng = random.Random(9)
    number = 0
    with ExitStack() as stack:
        old = [stack.enter_context(connect(server.endpoint)) for _ in range(100)]
        for _ in range(10):
            wait_until(lambda: server.stats()["open"] == 100)
            server.pause()
            rng.shuffle(old)
            for sock in old[:50]:
                sock.sendall(b"late")
                reset(sock) if rng.random() < 0.5 else sock.close()
            old = old[50:] + [stack.enter_context(connect(server.endpoint)) for _ in range(50)]
            payloads = [tagged(number + n, 600) for n in range(len(old))]
            number += len(old)
            for sock, payload in zip(old, payloads, strict=True):
                sock.sendall(payload)
            server.resume()
            for sock, payload in zip(old, payloads, strict=True):
                assert_same(receive_exactly(sock, 600), payload)


def test_stop_and_a_new_client_in_one_batch(implementation: Implementation) -> None:
    """A client that comes together with the stop is no error of the listener that stop() closed."""
    for _ in range(200):
        with implementation.server() as server:
            # Both wake the loop; whichever is first in its list, the other must still be right.
            with running(server.stop), suppress(ConnectionError):
                connect(server.endpoint).close()
            assert server.stats().errors.keys() <= {"ECONNRESET"}


# --- errors of system calls ---------------------------------------------------------------------


@contextmanager
def injecting(
    implementation: Implementation, call: str, fault: str, log: Path, **options: Any
) -> Iterator[ServedProcess]:
    """A server in which the system call `call` fails as `fault` says, see strace(1)."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    tracing = ("-e", f"trace={call}", "-e", f"inject={call}:{fault}", "-e", "signal=none")
    under = (strace, "-f", "-qq", "-o", str(log), *tracing)
    server = ServedProcess(implementation, under=under, **options)
    try:
        yield server
        assert "(INJECTED)" in log.read_text(), "nothing was injected"
    finally:
        server.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "strace.log"


# accept(2) asks to treat these like EAGAIN; all but EINTR take the same path, so a few will do.
PASSING = ("ECONNABORTED", "EINTR")
PASSING_TOO = (
    "EPROTO",
    "ENETDOWN",
    "EHOSTUNREACH",
    "ENOPROTOOPT",
    "EHOSTDOWN",
    "ENONET",
    "EOPNOTSUPP",
    "ENETUNREACH",
)
# No descriptors or no memory: one of each, as all take the same path.
STARVING = ("EMFILE", "ENOBUFS")
STARVING_TOO = ("ENFILE", "ENOMEM")
# Any other error is for good, on one path: a listener that is gone, and a call that is forbidden.
FOR_GOOD = ("EBADF", "EPERM")
FOR_GOOD_TOO = ("EINVAL", "ENOTSOCK", "ENOSYS")
ONE_AT_A_TIME = {"max_connections": 1000}  # so that every engine calls accept4() for each


@pytest.mark.parametrize(
    "error",
    [
        *PASSING,
        *STARVING,
        *(pytest.param(name, marks=pytest.mark.slow) for name in PASSING_TOO + STARVING_TOO),
    ],
)
def test_accept_fails(implementation: Implementation, log: Path, error: str) -> None:
    """Three failures of accept in a row are counted, and every client is served all the same."""
    with injecting(
        implementation, "accept4", f"error={error}:when=1..3", log, **ONE_AT_A_TIME
    ) as server:
        for _ in range(3):
            assert_serves(server.endpoint)
        stats = server.stats()
        assert stats["accepted"] == 3
        name = errno.errorcode[getattr(errno, error)]  # some have two
        assert stats["errors"] == {name: 3}
        assert stats["accept_pauses"] == (3 if error in STARVING + STARVING_TOO else 0)


@pytest.mark.parametrize(
    "error",
    [*FOR_GOOD, *(pytest.param(name, marks=pytest.mark.slow) for name in FOR_GOOD_TOO)],
)
def test_accept_fails_for_good(implementation: Implementation, log: Path, error: str) -> None:
    """A listener that is gone, or a call that is forbidden, ends serve() with the error."""
    with injecting(
        implementation, "accept4", f"error={error}:when=1+", log, **ONE_AT_A_TIME
    ) as server:
        with suppress(ConnectionError):
            connect(server.endpoint).close()
        assert server.wait() == 1
        reason = os.strerror(getattr(errno, error))
        assert f"Error: [Errno {getattr(errno, error)}] accept {server.endpoint}: {reason}" in (
            server.errors()
        )


@pytest.mark.native("fork")
@pytest.mark.parametrize("error", ["EPERM", "EINVAL"])
def test_clone_fails_for_good(implementation: Implementation, log: Path, error: str) -> None:
    """An error that no pause can take away ends serve(), with the name of the call."""
    with injecting(implementation, "clone", f"error={error}", log) as server:
        with connect(server.endpoint) as sock:
            assert has_ended(sock)
        assert server.wait() == 1
        assert f"clone {server.endpoint}: {os.strerror(getattr(errno, error))}" in server.errors()


@pytest.mark.parametrize("call", ["close_range", "pidfd_send_signal"])
@pytest.mark.parametrize(
    ("error", "cause"),
    [("EPERM", "a seccomp filter may forbid it"), ("ENOSYS", "the fork engine needs Linux 5.9")],
)
@pytest.mark.native("fork")
def test_calls_that_fork_needs(
    implementation: Implementation, log: Path, call: str, error: str, cause: str
) -> None:
    """What the kernel lacks or a sandbox forbids is told at the start, and which of the two."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    tracing = ("-e", f"trace={call}", "-e", f"inject={call}:error={error}")
    serve = ("-m", "fastsock", "serve", "tcp://127.0.0.1:0", "--engine", implementation.engine)
    done = subprocess.run(
        [strace, "-f", "-qq", "-o", str(log), *tracing, sys.executable, *serve],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 1
    told = " ".join(done.stderr.split())
    assert told.startswith(f"Error: {call}: {os.strerror(getattr(errno, error))} ({cause}")


LOST = [
    ("ECONNRESET", "reset"),
    ("EPIPE", "reset"),
    ("ETIMEDOUT", "error"),
    ("ENOBUFS", "error"),
    pytest.param("ENOMEM", "error", marks=pytest.mark.slow),
    pytest.param("EHOSTUNREACH", "error", marks=pytest.mark.slow),
]


# Injection counts the calls of each thread, and one that blocks is called before its time: with a
# thread or a process per connection "the second" means something else.
@pytest.mark.native("epoll", "poll")
@pytest.mark.parametrize("call", ["recvfrom", "sendto"])
@pytest.mark.parametrize(("error", "reason"), LOST)
def test_one_connection_fails(
    implementation: Implementation, log: Path, call: str, error: str, reason: str
) -> None:
    """A failure of the second recv or send ends that connection only, counted by its name."""
    # The epoll engine also receives once from each of the two before it watches them.
    number = 4 if implementation.engine == "epoll" and call == "recvfrom" else 2
    with (
        injecting(implementation, call, f"error={error}:when={number}", log) as server,
        connect(server.endpoint) as other,
        connect(server.endpoint) as sock,
    ):
        if implementation.engine == "epoll":
            wait_until(lambda: in_epoll(server) == 2)
        echo_exactly(sock, b"first")
        sock.sendall(b"second")
        assert has_ended(sock)
        echo_exactly(other, b"not concerned")
        assert_serves(server.endpoint)
        wait_until(lambda: server.stats()["open"] == 1)
        stats = server.stats()
        assert stats["errors"] == {error: 1}
        assert not_zero(stats["closed"]) == {"eof": 1, reason: 1}


@pytest.mark.parametrize("call", ["recvfrom", "sendto"])
def test_interrupted_call_is_tried_again(
    implementation: Implementation, log: Path, call: str
) -> None:
    """Where every second recv or send is interrupted, no byte is lost."""
    echo_with_errors(implementation, log, call, "EINTR")


@pytest.mark.native("epoll", "poll")  # to an engine that blocks it means a time limit
@pytest.mark.parametrize("call", ["recvfrom", "sendto"])
def test_call_that_would_block_is_tried_again(
    implementation: Implementation, log: Path, call: str
) -> None:
    """Where every second recv or send would block, no byte is lost."""
    echo_with_errors(implementation, log, call, "EAGAIN")


def echo_with_errors(implementation: Implementation, log: Path, call: str, error: str) -> None:
    with (
        injecting(implementation, call, f"error={error}:when=1+2", log) as server,
        connect(server.endpoint) as sock,
    ):
        finish_exactly(sock, *random_chunks(10, 1 << 20, 1 << 16))
        assert server.stats()["errors"] == {}


@pytest.mark.native("epoll")
def test_epoll_wait_is_interrupted(implementation: Implementation, log: Path) -> None:
    """epoll_wait that returns EINTR every second time, as after SIGCONT, changes nothing."""
    with (
        injecting(implementation, "/^epoll_p?wait$", "error=EINTR:when=1+2", log) as server,
        connect(server.endpoint) as sock,
    ):
        finish_exactly(sock, *random_chunks(11, 1 << 20, 1 << 16))


@pytest.mark.native("epoll")
def test_epoll_wait_fails(implementation: Implementation, log: Path) -> None:
    """If epoll itself fails, serve() ends with the error and does not spin."""
    with injecting(implementation, "/^epoll_p?wait$", "error=EBADF:when=2+", log) as server:
        with suppress(ConnectionError):
            connect(server.endpoint).close()
        assert server.wait() == 1
        assert "OSError" in server.errors()


@pytest.mark.native("io_uring")
@pytest.mark.parametrize("error", ["EINTR", "EAGAIN", "EBUSY"])
def test_io_uring_enter_is_interrupted(
    implementation: Implementation, log: Path, error: str
) -> None:
    """io_uring_enter that fails every second time, as it may at any time, changes nothing."""
    with (
        injecting(implementation, "io_uring_enter", f"error={error}:when=1+2", log) as server,
        connect(server.endpoint) as sock,
    ):
        finish_exactly(sock, *random_chunks(11, 1 << 20, 1 << 13))


@pytest.mark.native("io_uring")
def test_io_uring_enter_fails(implementation: Implementation, log: Path) -> None:
    """If io_uring itself fails, serve() ends with the error and does not spin."""
    with injecting(implementation, "io_uring_enter", "error=EBADF:when=2+", log) as server:
        with suppress(ConnectionError), connect(server.endpoint) as sock:
            sock.sendall(b"hello")
            sock.recv(5)
        assert server.wait() == 1
        assert "OSError" in server.errors()


@pytest.mark.native("epoll")
@pytest.mark.parametrize("error", ["ENOMEM", "ENOSPC"])
def test_connection_cannot_be_watched(
    implementation: Implementation, log: Path, error: str
) -> None:
    """A client waits while epoll has no room for its connection, and loses nothing."""
    with injecting(implementation, "epoll_ctl", f"error={error}:when=3", log) as server:
        # strace counts by thread: in the loop's own, the first client takes two calls, if it has
        # not sent all before it is accepted.
        for accepted in (1, 2):
            with connect(server.endpoint) as sock:
                wait_until(lambda number=accepted: server.stats()["accepted"] == number)
                finish_exactly(sock, b"late")
        assert server.stats()["accept_pauses"] == 1
        wait_until(lambda: server.stats()["open"] == 0)


@pytest.mark.native("threads", "fork")
def test_no_thread_or_process_can_be_made(implementation: Implementation) -> None:
    """Accepting is paused, and the clients wait until one can be made."""
    command = (sys.executable, __file__, implementation.name.removeprefix("native-"))
    with closing(Child(*command)) as server:
        server.ask("limit")
        endpoint = Endpoint.parse(server.greeting["endpoint"])
        with connect(endpoint) as first, connect(endpoint) as second:
            wait_until(lambda: server.ask("stats")["accept_pauses"] >= 2)
            server.ask("lift")
            echo_exactly(first, b"at last")
            echo_exactly(second, b"at last too")
        assert server.ask("stats")["accepted"] == 2


def serve_without_root(engine: str) -> None:
    """Serve as a user that RLIMIT_NPROC binds, set it when told, and say the counters."""
    if os.geteuid() == 0:
        os.setuid(65534)
    before = resource.getrlimit(resource.RLIMIT_NPROC)
    with Server(ANY_PORT, engine=engine) as server:
        say(pid=os.getpid(), endpoint=str(server.endpoint))
        for line in sys.stdin:
            if line == "limit\n":
                resource.setrlimit(resource.RLIMIT_NPROC, (0, before[1]))
            elif line == "lift\n":
                resource.setrlimit(resource.RLIMIT_NPROC, before)
            say(**server.stats().as_dict())


# --- signals ------------------------------------------------------------------------------------


def test_storm_of_signals(serve_process: ServeProcess) -> None:
    """A SIGALRM every millisecond, and SIGSTOP and SIGCONT all the while, lose no byte."""
    server = serve_process(alarm_every=0.001)
    done = threading.Event()

    def stop_and_go() -> None:
        while not done.wait(0.005):
            server.pause()
            server.resume()

    with running(stop_and_go):
        try:
            with connect(server.endpoint) as sock:
                for seed in range(8):
                    echo_exactly(sock, *random_chunks(seed, 4 << 20, 1 << 20))
        finally:
            done.set()
    assert server.stats()["errors"] == {}


def test_signals_do_not_reach_the_loop(serve_process: ServeProcess) -> None:
    """The engine's thread blocks every signal that can be blocked, so the main one gets them."""
    server = serve_process()
    blocked = {blocked_signals(path) for path in Path(f"/proc/{server.pid}/task").iterdir()}
    catchable = {*range(1, 65)} - {signal.SIGKILL, signal.SIGSTOP, 32, 33}  # 32, 33: of libc
    assert frozenset(catchable) in {mask - {32, 33} for mask in blocked}


def blocked_signals(task: Path) -> frozenset[int]:
    for line in (task / "status").read_text().splitlines():
        if line.startswith("SigBlk:"):
            mask = int(line.split()[1], 16)
            return frozenset(number for number in range(1, 65) if mask >> (number - 1) & 1)
    raise AssertionError("no SigBlk")


if __name__ == "__main__":
    serve_without_root(sys.argv[1])
