"""The servers that are compared: each a command, running in processes of its own."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fastsock._native.client.process_tree import descendants
from fastsock.server import engines

#: Without what may not work here: nobody has asked for it by name.
NATIVE_ENGINES = tuple(name for name in engines.WORKERS if not engines.doubt(name))
PURE_ENGINES = ("threads", "selectors", "asyncio", "serial")

#: What can be compared: the schemes of endpoints.
KINDS = ("tcp", "udp", "unix", "unixgram")

_LISTENING = re.compile(r"listening on ([a-z]+://\S+)")
_PSS = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)
_START_TIMEOUT = 20.0  # seconds
_STOP_TIMEOUT = 5.0
_CHILDREN_TIMEOUT = 2.0

_names = itertools.count()


@dataclass(frozen=True, slots=True)
class Contender:
    """A server to compare: a command that prints ``listening on ENDPOINT`` to stderr.

    `unusable` is why it cannot be run here: ``is not installed (...)``.
    """

    name: str
    command: tuple[str, ...]
    one_at_a_time: bool = False
    unusable: str = ""

    def hindrance(self, connections: int) -> str:
        """Why it cannot serve so many clients at a time; empty if it can."""
        if self.unusable:
            return self.unusable
        return "serves one client at a time" if self.one_at_a_time and connections > 1 else ""


def native(engine: str, kind: str = "tcp", *, busy_poll: str = "") -> Contender:
    """`busy_poll` is as on the command line: ``auto``, or so long as ``50us``."""
    serve = ["-m", "fastsock", "serve", free_endpoint(kind), "--engine", engine]
    name = named("fastsock", engine, kind)
    if busy_poll:
        serve += ["--busy-poll", busy_poll]
        name += ", busy_poll"
    return Contender(name, (sys.executable, *serve), engine == "serial")


def pure(engine: str, kind: str = "tcp") -> Contender:
    serve = ("-m", "fastsock.pure", "serve", free_endpoint(kind), "--engine", engine)
    name = named("stdlib", engine, kind)
    return Contender(name, (sys.executable, *serve), engine == "serial")


def datagrams(kind: str) -> list[Contender]:
    """The native server and its twin, each with its one engine for datagrams."""
    return [
        Contender(
            named(name, "datagrams", kind),
            (sys.executable, "-m", package, "serve", free_endpoint(kind)),
        )
        for name, package in (("fastsock", "fastsock"), ("stdlib", "fastsock.pure"))
    ]


def every_engine(kind: str = "tcp") -> list[Contender]:
    """Every engine that is usable here, and every engine of the twin."""
    if kind in ("udp", "unixgram"):
        return datagrams(kind)
    return [
        *(native(engine, kind) for engine in NATIVE_ENGINES),
        *(pure(engine, kind) for engine in PURE_ENGINES),
    ]


def named(server: str, engine: str, kind: str) -> str:
    return f"{server} {engine}" if kind == "tcp" else f"{server} {engine}, {kind}"


def free_endpoint(kind: str) -> str:
    """Where to listen so that nobody is in the way: port 0, or an abstract name."""
    if kind in ("tcp", "udp"):
        return f"{kind}://127.0.0.1:0"
    return f"{kind}://@fastsock-bench-{os.getpid()}-{next(_names)}"


class RunningServer:
    """A contender with all its processes, stopped (SIGSTOP) but for its own turns."""

    def __init__(self, contender: Contender, cpu: int | None) -> None:
        self.name = contender.name
        self.cpu = cpu
        with pinned(cpu):  # a child inherits the CPUs of the thread that starts it
            # A process group, so that children are stopped with it. Not a session of its own: if
            # this process is killed, the kernel ends the group for being stopped and orphaned.
            self._process = subprocess.Popen(
                contender.command,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                process_group=0,
            )
        self._last_lines: deque[str] = deque(maxlen=5)
        self._listening = threading.Event()
        self.endpoint = ""
        assert self._process.stderr is not None
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stderr,), daemon=True
        )
        self._reader.start()
        if not self._listening.wait(_START_TIMEOUT) or not self.endpoint:
            self.stop()
            said = " | ".join(self._last_lines) or "nothing"
            raise RuntimeError(f"{self.name} did not start; it said: {said}")
        self._processes = len(self.processes())
        self._signal_all(signal.SIGSTOP)

    @property
    def pid(self) -> int:
        return self._process.pid

    def processes(self) -> list[int]:
        """Their ids: its own, and those of all that it has started."""
        return descendants(self.pid)

    @contextmanager
    def turn(self) -> Iterator[None]:
        self._signal_all(signal.SIGCONT)
        try:
            yield
        finally:
            self._wait_for_children()
            self._signal_all(signal.SIGSTOP)

    def memory(self) -> int | None:
        """Bytes of memory that its processes take, of what they share with others their part.

        That is the proportional set size of ``/proc/PID/smaps_rollup``, proc_pid_smaps(5). Where
        that cannot be read it is the resident set size, which counts what processes share once
        for each of them. Both leave out what the kernel keeps for a process, a thread or a
        connection. None where neither is known.
        """
        pids = self.processes()
        for size_of in (_proportional, _resident):
            with suppress(OSError):
                return sum(map(size_of, pids))
        return None

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._signal_all(signal.SIGCONT)
        try:
            self._process.wait(timeout=_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # A child that outlives its server holds the pipe open, and with it the reader. As long as
        # there is one, no other group can have this number.
        self._signal_all(signal.SIGKILL)
        self._reader.join()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _signal_all(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _wait_for_children(self) -> None:
        """Those of connections now closed are about to end, and must not in another's turn."""
        deadline = time.monotonic() + _CHILDREN_TIMEOUT
        while len(self.processes()) > self._processes and time.monotonic() < deadline:
            time.sleep(0.005)

    def _read(self, stderr: IO[str]) -> None:
        """Wait for the line with the endpoint; keep reading, so that the pipe never fills."""
        for line in stderr:
            self._last_lines.append(line.strip())
            found = _LISTENING.search(line)
            if found and not self.endpoint:
                self.endpoint = found[1]
                self._listening.set()
        self._listening.set()


def _proportional(pid: int) -> int:
    """Nothing for a process that has ended meanwhile, as below."""
    with suppress(FileNotFoundError, ProcessLookupError):
        found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def _resident(pid: int) -> int:
    with suppress(FileNotFoundError, ProcessLookupError):
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")
    return 0


def cpus_for_both() -> tuple[int | None, int | None]:
    """A CPU for the server and another for the client; (None, None) if there is only one."""
    cpus = sorted(os.sched_getaffinity(0))
    return (cpus[0], cpus[-1]) if len(cpus) > 1 else (None, None)


@contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """Run this thread, and what it starts, on one CPU; None changes nothing."""
    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
