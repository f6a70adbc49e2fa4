"""Merging runs of several machines: exact counts and percentiles, and what is refused."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from load_runs import SERVED

import fastsock
from fastsock._native.client.histogram import Histogram
from fastsock.cli import run
from fastsock.client import hdr
from fastsock.client.document_reader import report_of
from fastsock.client.report import LOAD_ERRORS
from fastsock.client.saved import read

Document = dict[str, Any]
Written = Callable[..., str]

SCHEMA = json.loads((Path(__file__).parent.parent / "docs" / "load-2.schema.json").read_text())
LATENCIES = {"latency": "from_intended_send", "latency_from_send": "from_actual_send"}


@pytest.fixture(scope="module")
def real() -> Document:
    """One real run of an open loop, made to be valid: the machine may be busy."""
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        report = fastsock.load(server.endpoint, rate=2000, duration=0.5, warmup=0, wait="block")
    document = report.as_dict() | {"valid": True, "reasons": [], "notes": []}
    latencies, histograms = document["latency_us"], document["histograms"]
    latencies["from_intended_send_without_away"] = latencies["from_intended_send"]
    histograms["latency_without_away"] = histograms["latency"]
    return document


@pytest.fixture
def written(real: Document, tmp_path: Path) -> Written:
    """Writes the real run with changes, `options_size` being the size in the options."""

    def write(name: str, **changes: Any) -> str:
        document = copy.deepcopy(real)
        document["label"] = name
        for key, value in changes.items():
            part, _, inner = key.partition("_")
            if part == "options":
                document[part][inner] = value
            else:
                document[key] = value
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(document))
        return str(path)

    return write


def merged(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Document:
    assert run(["merge", *arguments, "--json", "-"]) == code
    document: Document = json.loads(capsys.readouterr().out)
    assert not [each.message for each in Draft202012Validator(SCHEMA).iter_errors(document)]
    return document


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


# --- sums ---------------------------------------------------------------------------------------


def test_four_runs_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Messages are those that the server counted, and each distribution has all answers."""
    files = [str(tmp_path / f"{number}.json") for number in range(4)]
    with fastsock.Server("tcp://127.0.0.1:0") as server:

        def load(file: str) -> None:
            report = fastsock.load(
                server.endpoint, rate=200, messages=100, wait="block", connections=2
            )
            Path(file).write_text(json.dumps(report.as_dict()))

        threads = [threading.Thread(target=load, args=(file,)) for file in files]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        served = server.stats()
    assert run(["merge", *files, "--json", str(tmp_path / "all.json")]) in SERVED
    document = read(str(tmp_path / "all.json")).runs[0]
    parts = [read(file).runs[0] for file in files]
    assert document["messages"] == sum(each["messages"] for each in parts) == 400
    assert document["bytes"] == served.bytes_out
    assert document["messages_per_s"] == sum(each["messages_per_s"] for each in parts)
    assert document["options"]["connections"] == 8
    assert document["options"]["messages"] == 400
    assert document["options"]["rate"] == document["offered_per_s"] == 800
    assert document["latency_us"]["from_intended_send"]["count"] == 400
    assert document["latency_us"]["connect"]["count"] == served.accepted == 8
    assert [each["file"] for each in document["merged"]] == files
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80
    assert report_of(document).as_dict() == document


def test_figures_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Intervals, stages, targets and percentiles of four runs at once, that lose no message."""
    files = [str(tmp_path / f"{number}.json") for number in range(4)]
    with fastsock.Server("tcp://127.0.0.1:0") as server:

        def load(number: int) -> None:
            report = fastsock.load(
                server.endpoint,
                stages=f"300ms@{500 * (number + 1)}, 300ms@1k..2k",
                warmup=0,
                wait="block",
                connections=2,
                interval=0.1,
                targets=["p75<9s", "p50>9s", "rate>1", *["max<9s"] * (number == 3)],
                percentiles=[50, 75, 99] if number else [50, 75, 90],
                sources=[f"127.0.0.{number + 1}"],
            )
            Path(files[number]).write_text(json.dumps(report.as_dict()))

        threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        served = server.stats()
    assert run(["merge", *files, "--json", str(tmp_path / "all.json")]) in (3, 4)
    document = read(str(tmp_path / "all.json")).runs[0]
    assert not [each.message for each in Draft202012Validator(SCHEMA).iter_errors(document)]
    assert report_of(document).as_dict() == document
    parts = [read(file).runs[0] for file in files]
    assert document["messages"] == 3300
    assert 0 <= served.bytes_out // 64 - 3300 <= 4  # with those that are due when the window ends

    rows = document["intervals"]["rows"]
    assert sum(each["messages"] for each in rows) == document["messages"]
    assert (
        max(each["max"] or 0 for each in rows)
        == document["latency_us"]["from_intended_send"]["max"]
    )
    inside = [each for each in rows if not each["after_window"]]
    assert inside[0]["start_s"] == 0 and inside[-1]["end_s"] == pytest.approx(0.6)
    for before, after in pairwise(inside):
        assert before["end_s"] == pytest.approx(after["start_s"])

    stages = document["stages"]
    assert [each["stage"] for each in stages] == ["300ms@5k/s", "300ms@4k/s..8k/s"]
    assert document["options"]["stages"] == ", ".join(each["stage"] for each in stages)
    assert [each["messages"] for each in stages] == [1500, 1800]
    assert [each["offered"] for each in stages] == [1500, 1800]
    assert {each["latency_us"] for each in stages} == {None}
    assert [(each["rate_from"], each["rate_to"]) for each in stages] == [(5000, 5000), (4000, 8000)]

    everything = Histogram()
    for each in parts:
        everything.add_counts(hdr.decode(each["histograms"]["latency"]).counts())
    latency = document["latency_us"]["from_intended_send"]
    for percent in (50, 75, 90, 99, 99.9, 99.99):
        expected = min(everything.percentile(percent) / 1e3, latency["max"])
        assert latency[f"p{percent:g}"] == expected
    assert document["options"]["percentiles"] == [50, 75]
    assert len(document["options"]["sources"]) == 4

    seen = {each["target"]: each for each in document["targets"]}
    assert [each["met"] for each in seen.values()] == [True, False, True]
    assert seen["p75<9s"]["seen"] == pytest.approx(latency["p75"] / 1e6)
    assert seen["rate>1"]["seen"] == document["messages_per_s"]
    notes = [each["text"] for each in document["notes"]]
    assert "targets of some runs alone are left out: max<9s" in notes
    assert any(each.startswith("the stages have no latency") for each in notes)
    text = capsys.readouterr().out
    assert "target    p50>9s: MISSED" in text
    assert "stage     300ms@5k/s: " in text
    assert text.splitlines()[3].split() == ["min", "mean", "p50", "p75", "max"]


def test_percentiles_are_those_of_one_histogram(
    written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also the extremes and the mean, although the text of a histogram has only steps."""
    random, everything, files = Random(1), Histogram(), []
    for number in range(5):
        own = Histogram()
        for _ in range(20_000):
            value = int(random.lognormvariate(11 + number / 2, 0.8))
            own.record(value)
            everything.record(value)
        text = hdr.encode(own)
        summary = {
            {"p99_9": "p99.9", "p99_99": "p99.99"}.get(name, name): value
            for name, value in own.summary_us().items()
        }
        names = (*LATENCIES.values(), "from_intended_send_without_away")
        files.append(
            written(
                f"run {number}",
                latency_us=dict.fromkeys(names, summary) | {"connect": None, "send_delay": None},
                histograms=dict.fromkeys((*LATENCIES, "latency_without_away"), text),
            )
        )
    document = merged(capsys, *files)
    expected = everything.summary_us()
    for name in LATENCIES.values():
        found = document["latency_us"][name]
        for key, value in expected.items():
            shown = found[key.replace("p99_", "p99.")]
            assert shown == (pytest.approx(value, rel=1e-12) if key == "mean" else value), key
    assert hdr.decode(document["histograms"]["latency"]).counts() == everything.counts()


def test_what_is_counted(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    tcp = {"connections": 1, "retransmits": 2, "rtt_us": 10.0, "max_rtt_us": 12.0}
    outages = {"count": 1, "seconds": 2.0, "longest_s": 2.0, "messages": 3}
    client = {
        "busy": 0.2,
        "away_s": 0.001,
        "delayed_s": 0.002,
        "late_s": 0.0,
        "longest_s": 0.001,
        "throttled_s": None,
        "stolen_s": 0.5,
        "schedstat": True,
        "spinning_threads": 0,
        "cpus": 2,
    }
    first = written("a", tcp=tcp | {"min_rtt_us": 9.0}, outages=outages, client=client, no_eof=1)
    more_tcp = {"connections": 3, "retransmits": 1, "rtt_us": 20.0, "max_rtt_us": 30.0}
    second = written(
        "b",
        tcp=more_tcp | {"min_rtt_us": None},
        outages=outages | {"longest_s": 1.0},
        client=client | {"busy": 0.8, "schedstat": False, "longest_s": 0.01},
        options_threads=3,
        options_connections=3,
        options_seed=9,
        options_wait="spin",
    )
    document = merged(capsys, first, second)
    assert document["tcp"] == {
        "connections": 4,
        "retransmits": 3,
        "rtt_us": 17.5,
        "max_rtt_us": 30.0,
        "min_rtt_us": 9.0,
    }
    assert document["outages"] == {"count": 2, "seconds": 4.0, "longest_s": 2.0, "messages": 6}
    assert document["client"] == client | {
        "busy": pytest.approx(0.65),
        "away_s": 0.002,
        "delayed_s": 0.004,
        "longest_s": 0.01,
        "stolen_s": 1.0,
        "schedstat": False,
        "cpus": 4,
    }
    assert document["no_eof"] == 1
    options = document["options"]
    assert (options["threads"], options["connections"]) == (4, 4)
    assert options["seed"] is options["wait"] is None
    assert options["size"] == 64 and document["label"] is None


def test_datagrams(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    """Each run has lost too few to be not valid; together they have lost too many."""
    counts = {"sent": 10, "received": 8, "lost": 2, "duplicated": 0, "reordered": 1, "late": 0}
    udp = {"endpoint": "udp://127.0.0.1:7", "datagrams": counts, "tcp": None}
    document = merged(capsys, written("a", **udp), written("b", **udp), code=4)
    assert document["datagrams"] == {name: 2 * count for name, count in counts.items()}
    assert document["reasons"] == [{"code": "lost", "text": "4 of 20 datagrams lost"}]


# --- the verdict --------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [("one", "two"), (None, None), ("same", "same")])
def test_one_part_is_not_valid(
    labels: tuple[str | None, str | None], written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its reason has its label, or its file where the labels do not tell the runs apart."""
    reason = {"code": "client_away", "text": "the client was away"}
    note = {"code": "client_limited", "text": "no idle time"}
    bad = written("bad", valid=False, reasons=[reason], notes=[note], label=labels[0])
    document = merged(capsys, bad, written("good", label=labels[1]), code=4)
    name = "one" if labels[0] == "one" else bad
    assert document["reasons"] == [{"code": "client_away", "text": f"{name}: the client was away"}]
    assert document["notes"] == [{"code": "client_limited", "text": f"{name}: no idle time"}]
    assert document["label"] == ("same" if labels[0] == "same" else None)
    assert [each["valid"] for each in document["merged"]] == [False, True]


def test_failed_runs(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    reason = {"code": "errors", "text": "connections reset by the server: 2"}
    errors = dict.fromkeys(LOAD_ERRORS, 0) | {"reset": 2}
    bad = written("bad", valid=False, reasons=[reason], errors=errors, lost_bytes=5)
    document = merged(capsys, bad, written("good"), code=1)
    assert document["errors"]["reset"] == 2 and document["lost_bytes"] == 5


def test_a_percentile_that_all_together_have(
    written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has five answers above p99.9, which nothing judged; together they are judged."""
    histogram, without = Histogram(), Histogram()
    for number in range(5000):
        histogram.record(20_000 if number < 4990 else 50_000_000)
        without.record(20_000)
    place = {
        name: {key.replace("p99_", "p99."): value for key, value in each.summary_us().items()}
        for name, each in (
            ("from_intended_send", histogram),
            ("from_actual_send", histogram),
            ("from_intended_send_without_away", without),
        )
    }
    texts = {
        "latency": hdr.encode(histogram),
        "latency_from_send": hdr.encode(histogram),
        "latency_without_away": hdr.encode(without),
    }
    parts = [
        written(
            f"run {number}",
            latency_us=place | {"connect": None, "send_delay": None},
            histograms=texts,
        )
        for number in range(4)
    ]
    document = merged(capsys, *parts, code=4)
    (reason,) = document["reasons"]
    assert "p99.9 would be 20" in reason["text"]


def test_a_failure_that_not_every_run_decides(
    written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    """A target on it makes it no reason; without one in the other run it is one of both."""
    errors = dict.fromkeys(LOAD_ERRORS, 0) | {"reset": 2}
    note = {"code": "errors", "text": "connections reset by the server: 2"}
    failed = {"errors": errors, "notes": [note], "options_targets": ["errors<3"]}
    first = written("a", **failed)
    document = merged(capsys, first, written("b"), code=1)
    assert document["reasons"] == [{"code": "errors", "text": f"a: {note['text']}"}]
    assert document["targets"] is None
    second = written("b", options_targets=["errors<3"])
    document = merged(capsys, first, second)
    assert document["valid"] and document["notes"][0]["code"] == "errors"
    assert document["targets"][0]["seen"] == 2
    document = merged(capsys, first, written("b", **failed), code=3)
    assert document["targets"][0]["text"] == "errors<3: 4"


# --- time ---------------------------------------------------------------------------------------


def test_runs_one_after_the_other(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    first = written("a", started_at="2026-01-01T00:00:00.000Z", duration_s=1.0)
    second = written("b", started_at="2026-01-01T00:00:02.000Z", duration_s=1.0)
    assert run(["merge", second, first]) == 1
    text = said(capsys)
    assert "do not overlap in time" in text and "--not-at-once merges them all the same" in text
    assert "a.json ended at 2026-01-01T00:00:01.000Z" in text
    assert "b.json began at 2026-01-01T00:00:02.000Z" in text
    document = merged(capsys, second, first, "--not-at-once")
    assert document["started_at"] == "2026-01-01T00:00:00.000Z"
    assert "not at the same time" in document["notes"][0]["text"]


def test_runs_that_overlap_in_part(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    """The warm-up is no part of the window."""
    first = written("a", started_at="2026-01-01T00:00:00.000Z", duration_s=10.0)
    second = written("b", started_at="2026-01-01T00:00:04.000Z", duration_s=10.0)
    document = merged(capsys, first, second)
    assert "overlap for 6s of 10s only" in document["notes"][0]["text"]
    warm = {"duration_s": 1.0, "options_warmup": 5.0}
    first = written("a", started_at="2026-01-01T00:00:00.000Z", **warm)
    second = written("b", started_at="2026-01-01T00:00:02.000Z", **warm)
    assert run(["merge", first, second]) == 1
    assert "ended at 2026-01-01T00:00:06.000Z" in said(capsys)


# --- intervals ----------------------------------------------------------------------------------


def intervals(*ends: float, highest: float | None = 5.0) -> Document:
    rows = [
        {
            "start_s": start,
            "end_s": end,
            "messages": 10,
            "errors": 1,
            "outstanding": 2,
            "p50": highest and 3.0,
            "p99": highest and 4.0,
            "max": highest,
            "after_window": end > 0.5,
        }
        for start, end in zip((0.0, *ends), ends, strict=False)
    ]
    return {"interval_s": 0.25, "joined": 1, "rows": rows}


def test_intervals(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    """From one boundary that all have to the next; what came after the window is a row too."""
    first = written("a", intervals=intervals(0.25, 0.5, 0.5002))
    second = written("b", intervals=intervals(0.25, 0.5, 0.5004, highest=7.0))
    rows = merged(capsys, first, second)["intervals"]["rows"]
    assert [each["end_s"] for each in rows] == [0.25, 0.5, 0.5004]
    expected = {
        "start_s": 0.25,
        "end_s": 0.5,
        "messages": 20,
        "errors": 2,
        "outstanding": 4,
        "p50": None,
        "p99": None,
        "max": 7.0,
        "after_window": False,
    }
    assert rows[1] == expected
    late = intervals(0.5, highest=8.0)
    rows = merged(capsys, first, written("b", intervals=late))["intervals"]["rows"]
    assert [each["end_s"] for each in rows] == [0.5, 0.5002]
    assert rows[0] == expected | {"start_s": 0.0, "messages": 30, "errors": 3, "max": 8.0}
    assert [each["after_window"] for each in rows] == [False, True]
    silent = written("b", intervals=intervals(0.25, 0.5, highest=None))
    row = merged(capsys, first, silent)["intervals"]["rows"][0]
    assert (row["p99"], row["max"]) == (None, 5.0)
    for other in (intervals(0.25, 0.4), intervals(0.3), None):
        document = merged(capsys, first, written("b", intervals=other))
        assert document["intervals"] is None
        assert "intervals" in document["notes"][0]["text"]
    assert run(["merge", first, written("b", intervals={"rows": 5})]) == 2
    assert "intervals" in said(capsys)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"endpoint": "unix:///run/x"}, "kind of endpoint differs: tcp in"),
        ({"options_mode": "send"}, "mode differs: echo in"),
        ({"options_size": 65}, "size differs: 64 in"),
        ({"options_rate": None, "offered": None}, "loop differs: open in"),
        ({"options_duration": 3.0}, "duration differs: 0.5 in"),
        ({"options_arrivals": "poisson"}, "arrivals differs: uniform in"),
        ({"options_stages": "1s@1k"}, "length of the stages differs: none in"),
    ],
)
def test_what_cannot_be_merged(
    changes: Document, text: str, written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["merge", written("a"), written("b", **changes)]) == 1
    assert text in said(capsys)


def test_a_run_given_twice(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["merge", written("a"), written("b"), written("a")]) == 1
    assert "is the same run as" in said(capsys)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"histograms": {}}, "has no histogram 'latency' to merge"),
        ({"histograms": {"latency": "AAAA"}}, "not a histogram in HdrHistogram's V2 format"),
        ({"histograms": {"connect": 5}}, "has no histogram"),
        ({"started_at": "yesterday"}, "is damaged"),
        ({"duration_s": 1e300}, "is damaged"),
        ({"messages": "many"}, "is damaged"),
        ({"address": None}, "is damaged"),
    ],
)
def test_damaged_runs(
    changes: Document, text: str, written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["merge", written("a"), written("b", **changes)]) == 2
    assert text in said(capsys)


def test_a_histogram_of_another_distribution(
    real: Document, written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    other = real["histograms"] | {"latency": real["histograms"]["connect"]}
    assert run(["merge", written("a"), written("b", histograms=other)]) == 2
    assert "it has 1 values, where" in said(capsys)


def test_usage(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in (
        ([], "merge needs RUN.json, as in: fastsock merge a.json b.json"),
        ([written("a")], "merge needs at least two runs"),
        ([written("a"), "/nowhere.json"], "cannot read /nowhere.json"),
        ([written("a"), written("b"), "--json", "/nowhere/x"], "cannot write /nowhere/x"),
    ):
        assert run(["merge", *arguments]) == 2
        assert text in said(capsys)


def test_merged_runs_are_merged_again(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    first = merged(capsys, written("a"), written("b"))
    path = Path(written("c")).with_name("ab.json")
    path.write_text(json.dumps(first))
    document = merged(capsys, str(path), written("c"))
    assert [each["label"] for each in document["merged"]] == ["a", "b", "c"]
    assert document["messages"] == first["messages"] // 2 * 3
    assert run(["compare", str(path), str(path)]) == 0


def test_runs_one_way(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    names = (*LATENCIES.values(), "from_intended_send_without_away", "connect", "send_delay")
    changes = {"options_mode": "send", "latency_us": dict.fromkeys(names), "histograms": {}}
    document = merged(capsys, written("a", **changes), written("b", **changes))
    assert document["histograms"] == {}
    assert set(document["latency_us"].values()) == {None}
