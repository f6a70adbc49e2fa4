"""Tests of the io_uring engine: when it must make no call, and what its rings may run out of."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from clients import (
    TIMEOUT,
    assert_same,
    assert_serves,
    connect,
    echo_exactly,
    fill,
    finish_exactly,
    half_close,
    has_ended,
    random_chunks,
    receive_all,
    receive_exactly,
    refuses,
    reset,
    running,
    sending,
    tagged,
    wait_until,
    wait_until_still,
)
from implementations import (
    ANY_PORT,
    GENEROUS,
    IMPLEMENTATIONS,
    ServedProcess,
    in_fresh_process,
    left_out,
)
from load_runs import faults

import fastsock
from fastsock import Server
from fastsock.server import engines

pytestmark = pytest.mark.skipif(
    "io_uring" in left_out(), reason=f"io_uring: {left_out().get('io_uring')}"
)

Start = Callable[..., Server]


# --- where the kernel refuses it ----------------------------------------------------------------

FASTSOCK = (sys.executable, "-m", "fastsock")
SERVE_BY_RING = (*FASTSOCK, "serve", ANY_PORT, "--engine", "io_uring")
REFUSALS = {
    "ENOSYS": "the kernel has no io_uring",
    "EPERM": "kernel.io_uring_disabled forbids it, or a seccomp filter",
    "ENOMEM": "RLIMIT_MEMLOCK",
    "EINVAL": "it needs Linux 6.1",
}


def traced(log: Path, *command: str, fault: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command and log its io_uring calls, the first of which goes wrong as `fault` says."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    options = ["-e", "trace=/^io_uring_", "-e", "signal=none"]
    if fault:
        options += ["-e", f"inject=io_uring_setup:{fault}"]
    return subprocess.run(
        [strace, "-f", "-qq", *options, "-o", str(log), *command],
        capture_output=True,
        text=True,
        timeout=GENEROUS,
    )


@pytest.mark.parametrize("error", REFUSALS)
def test_refused_by_the_kernel(tmp_path: Path, error: str) -> None:
    """Asked for by name and refused, it is an error of one line that says what may be the cause."""
    done = traced(tmp_path / "log", *SERVE_BY_RING, fault=f"error={error}")
    assert done.returncode == 1
    assert "(INJECTED)" in (tmp_path / "log").read_text()
    told = " ".join(done.stderr.split())
    assert re.fullmatch(r"Error: io_uring_setup: .+ \(.+\)", told)
    assert REFUSALS[error] in told


def test_refused_when_descriptors_run_out() -> None:
    """Without a descriptor for the ring, start() raises, and nothing is left over."""
    in_fresh_process(start_without_descriptors)


def start_without_descriptors() -> None:
    def opened() -> set[str]:
        return {path.name for path in Path("/proc/self/fd").iterdir()}

    before = opened()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # One for the listener, three for wake-ups, and none for the ring.
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, before)) + 4, hard))
    with pytest.raises(OSError, match="io_uring_setup: Too many open files"):
        Server(ANY_PORT, engine="io_uring").start()
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert opened() == before


def serve_by_default() -> None:
    """Serve without naming an engine."""
    with Server(ANY_PORT, "udp://127.0.0.1:0") as server:
        report = fastsock.load(server.endpoint, connections=4, messages=100)
        assert not faults(report)
    assert "io_uring" in engines.states()
    print("served")


def test_no_call_unless_asked_for(tmp_path: Path) -> None:
    """Import, info and the default engine make no io_uring call; the engine asked for does."""
    log = tmp_path / "log"
    by_default = "import test_uring; test_uring.serve_by_default()"
    for command in (("-m", "fastsock", "info"), ("-c", by_default)):
        done = traced(log, "env", f"PYTHONPATH={pythonpath()}", sys.executable, *command)
        assert done.returncode == 0, done.stderr
        assert log.read_text() == ""
    by_name = f"import fastsock; fastsock.Server({ANY_PORT!r}, engine='io_uring').start()"
    traced(log, sys.executable, "-c", by_name)
    assert "io_uring_setup(" in log.read_text()


def pythonpath() -> str:
    return os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])


def test_a_sandbox_that_kills() -> None:
    """Where a seccomp filter kills a process that probes io_uring, every default still works."""
    assert in_fresh_process(serve_in_a_sandbox) == "served\n"


def test_a_sandbox_that_kills_the_engine() -> None:
    """The filter of the test before this one does kill."""
    with pytest.raises(AssertionError):
        in_fresh_process(start_in_a_sandbox)


def serve_in_a_sandbox() -> None:
    forbid_io_uring()
    serve_by_default()
    assert "seccomp" in engines.states()["io_uring"]


def start_in_a_sandbox() -> None:
    forbid_io_uring()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Server(ANY_PORT, engine="io_uring").start()


def forbid_io_uring() -> None:
    """Let the kernel kill this process at io_uring_setup, number 425 on every architecture."""
    load_number, jump_if_equal, answer = 0x20, 0x15, 0x06  # classic BPF, linux/filter.h
    kill_process, allow = 0x80000000, 0x7FFF0000
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (load_number, 0, 0, 0),
            (jump_if_equal, 0, 1, 425),
            (answer, 0, 0, kill_process),
            (answer, 0, 0, allow),
        )
    )
    buffer = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, by_filter = 38, 22, 2
    assert libc.prctl(no_new_privileges, 1, 0, 0, 0) == 0
    assert libc.prctl(set_seccomp, by_filter, header, 0, 0) == 0, os.strerror(ctypes.get_errno())


# --- rings that are too small -------------------------------------------------------------------


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """A function that starts a server and sets how many entries, results and buffers it has."""
    real: Any = engines.WORKERS["io_uring"]
    with ExitStack() as stack:

        def with_sizes(sizes: tuple[int, int, int], **options: Any) -> Server:
            def make(*arguments: Any, **keywords: Any) -> Any:
                worker = real(*arguments, **keywords)
                worker.set_sizes(*sizes)
                return worker

            monkeypatch.setitem(engines.WORKERS, "io_uring", make)
            return stack.enter_context(Server(ANY_PORT, engine="io_uring", **options))

        yield with_sizes


PLENTY = (1024, 8192, 1024)
FEW_ENTRIES = (8, 8192, 1024)
FEW_BUFFERS = (1024, 8192, 4)
FEW_RESULTS = (2, 4, 1024)
FEW = (1, 2, 2)


@pytest.mark.parametrize("sizes", [FEW_ENTRIES, FEW_BUFFERS, FEW_RESULTS, FEW], ids=str)
def test_busy_connections_with_small_rings(start: Start, sizes: tuple[int, int, int]) -> None:
    """64 connections that send all the while get every byte, whatever the rings run out of."""
    server = start(sizes)
    report = fastsock.load(server.endpoint, connections=64, size=100, depth=4, messages=30_000)
    assert not faults(report)
    wait_until(lambda: server.stats().open == 0)
    stats = server.stats()
    assert stats.closed["eof"] == 64
    assert stats.bytes_in == stats.bytes_out == 3_000_000
    assert stats.errors == {}


@pytest.mark.parametrize("sizes", [FEW_ENTRIES, FEW_BUFFERS, FEW_RESULTS, FEW], ids=str)
def test_streams_with_small_rings(start: Start, sizes: tuple[int, int, int]) -> None:
    """Large pieces, a slow reader and half-closes come out whole, whatever the rings run out of."""
    server = start(sizes)
    data = random_chunks(21, 4 << 20, 1 << 16)
    with connect(server.endpoint, rcvbuf=4096) as slow, sending(slow, data, then_half_close=True):
        wait_until_still(lambda: server.stats().bytes_in)
        for seed in range(5):
            with connect(server.endpoint) as sock:
                finish_exactly(sock, *random_chunks(seed, 1 << 20, 1 << 14))
        assert_same(receive_all(slow), b"".join(data))


@pytest.mark.parametrize("sizes", [FEW_RESULTS, FEW], ids=str)
def test_burst_of_connections_with_few_results(start: Start, sizes: tuple[int, int, int]) -> None:
    """600 clients that connect and send at once, more than the rings have results, are served."""
    server = start(sizes)
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(server.endpoint)) for _ in range(600)]
        for number, sock in enumerate(socks):
            sock.sendall(tagged(number, 100))
            half_close(sock)
        for number, sock in enumerate(socks):
            assert_same(receive_all(sock), tagged(number, 100))
    wait_until(lambda: server.stats().closed["eof"] == 600)
    assert server.stats().errors == {}


@pytest.mark.parametrize("sizes", [PLENTY, FEW_ENTRIES, FEW_BUFFERS, FEW_RESULTS, FEW], ids=str)
def test_stop_with_everything_under_way(start: Start, sizes: tuple[int, int, int]) -> None:
    """stop() in the middle of busy, stuck, idle and resetting clients ends them all at once."""
    server = start(sizes)
    with ExitStack() as stack:
        stuck = [stack.enter_context(connect(server.endpoint, rcvbuf=4096)) for _ in range(10)]
        idle = [stack.enter_context(connect(server.endpoint)) for _ in range(50)]
        for sock in stuck:
            fill(sock)
        for sock in idle[:10]:
            sock.sendall(b"on its way")
        for _ in range(10):
            reset(idle.pop())
        server.stop()
        assert refuses(server.endpoint)
        for sock in idle[:10]:
            sock.settimeout(1)
            assert receive_exactly(sock, 10) == b"on its way"
        for sock in idle:
            assert has_ended(sock)
    assert server.stats().open == 0


def test_the_way_of_receiving_changes_without_reordering(start: Start) -> None:
    """Small and large pieces by turns keep their order."""
    server = start((1024, 8192, 64))
    chunks = []
    for seed in range(40):
        chunks += random_chunks(seed, 60_000, 30_000) + random_chunks(seed, 200, 20)
    with connect(server.endpoint) as sock, sending(sock, chunks, then_half_close=True):
        assert_same(receive_all(sock), b"".join(chunks))


# --- a client that does not read ----------------------------------------------------------------


def test_stall_of_small_messages(start: Start) -> None:
    """A client that sends little by little and reads only at the end gets it all, and the end."""
    server = start(PLENTY, sndbuf=1)
    with connect(server.endpoint, rcvbuf=4096) as sock:
        sent = b""
        while server.stats().bytes_in == server.stats().bytes_out:  # until the socket is full
            sock.sendall(piece := tagged(len(sent), 1000))
            sent += piece
            wait_until(lambda so_far=sent: server.stats().bytes_in == len(so_far))
            wait_until_still(lambda: server.stats().bytes_out, quiet=0.01)
        sock.sendall(piece := tagged(len(sent), 1000))
        half_close(sock)
        assert_same(receive_all(sock), sent + piece)
    wait_until(lambda: server.stats().closed["eof"] == 1)


@pytest.mark.parametrize("sizes", [PLENTY, FEW_ENTRIES, FEW_RESULTS, FEW], ids=str)
def test_stall_of_many_at_once(start: Start, sizes: tuple[int, int, int]) -> None:
    """More sends fail for a full socket than there is room for results, and none is missed."""
    server = start(sizes, sndbuf=1)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server.endpoint, rcvbuf=4096)) for _ in range(60)]
        sent = b""
        for _ in range(8):  # fewer bytes than the buffers of two sockets hold
            sent += (piece := tagged(len(sent), 3500))
            for sock in clients:
                sock.sendall(piece)
        for sock in clients:
            half_close(sock)
        for sock in clients:
            assert_same(receive_all(sock), sent)
    wait_until(lambda: server.stats().closed["eof"] == 60)
    stats = server.stats()
    assert stats.bytes_in == stats.bytes_out == 60 * len(sent)


@pytest.mark.parametrize("sizes", [FEW_BUFFERS, FEW], ids=str)
def test_a_client_that_does_not_read_keeps_no_buffers(
    start: Start, sizes: tuple[int, int, int]
) -> None:
    """A burst that takes all buffers, to be sent to a full socket, gives them back.

    One of the clients has its socket filled so far that the first send of the burst does not fit.
    """
    server = start(sizes, sndbuf=1)
    with ExitStack() as stack:
        stuck = []
        for pieces in range(12):
            sock = stack.enter_context(connect(server.endpoint, rcvbuf=4096))
            for _ in range(pieces):
                sock.sendall(tagged(pieces, 1000))
                wait_until_still(lambda: server.stats().bytes_out, quiet=0.01)
            sock.sendall(burst := tagged(pieces, 30_000))
            wait_until_still(lambda: server.stats().bytes_in, quiet=0.01)
            assert_serves(server.endpoint)
            half_close(sock)
            stuck.append((sock, tagged(pieces, 1000) * pieces + burst))
        for sock, sent in stuck:
            assert_same(receive_all(sock), sent)
    wait_until(lambda: server.stats().open == 0)
    assert server.stats().errors == {}


def test_a_burst_is_received_one_buffer_at_a_time() -> None:
    """What has come meanwhile takes one buffer at a time, while nothing can be sent."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert release is not None
    if (int(release[1]), int(release[2])) < (6, 17):
        pytest.skip("Linux before 6.17 cannot limit what a multishot receive brings")
    sizes = {"buffer_size": 8192, "sndbuf": 1, "rcvbuf": 1 << 20}
    with (
        closing(ServedProcess(IMPLEMENTATIONS["native-io_uring"], **sizes)) as server,
        connect(server.endpoint, rcvbuf=4096) as sock,
    ):
        echo_exactly(sock, b"hello")
        server.pause()
        assert fill(sock) > 1 << 20
        server.resume()
        wait_until(lambda: server.stats()["bytes_in"] > 5)
        wait_until_still(lambda: server.stats()["bytes_in"])
        stats = server.stats()
        assert 0 < stats["bytes_in"] - stats["bytes_out"] <= 8192


def test_an_end_right_behind_unsent_data() -> None:
    """Data and the client's end, seen at once, when the socket takes only some: all comes back."""
    with (
        closing(ServedProcess(IMPLEMENTATIONS["native-io_uring"], sndbuf=1)) as server,
        connect(server.endpoint, rcvbuf=4096) as sock,
    ):
        echo_exactly(sock, b"hello")
        server.pause()
        sock.sendall(data := b"".join(random_chunks(3, 32_000, 32_000)))
        half_close(sock)
        server.resume()
        wait_until(lambda: server.stats()["bytes_in"] == 5 + len(data))
        assert_same(receive_all(sock), data)
        wait_until(lambda: server.stats()["closed"]["eof"] == 1)


def test_unix_sockets_are_received_from_once_at_a_time(tmp_path: Path) -> None:
    """Each message takes two submissions, a receive and a send; over TCP its send alone.

    Where data and an end come as the kernel begins to watch, a multishot receive of Linux 6.18 on a
    Unix socket tells of the data alone, about one time in 100,000: see the next test.
    """
    assert submissions(f"unix://{tmp_path}/echo.sock", tmp_path / "unix") >= 200
    assert submissions(ANY_PORT, tmp_path / "tcp") < 150


def submissions(endpoint: str, log: Path) -> int:
    """How many entries a server submits to its ring while it echoes 100 messages."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    under = (strace, "-f", "-qq", "-o", str(log), "-e", "trace=io_uring_enter")
    server = ServedProcess(IMPLEMENTATIONS["native-io_uring"], under=under, endpoint=endpoint)
    with closing(server), connect(server.endpoint) as sock:
        for _ in range(100):
            echo_exactly(sock, b"hello")
    return sum(map(int, re.findall(r"io_uring_enter\(\d+, (\d+),", log.read_text())))


@pytest.mark.slow
def test_an_end_that_comes_with_the_data_on_a_unix_socket(tmp_path: Path) -> None:
    """300,000 clients that send and half-close at once all get their end."""
    with Server(f"unix://{tmp_path}/echo.sock", engine="io_uring") as server:
        report = fastsock.load(
            server.endpoint, connections=19, messages=300_000, reconnect_every=1, timeout=3.0
        )
    assert not any(report.errors.values())
    assert report.messages == 300_000


# --- no descriptors -----------------------------------------------------------------------------


def test_descriptor_limit_from_the_beginning() -> None:
    """Clients wait, which costs no CPU, also where a multishot accept itself meets the limit.

    It keeps to the limit that held when it began, and so one that comes later does not stop it.
    """
    limited = ("sh", "-c", 'ulimit -n 64 && exec "$0" "$@"')
    server = ServedProcess(IMPLEMENTATIONS["native-io_uring"], under=limited)
    with closing(server), ExitStack() as stack:
        socks = [stack.enter_context(connect(server.endpoint)) for _ in range(80)]
        wait_until(lambda: server.stats()["accept_pauses"] > 0)
        before = server.cpu_seconds()
        wait_until(lambda: server.stats()["accept_pauses"] > 3)
        assert server.cpu_seconds() - before < 0.2
        for sock in socks:  # each that closes makes room for one that waits
            finish_exactly(sock, b"patience")
            sock.close()
        assert server.stats()["accepted"] == 80


# --- listeners ----------------------------------------------------------------------------------


def test_a_shared_listener_is_not_shut_down() -> None:
    """A copy of the listener still accepts after stop(), which cancels and shuts nothing down."""
    with Server(ANY_PORT, engine="io_uring") as server:
        assert_serves(server.endpoint)
        copy = duplicate_of_listener(server.endpoint.port)
    with copy, connect(server.endpoint) as sock:
        accepted, _ = copy.accept()
        with accepted:
            accepted.sendall(b"mine")
            assert receive_exactly(sock, 4) == b"mine"


def duplicate_of_listener(port: int) -> socket.socket:
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # it was closed meanwhile, or is no socket
            if not path.is_socket():
                continue
            copy = socket.socket(fileno=os.dup(int(path.name)))
            listens = copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if listens and copy.getsockname()[1] == port:
                copy.settimeout(TIMEOUT)
                return copy
            copy.close()
    raise AssertionError("no listener")


def test_a_listener_that_is_shut_down_elsewhere() -> None:
    """serve() ends with an error when a holder of a copy of the listener shuts it down."""
    failures: list[OSError] = []

    def serve(server: Server) -> None:
        try:
            server.serve_forever()
        except OSError as error:
            failures.append(error)

    server = Server(ANY_PORT, engine="io_uring")
    server.start()
    with running(lambda: serve(server)):
        with duplicate_of_listener(server.endpoint.port) as copy:
            copy.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: failures)
    assert "the listener was shut" in str(failures[0])
