"""Counting the system calls of running processes from outside, by perf(1) or strace(1).

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
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from typing import IO

_TRACEPOINT = "raw_syscalls:sys_enter"
_TIMEOUT = 10.0  # seconds for a tool to begin, and to end


class CountError(RuntimeError):
    """The tool could not count; the text has what it said."""


def count(
    tool: str, pids: Sequence[int], work: Callable[[], object], *, cpu: int | None = None
) -> int:
    """System calls that these processes, and those they start, make while `work` runs.

    Calls that were under way at the beginning may count or not. The tool runs on that CPU, or
    wherever this thread may: strace had better not share one with a client that spins.

    Raises:
        CountError: `tool` ("perf" or "strace") is missing, or may not count.

    """
    return _TOOLS[tool](pids, work, cpu)


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


def _count_with_perf(pids: Sequence[int], work: Callable[[], object], cpu: int | None) -> int:
    # It counts from its "ack" of "enable" on until that of "disable"; perf-stat(1), --control.
    perf = ["perf", "stat", "-x,", "-e", _TRACEPOINT, "-D", "-1", "-p", ",".join(map(str, pids))]
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile("w+"))
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        with theirs:
            control = ["--control", f"fd:{theirs.fileno()},{theirs.fileno()}"]
            process = _start([*perf, *control], log, cpu, pass_fds=(theirs.fileno(),))
        stack.callback(_end, process)
        ours.settimeout(_TIMEOUT)

        def order(what: str) -> None:
            with suppress(OSError):  # it has ended, or does not answer
                ours.sendall(f"{what}\n".encode())
                if ours.recv(64).startswith(b"ack"):
                    return
            raise CountError(f"perf: {_said(log)}")

        order("enable")
        work()
        order("disable")
        _end(process)
        said = _said(log)
    found = re.search(rf"^(\d+|<not counted>),.*{_TRACEPOINT}", said, re.MULTILINE)
    if not found:
        raise CountError(f"perf: {said}")
    return int(found[1]) if found[1].isdigit() else 0  # so it says of one that slept throughout


def _count_with_strace(pids: Sequence[int], work: Callable[[], object], cpu: int | None) -> int:
    with ExitStack() as stack:
        summary = stack.enter_context(tempfile.NamedTemporaryFile("r"))
        chosen = [word for pid in pids for word in ("-p", str(pid))]
        strace = ["strace", "-f", "-c", "-o", summary.name, *chosen]
        process = _start(strace, subprocess.PIPE, cpu)
        assert process.stderr is not None
        stack.enter_context(process.stderr)
        stack.callback(_end, process)  # before the pipe is closed, of which a thread may read
        said = _wait_until_attached(process, len(pids))
        work()
        if process.poll() is not None:
            raise CountError(f"strace: {said}")
        _end(process)
        return _calls_of_summary(summary.read())


def _wait_until_attached(process: subprocess.Popen[str], processes: int) -> str:
    """Return what it said; then go on to read, in a thread, so that the pipe never fills."""
    assert process.stderr is not None
    watchdog = threading.Timer(_TIMEOUT, process.kill)
    watchdog.start()
    said: list[str] = []
    try:
        while processes:
            line = process.stderr.readline()
            if not line:
                raise CountError(f"strace: {' | '.join(said)}")
            said.append(line.strip())
            processes -= " attached" in line
    finally:
        watchdog.cancel()
        watchdog.join()
    threading.Thread(target=process.stderr.read, daemon=True).start()
    return " | ".join(said)


def _calls_of_summary(text: str) -> int:
    """The calls in total. Columns may be empty, so they are found by the dashes above them."""
    lines = text.splitlines()
    if not lines:
        return 0
    dashes = next(line for line in lines if line.startswith("------"))
    start = sum(len(column) + 1 for column in dashes.split()[:3])
    return int(lines[-1][start:].split()[0])


def _start(
    command: list[str], errors: IO[str] | int, cpu: int | None, pass_fds: tuple[int, ...] = ()
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
    if cpu is not None:
        with suppress(ProcessLookupError):  # it has failed at once, which is seen soon
            os.sched_setaffinity(process.pid, {cpu})
    return process


def _end(process: subprocess.Popen[str]) -> None:
    """Both print what they have on SIGINT, and let their processes go."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _said(log: IO[str]) -> str:
    log.seek(0)
    return log.read().strip()


_TOOLS = {"perf": _count_with_perf, "strace": _count_with_strace}
