"""A server in a process of its own: started, watched from outside, and ended for certain.

Nothing is asked of the server itself. What is known of it comes from its output and from proc(5).
"""

from __future__ import annotations

import os
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import tempfile
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from fastsock import signals
from fastsock.endpoint import Endpoint

START_TIMEOUT = 20.0  # seconds
END_TIMEOUT = 30.0
PAUSE_TIMEOUT = STOP_TIMEOUT = 5.0
PRINTED_WITHIN = 0.1  # seconds from listening until its endpoint is printed

_LISTENING = re.compile(r"listening on ([a-z]+://\S+)\s")
_LISTENING_STATES = {"tcp": "0A", "udp": "07"}  # in /proc/PID/net; for udp: not connected
#: Local addresses of sockets to which a client of 127.0.0.1 can be connected.
_REACHED_FROM_LOOPBACK = ("127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1")
#: Ends with its process group when its pipe ends. A shell starts within a millisecond.
_WATCHER = ("sh", "-c", "read -r line; kill -KILL 0")
_TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds
_PAGE = os.sysconf("SC_PAGESIZE")


class NotStartedError(RuntimeError):
    """The command cannot be run, or the server ended, or listens nowhere."""


class Process:
    """A command in a process group of its own. A context manager: at its end the group is killed.

    The group is also killed when this process ends in any other way, by SIGKILL too.

    Standard error goes to a file, and standard output too if `stdout` is None. With a pipe, a
    thread of this process would have to read it, and take CPU time from a client that measures.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        try:
            # A signal that raises an exception in between would leave a server running.
            with signals.deferred():
                watcher = start_watcher()
                try:
                    self._process = self._start(watcher.pid, command, stdin, stdout, pass_fds)
                except BaseException:
                    kill_group(watcher)
                    raise
                self._finalizer = weakref.finalize(self, kill_group, watcher, self._process)
        except BaseException:
            self._log.close()
            raise
        self.pid = self._process.pid
        self._group = watcher.pid
        self._pidfd = os.pidfd_open(self.pid)

    def _start(
        self,
        group: int,
        command: Sequence[str],
        stdin: int,
        stdout: int | None,
        pass_fds: Sequence[int],
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=self._log if stdout is None else stdout,
            stderr=self._log,
            pass_fds=pass_fds,
            process_group=group,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def processes(self) -> list[int]:
        """Ids of the running processes of its group: its own, and those that it has started."""
        group = str(self._group)
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended meanwhile
                fields = stat_fields(path)
                if fields[2] == group and fields[0] not in "ZX":
                    found.append(int(path.parent.name))
        return [pid for pid in found if pid != self._group]  # without the watcher

    def signal(self, number: signal.Signals) -> None:
        """Send it to the first process alone."""
        os.kill(self.pid, number)

    def pause(self) -> None:
        """Stop all its processes (SIGSTOP); return when every thread of them has stopped.

        Raises RuntimeError if one does not stop.
        """
        deadline = time.monotonic() + PAUSE_TIMEOUT
        # Again and again: one of them may have started another before it was stopped.
        while running := [pid for pid in self.processes() if not is_stopped(pid)]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes {running} do not stop")
            signal_each(running, signal.SIGSTOP)
            time.sleep(0.0005)

    def resume(self) -> None:
        signal_each(self.processes(), signal.SIGCONT)

    def wait(self, seconds: float = END_TIMEOUT) -> int | None:
        """Wait for the end of the first process.

        Returns its exit code, negative for the signal that killed it; None if it still runs.
        """
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return None
        # WNOWAIT: until it is reaped, its number is not given to another process or group.
        end = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        assert end is not None
        return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status

    def running(self) -> bool:
        return self.wait(0) is None

    def cpu_seconds(self) -> float:
        """CPU time of all its processes, and (in ticks of 10 ms) of children that have ended."""
        total = 0.0
        for pid in self.processes():
            with suppress(OSError):
                total += time.clock_gettime(~pid << 3 | 2)  # clock_getcpuclockid(3)
                ended = stat_fields(Path(f"/proc/{pid}/stat"))[13:15]
                total += sum(map(int, ended)) * _TICK
        return total

    def memory(self) -> int | None:
        """Bytes of memory of all its processes; of what they share with others, their part.

        That is the proportional set size of ``/proc/PID/smaps_rollup``, proc_pid_smaps(5). Where
        that cannot be read it is the resident set size, which counts what processes share once
        for each of them. Both leave out what the kernel keeps for a process, a thread or a
        connection. None where neither is known.
        """
        return memory_of(self.processes())

    def anonymous_memory(self) -> int:
        """The part of it that is in no file.

        The pages of programs and libraries are left out: what they count for depends on how many
        other processes use them.
        """
        return sum(smaps_bytes(pid, "Pss_Anon") for pid in self.processes())

    def descriptors(self) -> int:
        """How many all its processes have open."""
        return sum(len(descriptors_of(pid)) for pid in self.processes())

    def threads(self) -> int:
        return sum(len(entries(f"/proc/{pid}/task")) for pid in self.processes())

    def leave_descriptors(self, count: int) -> None:
        """Limit the first process so that it can open about `count` more."""
        self.limit_descriptors(max(descriptors_of(self.pid)) + 1 + count)

    def limit_descriptors(self, limit: int) -> None:
        """See setrlimit(2)."""
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (limit, hard))

    def log(self) -> str:
        """What was written to the log so far."""
        # At an offset: the process writes at the file's own, which is shared with it.
        return os.pread(self._log.fileno(), self.log_size(), 0).decode(errors="replace")

    def log_size(self) -> int:
        """Bytes."""
        return os.fstat(self._log.fileno()).st_size

    def last_lines(self) -> str:
        """The last lines of the log, in one."""
        return " | ".join(self.log().strip().splitlines()[-5:]) or "nothing"

    def stop(self, seconds: float = STOP_TIMEOUT) -> int | None:
        """Ask it to end (SIGTERM), also while it is paused; wait as wait() does."""
        self.signal(signal.SIGTERM)
        self.resume()
        return self.wait(seconds)

    def close(self) -> None:
        """End every process of the group, also those that the first one has left behind."""
        if not self._finalizer.alive:
            return
        self._finalizer()
        os.close(self._pidfd)
        for file in (self._log, self._process.stdin, self._process.stdout):
            if file is not None:
                file.close()


def start_watcher() -> subprocess.Popen[bytes]:
    """Start a process in a new group that kills the group when this process has ended.

    A death signal (PR_SET_PDEATHSIG) would not do: it comes when the thread that started a process
    ends, and a server's children do not inherit it. The watcher is the first process of the group,
    so that the group's number is not given to another while it runs. A command that is started just
    when this process dies finds the group gone, and does not run (setpgid(2)).
    """
    # No signal but SIGKILL ends it: it inherits the mask. The kernel sends SIGHUP to a group with a
    # stopped process when the parent of the group dies.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        return subprocess.Popen(
            _WATCHER,
            stdin=subprocess.PIPE,
            # A pipeline would not end while a process has its pipe open.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kill_group(watcher: subprocess.Popen[bytes], *members: subprocess.Popen[str]) -> None:
    """Kill the group of `watcher`, once, and reap the processes that this one has started."""
    if watcher.returncode is None:  # until it is reaped, no other group can have its number
        os.killpg(watcher.pid, signal.SIGKILL)
        for process in members:
            process.wait()
        watcher.wait()
        assert watcher.stdin is not None
        watcher.stdin.close()


class ServerProcess(Process):
    """A process that listens; it can be connected to when this is made.

    Its endpoints are those that it prints, ``listening on ENDPOINT``, or the one IPv4 address that
    the process listens on. With `at`, an address of loopback that was free, it is where a process
    of the group listens, whatever is printed. `name` is for the error.

    Raises:
        NotStartedError: with the last lines of what it wrote.

    """

    #: Whether it can be stopped while other servers have their turns.
    stopped_between_turns = True
    problem = ""

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str = "",
        endpoints: int = 1,
        at: Endpoint | None = None,
    ) -> None:
        self.name = name or command[0]
        try:
            super().__init__(command)
        except OSError as error:
            raise NotStartedError(f"{self.name} did not start: {error}") from error
        try:
            self.endpoints = self._wait_for(at) if at else self._wait_for_endpoints(endpoints)
        except BaseException:
            self.close()
            raise
        self.endpoint = self.endpoints[0]

    @property
    def address(self) -> tuple[str, int]:
        return self.endpoint.host, self.endpoint.port

    def _wait_for_endpoints(self, count: int) -> list[Endpoint]:
        start = time.monotonic()
        listening_since = None
        while (now := time.monotonic()) < start + START_TIMEOUT and self.running():
            printed = _LISTENING.findall(self.log())
            if len(printed) >= count:
                try:
                    return [Endpoint.parse(each) for each in printed[:count]]
                except ValueError as error:
                    raise NotStartedError(f"{self.name} printed a bad endpoint: {error}") from None
            if count == 1 and (bound := bound_endpoint(self.pid)):
                listening_since = listening_since or now
                if now > listening_since + PRINTED_WITHIN:
                    return [bound]
            time.sleep(0.01)
        raise self._not_started("print: listening on ENDPOINT, such as tcp://127.0.0.1:7007")

    def _wait_for(self, at: Endpoint) -> list[Endpoint]:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self.running():
            if listen_at(self.processes(), at):
                return [at]
            time.sleep(0.01)
        raise self._not_started(f"listen on {at}")

    def _not_started(self, must: str) -> NotStartedError:
        return NotStartedError(
            f"{self.name} did not start; it printed: {self.last_lines()}; it must {must}"
        )


def signal_each(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def stat_fields(path: Path) -> list[str]:
    """The fields after the name of a process or thread, from the state on; proc_pid_stat(5)."""
    return path.read_text().rpartition(")")[2].split()


def is_stopped(pid: int) -> bool:
    """Whether each thread has stopped or ended: a process does not stop all at once."""
    for thread in entries(f"/proc/{pid}/task"):
        with suppress(OSError):
            if stat_fields(Path(f"/proc/{pid}/task/{thread}/stat"))[0] not in "TtZX":
                return False
    return True


def smaps_bytes(pid: int, field: str) -> int:
    """A field of smaps_rollup; 0 for a process that has ended meanwhile."""
    with suppress(FileNotFoundError, ProcessLookupError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = re.search(rf"^{field}:\s+(\d+) kB$", rollup, re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    return 0


def resident_bytes(pid: int) -> int:
    """Resident set size; 0 for a process that has ended meanwhile."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return 0


def memory_of(pids: Sequence[int]) -> int | None:
    """See `Process.memory()`."""
    for size_of in (lambda pid: smaps_bytes(pid, "Pss"), resident_bytes):
        with suppress(OSError):
            return sum(map(size_of, pids))
    return None


def descriptors_of(pid: int) -> list[int]:
    return entries(f"/proc/{pid}/fd")


def entries(folder: str) -> list[int]:
    """The numbers that are the names in a folder of /proc; none if the process has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return [int(name) for name in os.listdir(folder)]  # noqa: PTH208 - thousands of names
    return []


def bound_endpoint(pid: int) -> Endpoint | None:
    """Where the process listens: the first such socket on IPv4."""
    opened = open_files(pid)
    for scheme in _LISTENING_STATES:
        for host, port, file in listeners(f"/proc/{pid}/net/{scheme}", scheme):
            if file in opened:
                return Endpoint(scheme, host, port)
    return None


def free_endpoint(scheme: str) -> Endpoint:
    """A port on 127.0.0.1 on which nothing listened a moment ago, on no IPv4 address."""
    kind = socket.SOCK_STREAM if scheme == "tcp" else socket.SOCK_DGRAM
    with socket.socket(type=kind) as sock:
        sock.bind(("", 0))
        return Endpoint(scheme, "127.0.0.1", sock.getsockname()[1])


def listen_at(pids: Sequence[int], at: Endpoint) -> bool:
    """Whether one of the processes, and no other, listens where `at` on 127.0.0.1 leads to.

    A socket of AF_INET6 for every address may be for IPv6 alone: then another process can have the
    port on IPv4.
    """
    found = [
        (":" in host, file)
        for table in (at.scheme, f"{at.scheme}6")
        for host, port, file in listeners(f"/proc/thread-self/net/{table}", at.scheme)
        if port == at.port and host in _REACHED_FROM_LOOPBACK
    ]
    if not found:
        return False
    opened = set().union(*map(open_files, pids))
    return any(file in opened for _, file in found) and all(
        file in opened for is_ipv6, file in found if not is_ipv6
    )


def open_files(pid: int) -> set[str]:
    """What the descriptors of a process refer to, such as ``socket:[1234]``."""
    opened = set()
    with suppress(PermissionError):  # a process of another user
        for descriptor in descriptors_of(pid):
            with suppress(OSError):
                opened.add(str(Path(f"/proc/{pid}/fd/{descriptor}").readlink()))
    return opened


def listeners(table: str, scheme: str) -> Iterator[tuple[str, int, str]]:
    """Host, port and file, as open_files() has it, of each socket in a table that listens."""
    with suppress(OSError):
        for row in Path(table).read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == _LISTENING_STATES[scheme]:
                address, port = fields[1].split(":")
                # In words of 32 bits, each printed as a number of this machine's byte order.
                words = [int(address[i : i + 8], 16) for i in range(0, len(address), 8)]
                family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
                host = socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))
                yield host, int(port, 16), f"socket:[{fields[9]}]"
