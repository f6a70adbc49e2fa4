"""Histograms for other tools, with the PyPI package hdrhistogram as the other reader."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import misbehaving
import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from hypothesis import example, given, settings
from hypothesis import strategies as st
from load_runs import SERVED
from test_histogram import HIGHEST, LISTS, PERCENTS, VALUES, oracle, ours

import fastsock
from fastsock._native.client.histogram import Histogram
from fastsock.cli import run
from fastsock.client import hdr
from fastsock.client.exports import (
    latency_by_percentile,
    log_header,
    log_line,
    percentile_text,
)

FEW = settings(max_examples=15, deadline=None)  # the other reader is slow
START = 1_800_000_000.25

Row = tuple[float, float, int, float | None]


def rows_of(text: str) -> list[Row]:
    """Value in ms, percentile from 0 to 1, count so far, inverse; the last has none."""
    lines = [line.split() for line in text.splitlines() if line and line[0] != "#"]
    assert lines.pop(0) == ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
    return [
        (float(value), float(level), int(count), *map(float, inverse or ["nan"]))  # type: ignore[misc]
        for value, level, count, *inverse in lines
    ]


def footer_of(text: str) -> dict[str, float]:
    found = re.findall(r"(\w[\w ]*?) *= +([\d.]+)", text)
    return {name: float(value) for name, value in found}


@FEW
@given(st.lists(VALUES, min_size=1, max_size=300))
@example([0])
@example([HIGHEST])
@example([1000] * 1000 + [10**9])
def test_each_row_is_a_percentile(values: list[int]) -> None:
    """Value and count are those of the other reader, and the first that reach the level."""
    text, reference = percentile_text(ours(values)), oracle(values)
    cumulative, so_far = {}, 0
    for item in reference.get_recorded_iterator():
        so_far += item.count_added_in_this_iter_step
        cumulative[f"{item.value_iterated_to / 1e6:.6f}"] = so_far
    rows = rows_of(text)
    levels = [level for _, level, _, _ in rows]
    assert levels[0] == 0 and levels[-1] == 1 and levels == sorted(set(levels))
    counts = sorted(cumulative.values())
    for value, level, count, inverse in rows:
        assert cumulative[f"{value:.6f}"] == count
        first = next(each for each in counts if each / len(values) >= level - 1e-12)
        assert count == first
        if level != 1:
            assert inverse == pytest.approx(1 / (1 - level), abs=0.01, rel=1e-6)
    assert rows[-1][2] == len(values)


@FEW
@given(LISTS)
def test_the_footer_is_the_other_readers(values: list[int]) -> None:
    """But for its deviation, which it does not scale, and for the name of the total."""
    written = io.BytesIO()
    oracle(values).output_percentile_distribution(written, 1e6)
    theirs, mine = (
        footer_of(each) for each in (written.getvalue().decode(), percentile_text(ours(values)))
    )
    assert mine["Mean"] == pytest.approx(theirs["Mean"], abs=0.0006)
    assert mine["StdDeviation"] == pytest.approx(theirs["StdDeviation"] / 1e6, abs=1e-6, rel=1e-6)
    assert mine["Max"] == pytest.approx(theirs["Max"], abs=0.0006)
    assert mine["Total count"] == theirs["TotalCount"]
    assert (mine["Buckets"], mine["SubBuckets"]) == (theirs["Buckets"], theirs["SubBuckets"])


def test_the_text_of_the_reference() -> None:
    """The columns and the levels of the Java library, which halve the distance to 100 %."""
    text = percentile_text(ours([1_000_000 * number for number in range(1, 101)]))
    lines = text.splitlines()
    assert lines[0] == "       Value     Percentile TotalCount 1/(1-Percentile)"
    assert lines[1] == ""
    assert lines[2] == "    1.000447 0.000000000000          1           1.00"
    assert [row[1] for row in rows_of(text)][:12] == [
        *(0, 0.1, 0.2, 0.3, 0.4, 0.5),
        *(0.55, 0.6, 0.65, 0.7, 0.75, 0.775),
    ]
    assert lines[-4] == "  100.007935 1.000000000000        100"
    assert re.fullmatch(r"#\[Mean    = +\d+\.\d{6}, StdDeviation   = +\d+\.\d{6}\]", lines[-3])
    assert re.fullmatch(r"#\[Max     = +\d+\.\d{6}, Total count    = +100\]", lines[-2])
    assert lines[-1] == "#[Buckets =           24, SubBuckets     =         2048]"


@pytest.mark.parametrize("counts", [[(0, 2**63 - 1)], [(5000, 2**62), (6000, 1)], [(24_669, 1)]])
def test_the_largest_counts(counts: list[tuple[int, int]]) -> None:
    """The text has an end, although no float is near enough to 100 %."""
    histogram = Histogram()
    histogram.add_counts(counts)
    rows = rows_of(percentile_text(histogram))
    assert len(rows) < 400
    assert rows[-1][2] == sum(count for _, count in counts)


def test_the_text_without_values() -> None:
    text = percentile_text(Histogram())
    assert rows_of(text) == []
    assert footer_of(text)["Total count"] == footer_of(text)["Max"] == 0


# --- the log ------------------------------------------------------------------------------------


def read_log(path: Path) -> list[Any]:
    reader = HistogramLogReader(str(path), HdrHistogram(100, HIGHEST, 3))
    found = []
    try:
        while (histogram := reader.get_next_interval_histogram()) is not None:
            found.append(histogram)
        assert reader.get_start_time_sec() == START
    finally:
        reader.close()
    return found


@FEW
@given(st.lists(st.tuples(st.sampled_from(["", "sent", "connect"]), st.lists(VALUES, max_size=30))))
def test_the_other_reader_reads_the_log(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, list[int]]]
) -> None:
    """Tags, times, counts and percentiles are those that were written."""
    path = tmp_path_factory.mktemp("log") / "run.hlog"
    text = log_header(START)
    for number, (tag, values) in enumerate(lines):
        text += log_line(tag, number * 0.5, 0.5, ours(values))
    path.write_text(text)
    found = read_log(path)
    assert len(found) == len(lines)
    for number, (read, (tag, values)) in enumerate(zip(found, lines, strict=True)):
        assert read.get_tag() == (tag or None)
        assert read.get_start_time_stamp() == pytest.approx((START + number * 0.5) * 1000)
        assert read.get_end_time_stamp() == pytest.approx((START + number * 0.5 + 0.5) * 1000)
        assert read.get_total_count() == len(values)
        for percent in PERCENTS if values else ():
            expected = oracle(values).get_value_at_percentile(percent)
            assert read.get_value_at_percentile(percent) == expected


def test_the_lines_of_the_log() -> None:
    """Version, start and base time and the legend; then tag, start, length, max in ms."""
    header = log_header(START).splitlines()
    assert header == [
        "#[Histogram log format version 1.2]",
        "#[StartTime: 1800000000.250 (seconds since epoch), Fri Jan 15 08:00:00 UTC 2027]",
        "#[BaseTime: 1800000000.250 (seconds since epoch)]",
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
    ]
    histogram = ours([1_234_567])
    text = hdr.encode(histogram)
    assert log_line("sent", 1.5, 1, histogram) == f"Tag=sent,1.500,1.000,1.235,{text}\n"
    assert log_line("", 0, 0.1, Histogram()).startswith("0.000,0.100,0.000,HIST")


@pytest.mark.parametrize("tag", ["a,b", "a b", "a\nb", " ", "a\u00a0b"])
def test_a_tag_that_the_log_cannot_hold(tag: str) -> None:
    with pytest.raises(ValueError, match="has a comma or white space"):
        log_line(tag, 0, 1, Histogram())


# --- the command --------------------------------------------------------------------------------


def test_hgrm_of_the_command(
    server: fastsock.Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file has the latencies of the run; the report is on stdout as ever."""
    path = tmp_path / "run.hgrm"
    command = ["load", str(server.endpoint), "-n", "1000", "--hgrm", str(path)]
    assert run(command) in SERVED
    assert "messages  1000 " in capsys.readouterr().out
    rows = rows_of(path.read_text())
    assert rows[-1][2] == 1000
    assert footer_of(path.read_text())["Total count"] == 1000


def test_hgrm_of_a_report(server: fastsock.Server) -> None:
    """The percentiles are those of the report."""
    report = fastsock.load(server.endpoint, messages=1000, rate=5000, wait="block")
    rows = {level: value for value, level, _, _ in rows_of(latency_by_percentile(report))}
    assert rows[0.5] * 1000 == pytest.approx(report.latency.p50, abs=0.001)
    assert rows[0.9] * 1000 == pytest.approx(report.latency.p90, abs=0.001)


def test_hgrm_without_answers(tmp_path: Path) -> None:
    path = tmp_path / "run.hgrm"
    with misbehaving.refusing_address() as (host, port):
        assert run(["load", f"{host}:{port}", "-n", "5", "--hgrm", str(path)]) == 1
    assert rows_of(path.read_text()) == []


def test_hgrm_that_cannot_be_written_after_the_run(
    server: fastsock.Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is exit code 2, and the report and the other files are there."""
    path = tmp_path / "run.json"
    command = ["load", str(server.endpoint), "-n", "1000", "--hgrm", "/dev/full"]
    assert run([*command, "--json", str(path)]) == 2
    out, err = capsys.readouterr()
    assert "messages  1000 " in out
    assert err == "Error: cannot write /dev/full: No space left on device\n"
    assert path.stat().st_size > 1000
    assert run([*command, "--json", "-"]) == 2
    assert capsys.readouterr().out.startswith("{")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--hgrm", "-"], "is not a file; name one"),
        (["--hgrm", "missing/run.hgrm"], "its directory is not there"),
        (["--hgrm", "."], "it is a directory"),
        (["--hgrm", "run", "--mode", "send"], "mode 'send', in which nothing is answered"),
        (["--hgrm", "run", "--json", "run"], "two outputs go to"),
        (["--hgrm", "run", "--json", "./x/../run"], "two outputs go to"),
    ],
)
def test_hgrm_is_refused_before_the_run(
    flags: list[str],
    why: str,
    server: fastsock.Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    assert run(["load", str(server.endpoint), "-n", "5", *flags]) == 2
    assert why in " ".join(capsys.readouterr().err.split())
    assert server.stats().accepted == 0
    assert [each.name for each in tmp_path.iterdir()] == ["x"]
