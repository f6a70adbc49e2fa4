"""A server in a process of its own: started, watched from outside, and ended for certain.

Nothing is asked of the server itself. Its port is the one that its process listens on, its memory
and descriptors are those of all processes of its session, as /proc has them (proc(5)).
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
START_TIMEOUT = 20.0  # seconds
LISTEN, UNCONNECTED = "0A", "07"  # states in /proc/net/tcp and /proc/net/udp
TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds

Address = tuple[str, int]


class NotStartedError(RuntimeError):
    """The server ended, or listens nowhere."""


class ServerProcess:
    """Use as a context manager. Everything in its session is killed at the end."""

    def __init__(self, command: Sequence[str], *, datagrams: bool = False) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd=ROOT,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        try:
            self.address = self._wait_for_address(datagrams)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def pause(self) -> None:
        """Stop the whole group; returns when the first process has stopped."""
        os.killpg(self.pid, signal.SIGSTOP)
        # WNOWAIT throughout: while nobody reaps the process, its number is not given to another.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def wait(self, seconds: float) -> int | None:
        """Exit code, negative for the signal that killed it; None if it still runs."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return None
        end = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        assert end is not None
        return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status

    def alive(self) -> bool:
        return self.wait(0) is None

    def members(self) -> list[int]:
        """Every running process of the session."""
        return [pid for pid, _ in self._members()]

    def cpu_seconds(self) -> float:
        """CPU time of all of them, and (in ticks of 10 ms) of their children that have ended."""
        total = 0.0
        for pid, fields in self._members():
            with contextlib.suppress(OSError):
                total += time.clock_gettime(~pid << 3 | 2)  # clock_getcpuclockid(3)
            total += sum(map(int, fields[13:15])) * TICK
        return total

    def memory_bytes(self) -> int:
        """Proportional set size of all: pages that several share are counted once (proc(5))."""
        kib = 0
        for pid in self.members():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                kib += sum(int(row.split()[1]) for row in rollup.splitlines() if row[:4] == "Pss:")
        return kib * 1024

    def descriptors(self) -> int:
        return sum(len(descriptors_of(pid)) for pid in self.members())

    def leave_descriptors(self, count: int) -> None:
        """Limit the first process so that it can open about `count` more, setrlimit(2)."""
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
        limit = max(descriptors_of(self.pid)) + 1 + count
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (limit, hard))

    def log_bytes(self) -> int:
        return os.fstat(self._log.fileno()).st_size

    def said(self) -> str:
        """The last line of its output."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing"

    def kill(self) -> None:
        """End every process of the session; what they were asked before does not matter."""
        for pid in {self.pid, *self.members()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self._process.wait()
        os.close(self._pidfd)
        self._log.close()

    def _members(self) -> Iterator[tuple[int, list[str]]]:
        """Number and fields (from the state on, proc(5)) of each process that is not a zombie."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.pid and fields[0] != "Z":
                    yield int(path.parent.name), fields

    def _wait_for_address(self, datagrams: bool) -> Address:
        table, state = ("udp", UNCONNECTED) if datagrams else ("tcp", LISTEN)
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self.alive():
            if found := bound_address(self.pid, table, state):
                return found
            time.sleep(0.01)
        raise NotStartedError(f"did not start; it said: {self.said()}")


def descriptors_of(pid: int) -> list[int]:
    try:
        return [int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []


def bound_address(pid: int, table: str, state: str) -> Address | None:
    """The address of the process's first socket in such a state."""
    inodes = set()
    for fd in descriptors_of(pid):
        with contextlib.suppress(OSError):
            inodes.add(str(Path(f"/proc/{pid}/fd/{fd}").readlink()))
    try:
        rows = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    except OSError:
        return None
    for row in rows:
        fields = row.split()
        if fields[3] == state and f"socket:[{fields[9]}]" in inodes:
            host, port = fields[1].split(":")
            # Printed as a number of this machine's byte order.
            return socket.inet_ntoa(struct.pack("=I", int(host, 16))), int(port, 16)
    return None
