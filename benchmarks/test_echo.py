"""pytest-benchmark over the native server and its twin; one group a case.

The time of a round is that of a fixed number of messages. These rounds are not interleaved: the
ratios of docs/benchmarks.md come from ``benchmarks.run``.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fastsock
from benchmarks.contenders import beside_busy_main_thread, compiled
from fastsock.bench.comparison import cpus_for_both, pinned, started, turn
from fastsock.bench.contenders import Contender, datagrams, every_engine
from fastsock.bench.server_process import ServerProcess

ROUNDS = 5
SERVERS = [each for each in every_engine() if not each.one_at_a_time]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    contender: Contender = request.param
    # A server that shares its process with a computing thread needs more than one CPU.
    alone = "busy" not in contender.name
    server_cpu, client_cpu = cpus_for_both() if alone else (None, None)
    with started(contender, server_cpu) as running, pinned(client_cpu), turn(running):
        yield running


def each(contenders: list[Contender]) -> pytest.MarkDecorator:
    names = [contender.name for contender in contenders]
    return pytest.mark.parametrize("server", contenders, ids=names, indirect=True)


def measure(
    benchmark: BenchmarkFixture, server: ServerProcess, *, messages: int, **options: int
) -> None:
    reports = []

    def load() -> None:
        reports.append(
            fastsock.load(server.endpoint, messages=messages, server_pid=server.pid, **options)
        )

    benchmark.pedantic(load, rounds=ROUNDS, warmup_rounds=1)
    assert all(report.valid for report in reports), reports[-1].reasons
    best = max(reports, key=lambda report: report.messages_per_s)
    benchmark.extra_info.update(
        messages_per_s=best.messages_per_s,
        p50_us=best.latency.p50,
        p99_us=best.latency.p99,
        messages=messages,
        **options,
    )


@each(every_engine())
@pytest.mark.benchmark(group="one connection round trip")
def test_one_connection(benchmark: BenchmarkFixture, server: ServerProcess) -> None:
    measure(benchmark, server, messages=5_000, connections=1)


@each(SERVERS)
@pytest.mark.benchmark(group="64 connections")
def test_64_connections(benchmark: BenchmarkFixture, server: ServerProcess) -> None:
    measure(benchmark, server, messages=50_000, connections=64)


@each(SERVERS)
@pytest.mark.benchmark(group="pipelined, depth 16")
def test_pipelined(benchmark: BenchmarkFixture, server: ServerProcess) -> None:
    measure(benchmark, server, messages=100_000, connections=8, depth=16)


@each(SERVERS)
@pytest.mark.benchmark(group="64 KiB messages")
def test_64_kib_messages(benchmark: BenchmarkFixture, server: ServerProcess) -> None:
    measure(benchmark, server, messages=5_000, connections=16, size=64 << 10)


@each(SERVERS)
@pytest.mark.benchmark(group="1 MB streams")
def test_1_mb_streams(benchmark: BenchmarkFixture, server: ServerProcess) -> None:
    measure(benchmark, server, messages=400, connections=8, size=1 << 20)


@each(SERVERS)
@pytest.mark.benchmark(group="connect, echo, close")
def test_connect_echo_close(benchmark: BenchmarkFixture, server: ServerProcess) -> None:
    def connect_echo_close() -> None:
        with socket.create_connection(server.address) as client:
            client.sendall(b"hello")
            assert client.recv(16) == b"hello"

    benchmark.pedantic(connect_echo_close, rounds=500, warmup_rounds=20)


@each([*datagrams("udp"), compiled("C recvfrom"), *datagrams("unixgram")])
@pytest.mark.benchmark(group="datagrams, 128 in flight")
def test_datagrams(benchmark: BenchmarkFixture, server: ServerProcess) -> None:
    measure(benchmark, server, messages=20_000, connections=8, depth=16)


@each(beside_busy_main_thread())
@pytest.mark.benchmark(group="beside a busy main thread")
def test_beside_a_busy_main_thread(benchmark: BenchmarkFixture, server: ServerProcess) -> None:
    measure(benchmark, server, messages=320, connections=64)
