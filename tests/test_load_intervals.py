"""Figures over time: the intervals of a run, and the lines written while it goes on."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import misbehaving
import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from load_runs import QUIET, native_server
from misbehaving import MisbehavingServer

import fastsock
from fastsock._native.client.histogram import Histogram
from fastsock.client import hdr
from fastsock.client import intervals as module
from fastsock.client.report import Interval, Latency

WINDOW: dict[str, Any] = {"duration": 0.55, "warmup": 0.05, "interval": 0.1, **QUIET}


def load(endpoint: Any, **options: Any) -> tuple[fastsock.LoadReport, list[Interval]]:
    rows: list[Interval] = []
    report = fastsock.load(endpoint, on_interval=rows.append, **{**WINDOW, **options})
    return report, rows


def counted(rows: list[Interval], tag: str) -> list[tuple[int, int]]:
    total = Histogram()
    for row in rows:
        if tag in row.histograms:
            total.add(row.histograms[tag])
    return total.counts()


def whole(report: fastsock.LoadReport, name: str) -> list[tuple[int, int]]:
    return hdr.decode(report.histograms[name]).counts()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"connections": 5, "threads": 3},
        {"rate": 3000, "connections": 3, "threads": 2},
        {"rate": 3000, "arrivals": "poisson", "connections": 2},
        {"reconnect_every": 7, "connections": 2},
        {"wait": "spin", "depth": 8},
        {"duration": None, "warmup": None, "messages": 30_000, "connections": 3, "threads": 2},
    ],
)
def test_the_intervals_together_are_the_run(server: fastsock.Server, options: Any) -> None:
    """No message is lost, doubled or moved outside its window, whatever the load."""
    report, rows = load(server.endpoint, **options)
    assert report.intervals is not None
    assert sum(row.messages for row in rows) == report.latency.count
    assert counted(rows, "sent") == whole(report, "latency_from_send")
    assert counted(rows, "connect") == whole(report, "connect")
    if report.offered is not None:
        assert counted(rows, "intended") == whole(report, "latency")
        assert sum(row.messages for row in rows) == report.messages
    in_window = [row for row in rows if not row.after_window]
    assert sum(row.messages for row in in_window) == report.answered_in_window or report.offered
    assert in_window[0].start == 0
    assert in_window[-1].end == pytest.approx(report.duration)
    assert all(one.end == other.start for one, other in itertools.pairwise(in_window))
    assert [row.after_window for row in rows[:-1]] == [False] * (len(rows) - 1)
    assert rows[-1].outstanding == 0
    assert [row.messages for row in report.intervals.rows] == [row.messages for row in rows]


@pytest.mark.parametrize(
    ("service", "mode", "options"),
    [("discard", "send", {}), ("discard", "send", {"rate": 500}), ("chargen", "receive", {})],
)
def test_one_way(service: Any, mode: Any, options: Any) -> None:
    with fastsock.Server("tcp://127.0.0.1:0", service=service) as server:
        report, rows = load(server.endpoint, mode=mode, **options)
    assert sum(row.messages for row in rows) == report.messages
    assert {row.outstanding for row in rows} == {0}
    assert all(row.latency == Latency() for row in rows)


@pytest.mark.parametrize("options", [{}, {"rate": 2000.0}])
def test_datagrams(options: Any) -> None:
    with fastsock.Server("udp://127.0.0.1:0") as server:
        report, rows = load(server.endpoint, connections=3, threads=2, **options)
    assert sum(row.messages for row in rows) == report.latency.count
    assert rows[-1].outstanding == 0


def test_a_stall_of_the_server_is_visible_in_its_interval() -> None:
    """The server is stopped until three intervals had no answer."""
    with native_server() as (process, endpoint):
        rows: list[Interval] = []

        def on_interval(row: Interval) -> None:
            rows.append(row)
            if len(rows) == 2:
                process.send_signal(signal.SIGSTOP)
            elif [row.messages for row in rows[-3:]] == [0, 0, 0]:
                process.send_signal(signal.SIGCONT)

        report = fastsock.load(
            endpoint, rate=1000, on_interval=on_interval, **{**WINDOW, "duration": 1.0}
        )
    silent = [row for row in rows if not row.messages]
    assert len(silent) >= 3
    after = rows[rows.index(silent[-1]) + 1]
    assert after.latency.max > 250_000
    assert max(row.outstanding for row in silent) >= 1
    assert sum(row.messages for row in rows) == report.messages == 1000


def test_a_slow_reader_gets_several_intervals_as_one(server: fastsock.Server) -> None:
    """The loop never waits for the thread that takes the figures."""
    rows: list[Interval] = []

    def slow(row: Interval) -> None:
        rows.append(row)
        if len(rows) == 1:
            threading.Event().wait(0.35)

    report = fastsock.load(str(server.endpoint), rate=1000, on_interval=slow, **WINDOW)
    assert sum(row.messages for row in rows) == report.messages == 550
    assert any(row.end - row.start > 0.15 for row in rows)
    assert all(one.end == other.start for one, other in itertools.pairwise(rows[:-1]))


def test_errors_are_in_the_interval_in_which_they_happened() -> None:
    with native_server() as (process, endpoint):
        rows: list[Interval] = []

        def on_interval(row: Interval) -> None:
            rows.append(row)
            if len(rows) == 2:
                process.kill()

        report = fastsock.load(endpoint, connections=3, on_interval=on_interval, **WINDOW)
    assert sum(row.errors for row in rows) == sum(report.errors.values()) == 3
    assert [row.errors for row in rows[:2]] == [0, 0]
    assert rows[-1].outstanding == 0


def test_an_interrupted_run_has_its_intervals(server: fastsock.Server) -> None:
    rows: list[Interval] = []

    def on_interval(row: Interval) -> None:
        rows.append(row)
        if len(rows) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(fastsock.LoadInterrupted) as caught:
        fastsock.load(str(server.endpoint), on_interval=on_interval, **{**WINDOW, "duration": 50})
    report = caught.value.report
    assert sum(row.messages for row in rows) == report.latency.count
    assert len(rows) < 100


def test_a_refused_run_has_intervals_without_messages() -> None:
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        endpoint = str(server.endpoint)
    report, rows = load(endpoint, connections=2)
    assert sum(row.errors for row in rows) == 2
    assert not sum(row.messages for row in rows)
    assert report.failed


def test_a_thread_that_ends_early_holds_nothing_up() -> None:
    """The rows go on while the other thread does."""
    over = threading.Event()

    def serve(listener: socket.socket) -> None:
        first, second = listener.accept()[0], listener.accept()[0]
        first.close()
        with second, suppress(OSError):
            while not over.is_set() and (data := second.recv(4096)):
                second.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        host, port = listener.getsockname()
        seen: list[float] = []
        rows: list[Interval] = []

        def on_interval(row: Interval) -> None:
            rows.append(row)
            seen.append(time.monotonic())
            if len(rows) == 4:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(fastsock.LoadInterrupted):
            fastsock.load(
                f"tcp://{host}:{port}",
                connections=2,
                threads=2,
                on_interval=on_interval,
                **{**WINDOW, "duration": 50},
            )
        over.set()
        thread.join(10)
    assert sum(row.errors for row in rows) == 1


@pytest.mark.parametrize(
    ("options", "ends"),
    [
        ({"duration": 0.25, "interval": 0.2}, [0.2, 0.25]),
        ({"duration": 0.25, "interval": 2}, [0.25]),
        ({"duration": 0.2001, "interval": 0.2}, [0.2, 0.2001]),
    ],
)
def test_the_last_row_ends_with_the_window(options: Any, ends: list[float]) -> None:
    """Also where the run lingers: a datagram that nothing answers is awaited."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        host, port = silent.getsockname()
        _, rows = load(f"udp://{host}:{port}", rate=100, loss_timeout=0.5, **options)
    assert [round(row.end, 9) for row in rows] == ends


def test_a_short_last_interval_keeps_its_messages(server: fastsock.Server) -> None:
    """Although the reader has not taken the one before."""
    report, rows = load(server.endpoint, duration=0.21, interval=0.2, connections=2)
    in_window = [row for row in rows if not row.after_window]
    assert sum(row.messages for row in in_window) == report.answered_in_window
    assert in_window[-1].messages > 0


def test_a_quota_ends_the_rows_with_its_last_message() -> None:
    """A server that does not close is awaited for a second, in which nothing is measured."""
    with MisbehavingServer(misbehaving.never_closes) as server:
        report, rows = load(server.address, duration=None, warmup=None, messages=300, connections=1)
    assert rows[-1].end == pytest.approx(report.duration)
    assert sum(row.messages for row in rows) == 300


def test_without_an_interval_there_are_none(server: fastsock.Server) -> None:
    report, rows = load(server.endpoint, interval=None)
    assert report.intervals is None
    assert not rows
    assert report.as_dict()["intervals"] is None


def row_of(number: int, latency: Histogram) -> Interval:
    return Interval(
        number * 0.1, (number + 1) * 0.1, len(latency), 0, 1, Latency(**latency.summary_us())
    )


def test_neighbours_are_joined_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long run keeps its memory flat, and joined rows are as if the interval were longer."""
    monkeypatch.setattr(module, "MAX_ROWS", 4)
    rows, total = module._Rows(0.1), Histogram()
    for number in range(37):
        latency = Histogram()
        for value in range(number):
            latency.record(1000 * (value + 1))
            total.record(1000 * (value + 1))
        rows.add(row_of(number, latency), latency)
        assert len(rows._rows) <= 8
    done = rows.done()
    assert (done.joined, len(done.rows)) == (16, 3)
    assert [row.messages for row in done.rows] == [120, 376, 170]
    assert [round(row.end, 9) for row in done.rows] == [1.6, 3.2, 3.7]
    joined = Histogram()
    for number in range(16, 32):
        for value in range(number):
            joined.record(1000 * (value + 1))
    summary = Latency(**joined.summary_us())
    assert done.rows[1].latency.mean == pytest.approx(summary.mean)
    assert done.rows[1].latency.p99 == summary.p99
    assert (done.rows[1].latency.min, done.rows[1].latency.max) == (summary.min, summary.max)


# --- the command ----------------------------------------------------------------------------------


def run_load(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastsock", "load", *arguments],
        capture_output=True,
        text=True,
        timeout=40,
    )


def test_the_timeline_is_written_while_the_run_goes_on(
    server: fastsock.Server, tmp_path: Path
) -> None:
    path, result = tmp_path / "timeline.jsonl", tmp_path / "result.json"
    done = run_load(
        str(server.endpoint), "--rate=1000", "--duration=.5s", "--interval=100ms", "--wait=block",
        "--timeline", str(path), "--json", str(result),
    )  # fmt: skip
    assert done.returncode in (0, 4), done.stderr
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    document = json.loads(result.read_text())
    assert rows == document["intervals"]["rows"]
    assert sum(row["messages"] for row in rows) == document["messages"] == 500


def test_the_log_of_histograms_has_every_message(
    server: fastsock.Server, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As HdrHistogram's own package reads it, by tag."""
    path, result = tmp_path / "log.hlog", tmp_path / "result.json"
    done = run_load(
        str(server.endpoint), "--rate=1000", "-d.5s", "--interval=100ms", "--wait=block",
        "-c3", "--hlog", str(path), "--json", str(result),
    )  # fmt: skip
    assert done.returncode in (0, 4), done.stderr
    document = json.loads(result.read_text())
    for tag, name in (
        ("intended", "from_intended_send"),
        ("sent", "from_actual_send"),
        ("connect", "connect"),
    ):
        reader = HistogramLogReader(str(path), HdrHistogram(100, 600_000_000_000, 3))
        request.addfinalizer(reader.close)
        total, lines = HdrHistogram(100, 600_000_000_000, 3), 0
        while (each := reader.get_next_interval_histogram()) is not None:
            if each.get_tag() == tag:
                total.add(each)
                lines += 1
        distribution = document["latency_us"][name]
        assert total.get_total_count() == distribution["count"]
        assert total.get_value_at_percentile(99) / 1e3 == pytest.approx(distribution["p99"], 2e-3)
        with_messages = sum(row["messages"] > 0 for row in document["intervals"]["rows"])
        assert lines == 1 if tag == "connect" else lines == with_messages


def test_a_full_disk_costs_the_timeline_only(server: fastsock.Server) -> None:
    done = run_load(
        str(server.endpoint), "-d.3s", "--interval=100ms", "--wait=block", "--timeline=/dev/full"
    )
    assert done.returncode == 2
    assert done.stderr.count("cannot write /dev/full: No space left on device") == 1
    assert "valid" in done.stdout


def test_a_pipe_that_nothing_reads_costs_the_timeline_only(
    server: fastsock.Server, tmp_path: Path
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        done = run_load(
            str(server.endpoint), "-d1s", "--interval=100ms", "--wait=block",
            f"--timeline={path}", f"--hlog={tmp_path / 'log'}",
        )  # fmt: skip
        assert done.returncode in (0, 4)  # it holds 64 KiB
        filled = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        with suppress(BlockingIOError):
            while True:
                os.write(filled, bytes(4096))
        done = run_load(str(server.endpoint), "-d.3s", "--wait=block", f"--timeline={path}")
        os.close(filled)
    finally:
        os.close(reader)
    assert done.returncode == 2
    assert "nothing reads it; the run goes on" in " ".join(done.stderr.split())
    assert "valid" in done.stdout


def test_a_wrong_endpoint_leaves_old_files_alone(tmp_path: Path) -> None:
    path = tmp_path / "timeline"
    path.write_text("old")
    assert run_load("127.0.0.1:0", "--timeline", str(path)).returncode == 2
    assert path.read_text() == "old"


def test_a_link_that_leads_nowhere_is_found_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "missing" / "file")
    for option in ("--timeline", "--json"):
        done = run_load("127.0.0.1:1", option, str(tmp_path / "link"))
        assert done.returncode == 2
        assert "cannot write" in done.stderr and "link" in done.stderr


def test_a_timeline_that_cannot_be_written_is_found_before_the_run(tmp_path: Path) -> None:
    done = run_load("127.0.0.1:1", "--timeline", str(tmp_path / "missing" / "file"))
    assert done.returncode == 2
    assert "its directory is not there" in done.stderr


@pytest.mark.parametrize("interval", ["0", "10ms", "2days", "-1", "nan"])
def test_an_interval_out_of_range_is_refused(interval: str) -> None:
    done = run_load("127.0.0.1:1", f"--interval={interval}")
    assert done.returncode == 2
    assert "--interval" in done.stderr
