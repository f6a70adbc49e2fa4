"""Comparing echo servers on one machine, so that the ratios can be believed.

Machines are noisy: the same program differs from minute to minute by more than rivals differ from
each other. So all servers run at once, each in a process of its own, and take turns window by
window while the others are stopped (SIGSTOP). A ratio is taken within one round, between windows a
moment apart, and the median over the rounds is reported with an interval. Server and client are
pinned to different CPUs where there are two. A window in which other programs took time from the
server or the client is measured again. A server that runs already takes turns too, but is not
stopped. Beside the rate stands the server's CPU time per echo, which noise moves less, and the
floor: what the same echo costs the kernel alone.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from math import comb
from typing import Any

from fastsock._native.client import floor
from fastsock.bench.contenders import PORT, Contender
from fastsock.bench.evidence import CLIENT_CODES, Evidence, Usage
from fastsock.bench.running_server import GREETING, AnyServer, RunningServer, dial
from fastsock.bench.server_process import ServerProcess, free_endpoint
from fastsock.client import load as client
from fastsock.client.options import Wait
from fastsock.client.report import LoadReport
from fastsock.host import host_facts
from fastsock.units import format_rate

BENCH_SCHEMA = "fastsock.bench/4"
CONFIDENCE = 0.95  # that an interval holds the median; fewer than FEWEST windows do not give it
FEWEST = 6

_FLOOR_WINDOW_NS = 100_000_000
_LARGEST = {"udp": 65507}  # bytes in one piece, of the floor; else 64 KiB
_START = 0.4  # seconds, about, until a server in Python listens
_CONNECT = 0.0005  # seconds, about, to open and close a connection, in each turn
_CHILDREN_TIMEOUT = 2.0  # seconds

Progress = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Case:
    """The load that every contender gets; see `fastsock.load()`.

    `kind` is that of the contenders' endpoints, or of the first one's, and of the floor.

    `rate` is messages a second of all connections together, sent whether or not answers came.
    `idle` more connections are open and silent meanwhile. If not `pinned`, server and client share
    all CPUs, for servers that keep more than one CPU busy; the client should then not `wait` by
    spinning. If `one_cpu`, or if there is only one, they share one CPU, and the client blocks.
    """

    connections: int = 64
    size: int = 64
    depth: int = 1
    pinned: bool = True
    kind: str = "tcp"
    wait: Wait = "spin"
    reconnect_every: int | None = None
    rate: float | None = None
    idle: int = 0
    one_cpu: bool = False

    @property
    def title(self) -> str:
        """Such as ``64 connections, 64 B``."""
        kind = "" if self.kind == "tcp" else f"{self.kind}, "
        plural = "s" if self.connections > 1 else ""
        depth = f", depth {self.depth}" if self.depth > 1 else ""
        rate = f", {format_rate(self.rate)}" if self.rate else ""
        idle = f", beside {self.idle} idle" if self.idle else ""
        return f"{kind}{self.connections} connection{plural}, {self.size} B{depth}{rate}{idle}"


@dataclass(frozen=True, slots=True)
class Method:
    """How many windows each contender has, and their seconds.

    The warm-up is at least a millisecond per connection, or what is given: a server that forks for
    every client needs that long.
    """

    windows: int = 9
    window: float = 0.25
    warmup: float = 0.1
    warmup_per_connection: float = 0.001

    def warmup_of(self, case: Case) -> float:
        return max(self.warmup, self.warmup_per_connection * case.connections)

    def seconds(self, contenders: Sequence[Contender], case: Case) -> float:
        """About how long a comparison takes if no window is disturbed."""
        turns = self.windows * (self.window + self.warmup_of(case) + _CONNECT * case.connections)
        servers = len(taking_part(contenders, case))
        return servers * (_START + turns) + self.windows * _FLOOR_WINDOW_NS / 1e9

    def as_dict(self) -> dict[str, Any]:
        return {
            "windows": self.windows,
            "window_s": self.window,
            "warmup_s": self.warmup,
            "warmup_per_connection_s": self.warmup_per_connection,
        }


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a server takes before its first client, and with all of them connected."""

    alone: int
    connected: int
    connections: int

    @property
    def per_connection(self) -> float:
        return (self.connected - self.alone) / self.connections

    def as_dict(self) -> dict[str, Any]:
        return {
            "alone": self.alone,
            "connected": self.connected,
            "per_connection": self.per_connection,
        }


@dataclass(slots=True)
class Result:
    """What one contender did, a value per window; times in microseconds.

    A window without answers has no latency, and none has CPU time where no process is known.
    """

    name: str
    memory: Memory | None = None
    syscalls_per_echo: float | None = None
    rates: list[float] = field(default_factory=list)
    p50s: list[float] = field(default_factory=list)
    p99s: list[float] = field(default_factory=list)
    cpu_per_echo: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)
    repeated: int = 0
    stopped_between_turns: bool = True

    def add(self, report: LoadReport, evidence: Evidence) -> None:
        self.evidence.append(evidence)
        for problem in problems_of(report):
            self.add_problem(problem)
        # An open loop counts answers that come after the window; their CPU time is not in it.
        paced = report.offered is not None
        answers = report.answered_in_window if paced else report.messages
        self.rates.append(answers / report.duration if report.duration else 0.0)
        if report.latency.count:
            self.p50s.append(report.latency.p50)
            self.p99s.append(report.latency.p99)
        if report.server_cpu is not None:
            self.cpu_per_echo.append(report.server_cpu / max(answers, 1) * 1e6)

    def add_failure(self, problem: str) -> None:
        """Add a window that could not be measured."""
        self.rates.append(0.0)
        self.evidence.append(Evidence(None, {}, ()))
        self.add_problem(problem)

    def add_problem(self, problem: str) -> None:
        if problem and problem not in self.problems:
            self.problems.append(problem)

    def per_window(self) -> dict[str, list[float]]:
        """The values behind the medians, in the order of the rounds."""
        return {
            "messages_per_s": [round(rate, 1) for rate in self.rates],
            "server_cpu_us_per_echo": [round(cost, 4) for cost in self.cpu_per_echo],
            "p99_us": [round(p99, 2) for p99 in self.p99s],
        }

    def all_problems(self) -> list[str]:
        """Those of the load, and windows that stayed disturbed; each once."""
        disturbed = [each.disturbances for each in self.evidence if each.disturbances]
        if not disturbed:
            return self.problems
        number = f"{len(disturbed)} of {len(self.evidence)} windows stayed disturbed"
        return [*self.problems, f"{number}: {disturbed[-1][0]}"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A median of windows, and an interval that holds the median of many more.

    It does so with `confidence` where the windows are independent of each other: about 0.95, or
    less with fewer than 6 windows, which are too few for that. Its ends are two of the values
    (order statistics), so that nothing is assumed of how the values are distributed. Two runs on a
    quiet machine have intervals that overlap; the quartiles of the windows need not.
    """

    median: float
    low: float
    high: float
    confidence: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        if not values:
            return cls(0.0, 0.0, 0.0, 0.0)
        ordered = sorted(values)
        outside, confidence = 0, confidence_of(len(ordered), 0)
        while (narrower := confidence_of(len(ordered), outside + 1)) >= CONFIDENCE:
            outside, confidence = outside + 1, narrower
        low, high = ordered[outside], ordered[-1 - outside]
        return cls(statistics.median(ordered), low, high, confidence)

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def confidence_of(count: int, outside: int) -> float:
    """That a median lies between two of `count` ordered values, with `outside` beyond each.

    It does not only if so few values fell on one side of it: a binomial distribution with 1/2.
    """
    return max(1 - 2.0 * sum(comb(count, k) for k in range(outside + 1)) / 2.0**count, 0.0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Results of all contenders under one case.

    Rates are set against that of the contender named `reference`: higher is better. ``left_out``
    says why a contender does not take part.
    """

    case: Case
    results: tuple[Result, ...]
    floor_us: Interval
    reference: str
    left_out: Mapping[str, str] = field(default_factory=dict)

    def rate_ratio(self, result: Result) -> Interval | None:
        """This contender's rate over the reference's, round by round; None if either is 0."""
        rates = next(each.rates for each in self.results if each.name == self.reference)
        if not (any(result.rates) and statistics.median(result.rates)):
            return None
        ratios = [a / b for a, b in zip(result.rates, rates, strict=True) if b]
        return Interval.of(ratios) if ratios else None

    def as_dict(self) -> dict[str, Any]:
        return {
            "case": asdict(self.case),
            "floor_us": self.floor_us.as_dict(),
            "reference": self.reference,
            "results": [self._result_dict(result) for result in self.results],
            "left_out": dict(self.left_out),
            "one_cpu": self.case.one_cpu,
        }

    def _result_dict(self, result: Result) -> dict[str, Any]:
        ratio = self.rate_ratio(result)
        return {
            "name": result.name,
            "stopped_between_turns": result.stopped_between_turns,
            "messages_per_s": Interval.of(result.rates).as_dict(),
            "p50_us": Interval.of(result.p50s).as_dict() if result.p50s else None,
            "p99_us": Interval.of(result.p99s).as_dict() if result.p99s else None,
            "server_cpu_us_per_echo": (
                Interval.of(result.cpu_per_echo).as_dict() if result.cpu_per_echo else None
            ),
            "memory_bytes": result.memory and result.memory.as_dict(),
            "syscalls_per_echo": result.syscalls_per_echo,
            "rate_ratio": ratio and ratio.as_dict(),
            "windows": len(result.rates),
            "per_window": result.per_window(),
            "repeated": result.repeated,
            "evidence": [each.as_dict() for each in result.evidence],
            "problems": result.all_problems(),
        }


def document(
    comparisons: Mapping[str, Comparison],
    method: Method,
    *,
    commit: str | None = None,
    syscalls_by: str | None = None,
) -> dict[str, Any]:
    """Named comparisons of one run as a ``fastsock.bench/4`` document.

    `syscalls_by` is the tool that counted the system calls, if they were counted.
    """
    return {
        "schema": BENCH_SCHEMA,
        "commit": commit,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": host_facts(),
        "method": method.as_dict() | {"syscalls_by": syscalls_by},
        "cases": [{"name": name, **each.as_dict()} for name, each in comparisons.items()],
    }


def taking_part(contenders: Sequence[Contender], case: Case) -> list[Contender]:
    """The contenders that are installed and can serve this number of clients."""
    return [each for each in contenders if not each.hindrance(case.connections + case.idle)]


def compare(
    contenders: Sequence[Contender],
    case: Case,
    method: Method,
    *,
    reference: str = "",
    progress: Progress = lambda text: None,
    syscalls_per_echo: Callable[[ServerProcess, Case], float | None] | None = None,
) -> Comparison:
    """Give every contender that can take part its turns, in rounds; at least one must be able to.

    `reference` names the contender that the others' rates are set against; the first one, if it
    does not take part. `progress` is called before each turn. A disturbed window is measured again
    at once, but all contenders together have at most twice the planned windows. `syscalls_per_echo`
    counts a server's system calls, in a turn after all windows, for a count takes time.

    Raises:
        RuntimeError: a contender did not start, with the last lines that it printed; or nothing
            listens on its endpoint; or it did not serve the idle connections.

    """
    if case.one_cpu or len(os.sched_getaffinity(0)) == 1:
        # A spinning client would take the server's CPU.
        case = replace(case, one_cpu=True, wait="block")
    server_cpu, client_cpu = cpus_of(case)
    cpus = os.sched_getaffinity(0) if server_cpu is None else {server_cpu}
    present = taking_part(contenders, case)
    floors: list[float] = []
    with ExitStack() as stack:
        servers = [stack.enter_context(started(each, server_cpu)) for each in present]
        results = tuple(
            Result(each.name, stopped_between_turns=each.stopped_between_turns) for each in servers
        )
        stack.enter_context(pinned(client_cpu))
        for server, result in zip(servers, results, strict=True):
            result.memory = measure_memory(server, case.connections)
            if case.idle:
                stack.enter_context(idle_connections(server, case.idle))
        spare = method.windows * len(servers)  # windows that may be measured again
        for number in range(method.windows):
            floors.append(measure_floor(case.size, case.kind))
            # Every other round backwards, so that drift does not favour one side.
            order = range(len(servers)) if number % 2 == 0 else reversed(range(len(servers)))
            for i in order:
                progress(f"round {number + 1}/{method.windows}: {servers[i].name}")
                try:
                    report, evidence = run_turn(servers[i], case, method, cpus)
                    while spare and evidence.disturbed and not failures_of(report):
                        spare -= 1
                        results[i].repeated += 1
                        report, evidence = run_turn(servers[i], case, method, cpus)
                except OSError as error:  # no route to it any more, for example
                    if isinstance(servers[i], ServerProcess):
                        raise
                    results[i].add_failure(error.strerror or str(error))
                    continue
                results[i].add(report, evidence)
                results[i].add_problem(servers[i].problem)
        if syscalls_per_echo:
            for server, result in zip(servers, results, strict=True):
                if isinstance(server, RunningServer):
                    continue
                progress(f"system calls: {server.name}")
                with turn(server):
                    result.syscalls_per_echo = syscalls_per_echo(server, case)
    left_out = {
        each.name: each.hindrance(case.connections + case.idle)
        for each in contenders
        if each not in present
    }
    names = [contender.name for contender in present]
    reference = reference if reference in names else names[0]
    return Comparison(case, results, Interval.of(floors), reference, left_out)


@contextmanager
def started(contender: Contender, cpu: int | None) -> Iterator[AnyServer]:
    """A contender's server, paused, on one CPU if not None; ended by SIGTERM, or SIGKILL.

    One that runs already is left alone.
    """
    if contender.endpoint:
        with RunningServer(contender.name, contender.endpoint, contender.pid) as running:
            yield running
        return
    at = free_endpoint(contender.port_of) if contender.port_of else None
    command = contender.command
    if at:
        command = tuple(word.replace(PORT, str(at.port)) for word in command)
    with pinned(cpu):  # a child inherits the CPUs of the thread that starts it
        server = ServerProcess(command, name=contender.name, at=at)
    with server:
        server.pause()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def turn(server: AnyServer) -> Iterator[None]:
    """Let a paused server run."""
    if isinstance(server, RunningServer):
        yield
        return
    before = len(server.processes())
    server.resume()
    try:
        yield
    finally:
        # Processes of closed connections are about to end: wait, or they end in the next turn.
        deadline = time.monotonic() + _CHILDREN_TIMEOUT
        while len(server.processes()) > before and time.monotonic() < deadline:
            time.sleep(0.005)
        server.pause()


def run_turn(
    server: AnyServer, case: Case, method: Method, cpus: Collection[int]
) -> tuple[LoadReport, Evidence]:
    """Measure one window of a server that uses `cpus`."""
    shared = not os.sched_getaffinity(0).isdisjoint(cpus)
    before = Usage.now(server, cpus, shared=shared)
    with turn(server):
        report = run_window(server, case, method)
    after = Usage.now(server, cpus, shared=shared)
    return report, Evidence.of(report, method.window, before, after)


def problems_of(report: LoadReport) -> list[str]:
    """Why the window is not valid, without disturbances, which `Evidence` has.

    A delay of the server is one only if other programs took its CPU: its threads that share a CPU
    delay each other.
    """
    others = CLIENT_CODES | {"server_delayed"}
    return [str(each) for each in report.reasons if each.code not in others]


def failures_of(report: LoadReport) -> list[str]:
    """The problems that no disturbance explains: errors, lost or corrupt bytes."""
    reasons = [each for each in report.reasons if each.code != "no_messages"]
    return problems_of(replace(report, reasons=tuple(reasons)))


def run_window(server: AnyServer, case: Case, method: Method) -> LoadReport:
    return load_as(case, server, duration=method.window, warmup=method.warmup_of(case))


def load_as(case: Case, server: AnyServer, **extent: Any) -> LoadReport:
    def load(pid: int | None) -> LoadReport:
        return client.load(
            server.endpoint,
            connections=case.connections,
            size=case.size,
            depth=case.depth,
            rate=case.rate,
            wait=case.wait,
            reconnect_every=case.reconnect_every,
            server_pid=pid,
            **extent,
        )

    try:
        return load(server.pid)
    except ProcessLookupError:  # it has just ended, and the server may go on in other processes
        return load(None)


def measure_memory(server: AnyServer, connections: int) -> Memory | None:
    """Measure in a turn of its own, as reading a thousand processes takes time.

    None if it is not known, or if the server does not serve; the load reports that.
    """
    try:
        with turn(server):
            alone = server.memory()
            if alone is None:
                return None
            with connected(server, connections):
                full = server.memory()
    except OSError:
        return None
    return None if full is None else Memory(alone, full, connections)


@contextmanager
def connected(server: AnyServer, connections: int) -> Iterator[None]:
    """Connections that have had one short echo each."""
    with ExitStack() as stack:
        for _ in range(connections):
            peer = stack.enter_context(dial(server.endpoint))
            peer.sendall(GREETING)
            left = len(GREETING)
            while left:
                received = len(peer.recv(left))
                if not received:
                    raise ConnectionError(f"{server.name} closed a connection before its echo")
                left -= received
        yield


@contextmanager
def idle_connections(server: AnyServer, count: int) -> Iterator[None]:
    """Connections of a paused server that stay open, and silent, while it takes its turns."""
    with ExitStack() as stack:
        try:
            with turn(server):
                stack.enter_context(connected(server, count))
        except OSError as error:
            raise RuntimeError(f"{server.name}: {count} idle connections: {error}") from error
        yield


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


def cpus_of(case: Case) -> tuple[int | None, int | None]:
    """As cpus_for_both(), or one CPU twice; (None, None) if the case is not to be pinned."""
    if case.one_cpu:
        cpu = min(os.sched_getaffinity(0))
        return cpu, cpu
    return cpus_for_both() if case.pinned else (None, None)


@contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """Run this thread, and its children, on one CPU; None changes nothing."""
    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
