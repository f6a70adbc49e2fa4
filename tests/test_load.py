"""Tests of the load client: what it counts, what it measures, and what it makes of bad servers."""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import misbehaving
import pytest
from clients import wait_until
from load_runs import QUIET, SHORT, answer_of, assert_bad, assert_good, failures, loading
from misbehaving import MisbehavingServer

import fastsock

WAITS = ("spin", "block")


@pytest.fixture
def server() -> Iterator[fastsock.Server]:
    with fastsock.Server("tcp://127.0.0.1:0") as running:
        yield running


# --- counting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize(
    ("messages", "connections", "threads", "depth"),
    [
        (1, 1, 1, 1),
        (1000, 1, 1, 1),
        (1000, 7, 1, 1),
        (1001, 7, 3, 1),
        (3, 10, 1, 1),
        (3, 10, 4, 8),
        (1, 8, 8, 64),
        (997, 4, 4, 16),
        (64, 1, 1, 64),
        (65, 2, 2, 64),
    ],
)
def test_messages_are_sent_and_counted_exactly(
    server: fastsock.Server, messages: int, connections: int, threads: int, depth: int, wait: str
) -> None:
    """`messages` gives exactly so many, however they divide among connections and threads."""
    report = fastsock.load(
        server.endpoint,
        messages=messages,
        connections=connections,
        threads=threads,
        depth=depth,
        wait=wait,
    )
    assert_good(report)
    assert report.messages == messages
    assert report.bytes == messages * 64
    assert report.latency.count == report.latency_from_send.count == messages
    assert server.stats().bytes_in == messages * 64
    assert server.stats().accepted == connections


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("size", [1, 64, 65536, 65537, 1 << 20])
def test_every_size_comes_back_whole(server: fastsock.Server, size: int, depth: int) -> None:
    """Messages of every size are sent and verified byte by byte, below and above all buffers."""
    report = fastsock.load(
        server.endpoint, size=size, messages=7, connections=2, depth=depth, **QUIET
    )
    assert_good(report)
    assert report.messages == 7
    assert report.bytes == 7 * size
    assert server.stats().bytes_in == server.stats().bytes_out == 7 * size


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("depth", [1, 2, 5, 16, 17, 64])
def test_every_depth_works(server: fastsock.Server, depth: int, wait: str) -> None:
    """The messages in flight per connection may be any number, a power of two or not."""
    report = fastsock.load(
        server.endpoint, messages=2000, connections=3, depth=depth, wait=wait, timeout=5.0
    )
    assert_good(report)
    assert report.messages == 2000


def test_depth_is_the_number_of_messages_in_flight() -> None:
    """A closed loop sends `depth` messages ahead of the answers, and not one more."""
    with MisbehavingServer(misbehaving.swallows) as server:
        report = fastsock.load(
            server.address,
            depth=5,
            size=100,
            connections=2,
            duration=0.1,
            timeout=0.3,
            wait="block",
        )
    assert_bad(report)
    assert report.lost_bytes == 2 * 5 * 100


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_window_of_time(server: fastsock.Server, threads: int, wait: str) -> None:
    """Without `messages` the run lasts `duration`; what came in the warm-up is not counted."""
    started = time.monotonic()
    report = fastsock.load(
        server.endpoint, duration=0.3, warmup=0.2, connections=4, threads=threads, wait=wait
    )
    assert_good(report)
    assert time.monotonic() - started >= 0.5
    assert report.duration == pytest.approx(0.3)
    assert report.messages > 0
    assert report.messages * 64 < server.stats().bytes_in
    # What was in flight at the end counts here too, and what was sent as the last batch came in.
    assert report.messages <= report.latency.count <= report.messages + 2 * 4
    assert report.messages_per_s == pytest.approx(report.messages / 0.3)
    assert report.bytes_per_s == pytest.approx(report.messages_per_s * 64)
    assert 0 <= report.client_busy <= 1


def test_latency_in_a_closed_loop_is_one(server: fastsock.Server) -> None:
    """In a closed loop a message is intended when it is sent: both latencies are the same."""
    report = fastsock.load(server.endpoint, messages=500, **QUIET)
    latency = report.latency
    assert latency == report.latency_from_send
    assert 0 < latency.min <= latency.p50 <= latency.p90 <= latency.p99
    assert latency.p99 <= latency.p99_9 <= latency.p99_99 <= latency.max
    assert latency.min <= latency.mean <= latency.max


@pytest.mark.parametrize("nodelay", [True, False])
def test_nodelay_changes_no_count(server: fastsock.Server, nodelay: bool) -> None:
    """With Nagle's algorithm or without it, every message is answered."""
    report = fastsock.load(server.endpoint, messages=20, nodelay=nodelay, **QUIET)
    assert_good(report)
    assert report.messages == 20


def test_without_verify_every_answer_counts() -> None:
    """`verify=False` counts answers by their size alone; with it the same answers are a failure."""
    with MisbehavingServer(misbehaving.answers_garbage) as server:
        unverified = fastsock.load(server.address, verify=False, **SHORT)
        verified = fastsock.load(server.address, **SHORT)
    assert_good(unverified)
    assert unverified.messages == 100
    assert_bad(verified)
    assert failures(verified) == {"mismatch": 1}
    assert verified.messages == 0


def test_without_verify_a_surplus_is_still_seen() -> None:
    """More bytes than were sent are a failure even when nobody compares them."""
    with MisbehavingServer(misbehaving.doubles_byte(10)) as server:
        report = fastsock.load(server.address, verify=False, **SHORT)
    assert_bad(report)
    assert failures(report) == {"mismatch": 1}


def test_many_connections(server: fastsock.Server) -> None:
    """A thousand connections are opened, used and closed in one run."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2500:
        pytest.skip("needs 2500 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2500), hard))
    try:
        report = fastsock.load(server.endpoint, connections=1000, messages=5000, **QUIET)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert_good(report)
    assert report.messages == 5000
    assert server.stats().accepted == 1000


def test_ipv6() -> None:
    """An IPv6 server is loaded like any other."""
    try:
        server = fastsock.Server("tcp://[::1]:0")
        server.start()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    try:
        report = fastsock.load(server.endpoint, messages=50, connections=2, **QUIET)
    finally:
        server.stop()
    assert_good(report)
    assert report.messages == 50
    assert report.endpoint == str(server.endpoint)


@pytest.mark.parametrize("form", ["url", "tuple", "endpoint"])
def test_every_form_of_an_endpoint(server: fastsock.Server, form: str) -> None:
    """The target is a URL, an Endpoint, or a (host, port) tuple."""
    endpoint = server.endpoint
    targets: dict[str, Any] = {
        "url": str(endpoint),
        "tuple": (endpoint.host, endpoint.port),
        "endpoint": endpoint,
    }
    report = fastsock.load(targets[form], messages=1, **QUIET)
    assert_good(report)
    assert report.endpoint == str(endpoint)


def test_from_another_thread(server: fastsock.Server) -> None:
    """load() works outside the main thread, two at a time."""
    reports: list[fastsock.LoadReport] = []

    def run() -> None:
        reports.append(fastsock.load(server.endpoint, messages=500, connections=2, **QUIET))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [report.messages for report in reports] == [500, 500]
    for report in reports:
        assert_good(report)


def test_python_runs_on_while_loading(server: fastsock.Server) -> None:
    """The run holds no GIL: another Python thread gets on with its work meanwhile."""
    turns = 0
    done = threading.Event()

    def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1

    counter = threading.Thread(target=count)
    counter.start()
    try:
        report = fastsock.load(server.endpoint, duration=0.3, wait="block")
    finally:
        done.set()
        counter.join(10)
    assert_good(report)
    assert turns > 1000


def test_progress_is_called_in_the_calling_thread(server: fastsock.Server) -> None:
    """`progress` is called with the seconds so far, never backwards, in the thread of the call."""
    calls: list[tuple[float, threading.Thread]] = []
    fastsock.load(
        server.endpoint,
        duration=0.5,
        connections=4,
        threads=4,
        wait="block",
        progress=lambda seconds: calls.append((seconds, threading.current_thread())),
    )
    seconds = [call[0] for call in calls]
    assert len(calls) >= 3
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    assert {call[1] for call in calls} == {threading.current_thread()}


def test_an_error_in_progress_ends_the_run(server: fastsock.Server) -> None:
    """What `progress` raises reaches the caller, and nothing goes on loading in the background."""

    def fail(seconds: float) -> None:
        raise ZeroDivisionError

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        fastsock.load(server.endpoint, duration=10, wait="block", progress=fail)
    assert threading.active_count() == before
    wait_until(lambda: server.stats().open == 0)


def test_server_cpu(server: fastsock.Server) -> None:
    """With `server_pid` the report has the CPU seconds of that process, and None without."""
    report = fastsock.load(server.endpoint, duration=0.2, wait="block", server_pid=os.getpid())
    assert_good(report)
    assert report.server_cpu is not None
    assert 0 < report.server_cpu < 60
    assert fastsock.load(server.endpoint, messages=1, **QUIET).server_cpu is None


@pytest.mark.parametrize("wait", WAITS)
def test_server_cpu_of_a_run_that_ends_early(wait: str) -> None:
    """When the server dies in the window its CPU time is unknown or positive, never below 0."""
    with native_server() as (process, endpoint):
        killed = fastsock.load(
            endpoint,
            duration=30,
            warmup=0,
            wait=wait,
            server_pid=process.pid,
            progress=lambda seconds: process.kill(),
        )
    with MisbehavingServer(misbehaving.resets_after(10_000)) as bad:
        reset = fastsock.load(bad.address, duration=30, warmup=0, wait=wait, server_pid=os.getpid())
    for report in (killed, reset):
        assert_bad(report)
        assert report.server_cpu is None or report.server_cpu >= 0


def test_no_descriptor_is_left_behind(server: fastsock.Server) -> None:
    """Good, failed, refused and rejected runs alike close every descriptor they opened."""

    def run_all() -> None:
        fastsock.load(server.endpoint, messages=20, connections=10, threads=2, **QUIET)
        fastsock.load(server.endpoint, messages=20, rate=1000, **QUIET)
        with misbehaving.refusing_address() as address:
            fastsock.load(address, connections=3, **SHORT)
        with MisbehavingServer(misbehaving.resets_after(100)) as bad:
            fastsock.load(bad.address, connections=3, **SHORT)
        with pytest.raises(ValueError):
            fastsock.load(server.endpoint, size=0)

    run_all()
    wait_until(lambda: server.stats().open == 0)
    gc.collect()
    before = open_descriptors()
    run_all()
    wait_until(lambda: server.stats().open == 0)
    gc.collect()
    assert open_descriptors() == before


# --- the open loop ------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize(("connections", "threads"), [(1, 1), (5, 2)])
def test_the_asked_rate_is_delivered(
    server: fastsock.Server, connections: int, threads: int, wait: str
) -> None:
    """An open loop sends every message that its schedule holds, and about that many are counted."""
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
    assert 0 < report.messages <= 600
    assert report.latency.count >= report.messages
    assert report.latency.count == report.latency_from_send.count


def test_a_rate_with_messages(server: fastsock.Server) -> None:
    """`rate` with `messages` sends exactly so many, spread over at least their time."""
    report = fastsock.load(
        server.endpoint, rate=500, messages=101, connections=7, threads=3, **QUIET
    )
    assert not report.failed
    assert report.messages == 101
    assert server.stats().bytes_in == 101 * 64
    assert report.duration >= 100 / 500


def test_a_message_is_sent_before_the_last_answer_came() -> None:
    """An open loop does not wait for answers: a silent server is sent the whole schedule."""
    with MisbehavingServer(misbehaving.swallows) as server:
        report = fastsock.load(
            server.address, rate=1000, duration=0.2, warmup=0, size=10, wait="block", timeout=0.3
        )
    assert_bad(report)
    assert report.messages == 0
    assert failures(report) == {"timeout": 1}
    assert report.lost_bytes == pytest.approx(200 * 10, abs=3 * 10)


def test_a_pause_of_the_server_shows_in_the_tail() -> None:
    """A server that rests for 0.3 s delays every message due meanwhile, and the tail shows it."""
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
    """While the socket is full messages are late: the intended time sees all of it."""
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
    """A closed loop sees the same pause once, which is what the open loop is there for."""
    with MisbehavingServer(misbehaving.pauses_once(after=0.1, duration=0.3)) as server:
        report = fastsock.load(server.address, duration=0.8, warmup=0, **QUIET)
    assert not report.failed
    assert report.latency.max >= 200_000
    assert report.latency.p50 < 100_000


def test_an_offered_rate_that_was_not_reached() -> None:
    """A rate beyond what the server can do makes the run not valid, and says both rates."""
    with MisbehavingServer(misbehaving.serves_slowly(64, 0.01)) as server:
        report = fastsock.load(
            server.address, rate=400, duration=0.3, warmup=0, wait="block", timeout=5.0
        )
    assert not report.failed
    assert not report.valid
    (reason,) = report.reasons
    assert "offered 400 messages/s" in reason
    assert f"achieved {report.messages_per_s:g}" in reason
    assert report.latency.count == pytest.approx(120, abs=3)


# --- servers that misbehave ---------------------------------------------------------------------


def test_a_refused_connection() -> None:
    """Nobody listens: every connection is refused, and nothing else is claimed."""
    with misbehaving.refusing_address() as address:
        report = fastsock.load(address, connections=5, threads=2, duration=10, wait="block")
    assert_bad(report)
    assert failures(report) == {"refused": 5}
    assert report.messages == report.lost_bytes == report.corrupt_bytes == 0
    assert report.latency.count == 0
    assert report.duration == report.messages_per_s == report.bytes_per_s == 0


def test_an_address_that_cannot_be_reached() -> None:
    """A connect that fails at once names its errno in the reasons."""
    report = fastsock.load("tcp://255.255.255.255:9", **SHORT)
    assert_bad(report)
    assert failures(report) == {"other": 1}
    assert not any("Success" in reason for reason in report.reasons)


@pytest.mark.parametrize("wait", WAITS)
def test_a_full_accept_queue(wait: str) -> None:
    """A server that never accepts is a timeout, after `timeout` and not after the kernel's."""
    with misbehaving.full_address() as address:
        report = fastsock.load(address, connections=3, messages=10, timeout=0.3, wait=wait)
    assert_bad(report)
    # One more may be let in before the queue is full; it is then never answered.
    assert failures(report) == {"timeout": 3}
    assert report.messages == 0


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("rate", [None, 1000])
@pytest.mark.parametrize(
    ("behave", "kinds"),
    [
        pytest.param(misbehaving.closes_at_once, {"closed_early", "reset"}, id="closes at once"),
        pytest.param(misbehaving.half_closes_first, {"closed_early"}, id="half-closes first"),
        pytest.param(misbehaving.swallows, {"timeout"}, id="swallows"),
        pytest.param(misbehaving.resets_after(0), {"reset"}, id="resets at once"),
        pytest.param(misbehaving.resets_after(1000), {"reset"}, id="resets later"),
        pytest.param(misbehaving.resets_at_eof, {"reset"}, id="resets at the end"),
        pytest.param(misbehaving.stalls_after(0), {"timeout"}, id="stalls at once"),
        pytest.param(misbehaving.stalls_after(1000), {"timeout"}, id="stalls later"),
        pytest.param(misbehaving.never_closes, {"timeout"}, id="never closes"),
        pytest.param(misbehaving.drops_byte(0), {"mismatch", "timeout"}, id="drops the first"),
        pytest.param(misbehaving.drops_byte(999), {"mismatch", "timeout"}, id="drops a byte"),
        pytest.param(misbehaving.doubles_byte(999), {"mismatch"}, id="doubles a byte"),
        pytest.param(misbehaving.flips_byte(0), {"mismatch"}, id="flips the first byte"),
        pytest.param(misbehaving.flips_byte(3001), {"mismatch"}, id="flips a byte"),
        pytest.param(misbehaving.sends_surplus(1), {"mismatch"}, id="sends a surplus"),
        pytest.param(misbehaving.answers_garbage, {"mismatch"}, id="answers garbage"),
    ],
)
def test_a_bad_server_is_reported(
    behave: misbehaving.Behaviour, kinds: set[str], rate: float | None, wait: str
) -> None:
    """Each misbehaviour fails each connection once, by its own kind, and ends the run."""
    with MisbehavingServer(behave) as server:
        report = fastsock.load(
            server.address, connections=2, messages=200, rate=rate, timeout=0.3, wait=wait
        )
    assert_bad(report)
    assert set(failures(report)) <= kinds
    assert sum(report.errors.values()) == 2
    assert report.messages <= 200
    assert report.latency.count <= 200
    assert bool(report.corrupt_bytes) == ("mismatch" in failures(report))


def test_a_reset_counts_what_was_owed() -> None:
    """A reset after 1000 bytes leaves the complete answers counted and the rest lost."""
    with MisbehavingServer(misbehaving.resets_after(1000)) as server:
        report = fastsock.load(server.address, size=100, **SHORT)
    assert_bad(report)
    assert failures(report) == {"reset": 1}
    # The reset may overtake the last answer, or come before the next message was sent.
    assert report.messages in (9, 10)
    assert report.lost_bytes in (0, 100)
    assert report.corrupt_bytes == 0


def test_a_stall_counts_what_was_owed() -> None:
    """A stall after 950 bytes loses the half message that was taken and did not come back."""
    with MisbehavingServer(misbehaving.stalls_after(950)) as server:
        report = fastsock.load(server.address, size=100, **SHORT)
    assert_bad(report)
    assert failures(report) == {"timeout": 1}
    assert report.messages == 9
    assert report.lost_bytes == 50
    assert report.corrupt_bytes == 0


def test_a_dropped_byte_is_seen() -> None:
    """One byte lost in the stream is a mismatch as soon as a later one comes in its place."""
    with MisbehavingServer(misbehaving.drops_byte(250)) as server:
        report = fastsock.load(server.address, size=100, depth=4, **SHORT)
    assert_bad(report)
    assert failures(report) == {"mismatch": 1}
    assert report.messages <= 2
    assert report.corrupt_bytes > 0


def test_a_doubled_byte_is_seen() -> None:
    """One byte too many at the end of the last answer is corrupt, and nothing is lost."""
    with MisbehavingServer(misbehaving.doubles_byte(99)) as server:
        report = fastsock.load(server.address, size=100, messages=1, timeout=0.3, wait="block")
    assert_bad(report)
    assert failures(report) == {"mismatch": 1}
    assert report.corrupt_bytes == 1


def test_a_flipped_byte_is_seen() -> None:
    """One wrong byte in 100 messages is counted as one, and ends its connection only."""
    with MisbehavingServer(misbehaving.flips_byte(550)) as server:
        report = fastsock.load(server.address, size=100, **SHORT)
    assert_bad(report)
    assert failures(report) == {"mismatch": 1}
    assert report.messages == 5
    assert report.corrupt_bytes == 1
    assert any("1 bytes corrupt" in reason for reason in report.reasons)


def test_swapped_connections_are_seen() -> None:
    """Right bytes on the wrong connection are corrupt: no two connections send the same."""
    with MisbehavingServer(misbehaving.swaps_connections) as server:
        report = fastsock.load(server.address, connections=2, **SHORT)
    assert_bad(report)
    assert "mismatch" in failures(report)
    assert report.messages == 0
    assert report.corrupt_bytes > 0


def test_a_lost_tail_is_seen() -> None:
    """A server that closes at half-close with 10 bytes still held has lost 10 bytes."""
    with MisbehavingServer(misbehaving.loses_tail(10)) as server:
        report = fastsock.load(server.address, size=100, depth=3, **SHORT)
    assert_bad(report)
    assert failures(report) == {"closed_early": 1}
    assert report.messages == 99
    assert report.lost_bytes == 10
    assert report.corrupt_bytes == 0
    assert any("10 bytes lost" in reason for reason in report.reasons)


def test_a_server_that_never_closes_loses_nothing() -> None:
    """All was answered, but not the half-close: a timeout, with every message counted."""
    with MisbehavingServer(misbehaving.never_closes) as server:
        report = fastsock.load(server.address, **SHORT)
    assert_bad(report)
    assert failures(report) == {"timeout": 1}
    assert report.messages == 100
    assert report.lost_bytes == 0


def test_a_bytewise_echo_is_good() -> None:
    """An answer may come in any number of pieces: one byte at a time is a correct echo."""
    with MisbehavingServer(misbehaving.echoes_bytewise) as server:
        report = fastsock.load(server.address, size=50, messages=40, depth=2, **QUIET)
    assert_good(report)
    assert report.messages == 40
    assert report.latency.count == 40


def test_a_plain_python_echo_is_good() -> None:
    """The servers of these tests echo correctly when nothing is asked to go wrong."""
    with MisbehavingServer(misbehaving.echoes) as server:
        report = fastsock.load(server.address, connections=3, size=1000, **SHORT)
    assert_good(report)
    assert report.messages == 100


def test_one_bad_connection_does_not_stop_the_others(server: fastsock.Server) -> None:
    """While one connection has failed the others go on, and both are in the report."""
    lock = threading.Lock()
    first = True

    def behave(bad: MisbehavingServer, connection: Any) -> None:
        nonlocal first
        with lock:
            mine, first = first, False
        if not mine:
            misbehaving.echoes(bad, connection)

    with MisbehavingServer(behave) as bad:
        report = fastsock.load(bad.address, connections=3, **{**SHORT, "messages": 300})
    assert_bad(report)
    assert sum(report.errors.values()) == 1
    assert 200 <= report.messages < 300


@pytest.mark.parametrize("rate", [None, 2000])
@pytest.mark.parametrize("wait", WAITS)
def test_a_server_killed_in_mid_run(wait: str, rate: float | None) -> None:
    """When the server is killed the run ends at once with what was measured until then."""
    with native_server() as (process, endpoint):
        started = time.monotonic()

        def kill(seconds: float) -> None:
            if seconds > 0.2 and process.poll() is None:
                process.kill()

        report = fastsock.load(
            endpoint, connections=4, duration=30, warmup=0, rate=rate, wait=wait, progress=kill
        )
    assert time.monotonic() - started < 20
    assert_bad(report)
    assert set(failures(report)) <= {"reset", "closed_early"}
    assert sum(report.errors.values()) == 4
    assert report.messages > 0
    assert 0 < report.duration < 20


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"connections": 0}, ValueError),
        ({"connections": 65537}, ValueError),
        ({"connections": 1.0}, TypeError),
        ({"connections": True}, TypeError),
        ({"connections": "1"}, TypeError),
        ({"connections": None}, TypeError),
        ({"size": 0}, ValueError),
        ({"size": -1}, ValueError),
        ({"size": (1 << 30) + 1}, ValueError),
        ({"size": "64k"}, TypeError),
        ({"size": 64.0}, TypeError),
        ({"depth": 0}, ValueError),
        ({"depth": 65537}, ValueError),
        ({"depth": 1.5}, TypeError),
        ({"depth": 17, "size": 1 << 20}, ValueError),
        ({"depth": 2, "rate": 100}, ValueError),
        ({"duration": 0}, ValueError),
        ({"duration": -1}, ValueError),
        ({"duration": float("nan")}, ValueError),
        ({"duration": float("inf")}, ValueError),
        ({"duration": 10**400}, ValueError),
        ({"duration": "5s"}, TypeError),
        ({"duration": False}, TypeError),
        ({"messages": 0}, ValueError),
        ({"messages": 1 << 49}, ValueError),
        ({"messages": 10.0}, TypeError),
        ({"messages": 10, "duration": 1}, ValueError),
        ({"messages": 10, "warmup": 1}, ValueError),
        ({"warmup": -0.1}, ValueError),
        ({"warmup": float("nan")}, ValueError),
        ({"warmup": "1"}, TypeError),
        ({"warmup": ""}, TypeError),
        ({"warmup": False}, TypeError),
        ({"rate": 0}, ValueError),
        ({"rate": -1}, ValueError),
        ({"rate": 1e10}, ValueError),
        ({"rate": float("nan")}, ValueError),
        ({"rate": "1k"}, TypeError),
        ({"rate": True}, TypeError),
        ({"verify": 1}, TypeError),
        ({"verify": None}, TypeError),
        ({"nodelay": 0}, TypeError),
        ({"wait": "sleep"}, ValueError),
        ({"wait": None}, TypeError),
        ({"threads": 0}, ValueError),
        ({"threads": 2}, ValueError),
        ({"threads": 5, "connections": 4}, ValueError),
        ({"threads": 1.0}, TypeError),
        ({"timeout": 0}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("inf")}, ValueError),
        ({"timeout": None}, TypeError),
        ({"server_pid": 0}, ValueError),
        ({"server_pid": "1"}, TypeError),
        ({"no_such_option": 1}, TypeError),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_a_bad_option(
    server: fastsock.Server, options: dict[str, Any], error: type[Exception]
) -> None:
    """A bad option is a TypeError or ValueError of one line that names it, before any connect."""
    with pytest.raises(error) as caught:
        fastsock.load(server.endpoint, **options)
    assert type(caught.value) is error
    text = str(caught.value)
    assert text and "\n" not in text
    assert any(name in text for name in options)
    assert server.stats().accepted == 0


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("tcp://127.0.0.1:0", ValueError),
        (("127.0.0.1", 0), ValueError),
        ("", ValueError),
        ("127.0.0.1", ValueError),
        ("tcp://", ValueError),
        ("tcp://127.0.0.1:65536", ValueError),
        ("http://127.0.0.1:80", ValueError),
        (None, TypeError),
        (7007, TypeError),
        (b"tcp://127.0.0.1:7007", TypeError),
        ("unix:///" + "x" * 107, ValueError),
        ("unix://echo.sock", ValueError),
        ("unixgram:///" + "x" * 107, ValueError),
    ],
)
def test_a_bad_target(target: Any, error: type[Exception]) -> None:
    """A target that cannot be loaded is refused in one line, before any system call."""
    with pytest.raises(error) as caught:
        fastsock.load(target)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


def test_a_host_that_cannot_be_resolved() -> None:
    """A host name that nobody knows is an OSError, not a failed run."""
    with pytest.raises(OSError):
        fastsock.load("tcp://no-such-host.invalid:7007", **SHORT)


def test_no_such_server_pid(server: fastsock.Server) -> None:
    """A `server_pid` that names no process is an OSError."""
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait(30)
    with pytest.raises(OSError):
        fastsock.load(server.endpoint, server_pid=gone.pid, **SHORT)


def test_defaults_are_filled_in(server: fastsock.Server) -> None:
    """The report holds every option as it was used, defaults included."""
    report = fastsock.load(server.endpoint, duration=0.1)
    assert report.options == {
        "mode": "echo",
        "connections": 1,
        "size": 64,
        "depth": 1,
        "duration": 0.1,
        "messages": None,
        "warmup": pytest.approx(0.01),
        "rate": None,
        "verify": True,
        "wait": "spin",
        "threads": 1,
        "nodelay": True,
        "reconnect_every": None,
        "timeout": 5.0,
        "loss_timeout": 0.2,
        "gso": False,
        "server_pid": None,
    }


def test_no_descriptors_left_for_the_run() -> None:
    """A run that needs more descriptors than there are is an OSError that says what to do."""
    script = """
import resource
import fastsock
with fastsock.Server("tcp://127.0.0.1:0") as server:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        fastsock.load(server.endpoint, connections=200, threads=2, messages=200, wait="block")
    except OSError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert "ulimit -n" in done.stdout
    assert "Too many open files" in done.stdout


# --- Ctrl-C -------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_progress", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_gives_a_report(
    server: fastsock.Server, wait: str, threads: int, with_progress: bool
) -> None:
    """Ctrl-C ends the window at once; what was measured until then comes as a whole report."""
    options = {"wait": wait, "threads": threads, "connections": 6, "duration": 50, "warmup": 0}
    with loading(str(server.endpoint), with_progress=with_progress, **options) as process:
        wait_until(lambda: server.stats().bytes_out > 64_000)
        process.send_signal(signal.SIGINT)
        answer = answer_of(process)
    report = answer["report"]
    assert report["reasons"] == ["interrupted by Ctrl-C"]
    assert not report["valid"]
    assert 0 < report["duration_s"] < 25
    assert report["messages"] >= 900
    assert report["lost_bytes"] == report["corrupt_bytes"] == sum(report["errors"].values()) == 0
    assert server.stats().closed["eof"] == 6
    assert answer["alive"] == ["MainThread"]


def test_ctrl_c_in_the_warm_up(server: fastsock.Server) -> None:
    """Ctrl-C before the window has begun gives a report of nothing, and one that is not valid."""
    with loading(
        str(server.endpoint), duration=50, warmup=50, wait="block", server_pid=os.getpid()
    ) as process:
        wait_until(lambda: server.stats().bytes_out > 64_000)
        process.send_signal(signal.SIGINT)
        report = answer_of(process)["report"]
    assert not report["valid"]
    assert (
        report["duration_s"]
        == report["messages"]
        == report["latency_us"]["from_actual_send"]["count"]
        == 0
    )
    assert report["server_cpu_s"] is None or report["server_cpu_s"] == 0


def test_ctrl_c_while_connecting() -> None:
    """Ctrl-C ends a run whose connections are not even open yet."""
    with (
        misbehaving.full_address() as (host, port),
        loading(
            f"tcp://{host}:{port}", connections=2, duration=50, timeout=50, wait="block"
        ) as process,
    ):
        wait_until(lambda: connecting_to(port))
        process.send_signal(signal.SIGINT)
        report = answer_of(process)["report"]
    assert not report["valid"]
    assert report["messages"] == 0


@pytest.mark.parametrize("wait", WAITS)
def test_a_second_ctrl_c_does_not_wait(wait: str) -> None:
    """The first Ctrl-C still waits for what a silent server owes; the second one does not."""
    with MisbehavingServer(misbehaving.swallows) as server:
        host, port = server.address
        with loading(
            f"tcp://{host}:{port}", connections=1, duration=50, timeout=50, wait=wait
        ) as process:
            assert server.received.wait(20)
            process.send_signal(signal.SIGINT)
            assert server.ended.wait(20)  # it has half-closed, and waits
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            answer = answer_of(process)
    assert "interrupted by Ctrl-C" in answer["report"]["reasons"]
    assert not answer["report"]["valid"]
    assert answer["report"]["messages"] == 0
    assert answer["alive"] == ["MainThread"]


# --- helpers ------------------------------------------------------------------------------------


class native_server:
    """A process with a Server of its own: ``with native_server() as (process, endpoint)``."""

    script = """
import sys
import fastsock
fastsock.serve("tcp://127.0.0.1:0", ready=lambda server: print(server.endpoint, flush=True))
"""

    def __enter__(self) -> tuple[subprocess.Popen[str], str]:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.script], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        return self.process, self.process.stdout.readline().strip()

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def connecting_to(port: int) -> bool:
    """Whether a connection to this port of 127.0.0.1 is in SYN_SENT (state 02, proc(5))."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(
        line.split()[2].endswith(f":{port:04X}") and line.split()[3] == "02" for line in lines
    )


# --- reconnecting -------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3, 1000])
@pytest.mark.parametrize("depth", [1, 4])
def test_connections_are_opened_again(server: fastsock.Server, every: int, depth: int) -> None:
    """Every message comes back, and as many connections are opened as that takes."""
    report = fastsock.load(
        server.endpoint,
        connections=4,
        messages=400,
        depth=depth,
        reconnect_every=every,
        wait="block",
    )
    assert_good(report)
    assert report.messages == 400
    wait_until(lambda: server.stats().open == 0)
    stats = server.stats()
    assert stats.bytes_in == stats.bytes_out == 400 * 64
    # Whoever is done first waits for the others, and may have been opened once more for that.
    assert 0 <= stats.accepted - 4 * -(-100 // every) <= 4
    assert report.connect_latency.count == stats.accepted
    assert stats.closed["eof"] == stats.accepted


def test_reconnecting_in_an_open_loop(server: fastsock.Server) -> None:
    """What falls due while a connection is opened again is sent afterwards."""
    report = fastsock.load(
        server.endpoint,
        connections=2,
        messages=100,
        rate=2000,
        reconnect_every=5,
        wait="block",
    )
    assert not report.failed
    assert report.messages == 100
    assert report.connect_latency.count >= 20


def test_reconnecting_to_a_server_that_goes_away() -> None:
    """A connection that cannot be opened again has failed, and the run ends."""

    def serve_once(server: MisbehavingServer, connection: socket.socket) -> None:
        server.stop_listening()
        misbehaving.echoes(server, connection)

    with MisbehavingServer(serve_once) as server:
        report = fastsock.load(server.address, duration=5, reconnect_every=1, wait="block")
    assert_bad(report)
    assert failures(report) == {"refused": 1}
    assert report.duration < 5


def test_each_opening_on_loopback_has_another_source() -> None:
    """The source addresses vary, so that the ports of one address do not run out."""
    seen: list[str] = []

    def remember(server: MisbehavingServer, connection: socket.socket) -> None:
        seen.append(connection.getpeername()[0])
        misbehaving.echoes(server, connection)

    with MisbehavingServer(remember) as server:
        report = fastsock.load(server.address, messages=5, reconnect_every=1, wait="block")
    assert_good(report)
    assert len(set(seen)) == len(seen) >= 5
    assert all(address.startswith("127.1.") for address in seen)
