"""Comparing echo servers on one machine, so that the ratios can be believed.

Machines are noisy: the same program differs from minute to minute by more than rivals differ from
each other. So all servers run at once, each in a process of its own, and take turns window by
window while the others are stopped (SIGSTOP). A ratio is taken within one round, between windows a
moment apart, and the median over the rounds is reported with its spread. Server and client are
pinned to different CPUs where there are two. Beside the rate stands the server's CPU time per
echo, which noise moves less, and the floor: what the same echo costs the kernel alone.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from fastsock import client, engines
from fastsock._native import floor
from fastsock.report import LoadReport, host_facts

BENCH_SCHEMA = "fastsock.bench/1"
#: Not fork: the CPU time of its children is not its own, so that it would seem to cost nothing.
#: And not what may not work here: nobody has asked for it by name.
NATIVE_ENGINES = tuple(
    name for name in engines.WORKERS if name != "fork" and not engines.doubt(name)
)
PURE_SHAPES = ("threads", "selectors", "asyncio", "serial")

#: What can be compared: the schemes of endpoints.
KINDS = ("tcp", "udp", "unix", "unixgram")

_LISTENING = re.compile(r"listening on ([a-z]+://\S+)")
_START_TIMEOUT = 20.0  # seconds
_FLOOR_WINDOW_NS = 100_000_000
_LARGEST = {"udp": 65507}  # bytes in one piece, of the floor; 64 KiB where not said

_names = itertools.count()


@dataclass(frozen=True, slots=True)
class Contender:
    """A server to compare: a command that prints ``listening on ENDPOINT`` to stderr."""

    name: str
    command: tuple[str, ...]


def native(engine: str, kind: str = "tcp") -> Contender:
    serve = ("-m", "fastsock", "serve", free_endpoint(kind), "--engine", engine)
    return Contender(named("fastsock", engine, kind), (sys.executable, *serve))


def pure(shape: str, kind: str = "tcp") -> Contender:
    serve = ("-m", "fastsock.pure", "serve", free_endpoint(kind), "--shape", shape)
    return Contender(named("stdlib", shape, kind), (sys.executable, *serve))


def datagrams(kind: str) -> list[Contender]:
    """The native server and its twin, which have one engine and one shape for datagrams."""
    return [
        Contender(
            named(name, "datagrams", kind),
            (sys.executable, "-m", package, "serve", free_endpoint(kind)),
        )
        for name, package in (("fastsock", "fastsock"), ("stdlib", "fastsock.pure"))
    ]


def named(server: str, shape: str, kind: str) -> str:
    return f"{server} {shape}" if kind == "tcp" else f"{server} {shape}, {kind}"


def free_endpoint(kind: str) -> str:
    """Where to listen so that nobody is in the way: port 0, or an abstract name."""
    if kind in ("tcp", "udp"):
        return f"{kind}://127.0.0.1:0"
    return f"{kind}://@fastsock-bench-{os.getpid()}-{next(_names)}"


@dataclass(frozen=True, slots=True)
class Case:
    """The load that every contender gets; see `fastsock.load()`.

    `kind` is that of the contenders' endpoints, or of the first one's, and of the floor.

    Not `pinned`, server and client share all CPUs and the client sleeps while it waits: for
    servers that keep more than one CPU busy.
    """

    connections: int = 64
    size: int = 64
    depth: int = 1
    pinned: bool = True
    kind: str = "tcp"


@dataclass(slots=True)
class Result:
    """What one contender did, a value per window; times in microseconds."""

    name: str
    rates: list[float] = field(default_factory=list)
    p50s: list[float] = field(default_factory=list)
    p99s: list[float] = field(default_factory=list)
    cpu_per_echo: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, report: LoadReport) -> None:
        self.problems.extend(report.reasons)
        self.rates.append(report.messages_per_s)
        self.p50s.append(report.latency.p50)
        self.p99s.append(report.latency.p99)
        self.cpu_per_echo.append((report.server_cpu or 0.0) / max(report.messages, 1) * 1e6)


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) < 2:
            return cls(*(list(values) * 3 or [0.0] * 3))
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def as_dict(self) -> dict[str, float]:
        return {"median": self.median, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Results of all contenders under one case; the first is the one that ratios refer to."""

    case: Case
    results: tuple[Result, ...]
    floor_us: Spread

    def rate_ratio(self, result: Result) -> Spread:
        """The first contender's rate over this one's, round by round."""
        mine = self.results[0].rates
        return Spread.of([a / b for a, b in zip(mine, result.rates, strict=True) if b])

    def cpu_ratio(self, result: Result) -> Spread:
        """The first contender's server CPU per echo over this one's, round by round."""
        mine = self.results[0].cpu_per_echo
        return Spread.of([a / b for a, b in zip(mine, result.cpu_per_echo, strict=True) if b])

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema": BENCH_SCHEMA,
            "case": {name: getattr(self.case, name) for name in self.case.__slots__},
            "floor_us": self.floor_us.as_dict(),
            "results": [self._result_dict(result) for result in self.results],
            "host": host_facts(),
        }

    def _result_dict(self, result: Result) -> dict[str, Any]:
        return {
            "name": result.name,
            "messages_per_s": Spread.of(result.rates).as_dict(),
            "p50_us": Spread.of(result.p50s).as_dict(),
            "p99_us": Spread.of(result.p99s).as_dict(),
            "server_cpu_us_per_echo": Spread.of(result.cpu_per_echo).as_dict(),
            "first_over_this_rate": self.rate_ratio(result).as_dict(),
            "first_over_this_cpu": self.cpu_ratio(result).as_dict(),
            "windows": len(result.rates),
            "problems": sorted(set(result.problems)),
        }


class RunningServer:
    """A contender's process, stopped (SIGSTOP) but for its own turns."""

    def __init__(self, contender: Contender, cpu: int | None) -> None:
        self.name = contender.name
        with pinned(cpu):  # a child inherits the CPUs of the thread that starts it
            self._process = subprocess.Popen(
                contender.command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
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
        self._process.send_signal(signal.SIGSTOP)

    @property
    def pid(self) -> int:
        return self._process.pid

    @contextmanager
    def turn(self) -> Iterator[None]:
        self._process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGSTOP)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _read(self, stderr: IO[str]) -> None:
        """Wait for the line with the endpoint; keep reading, so that the pipe never fills."""
        for line in stderr:
            self._last_lines.append(line.strip())
            found = _LISTENING.search(line)
            if found and not self.endpoint:
                self.endpoint = found[1]
                self._listening.set()
        self._listening.set()


def compare(
    contenders: Sequence[Contender],
    case: Case,
    *,
    windows: int,
    window: float,
    warmup: float,
    progress: Callable[[str], object] = lambda text: None,
) -> Comparison:
    """Run every contender in turn, `windows` times, for `window` seconds after `warmup` seconds.

    Raises:
        RuntimeError: a contender did not start; the text has what it said.

    """
    server_cpu, client_cpu = cpus_for_both() if case.pinned else (None, None)
    results = tuple(Result(contender.name) for contender in contenders)
    floors: list[float] = []
    with ExitStack() as stack:
        servers = []
        for contender in contenders:
            server = RunningServer(contender, server_cpu)
            stack.callback(server.stop)
            servers.append(server)
        stack.enter_context(pinned(client_cpu))
        for number in range(windows):
            floors.append(measure_floor(case.size, case.kind))
            # Every other round backwards, so that drift does not favour one side.
            order = range(len(servers)) if number % 2 == 0 else reversed(range(len(servers)))
            for i in order:
                progress(f"round {number + 1}/{windows}: {servers[i].name}")
                with servers[i].turn():
                    report = run_window(servers[i], case, window, warmup)
                results[i].add(report)
    return Comparison(case, results, Spread.of(floors))


def run_window(server: RunningServer, case: Case, window: float, warmup: float) -> LoadReport:
    return client.load(
        server.endpoint,
        connections=case.connections,
        size=case.size,
        depth=case.depth,
        duration=window,
        warmup=warmup,
        wait="spin" if case.pinned else "block",
        server_pid=server.pid,
    )


def measure_floor(size: int, kind: str = "tcp") -> float:
    """Microseconds of one ``send recv send recv`` over a local pair of sockets in one thread."""
    a, b = connected_pair(kind)
    with a, b:
        echoes, elapsed_ns = floor.round_trips(
            a.fileno(), b.fileno(), min(size, _LARGEST.get(kind, 65536)), _FLOOR_WINDOW_NS
        )
    return float(elapsed_ns / echoes / 1e3)


def connected_pair(kind: str) -> tuple[socket.socket, socket.socket]:
    if kind in ("unix", "unixgram"):
        stream = kind == "unix"
        return socket.socketpair(type=socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
    if kind == "udp":
        ends = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(2)]
        for end in ends:
            end.bind(("127.0.0.1", 0))
        for end, other in (ends, ends[::-1]):
            end.connect(other.getsockname())
        return ends[0], ends[1]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        a = socket.create_connection(listener.getsockname())
        b, _ = listener.accept()
    for end in (a, b):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return a, b


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
