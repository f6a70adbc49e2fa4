"""Tests of the load client at a given rate: the schedule, and the latencies from it."""

from __future__ import annotations

import misbehaving
import pytest
from load_runs import QUIET, WAITS, assert_bad, failures
from misbehaving import MisbehavingServer

import fastsock


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize(("connections", "threads"), [(1, 1), (5, 2)])
def test_the_asked_rate_is_delivered(
    server: fastsock.Server, connections: int, threads: int, wait: str
) -> None:
    """An open loop sends every message of its schedule."""
    report = fastsock.load(
        server.endpoint,
        rate=1000,
        duration=0.5,
        warmup=0.1,
        connections=connections,
        threads=threads,
        wait=wait,
    )
    assert not report.failed
    assert report.offered_per_s == 1000
    # What is sent does not depend on how busy this machine is; what was answered in time does.
    assert server.stats().bytes_in == pytest.approx(600 * 64, abs=3 * 64)
    assert report.messages <= 600
    assert report.latency.count >= report.messages
    assert report.latency.count == report.latency_from_send.count


def test_a_rate_with_messages(server: fastsock.Server) -> None:
    """`rate` with `messages` sends exactly `messages`, over at least the time they are due in."""
    report = fastsock.load(
        server.endpoint, rate=500, messages=101, connections=7, threads=3, **QUIET
    )
    assert not report.failed
    assert report.messages == 101
    assert server.stats().bytes_in == 101 * 64
    assert report.duration >= 100 / 500


def test_a_message_is_sent_before_the_last_answer_came() -> None:
    """An open loop does not wait for answers: a silent server gets the whole schedule."""
    with MisbehavingServer(misbehaving.swallows) as server:
        report = fastsock.load(
            server.address, rate=1000, duration=0.2, warmup=0, size=10, wait="block", timeout=0.3
        )
    assert_bad(report)
    assert report.messages == 0
    assert failures(report) == {"timeout": 1}
    assert report.lost_bytes == pytest.approx(200 * 10, abs=3 * 10)


def test_a_pause_of_the_server_shows_in_the_tail() -> None:
    """A server that pauses for 0.3 s delays every message due meanwhile, and the tail shows it."""
    with MisbehavingServer(misbehaving.pauses_once(after=0.3, duration=0.3)) as server:
        report = fastsock.load(
            server.address, rate=500, duration=1.2, warmup=0, wait="block", timeout=5.0
        )
    assert not report.failed
    assert report.latency.p99 >= 100_000
    assert report.latency.max >= 200_000
    # Most messages were sent before the pause or after it.
    assert report.latency.p50 < 100_000
    assert report.latency_from_send.p50 <= report.latency.p50


def test_a_client_that_cannot_send_counts_from_the_intended_time() -> None:
    """Latency from the intended time includes the time that a message waits for a full socket."""
    with MisbehavingServer(misbehaving.pauses_once(after=0.2, duration=0.5)) as server:
        report = fastsock.load(
            server.address,
            rate=50,
            size=1 << 20,
            duration=1.0,
            warmup=0,
            wait="block",
            timeout=20.0,
        )
    assert not report.failed
    assert report.latency.max >= 300_000
    assert report.latency.mean >= report.latency_from_send.mean
    assert report.latency_from_send.p50 <= report.latency.p50


def test_a_pause_in_a_closed_loop_is_one_late_message() -> None:
    """A closed loop sends nothing during a pause, so only one message shows it."""
    with MisbehavingServer(misbehaving.pauses_once(after=0.1, duration=0.3)) as server:
        report = fastsock.load(server.address, duration=0.8, warmup=0, **QUIET)
    assert not report.failed
    assert report.latency.max >= 200_000
    assert report.latency.p50 < 100_000


def test_an_offered_rate_that_was_not_reached() -> None:
    """A rate that the server cannot keep makes the run not valid; a reason names both rates."""
    with MisbehavingServer(misbehaving.serves_slowly(64, 0.01)) as server:
        report = fastsock.load(
            server.address, rate=400, duration=0.3, warmup=0, wait="block", timeout=5.0
        )
    assert not report.failed
    assert not report.valid
    assert {"not_steady", "overload"} & {reason.code for reason in report.reasons}
    assert report.latency.count == report.messages <= report.offered == 120
    assert report.messages_per_s == report.answered_in_window / report.duration < 200
