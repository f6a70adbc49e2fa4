"""Runs of ``fastsock load`` in a process of its own, and what the driver reads beside them.

The driver's reading comes from /proc/stat, process times and, where there is one, the root of the
cpuacct controller. The load client has no part in it, so what the client says of itself can be
compared with it.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from clients import wait_until
from leftovers import children, descriptors

import fastsock

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds; /proc counts CPU time in ticks
EXACT = Path("/sys/fs/cgroup/cpuacct/cpuacct.usage")  # of all processes, ns (cgroups v1)
CPUS = sorted(os.sched_getaffinity(0))
CLIENT_CPU, SERVER_CPU = CPUS[0], CPUS[-1]
ESTABLISHED, LISTEN = "01", "0A"  # /proc/net/tcp
SPIN, BLOCK = ("--wait", "spin"), ("--wait", "block")
TRIES = 5  # of a run that was flagged while the machine was busy


@dataclass(frozen=True, slots=True)
class Beside:
    """What the driver read beside a run, in seconds.

    `others` is the CPU time that processes other than the driver and its children used.
    """

    wall: float
    steal: float
    others: float

    @property
    def quiet(self) -> bool:
        """Whether the machine left the run alone, as far as this reading can tell.

        It takes little: a client that is away for 2 ms of 2 s may have another p99.9. A system that
        idles uses about 0.7 % of a CPU.
        """
        return self.steal == 0 and self.others <= 0.01 * self.wall

    def as_dict(self) -> dict[str, float]:
        return {name: round(getattr(self, name), 3) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its JSON document, the exit code, and what was read beside it."""

    report: dict[str, Any]
    exit_code: int
    errors: str
    beside: Beside

    @property
    def valid(self) -> bool:
        return bool(self.report["valid"])

    @property
    def codes(self) -> list[str]:
        return [reason["code"] for reason in self.report["reasons"]]

    @property
    def notes(self) -> list[str]:
        return [note["code"] for note in self.report["notes"]]

    @property
    def excused(self) -> bool:
        """Whether the driver's reading explains the time that the client says it was away.

        A millisecond that another process takes from the client in a run of a second moves p99.9.
        """
        client = self.report["client"]
        claimed = client["away_s"] + client["delayed_s"]
        taken = self.beside.steal + self.beside.others
        return not self.beside.quiet or 0 < claimed / 2 <= taken

    @property
    def latency(self) -> dict[str, float]:
        """Microseconds, from the intended send."""
        distribution: dict[str, float] = self.report["latency_us"]["from_intended_send"]
        return distribution

    def seen(self) -> dict[str, Any]:
        """For a record: the verdict, its reasons in the report's words, and the main figures."""
        report = self.report
        latency = report["latency_us"]["from_intended_send"]
        return {
            "valid": self.valid,
            "exit_code": self.exit_code,
            "reasons": [reason["text"] for reason in report["reasons"]],
            "notes": [note["text"] for note in report["notes"]],
            "codes": self.codes,
            "messages_per_s": report["messages_per_s"],
            "offered_per_s": report["offered_per_s"],
            "p50_us": latency and latency["p50"],
            "p99_us": latency and latency["p99"],
            "client": report["client"],
            "beside": self.beside.as_dict(),
        }


class Client:
    """``fastsock load`` in a child process, pinned to one CPU or several; killed at the end."""

    def __init__(self, endpoint: object, *arguments: object, cpus: Any = (CLIENT_CPU,)) -> None:
        self.endpoint = fastsock.Endpoint.parse(str(endpoint))
        words = ("load", str(endpoint), *map(str, arguments), "--json", "-")
        self._before = _reading()
        with pinned(cpus):
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fastsock", *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)

    def wait_connected(self, count: int = 1) -> None:
        """Wait until the client has so many TCP connections, so that it loads from here on."""
        port = self.endpoint.port
        ended = self.process.poll
        wait_until(lambda: ended() is not None or _connected(port) >= count, "connected")

    def finish(self) -> Run:
        output, errors = self.process.communicate(timeout=50)
        after = _reading()
        beside = Beside(*(b - a for a, b in zip(self._before, after, strict=True)))
        assert output, f"no report, exit code {self.process.returncode}: {errors}"
        return Run(json.loads(output), self.process.returncode, errors, beside)


def load(endpoint: object, *arguments: object, cpus: Any = (CLIENT_CPU,)) -> Run:
    """A whole run."""
    with Client(endpoint, *arguments, cpus=cpus) as client:
        return client.finish()


def undisturbed(run: Callable[[], Run], codes: Collection[str] = ()) -> Run:
    """A run that has to be valid, or not valid with one of the codes.

    It is tried again if its verdict is another and the driver's reading excuses that.
    """
    for _ in range(TRIES):
        seen = run()
        right = bool(set(codes) & set(seen.codes)) if codes else seen.valid
        if right or not seen.excused:
            return seen
    if not codes:
        beside = seen.beside.as_dict()
        pytest.skip(f"a machine that is not busy is missing: {beside}, {seen.codes}")
    return seen


@contextmanager
def pinned(cpus: Any) -> Iterator[None]:
    """In the body, this thread and what it starts have only these CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def echo_server(endpoint: str = "tcp://127.0.0.1:0", **options: Any) -> Iterator[fastsock.Server]:
    """A native server in this process, on a CPU that is not the client's if there are two."""
    server = fastsock.Server(endpoint, **options)
    with pinned({SERVER_CPU}):
        server.start()
    try:
        yield server
    finally:
        server.stop()


# --- readings -----------------------------------------------------------------------------------


def _reading() -> tuple[float, float, float]:
    """Seconds since some moment: time, steal, and the CPU time of other processes."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks[:8]
    # `steal` is no process's; a guest's time is in `user` (proc(5)).
    busy = (user + nice + system + irq + softirq) * TICK
    if EXACT.exists():
        busy = int(EXACT.read_text()) / 1e9
    return time.monotonic(), steal * TICK, busy - _own_cpu()


def _own_cpu() -> float:
    """CPU seconds of this process, of its children, and of those that have ended."""
    usages = [
        resource.getrusage(which) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    spent = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return spent + sum(map(_cpu_with_children, children()))


def _cpu_with_children(pid: int) -> float:
    """CPU seconds of a process and of all that descend from it."""
    with suppress(FileNotFoundError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        spent = sum(map(int, fields[11:15])) * TICK  # utime, stime, cutime, cstime
        return spent + sum(map(_cpu_with_children, children_of(pid)))
    return 0.0


def children_of(pid: int) -> list[int]:
    try:
        return children(pid)
    except FileNotFoundError:
        return []


def _connected(port: int) -> int:
    """How many TCP connections there are to a local port, by the kernel's own list."""
    return sum(state == ESTABLISHED for state, _ in _tcp_sockets(port))


def listening(port: int, pid: int) -> bool:
    """Whether a process listens on a TCP port."""
    own = {what for _, what in descriptors(pid)}
    return any(
        state == LISTEN and f"socket:[{inode}]" in own for state, inode in _tcp_sockets(port)
    )


def _tcp_sockets(port: int) -> Iterator[tuple[str, str]]:
    """State and inode of each TCP socket with this local port: proc_net_tcp of the kernel."""
    for name in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
                _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
                if int(local.rpartition(":")[2], 16) == port:
                    yield state, inode
