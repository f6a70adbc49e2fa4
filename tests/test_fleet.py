"""Tests of runs that are ended from outside and joined, as Locust's workers make them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from load_runs import faults

import fastsock
from fastsock.client.fleet import Progress, cut_off, differences, joined
from fastsock.client.load import Ending, load_until_ended
from fastsock.client.merge import Part, merge
from fastsock.client.options import LoadOptions
from fastsock.client.report import Interval, LoadReport


@pytest.fixture
def server() -> Iterator[fastsock.Server]:
    with fastsock.Server("tcp://127.0.0.1:0") as found:
        yield found


def run(
    server: fastsock.Server, seconds: float, connections: int = 2
) -> tuple[LoadReport, list[Interval]]:
    """A run that is ended after some time, and its intervals."""
    ending, rows = Ending(), list[Interval]()
    timer = threading.Timer(seconds, ending.end)
    timer.start()
    report = load_until_ended(
        server.endpoint,
        {
            "connections": connections,
            "wait": "block",
            "warmup": 0.0,
            "duration": 3600.0,
            "interval": 0.1,
        },
        rows.append,
        ending,
    )
    timer.join()
    return report, rows


def test_a_run_that_is_ended_is_whole(server: fastsock.Server) -> None:
    report, _ = run(server, 0.3)
    assert not faults(report)
    assert 0.1 < report.duration < 10
    assert report.latency.count == server.stats().bytes_in // 64


@pytest.mark.parametrize(
    ("endpoint", "fault", "options"),
    [
        ("tcp://127.0.0.1:0", "reset_peer:after=64k,probability=0.5", {}),
        ("udp://127.0.0.1:0", "loss:probability=0.1", {"loss_timeout": 0.02}),
    ],
)
def test_failures_are_counted_while_a_run_goes_on(
    endpoint: str, fault: str, options: dict[str, Any]
) -> None:
    """make tsan: another thread than those of the load reads the counts, which only grow."""
    ending, seen = Ending(), list[int]()

    def count(_: Interval) -> None:
        errors, datagrams = ending.counted()
        seen.append(errors.total() + datagrams["lost"])
        if len(seen) == 5:
            ending.end()

    with fastsock.Server(endpoint, faults=[fault]) as server:
        keywords = {"connections": 16, "threads": 2, "warmup": 0.0, "duration": 60.0}
        keywords |= {"wait": "block", "interval": 0.1, "timeout": 5.0, **options}
        report = load_until_ended(server.endpoint, keywords, count, ending)
    whole = sum(report.errors.values()) + (report.datagrams or {"lost": 0})["lost"]
    assert 0 < seen[-1] <= whole
    assert seen == sorted(seen)


def test_runs_one_after_the_other_are_one(server: fastsock.Server) -> None:
    runs = [run(server, 0.3, connections)[0] for connections in (1, 3)]
    whole = joined(runs, "worker")
    assert whole.label == "worker"
    assert whole.messages == sum(each.messages for each in runs)
    assert whole.latency.count == server.stats().bytes_in // 64
    assert whole.options["connections"] == 3
    assert whole.duration >= sum(each.duration for each in runs)
    assert whole.messages_per_s == whole.messages / whole.duration
    assert joined(runs[:1], "alone").messages == runs[0].messages
    other = joined([run(server, 0.2)[0]], "other")
    both = merge([Part("a", whole), Part("b", other)], at_once=False)
    assert both.messages == whole.messages + other.messages


def test_intervals_make_a_report(server: fastsock.Server) -> None:
    """What a worker has reported of a run before it vanished."""
    report, rows = run(server, 0.3)
    progress = Progress(str(server.endpoint), LoadOptions(connections=2), report.started_at)
    for row in rows:
        progress.add(row)
    found = cut_off(progress.report(report.errors, report.datagrams), "it vanished")
    assert found.messages == report.messages
    assert found.latency.count == report.latency.count
    assert found.latency.p99 == pytest.approx(report.latency.p99, rel=0.002)
    assert [each.code for each in found.reasons] == ["interrupted"]


def test_loads_that_differ() -> None:
    one = {**LoadOptions().as_dict(), "kind of endpoint": "tcp"}
    assert differences([("A", one), ("B", one)]) == ""
    other = {**one, "size": 1000}
    assert differences([("A", one), ("B", other)]) == "size is 64 in A and 1000 in B"
    other = {**one, "kind of endpoint": "udp"}
    assert differences([("A", one), ("B", other)]) == "kind of endpoint is tcp in A and udp in B"


def test_threads_under_gevent(server: fastsock.Server) -> None:
    """They run at the same time, though gevent makes greenlets of Python's threads."""
    code = """
from gevent import monkey
monkey.patch_all()
import sys, fastsock
rows = []
report = fastsock.load(sys.argv[1], connections=2, threads=2, wait="block", duration=0.5,
                       interval=0.1, on_interval=rows.append)
assert report.messages and report.duration < 0.9, report
assert not report.failed and len(rows) >= 5, rows
"""
    command = [sys.executable, "-c", code, str(server.endpoint)]
    subprocess.run(command, check=True, timeout=30)
