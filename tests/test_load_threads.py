"""Tests of the load client on several threads."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import misbehaving
import pytest
from clients import wait_until
from load_runs import QUIET, answer_of, assert_bad, assert_good, failures, faults_in, loading
from misbehaving import MisbehavingServer

import fastsock

STREAM, DATAGRAM = "tcp://127.0.0.1:0", "udp://127.0.0.1:0"


@pytest.mark.parametrize("endpoint", [STREAM, DATAGRAM])
@pytest.mark.parametrize(("connections", "threads"), [(4, 4), (7, 3), (5, 1)])
def test_each_thread_has_its_share(
    endpoint: str, connections: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`threads` threads share the connections, and their results are one report."""
    start, started = threading.Thread.start, []

    def count_and_start(self: threading.Thread) -> None:
        started.append(self)
        start(self)

    with fastsock.Server(endpoint) as server:
        monkeypatch.setattr(threading.Thread, "start", count_and_start)
        report = fastsock.load(
            server.endpoint,
            connections=connections,
            threads=threads,
            duration=0.25,
            warmup=0.0,
            wait="block",
            loss_timeout=10,
        )
        # An answer may arrive before the server has counted it.
        wait_until(lambda: server.stats().bytes_out == server.stats().bytes_in)
        stats = server.stats()
    assert_good(report)
    assert len(started) == 2 * threads  # to connect, and to load
    assert report.options["threads"] == threads
    assert report.as_dict()["options"]["threads"] == threads
    assert report.duration == pytest.approx(0.25)
    assert report.messages <= report.latency.count == report.latency_from_send.count
    assert stats.bytes_in >= report.bytes > 0
    if endpoint == STREAM:
        assert stats.accepted == report.connect_latency.count == connections


@pytest.mark.parametrize("endpoint", [STREAM, DATAGRAM])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_rate_is_that_of_all_threads(endpoint: str, threads: int) -> None:
    """The threads share one schedule, and together send as many messages as one thread would."""
    with fastsock.Server(endpoint) as server:
        report = fastsock.load(
            server.endpoint,
            rate=400,
            messages=81,
            connections=5,
            threads=threads,
            wait="block",
            loss_timeout=10,
            size=8,
        )
        assert server.stats().bytes_in == 81 * 8
    assert not report.failed
    assert report.messages == report.latency.count == 81
    assert report.offered_per_s == 400
    assert report.duration >= 80 / 400


def test_errors_of_all_threads_are_counted() -> None:
    """Errors and lost bytes of all threads are added."""
    with MisbehavingServer(misbehaving.stalls_after(640)) as server:
        report = fastsock.load(
            server.address, connections=6, threads=3, messages=600, timeout=0.3, wait="block"
        )
    assert_bad(report)
    assert failures(report) == {"timeout": 6}
    assert report.messages == 6 * 10
    assert report.lost_bytes == 6 * 64


def test_a_thread_without_connections_is_idle() -> None:
    """A thread counts as idle once all of its connections have failed."""
    first = threading.Lock()

    def behave(server: MisbehavingServer, connection: socket.socket) -> None:
        if not first.acquire(blocking=False):
            misbehaving.echoes(server, connection)

    with MisbehavingServer(behave) as server:
        report = fastsock.load(
            server.address, connections=2, threads=2, rate=20, duration=0.5, wait="block"
        )
    assert sum(failures(report).values()) == 1
    assert report.client.busy < 0.5


def test_more_threads_than_connections() -> None:
    """More threads than connections are refused."""
    with pytest.raises(ValueError, match="threads 5 is more than connections 4; each thread needs"):
        fastsock.load("tcp://127.0.0.1:9", threads=5, connections=4)
    with pytest.raises(ValueError, match="threads 2000 is out of range; expected 1 to 1024"):
        fastsock.load("tcp://127.0.0.1:9", threads=2000, connections=2000)


def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a thread cannot be started, the threads started before it end."""
    start, started = threading.Thread.start, []

    def start_two(self: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        start(self)
        started.append(self)

    # The threads wait to be connected, and would not end by themselves.
    with misbehaving.full_address() as address:
        monkeypatch.setattr(threading.Thread, "start", start_two)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            fastsock.load(address, connections=3, threads=3, duration=1, timeout=50, wait="block")
    assert len(started) == 2
    assert not any(thread.is_alive() for thread in started)


#: Loads argv[1] with too few descriptors: one thread fails, the other waits to be connected.
SHORT_OF_DESCRIPTORS = """
import os, resource, sys
import fastsock
free = 30
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + free,) * 2)
try:
    fastsock.load(sys.argv[1], connections=32, threads=2, duration=1, timeout=50, wait="block")
except OSError as error:
    print(error)
"""


def test_a_thread_that_fails_stops_the_others() -> None:
    """When one thread fails, the others are stopped."""
    with misbehaving.full_address() as (host, port):
        done = subprocess.run(
            [sys.executable, "-c", SHORT_OF_DESCRIPTORS, f"tcp://{host}:{port}"],
            capture_output=True,
            text=True,
            timeout=25,
            check=True,
        )
    assert "Too many open files" in done.stdout


def test_ctrl_c_stops_all_threads_of_a_datagram_run() -> None:
    """Ctrl-C ends every thread, and their results are one report."""
    options: dict[str, Any] = {"connections": 6, "threads": 3, "duration": 50, "warmup": 0}
    with (
        fastsock.Server(DATAGRAM) as server,
        loading(str(server.endpoint), wait="block", **options) as process,
    ):
        wait_until(lambda: server.stats().datagrams_out > 1000)
        process.send_signal(signal.SIGINT)
        answer = answer_of(process)
    assert faults_in(answer["report"]) == ["interrupted by Ctrl-C"]
    assert answer["report"]["messages"] > 900
    assert answer["alive"] == ["MainThread"]


def test_threads_with_no_work() -> None:
    """A run is good when some threads have no message to send."""
    with fastsock.Server(STREAM) as server:
        report = fastsock.load(server.endpoint, messages=2, connections=8, threads=4, **QUIET)
    assert_good(report)
    assert report.messages == 2
    assert json.loads(json.dumps(report.as_dict()))["options"]["threads"] == 4
