"""pytest-benchmark over the native server and its twin; one group a case.

Mean is seconds per message, OPS messages per second. Connecting is not counted, except where it is
what is measured. These rounds are not interleaved, so ratios between servers come from
``fastsock bench`` and, for docs/benchmarks.md, from ``benchmarks.run``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fastsock
from benchmarks.conftest import NOT_VALID
from benchmarks.contenders import beside_busy_main_thread, compiled
from fastsock.bench.comparison import (
    cpus_for_both,
    failures_of,
    pinned,
    problems_of,
    started,
    turn,
)
from fastsock.bench.contenders import Contender, datagrams, every_engine
from fastsock.bench.evidence import Evidence, Usage
from fastsock.bench.server_process import ServerProcess
from fastsock.client.report import LoadReport

ROUNDS = 5
TRIES = 3  # of a round that other programs disturb
SERVERS = [each for each in every_engine() if not each.one_at_a_time]


class MessageClock:
    """A timer for pytest-benchmark: a load run takes as long as one of its messages."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def add(self, report: LoadReport) -> None:
        self.seconds += report.duration / max(report.messages, 1)


per_message = MessageClock()

Measure = Callable[..., None]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    contender: Contender = request.param
    # A server that shares its process with a computing thread needs more than one CPU.
    alone = "busy" not in contender.name
    server_cpu, client_cpu = cpus_for_both() if alone else (None, None)
    with started(contender, server_cpu) as running, pinned(client_cpu), turn(running):
        yield running


def each(
    contenders: list[Contender], group: str
) -> Callable[[Callable[..., None]], pytest.MarkDecorator]:
    """A benchmark of each contender, in a group."""
    names = [contender.name for contender in contenders]
    parametrized = pytest.mark.parametrize("server", contenders, ids=names, indirect=True)
    marked = pytest.mark.benchmark(group=group, timer=per_message)
    return lambda function: marked(parametrized(function))


@pytest.fixture
def measure(
    benchmark: BenchmarkFixture, server: ServerProcess, request: pytest.FixtureRequest
) -> Measure:
    """Load the server in rounds of so many messages; the figures and their validity are kept.

    Errors, lost and corrupt bytes fail the test. A round that other programs disturbed is measured
    again. One that stays disturbed makes the figures not valid, which the summary says.
    """
    # The table's heading is the group, which says the rest.
    name = request.node.callspec.id
    benchmark.name = name.removesuffix(", busy main thread")
    server_cpu, _ = cpus_for_both()
    server_cpus = os.sched_getaffinity(server.pid)
    shared = not os.sched_getaffinity(0).isdisjoint(server_cpus)

    def measure(*, messages: int, **options: int) -> None:
        reports: list[LoadReport] = []
        disturbances: list[tuple[str, ...]] = []
        repeated = 0
        if server_cpu is None:  # one CPU for both
            options["wait"] = "block"  # type: ignore[assignment]

        def load() -> None:
            nonlocal repeated
            for number in range(TRIES):
                repeated += number > 0
                before = Usage.now(server, server_cpus, shared=shared)
                report = fastsock.load(
                    server.endpoint, messages=messages, server_pid=server.pid, **options
                )
                after = Usage.now(server, server_cpus, shared=shared)
                evidence = Evidence.of(report, report.duration, before, after)
                if failures_of(report) or not evidence.disturbed:
                    break
            per_message.add(report)
            reports.append(report)
            disturbances.append(evidence.disturbances)

        benchmark.pedantic(load, rounds=ROUNDS, warmup_rounds=1)
        reasons = list(dict.fromkeys(each for report in reports for each in problems_of(report)))
        stayed = [each[0] for each in disturbances[-ROUNDS:] if each]  # without the warm-up
        if stayed:
            reasons.append(f"{len(stayed)} of {ROUNDS} rounds stayed disturbed: {stayed[-1]}")
        best = max(reports, key=lambda report: report.messages_per_s)
        benchmark.extra_info.update(
            messages_per_s=best.messages_per_s,
            p50_us=best.latency.p50 if best.latency.count else None,
            p99_us=best.latency.p99 if best.latency.count else None,
            messages=messages,
            repeated=repeated,
            valid=not reasons,
            reasons=reasons,
            **options,
        )
        if reasons:
            request.config.stash[NOT_VALID][request.node.name] = reasons
        failures = [failure for report in reports for failure in failures_of(report)]
        assert not failures

    return measure


@each(every_engine(), "one connection round trip")
def test_one_connection(measure: Measure) -> None:
    measure(messages=5_000, connections=1)


@each(SERVERS, "64 connections")
def test_64_connections(measure: Measure) -> None:
    measure(messages=50_000, connections=64)


@each(SERVERS, "pipelined, depth 16")
def test_pipelined(measure: Measure) -> None:
    measure(messages=100_000, connections=8, depth=16)


@each(SERVERS, "64 KiB messages")
def test_64_kib_messages(measure: Measure) -> None:
    measure(messages=5_000, connections=16, size=64 << 10)


@each(SERVERS, "1 MB streams")
def test_1_mb_streams(measure: Measure) -> None:
    measure(messages=400, connections=8, size=1 << 20)


@each(SERVERS, "connect, echo, close")
def test_connect_echo_close(measure: Measure) -> None:
    measure(messages=1_000, connections=1, reconnect_every=1)


@each(
    [*datagrams("udp"), compiled("C recvfrom"), *datagrams("unixgram")],
    "datagrams, 128 in flight",
)
def test_datagrams(measure: Measure) -> None:
    measure(messages=20_000, connections=8, depth=16)


@each(beside_busy_main_thread(), "beside a busy main thread")
def test_beside_a_busy_main_thread(measure: Measure) -> None:
    measure(messages=320, connections=64)
