"""The schedule of an open loop: the window's messages, random arrivals, steady state."""

from __future__ import annotations

import math
import random
import threading
from typing import Any

import misbehaving
import pytest
from load_runs import QUIET, assert_good, failures, faults
from misbehaving import MisbehavingServer

import fastsock
from fastsock.client.verdict import growth_of

PARTS = 16


def later(seconds: float) -> misbehaving.Behaviour:
    """Echo each piece so much later, with any number of pieces on the way."""

    def behave(server: MisbehavingServer, connection: Any) -> None:
        timers = []
        lock = threading.Lock()

        def send(data: bytes) -> None:
            with lock:
                connection.sendall(data)

        while data := server.recv(connection):
            timers.append(threading.Timer(seconds, send, (data,)))
            timers[-1].start()
        for timer in timers:
            timer.join()

    return behave


# --- the window ---------------------------------------------------------------------------------


def test_a_slow_answer_belongs_to_the_window_of_its_message() -> None:
    """A server that answers after 200 ms has answered everything that was offered."""
    with MisbehavingServer(later(0.2)) as server:
        report = fastsock.load(server.address, connections=4, duration=1, rate=50, **QUIET)
    assert_good(report)
    assert report.offered == report.messages == report.latency.count == 50
    assert report.messages_per_s == 50
    assert report.answered_in_window <= 50
    assert report.latency.min >= 200_000


def test_a_stall_in_the_warm_up_does_not_add_to_the_rate() -> None:
    """Answers to messages of the warm-up that come in the window are not the window's."""
    with MisbehavingServer(misbehaving.pauses_once(0.1, 0.6)) as server:
        report = fastsock.load(
            server.address, rate=500, warmup=0.5, duration=0.5, connections=1, **QUIET
        )
    assert not report.failed
    assert report.offered == report.messages == 250
    assert report.duration == 0.5


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"])
def test_a_schedule_of_a_number_of_messages(endpoint: str) -> None:
    """Its window ends an interval after the last message is due."""
    with fastsock.Server(endpoint) as server:
        report = fastsock.load(server.endpoint, messages=3, rate=10, wait="block")
    assert_good(report)
    assert report.messages == 3
    assert report.duration == pytest.approx(0.3)
    assert report.messages_per_s == pytest.approx(10)
    assert report.client.busy < 0.5


def test_more_than_the_server_can() -> None:
    """A rate above the capacity is not an error of the server, and nothing is lost."""
    with MisbehavingServer(misbehaving.serves_slowly(640, 0.01)) as server:
        report = fastsock.load(
            server.address, rate=10_000, duration=0.3, warmup=0, connections=2, **QUIET
        )
    assert not report.failed, report.reasons
    assert not failures(report)
    assert report.lost_bytes == 0
    assert not report.valid
    assert "overload" in {reason.code for reason in report.reasons}
    assert report.offered == 3000
    assert report.unanswered == 3000 - report.messages > 0
    assert 0 < report.messages_per_s == report.answered_in_window / 0.3 < 5000


# --- random arrivals ----------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"])
@pytest.mark.parametrize("threads", [1, 2])
def test_poisson(endpoint: str, threads: int) -> None:
    """The number of messages is random, with the mean that was asked for."""
    counts = []
    with fastsock.Server(endpoint) as server:
        for seed in range(8):
            report = fastsock.load(
                server.endpoint,
                rate=2000,
                duration=0.2,
                arrivals="poisson",
                seed=seed,
                connections=5,
                threads=threads,
                **QUIET,
            )
            assert not report.failed, report.reasons
            assert report.offered == report.messages
            assert report.options["seed"] == seed
            counts.append(report.messages)
    assert len(set(counts)) > 1
    # Six standard deviations of a Poisson number with the mean 3200.
    assert sum(counts) == pytest.approx(3200, abs=6 * math.sqrt(3200))


def test_the_same_seed_gives_the_same_times() -> None:
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        offered = {
            fastsock.load(
                server.endpoint, rate=2000, duration=0.2, arrivals="poisson", seed=7, **QUIET
            ).offered
            for _ in range(3)
        }
    assert len(offered) == 1


@pytest.mark.parametrize("options", [{"duration": 1}, {"rate": 10, "messages": 5}])
def test_poisson_needs_a_rate_and_a_duration(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs a rate and a duration"):
        fastsock.load("tcp://127.0.0.1:9", arrivals="poisson", **options)


def test_random_messages_without_a_place_are_counted() -> None:
    """A connection remembers a million random times; the others are offered all the same."""
    with MisbehavingServer(misbehaving.swallows) as server:
        report = fastsock.load(
            server.address,
            rate=20_000_000,
            duration=0.1,
            warmup=0,
            arrivals="poisson",
            wait="block",
            timeout=0.5,
        )
    assert report.failed
    assert report.offered == pytest.approx(2_000_000, rel=0.01)


# --- steady state -------------------------------------------------------------------------------


def queue(
    random: random.Random, *, rate: float, service: float, seconds: float, poisson: bool
) -> list[tuple[int, float]]:
    """The trend that a single server with a fixed service time gives."""
    trend = [[0, 0.0] for _ in range(PARTS)]
    arrival = free = 0.0
    number = 0
    while True:
        number += 1
        arrival = arrival + random.expovariate(rate) if poisson else number / rate
        if arrival >= seconds:
            return [(count, total) for count, total in trend]
        free = max(free, arrival) + service
        part = trend[int(arrival / seconds * PARTS)]
        part[0] += 1
        part[1] += (free - arrival) * 1e9


@pytest.mark.parametrize("seconds", [0.3, 1.0, 5.0])
def test_chance_is_no_trend(seconds: float) -> None:
    """Random arrivals at 80 % of the capacity are not flagged: at most one run in a thousand."""
    source = random.Random(1)
    runs = 1000 if seconds < 5 else 200
    flagged = sum(
        growth_of(queue(source, rate=800, service=0.001, seconds=seconds, poisson=True), seconds)
        > 0
        for _ in range(runs)
    )
    assert flagged <= runs // 1000


@pytest.mark.parametrize(("capacity", "seconds"), [(993, 5.0), (990, 5.0), (900, 1.0), (999, 20.0)])
def test_growth_is_found(capacity: int, seconds: float) -> None:
    """A server that does not keep up with 1000/s is found, also 1 % below within 5 s."""
    trend = queue(random.Random(1), rate=1000, service=1 / capacity, seconds=seconds, poisson=False)
    assert growth_of(trend, seconds) > 0.5 * (1 - capacity / 1000) * seconds


@pytest.mark.parametrize("capacity", [850, 900])
def test_growth_is_found_with_random_arrivals(capacity: int) -> None:
    source = random.Random(1)
    for _ in range(10):
        trend = queue(source, rate=1000, service=1 / capacity, seconds=10, poisson=True)
        assert growth_of(trend, 10.0) > 0


def test_a_drift_is_no_trend() -> None:
    """A server that becomes a little slower without a queue is steady."""
    trend = [(1000, 1000 * (50_000 + 1000.0 * part)) for part in range(PARTS)]
    assert growth_of(trend, 1.0) == 0.0


def test_a_server_that_does_not_keep_up_is_not_steady() -> None:
    """All is answered in the end, but the rate is that of the window."""
    with MisbehavingServer(misbehaving.serves_slowly(64, 0.005)) as server:
        report = fastsock.load(server.address, rate=220, duration=1, warmup=0, **QUIET)
    assert not faults(report)
    assert "not_steady" in {reason.code for reason in report.reasons}
    assert report.messages == report.offered == 220
    assert report.messages_per_s == report.answered_in_window < 215
