"""System calls of running servers, counted from outside by perf(1) or strace(1).

perf counts within the kernel and leaves the server its pace, but may count only where it may see
all of the kernel's tracepoints: as root, as a rule. strace needs no more than the right to ptrace
(2), but stops the server twice in every call. A slower server finds more to do at each turn, so it
needs fewer calls an echo than it does by itself. So perf counts where it can.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import cache, partial
from typing import IO, Any

from fastsock.bench.comparison import Case, load_as
from fastsock.bench.server_process import ServerProcess

_TRACEPOINT = "raw_syscalls:sys_enter"
_TIMEOUT = 10.0  # seconds for a tool to begin, and to end
_COUNTED = 0.25  # seconds of a run in which system calls are counted
#: Seconds: a server may close connections after its clients have seen the end.
_SETTLE, _SETTLE_PER_CONNECTION = 0.02, 0.0005


class CountError(RuntimeError):
    """The tool could not count; the text has its output."""


def per_echo(tool: str, server: ServerProcess, case: Case) -> float | None:
    """The server's system calls per echo.

    What a run has more than one of the first messages alone, so that connections are left out
    where they are not part of an echo. None if the tool may not count, or if the server was too
    slow to answer more than these.
    """
    calls, echoes = [], []

    def load(**extent: Any) -> None:
        # Without a warm-up the latencies are those of all the echoes there were.
        echoes.append(load_as(case, server, warmup=0, **extent).latency.count)
        time.sleep(_SETTLE + _SETTLE_PER_CONNECTION * case.connections)

    first = partial(load, messages=case.connections * case.depth)
    for work in (first, partial(load, duration=_COUNTED)):
        try:
            calls.append(count(tool, server.processes(), work))
        except CountError:
            return None
    of_these, more = calls[1] - calls[0], echoes[1] - echoes[0]
    return of_these / more if min(of_these, more) > 0 else None


def count(tool: str, pids: Sequence[int], work: Callable[[], object]) -> int:
    """System calls that these processes, and those they start, make while `work` runs.

    Calls that were under way at the beginning may count or not. The tool runs on the CPUs of the
    first process: strace had better not share one with a client that spins.

    Raises:
        CountError: `tool` ("perf" or "strace") is missing, or may not count.

    """
    if not pids:
        raise CountError("there is no process")
    return _TOOLS[tool](pids, work)


@cache
def usable_tool() -> str | None:
    """The better one of those that can count here; None if none can."""
    return next(filter(can_count, _TOOLS), None)


def can_count(tool: str) -> bool:
    """Whether it can count those of another process: to be installed is not enough."""
    if shutil.which(tool) is None:
        return False
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            count(tool, [process.pid], lambda: None)
        except CountError:
            return False
        finally:
            process.kill()
    return True


def _count_with_perf(pids: Sequence[int], work: Callable[[], object]) -> int:
    # It counts from its "ack" of "enable" on until that of "disable"; perf-stat(1), --control.
    perf = ["perf", "stat", "-x,", "-e", _TRACEPOINT, "-D", "-1", "-p", ",".join(map(str, pids))]
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile("w+"))
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        with theirs:
            control = ["--control", f"fd:{theirs.fileno()},{theirs.fileno()}"]
            process = _start([*perf, *control], log, pids[0], pass_fds=(theirs.fileno(),))
        stack.callback(_end, process)
        ours.settimeout(_TIMEOUT)

        def order(command: str) -> None:
            with suppress(OSError):  # it has ended, or does not answer
                ours.sendall(f"{command}\n".encode())
                if ours.recv(64).startswith(b"ack"):
                    return
            raise CountError(f"perf: {_text(log)}")

        order("enable")
        work()
        order("disable")
        _end(process)
        output = _text(log)
    found = re.search(rf"^(\d+|<not counted>),.*{_TRACEPOINT}", output, re.MULTILINE)
    if not found:
        raise CountError(f"perf: {output}")
    return int(found[1]) if found[1].isdigit() else 0  # "<not counted>": it slept throughout


def _count_with_strace(pids: Sequence[int], work: Callable[[], object]) -> int:
    with ExitStack() as stack:
        summary = stack.enter_context(tempfile.NamedTemporaryFile("r"))
        chosen = [word for pid in pids for word in ("-p", str(pid))]
        strace = ["strace", "-f", "-c", "-o", summary.name, *chosen]
        process = _start(strace, subprocess.PIPE, pids[0])
        assert process.stderr is not None
        stack.enter_context(process.stderr)
        stack.callback(_end, process)  # before the pipe is closed: a thread may read it
        output = _wait_until_attached(process, len(pids))
        work()
        if process.poll() is not None:
            raise CountError(f"strace: {output}")
        _end(process)
        return _calls_of_summary(summary.read())


def _wait_until_attached(process: subprocess.Popen[str], processes: int) -> str:
    """Return its output; then go on to read, in a thread, so that the pipe never fills."""
    assert process.stderr is not None
    watchdog = threading.Timer(_TIMEOUT, process.kill)
    watchdog.start()
    lines: list[str] = []
    try:
        while processes:
            line = process.stderr.readline()
            if not line:
                raise CountError(f"strace: {' | '.join(lines)}")
            lines.append(line.strip())
            processes -= " attached" in line
    finally:
        watchdog.cancel()
        watchdog.join()
    threading.Thread(target=process.stderr.read, daemon=True).start()
    return " | ".join(lines)


def _calls_of_summary(text: str) -> int:
    """The calls in total. Columns may be empty, so they are found by the dashes above them."""
    lines = text.splitlines()
    if not lines:
        return 0
    dashes = next(line for line in lines if line.startswith("------"))
    start = sum(len(column) + 1 for column in dashes.split()[:3])
    return int(lines[-1][start:].split()[0])


def _start(
    command: list[str], errors: IO[str] | int, beside: int, pass_fds: tuple[int, ...] = ()
) -> subprocess.Popen[str]:
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
            pass_fds=pass_fds,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        raise CountError(f"{command[0]}: {error.strerror}") from None
    with suppress(ProcessLookupError):  # one of them has ended, which the tool tells
        os.sched_setaffinity(process.pid, os.sched_getaffinity(beside))
    return process


def _end(process: subprocess.Popen[str]) -> None:
    """On SIGINT both print what they have counted, and detach."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _text(log: IO[str]) -> str:
    log.seek(0)
    return log.read().strip()


_TOOLS = {"perf": _count_with_perf, "strace": _count_with_strace}
