"""What cannot be written: a stderr or a stdout that is full, gone or not read changes nothing."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from clients import TIMEOUT, assert_serves, connect, running, wait_until
from implementations import GENEROUS, IMPLEMENTATIONS, in_fresh_process
from load_runs import SERVED

import fastsock
from fastsock import Endpoint, line_writer
from fastsock.line_writer import LineWriter

FASTSOCK = (sys.executable, "-m", "fastsock")
F_SETPIPE_SZ = 1031  # <fcntl.h>
SOON = 5.0  # seconds, on a busy machine; what used to be blocked was so for ever


@contextmanager
def full_pipe() -> Iterator[int]:
    """The writing end of a pipe that is full and not read."""
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(writer, F_SETPIPE_SZ, 4096)
        os.set_blocking(writer, False)
        while True:
            try:
                os.write(writer, bytes(4096))
            except BlockingIOError:
                break
        os.set_blocking(writer, True)
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


@contextmanager
def broken_pipe() -> Iterator[int]:
    """The writing end of a pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


@contextmanager
def full_disk() -> Iterator[int]:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def gone_terminal() -> Iterator[int]:
    """A terminal that was closed: every write is EIO."""
    terminal, side = pty.openpty()
    os.close(terminal)
    try:
        yield side
    finally:
        os.close(side)


@contextmanager
def held_terminal() -> Iterator[int]:
    """A terminal that takes nothing more, as after Ctrl-S."""
    terminal, side = pty.openpty()
    os.set_blocking(side, False)
    try:
        while True:
            try:
                os.write(side, bytes(4096))
            except BlockingIOError:
                break
        os.set_blocking(side, True)
        yield side
    finally:
        os.close(side)
        os.close(terminal)


OUTPUTS = [full_pipe, broken_pipe, full_disk, gone_terminal, held_terminal]
outputs = pytest.mark.parametrize("output", OUTPUTS, ids=lambda each: each.__name__)


@contextmanager
def serving(stderr: int, *arguments: str, **options: Any) -> Iterator[tuple[Any, Endpoint]]:
    """Run ``fastsock serve`` with this stderr; give the process and its endpoint."""
    endpoint = Endpoint("unix", path=f"@fastsock-output-{os.getpid()}-{time.monotonic_ns()}")
    command = [*FASTSOCK, "serve", str(endpoint), *arguments]
    with subprocess.Popen(command, stderr=stderr, **options) as process:
        try:
            wait_until(lambda: accepts(endpoint))
            yield process, endpoint
        finally:
            process.kill()


def accepts(endpoint: Endpoint) -> bool:
    try:
        connect(endpoint).close()
    except ConnectionRefusedError:
        return False
    return True


def assert_ends(process: Any, number: signal.Signals, code: int) -> None:
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(TIMEOUT) == code
    assert time.monotonic() - began < SOON


@outputs
def test_serve_whatever_stderr_is(output: Any, tmp_path: Path) -> None:
    """It starts, serves, ends with a signal, and writes its counters, exit code 0."""
    target = tmp_path / "stats.json"
    with output() as stderr, serving(stderr, "--json", str(target)) as (process, endpoint):
        assert_serves(endpoint)
        assert_ends(process, signal.SIGTERM, 0)
    assert json.loads(target.read_text())["accepted"] >= 1


def test_serve_without_stderr(tmp_path: Path) -> None:
    """Descriptor 2 is closed at the start: a socket that has its number gets no line."""
    target = tmp_path / "stats.json"
    with (
        serving(subprocess.DEVNULL, "--json", str(target), preexec_fn=lambda: os.close(2)) as (
            process,
            endpoint,
        ),
        connect(endpoint) as sock,
    ):
        sock.sendall(b"hello")
        assert sock.recv(100) == b"hello"
        assert_ends(process, signal.SIGTERM, 0)
        assert sock.recv(100) == b""
    assert json.loads(target.read_text())["bytes_in"] == 5


def test_signals_while_a_log_is_not_read() -> None:
    """At the descriptor limit a line a second is logged; with a full pipe a signal is answered."""
    with full_pipe() as stderr, serving(stderr) as (process, endpoint), ExitStack() as stack:
        open_now = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (open_now + 1, 4096))
        for _ in range(4):
            stack.enter_context(connect(endpoint))
        threading.Event().wait(1.5)  # more than one line
        assert_ends(process, signal.SIGTERM, 0)


@pytest.mark.parametrize("name", [name for name in IMPLEMENTATIONS if "uring" not in name])
def test_stop_while_a_log_is_not_read(name: str) -> None:
    """So it is with a library's server, though a handler of the log never returns."""
    in_fresh_process(stop_while_a_log_is_not_read, name)


def stop_while_a_log_is_not_read(name: str) -> None:
    import logging

    class Stuck(logging.Handler):
        def __init__(self) -> None:
            super().__init__()
            self.entered, self.released = threading.Event(), threading.Event()

        def emit(self, record: logging.LogRecord) -> None:
            self.entered.set()
            self.released.wait()

    stuck = Stuck()
    logging.getLogger("fastsock").addHandler(stuck)
    began: list[float] = []
    with ExitStack() as stack:

        def ready(server: Any) -> None:
            stack.enter_context(running(lambda: end_at_the_limit(server, stuck.entered, began)))

        IMPLEMENTATIONS[name].serve(ready=ready)
        assert time.monotonic() - began[0] < SOON
    stuck.released.set()


def end_at_the_limit(server: Any, logging: threading.Event, began: list[float]) -> None:
    endpoint = server.endpoint
    assert_serves(endpoint)  # an engine may open more once it runs
    sockets = [socket.socket() for _ in range(3)]
    used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, 4096))
    for sock in sockets:
        sock.connect((endpoint.host, endpoint.port))
    assert logging.wait(TIMEOUT)
    began.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGTERM)
    for sock in sockets:
        sock.close()


@outputs
def test_load_whatever_stderr_is(output: Any, server: fastsock.Server, tmp_path: Path) -> None:
    """A run, with its bar where stderr is a terminal, ends with its result and exit code."""
    target = tmp_path / "run.json"
    command = [*FASTSOCK, "load", str(server.endpoint), "-d", "300ms", "--wait", "block"]
    with output() as stderr:
        done = subprocess.run(
            [*command, "--json", str(target)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            timeout=GENEROUS,
            text=True,
        )
    report = json.loads(target.read_text())
    assert done.returncode == (0 if report["valid"] else 4)
    assert "\nclient " in done.stdout


def test_the_bar_is_removed_before_the_report(server: fastsock.Server) -> None:
    """Where both outputs are one terminal the report comes last, with the cursor shown."""
    terminal, side = pty.openpty()
    command = [*FASTSOCK, "load", str(server.endpoint), "-d", "300ms", "--wait", "block"]
    try:
        subprocess.run(command, stdout=side, stderr=side, timeout=GENEROUS, check=False)
        shown = os.read(terminal, 1 << 16).decode()
    finally:
        os.close(terminal)
        os.close(side)
    bar, report = shown[: shown.rindex("\x1b")], shown[shown.rindex("\x1b") :]
    assert "loading" in bar
    assert "\x1b[?25h" in bar  # show the cursor
    assert str(server.endpoint) in report


@pytest.mark.parametrize("output", [broken_pipe, full_disk, gone_terminal])
def test_load_whatever_stdout_is(output: Any, server: fastsock.Server, tmp_path: Path) -> None:
    """The file is written first, and the exit code is that of the run."""
    target = tmp_path / "run.json"
    command = [*FASTSOCK, "load", str(server.endpoint), "-n", "100", "--json", str(target)]
    with output() as stdout:
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, timeout=GENEROUS)
    assert done.returncode in SERVED
    assert done.stderr == b""
    assert json.loads(target.read_text())["messages"] == 100


def test_load_without_stdout(server: fastsock.Server) -> None:
    """Descriptor 1 is closed: the exit code is 2 if the result was to go there, else the run's."""
    command = [*FASTSOCK, "load", str(server.endpoint), "-n", "100"]
    for more, codes in (([], SERVED), (["--json", "-"], (2,))):
        done = subprocess.run(
            [*command, *more], preexec_fn=lambda: os.close(1), timeout=GENEROUS, check=False
        )
        assert done.returncode in codes


@pytest.mark.parametrize("output", [broken_pipe, full_disk])
def test_a_result_for_stdout_that_cannot_be_written(output: Any, server: fastsock.Server) -> None:
    """--json - names stdout: exit code 2, and a line that says why."""
    command = [*FASTSOCK, "load", str(server.endpoint), "-n", "100", "--json", "-"]
    with output() as stdout:
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, timeout=GENEROUS)
    assert done.returncode == 2
    assert done.stderr.startswith(b"Error: cannot write the result to stdout: ")


@outputs
def test_an_error_whatever_stderr_is(output: Any) -> None:
    """A usage error is exit code 2, also where its text cannot be written."""
    with output() as stderr:
        done = subprocess.run([*FASTSOCK, "serve", "nothing"], stderr=stderr, timeout=GENEROUS)
    assert done.returncode == 2


# --- the queue ----------------------------------------------------------------------------------


def test_lines_are_dropped_and_counted() -> None:
    """A queue that is full takes no more; how many were dropped is written when it goes on."""
    writer, released, entered = LineWriter(most=2), threading.Event(), threading.Event()
    written: list[str] = []

    def sink(line: str) -> None:
        entered.set()
        assert released.wait(TIMEOUT)
        written.append(line)

    writer.put(sink, "0")
    assert entered.wait(TIMEOUT)
    for number in range(1, 6):
        writer.put(sink, str(number))
    writer.put(sink, "a frame of a bar", only_if_idle=True)
    assert not writer.flush(0.01)
    released.set()
    assert writer.flush(TIMEOUT)
    told = "3 lines were dropped here: what came before was not read in time"
    assert written == ["0", "1", "2", told]
    writer.put(sink, "on")
    assert writer.flush(TIMEOUT)
    assert written[-1] == "on"


def test_a_sink_that_fails() -> None:
    """An error of one line does not keep the next one from being written."""
    writer, written = LineWriter(), list[str]()
    writer.put(lambda line: 1 / 0, "lost")
    writer.put(written.append, "next")
    assert writer.flush(TIMEOUT)
    assert written == ["next"]


def test_a_descriptor_that_does_not_block() -> None:
    """A pipe that another program has set to O_NONBLOCK gets all, and its flag stays."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    data = os.urandom(1 << 20)
    with running(lambda: line_writer.write_all(writer, data)):
        received = b""
        while len(received) < len(data):
            received += os.read(reader, 1 << 16)
    assert received == data
    assert not os.get_blocking(writer)
    os.close(reader)
    os.close(writer)
