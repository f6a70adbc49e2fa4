"""Tests of what the load client counts and measures."""

from __future__ import annotations

import gc
import os
import resource
import socket
import threading
import time
from pathlib import Path
from typing import Any

import misbehaving
import pytest
from clients import wait_until
from load_runs import (
    QUIET,
    SHORT,
    WAITS,
    assert_bad,
    assert_good,
    failures,
    native_server,
    until_counted,
)
from misbehaving import MisbehavingServer

import fastsock
from fastsock.client.results import _server_cpu

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
    """Exactly `messages` are sent, however they divide among connections and threads."""
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
    """Any number of messages in flight works, a power of two or not."""
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
    """Without `messages` the run lasts `duration`; answers in the warm-up are not counted."""
    started = time.monotonic()
    options = {"connections": 4, "threads": threads, "wait": wait}
    report = until_counted(
        lambda: fastsock.load(server.endpoint, duration=0.3, warmup=0.2, **options)
    )
    assert_good(report)
    assert time.monotonic() - started >= 0.5
    assert report.duration == pytest.approx(0.3)
    assert report.messages > 0
    assert report.messages * 64 < server.stats().bytes_in
    # The latencies also have the answers after the window: of messages in flight at its end, and
    # of those sent while the last batch was received.
    assert report.messages <= report.latency.count <= report.messages + 2 * 4
    assert report.messages_per_s == pytest.approx(report.messages / 0.3)
    assert report.bytes_per_s == pytest.approx(report.messages_per_s * 64)
    assert 0 <= report.client.busy <= 1


def test_both_latencies_are_equal_in_a_closed_loop(server: fastsock.Server) -> None:
    """In a closed loop the intended send time is the actual one."""
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
    """`verify=False` counts answers by size alone; with `verify` wrong bytes are a failure."""
    with MisbehavingServer(misbehaving.answers_garbage) as server:
        unverified = fastsock.load(server.address, verify=False, **SHORT)
        verified = fastsock.load(server.address, **SHORT)
    assert_good(unverified)
    assert unverified.messages == 100
    assert_bad(verified)
    assert failures(verified) == {"mismatch": 1}
    assert verified.messages == 0


def test_without_verify_a_surplus_is_still_seen() -> None:
    """More bytes than were sent are a failure even when they are not compared."""
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
    """The run holds no GIL: another Python thread goes on."""
    turns = 0
    done = threading.Event()

    def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1

    counter = threading.Thread(target=count)
    counter.start()
    try:
        report = until_counted(lambda: fastsock.load(server.endpoint, duration=0.3, wait="block"))
    finally:
        done.set()
        counter.join(10)
    assert_good(report)
    assert turns > 1000


def test_progress_is_called_in_the_calling_thread(server: fastsock.Server) -> None:
    """`progress` gets the seconds so far, in order, in the thread that called load()."""
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
    """An exception of `progress` reaches the caller, and every thread of the run ends."""

    def fail(seconds: float) -> None:
        raise ZeroDivisionError

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        fastsock.load(server.endpoint, duration=10, wait="block", progress=fail)
    assert threading.active_count() == before
    wait_until(lambda: server.stats().open == 0)


@pytest.mark.parametrize(
    ("ns", "seconds"), [(None, None), (-10_000_000, 0.0), (0, 0.0), (1_500_000_000, 1.5)]
)
def test_server_cpu_is_never_negative(ns: int | None, seconds: float | None) -> None:
    """The tick of a child that ended may have been counted before the window, and never after."""
    assert _server_cpu(ns) == seconds


def test_server_cpu(server: fastsock.Server) -> None:
    """The report has the CPU seconds of the process `server_pid`; without it None."""
    options = {"wait": "block", "server_pid": os.getpid()}
    report = until_counted(lambda: fastsock.load(server.endpoint, duration=0.2, **options))
    assert_good(report)
    assert report.server_cpu is not None
    assert 0 < report.server_cpu < 60
    assert fastsock.load(server.endpoint, messages=1, **QUIET).server_cpu is None


@pytest.mark.parametrize("wait", WAITS)
def test_server_cpu_of_a_run_that_ends_early(wait: str) -> None:
    """When the server is killed in the window, its CPU time is None or at least 0."""
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
    """Every run closes its descriptors, whether it is good, failed or refused."""

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


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- reconnecting -------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3, 1000])
@pytest.mark.parametrize("depth", [1, 4])
def test_connections_are_opened_again(server: fastsock.Server, every: int, depth: int) -> None:
    """Every message is answered; a connection is opened again after every `every` messages."""
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
    # A connection that is done early may be opened once more before the others are done.
    assert 0 <= stats.accepted - 4 * -(-100 // every) <= 4
    assert report.connect_latency.count == stats.accepted
    assert stats.closed["eof"] == stats.accepted


def test_reconnecting_in_an_open_loop(server: fastsock.Server) -> None:
    """Messages that fall due while a connection is opened again are sent afterwards."""
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
    """A connection that cannot be opened again fails, and the run ends."""

    def serve_once(server: MisbehavingServer, connection: socket.socket) -> None:
        server.stop_listening()
        misbehaving.echoes(server, connection)

    with MisbehavingServer(serve_once) as server:
        report = fastsock.load(server.address, duration=5, reconnect_every=1, wait="block")
    assert_bad(report)
    assert failures(report) == {"refused": 1}
    assert report.duration < 5


def test_each_opening_on_loopback_has_another_source() -> None:
    """The source address changes, so that the ports of one address do not run out."""
    seen: list[str] = []

    def remember(server: MisbehavingServer, connection: socket.socket) -> None:
        seen.append(connection.getpeername()[0])
        misbehaving.echoes(server, connection)

    with MisbehavingServer(remember) as server:
        report = fastsock.load(server.address, messages=5, reconnect_every=1, wait="block")
    assert_good(report)
    assert len(set(seen)) == len(seen) >= 5
    assert all(address.startswith("127.1.") for address in seen)
