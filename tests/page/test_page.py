"""The page and the table of runs: structure, escaping, and documents of every kind."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import documents
import pytest
from documents import Document, judged, row, series, stage, staged, target, with_latencies

import fastsock
from fastsock._native.client.histogram import Histogram
from fastsock.cli import run
from fastsock.client.document_reader import report_of
from fastsock.client.hdr import step_of
from fastsock.client.saved import Saved
from fastsock.page import charts, page
from fastsock.page.drawn import drawn_of
from fastsock.page.run import Run

VOID = {"meta", "link", "br"}
MOST = 1_000_000  # bytes


class Parsed(HTMLParser):
    """The elements of a page; each must be closed where HTML asks for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += f"{data} "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for each, attributes in self.elements if each == tag]


@pytest.fixture(scope="module", autouse=True)
def runs() -> dict[str, Document]:
    """Real runs, and a page that is drawn here because matplotlib keeps its fonts open."""
    found = documents.real_runs()
    found["open"] = judged(found["open"])
    drawn(documents.failed(found["open"]))
    return found


def drawn(*given: Document) -> str:
    """The page of these documents; it is whole and stands alone."""
    text = page.of(page.runs_of([Saved("run.json", given)]))
    check(text)
    return text


def check(text: str) -> Parsed:
    parsed = Parsed(text)
    assert len(text.encode()) < MOST
    assert len(parsed.all("h1")) == 1
    assert not [tag for tag, _ in parsed.elements if tag in ("script", "img", "iframe", "object")]
    ids = Counter(each["id"] for _, each in parsed.elements if "id" in each)
    assert not [name for name, number in ids.items() if number > 1]
    assert set(re.findall(r'(?:url\(|href=")#([^)"]*)', text)) <= set(ids)
    assert [each.get("href") for each in parsed.all("link")] == ["data:,"]
    for picture in parsed.all("svg"):
        assert picture["role"] == "img"
        assert picture["aria-label"]
    assert "#a1b2" not in text  # every colour of a picture is one of the page's
    assert not re.findall(r"#[0-9a-f]{6}", text.partition("</style>")[2])
    assert "nan" not in parsed.text.lower().split()
    return parsed


def test_a_run_with_everything(runs: dict[str, Document]) -> None:
    text = drawn(staged(runs["open"]))
    parsed = check(text)
    assert "Valid; 1 of 2 targets missed" in text
    for told in (
        "p99<1ms",
        "1.23ms",
        "missed",
        "rate>=5k",
        "5.1k/s",
        "met",
        "10s@1k",
        "33s to 34s",
    ):
        assert told in parsed.text
    assert "in an open loop of 3 stages, measured for 1min" in text
    assert "Diamonds: 3 answers that came after the window." in text
    assert "after the window" in parsed.text
    assert text.index("1 of 2 targets") < text.index("<svg") < text.index("The client and its mach")
    assert len(parsed.all("svg")) == 2 * 3  # percentiles, time, histogram; wide and narrow


def test_a_run_without_intervals(runs: dict[str, Document]) -> None:
    text = drawn(runs["open"])
    assert "Over time" not in text
    assert "Stages" not in text
    assert "intended" in text
    assert len(check(text).all("svg")) == 2 * 2


def test_a_closed_loop_has_one_latency(runs: dict[str, Document]) -> None:
    text = drawn(judged(runs["closed"]))
    assert "in a closed loop with 1 message in flight on each" in text
    assert "intended" not in text
    assert "<strong>Valid</strong>" in text


def test_a_run_one_way_has_no_latency(runs: dict[str, Document]) -> None:
    text = drawn(runs["sent"])
    assert "<svg" not in text
    assert "sent one way" in text
    assert "throughput" in text


def test_datagrams(runs: dict[str, Document]) -> None:
    assert "datagrams reordered" in drawn(runs["datagrams"])


def test_a_run_without_answers_says_why(runs: dict[str, Document]) -> None:
    text = drawn(runs["refused"])
    assert "Not valid" in text
    assert "connections refused by" in text
    assert "<svg" not in text


def test_a_run_that_is_not_valid_says_why(runs: dict[str, Document]) -> None:
    text = drawn(documents.failed(runs["open"]))
    assert "Not valid; 1 of 2 targets missed" in text
    assert "<li>connections reset by the server: 16</li><li>the client was away</li>" in text
    assert "connections: reset" in text


def test_merged_runs(runs: dict[str, Document]) -> None:
    """Of intervals only the largest latency is known; the machines are told in a table."""
    one = staged(runs["open"])
    for each in one["intervals"]["rows"]:
        each |= {"p50": None, "p99": None}
    for each in one["stages"]:
        each["latency_us"] = None
    part = {
        **{name: one[name] for name in ("label", "started_at", "duration_s", "messages")},
        **{name: one[name] for name in ("messages_per_s", "valid", "host")},
        "file": "a.json",
        "connections": 4,
    }
    one["merged"] = [part, {**part, "label": None}]
    parsed = check(drawn(one))
    assert "latency: max" in parsed.text
    assert "<h2>Merged runs</h2>" in drawn(one)
    assert "a.json" in parsed.text
    drawn(one, runs["closed"])


def test_percentiles_that_the_run_was_to_show(runs: dict[str, Document]) -> None:
    one = {**runs["open"], "options": {**runs["open"]["options"], "percentiles": [12.5, 99.0]}}
    assert ">p12.5<" in drawn(one)
    assert ">p12.5<" in drawn(one, runs["open"])


def test_a_client_that_does_not_observe_itself(runs: dict[str, Document]) -> None:
    assert "Validity unknown" in drawn({**runs["open"], "client": None})


EVIL = '</style></title><evil onload="x()">&amp;\'"\x00\x1b[31m\ud800$\\frac{'


def test_what_comes_from_files_is_escaped(runs: dict[str, Document]) -> None:
    one = staged(runs["open"])
    one |= {"label": EVIL, "endpoint": EVIL, "address": EVIL, "started_at": EVIL}
    one["options"] = {**one["options"], EVIL: EVIL}
    one["host"] = {**one["host"], "cpu": EVIL, "fastsock": EVIL, "governor": EVIL}
    one["targets"] = [target(EVIL, EVIL, met=False)]
    one["stages"] = [stage(EVIL, 0, 60, 1000, 2000)]
    one["reasons"] = one["notes"] = [{"code": EVIL, "text": EVIL}]
    one["errors"] = {EVIL: 3}
    one["datagrams"] = {EVIL: 3}
    one["valid"] = False
    whole = series([one, one], label=EVIL, find_max={EVIL: EVIL})
    for text in (drawn(one), drawn(one, one), page.of(page_runs(one, one), whole)):
        parsed = check(text)
        assert not parsed.all("evil")
        assert "\x1b" not in text
        text.encode()


def page_runs(*given: Document) -> list[Run]:
    return page.runs_of([Saved("run.json", given)])


def test_several_runs(runs: dict[str, Document]) -> None:
    other = {**judged(runs["closed"]), "label": "other"}
    text = drawn(staged(runs["open"]), other, judged(runs["sent"]), runs["refused"])
    assert "1 of 4 runs not valid; 1 run missed a target" in text
    assert text.count('<details class="run">') == 4
    assert "Over time" in text
    # Colours follow the run: the sent one, which has no latency, is third in every key.
    keys = re.findall(r"var\(--(s\d)\)\"></span>(sent)", text)
    assert set(keys) == {("s3", "sent")}


def test_runs_with_one_label_have_their_files_in_their_names(runs: dict[str, Document]) -> None:
    names = [each.name for each in page_runs(runs["open"], runs["open"], runs["closed"])]
    assert names == ["open (run.json 1)", "open (run.json 2)", "closed"]


def test_many_runs_fit_one_page(runs: dict[str, Document]) -> None:
    """Eight with the most rows that a document has, and more that are in the table alone."""
    long = staged(runs["open"])
    long["intervals"] = {
        "interval_s": 24.0,
        "joined": 24,
        "rows": [
            row(24 * at, 24 * at + 24, 240_000, errors=at % 7, p99=80.0 + at % 31, max=9000.0 + at)
            for at in range(3600)
        ],
    }
    text = drawn(*[long] * 8, *[runs["closed"]] * 600)
    assert "Up to 15 intervals are one point" in text
    assert "The first 8 runs are drawn and told below." in text
    assert "108 more runs left out" in text


@pytest.mark.parametrize(
    ("sizes", "drawn_of_each"),
    [((5, 5), [4, 4]), ((2, 10), [2, 6]), ((5, 5, 5), [3, 3, 2]), ((10,), [8]), ((3, 3), [3, 3])],
)
def test_as_many_runs_of_each_file_are_drawn(
    runs: dict[str, Document], sizes: tuple[int, ...], drawn_of_each: list[int]
) -> None:
    one = Run.of(runs["closed"], "run.json")
    every = [
        replace(one, name=f"{at} {number}", group=str(at))
        for at, size in enumerate(sizes)
        for number in range(size)
    ]
    assert [run.name for run in drawn_of(every)] == [
        f"{at} {number}" for at, size in enumerate(drawn_of_each) for number in range(size)
    ]


def test_the_page_says_which_runs_are_drawn(runs: dict[str, Document]) -> None:
    each = (runs["closed"],) * 5
    text = page.of(page.runs_of([Saved("a&b.json", each), Saved("after.json", each)]))
    check(text)
    told = (
        "The first runs of each are drawn and told below: 4 of 5 a&amp;b.json, 4 of 5 after.json."
    )
    assert told in text
    keys = re.findall(r'<ul class="key">(.*?)</ul>', text)
    assert keys and all(key.count("after.json") == key.count("a&amp;b.json") == 4 for key in keys)
    # Of the table too each drawn run has the colour of the pictures, and the others have none.
    assert '(--s4)"></span>closed (a&amp;b.json 4)</td>' in text
    assert "<td>closed (a&amp;b.json 5)</td>" in text
    assert '(--s5)"></span>closed (after.json 1)</td>' in text


def test_a_series(runs: dict[str, Document]) -> None:
    rate = {"estimate": 2000.0, "low": 1900.0, "high": 2105.0, "half_width_percent": 5.25}
    told = {"level_percent": 95.0, "within_percent": 5.0, "most": 2, "converged": False}
    told |= {"rate": rate, "p99": None}
    whole = series([runs["open"], runs["open"]], kind="confidence", confidence=told)
    text = page.of(page.runs_of([Saved("series.json", tuple(whole["runs"]), whole)]), whole)
    assert "<summary><span" in text
    assert "</span>run 2</summary>" in text
    check(text)
    assert "Runs to a confidence" in text
    assert "the figures are not known as well as was asked for" in text
    assert "within 5% at 95%, with at most 2 runs. Not reached after 2 runs." in text
    assert ">rate</th><td>2k/s, between 1.9k/s and 2.1k/s: within 5.25%</td>" in text
    assert ">p99</th><td>not known</td>" in text
    told["converged"] = True
    assert "95%, with at most 2 runs. Reached after 2 runs." in page.of(
        page_runs(*whole["runs"]), whole
    )


def test_a_search(runs: dict[str, Document]) -> None:
    steps: list[Document] = [
        {"rate": 1000.0, "kept": True, "why": None, "run": 0},
        {"rate": 2000.0, "kept": False, "why": "p99<1ms: 2ms", "run": 1},
    ]
    told = {
        "rate": 1000.0,
        "precision": 0.01,
        "stopped": "found",
        "text": "1k/s is",
        "steps": steps,
    }
    for damaged in (False, True):
        if damaged:
            steps.append({"rate": EVIL})
        whole = series([runs["open"], documents.failed(runs["open"])], "find_max", find_max=told)
        text = page.of(page.runs_of([Saved("series.json", tuple(whole["runs"]), whole)]), whole)
        check(text)
        assert "<strong>1k/s is</strong>" in text
        assert "not valid; " not in text  # that is part of a search
        assert ('<td class="number">no</td><td>p99&lt;1ms: 2ms</td>' in text) is not damaged


@pytest.mark.parametrize(
    "nanoseconds",
    [
        [100],
        [1] * 20,
        [600_000_000_000] * 20,
        [100, 600_000_000_000],
        [5000] * 100_000 + [400_000_000],
        [50_000] * 9,
    ],
    ids=["one", "tiny", "huge", "both", "stall", "few"],
)
def test_latencies_of_every_size(runs: dict[str, Document], nanoseconds: list[int]) -> None:
    one = with_latencies(runs["open"], nanoseconds)
    drawn(one)
    drawn(one, runs["closed"])


@pytest.mark.parametrize(
    "rows",
    [
        [row(0, 0, 0, p50=None, p99=None, max=None)],
        [row(0, 1, 0, p50=None, p99=None, max=None), row(1, 2, 5)],
        [row(0, 1e-6, 1 << 50, outstanding=1 << 40, errors=1 << 40)],
        [row(0, 86400, 1, p50=0.0, p99=0.0, max=0.0)],
        [row(0, 1, 5), row(1, 2, 5, p50=0.1, p99=1e3, max=6e8)],
        [row(0, 1, 5, after_window=True)],
        [],
    ],
)
def test_intervals_of_every_size(runs: dict[str, Document], rows: list[Document]) -> None:
    intervals = {"interval_s": 1.0, "joined": 1, "rows": rows}
    one = {**runs["open"], "intervals": intervals}
    drawn(one)
    drawn(one, runs["closed"])


@pytest.mark.parametrize("rate", [0.0, 1e-3, 1e9, 1e15])
def test_rates_of_every_size(runs: dict[str, Document], rate: float) -> None:
    rated = {"messages_per_s": rate, "bytes_per_s": rate * 64, "offered_per_s": rate}
    drawn({**runs["open"], **rated, "options": {**runs["open"]["options"], "rate": rate}})


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: run["histograms"].update(latency="nothing"),
        lambda run: run["intervals"]["rows"][0].pop("p99"),
        lambda run: run["intervals"]["rows"][0].update(p99="fast"),
        lambda run: run.update(stages=[{}]),
        lambda run: run.update(targets=[{"target": "p99<1ms"}]),
        lambda run: run.update(intervals=3),
        lambda run: run.update(reasons=["late"], valid=False),
        lambda run: run["options"].update(size="large"),
        lambda run: run["errors"].update(reset=None),
        lambda run: run.update(duration_s=-1.0),
        lambda run: run.update(messages_per_s=float("nan")),
        lambda run: run["latency_us"].update(from_intended_send=7),
        lambda run: run["client"].update(busy="no"),
        lambda run: run.update(outages={"count": 2}),
        lambda run: run.update(tcp={"retransmits": "many"}),
        lambda run: run["intervals"]["rows"][0].update(p99=-5.0),
        lambda run: run["intervals"]["rows"].reverse(),
    ],
)
def test_a_damaged_document_is_one_line(
    runs: dict[str, Document],
    damage: Callable[[Document], object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever is wrong in it: exit code 2, the file named, and no page."""
    one = staged(runs["open"])
    damage(one)
    path, out = tmp_path / "run.json", tmp_path / "out.html"
    path.write_text(json.dumps(one))
    assert run(["report", str(path), "-o", str(out)]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert told.startswith("Error: ")
    assert "is damaged" in told or "is not a whole JSON document" in told  # NaN is not JSON
    assert not out.exists()


def test_steps_of_the_histogram_are_where_hdrhistogram_has_them() -> None:
    for value in (1, 70, 99_999, 131_071, 131_072, 5_000_000, 599_999_999_999):
        histogram = Histogram()
        histogram.record(value)
        ((index, _),) = histogram.counts()
        assert abs(step_of(index)[1] - value) <= max(64, value / 1000)


@pytest.mark.parametrize("high", [1e-9, 0.3, 1.0, 7.0, 60.0, 99.0, 1e6, 3e17])
def test_even_values_fit(high: float) -> None:
    found = charts.even_values(high, 4)
    assert 2 <= len(found) <= 5
    assert found[0] == 0
    assert high / 3 < found[-1] <= high * (1 + 1e-9)


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def files(runs: dict[str, Document], tmp_path: Path) -> dict[str, str]:
    found = {}
    for name, document in runs.items():
        found[name] = str(tmp_path / f"{name}.json")
        Path(found[name]).write_text(json.dumps(document))
    return found


def test_report_writes_a_page(files: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert run(["report", *files.values(), "-o", str(out)]) == 0
    check(out.read_text())
    assert run(["report", files["open"], "--output", str(out)]) == 0
    assert "<h1>open</h1>" in out.read_text()


def test_report_writes_a_page_to_stdout(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", files["open"], "-o", "-"]) == 0
    check(capsys.readouterr().out)


def test_report_prints_one_run_as_load_does(
    runs: dict[str, Document], files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("open", "closed", "sent", "refused"):
        assert run(["report", files[name]]) == 0
        assert capsys.readouterr().out == f"{report_of(runs[name])}\n"


def test_report_prints_a_table_of_80_columns(
    runs: dict[str, Document],
    files: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = {**runs["closed"], "label": "\x1b[31mnginx, with a long name \u4e2d\u6587"}
    (tmp_path / "long.json").write_text(json.dumps(long))
    assert run(["report", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "rate", "p50", "p99", "p99.9", "errors", "valid"]
    assert len(lines) == 1 + 6 + 1  # the long name has a line of its own
    assert {len(line) for line in lines if "nginx" not in line} == {80}
    assert any(re.fullmatch(r"sent +\S+/s( +-){3} +0 +(yes|NO)", line) for line in lines)
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "report needs a result, as in: fastsock report RUN.json"),
        (["missing.json"], "cannot read"),
        (["cut.json"], "cut short"),
        (["newer.json"], "which this version does not know"),
        (["run.json", "-o", "run.json"], "is a result, which the page would replace"),
        (["run.json", "-o", "nowhere/x.html"], "cannot write"),
        (["run.json", "-o", "."], "it is a directory"),
        (["missing.json", "-o", "nowhere/x.html"], "cannot write"),
        (["run.json", "--open"], "--open is not an option of report"),
    ],
)
def test_wrong_uses_of_report(
    runs: dict[str, Document],
    arguments: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = json.dumps(runs["open"])
    (tmp_path / "run.json").write_text(whole)
    (tmp_path / "cut.json").write_text(whole[:-200])
    (tmp_path / "newer.json").write_text('{"schema": "fastsock.load/9"}')
    monkeypatch.chdir(tmp_path)
    assert run(["report", *arguments]) == 2
    found = capsys.readouterr()
    assert told in " ".join(found.err.split())
    assert not found.out
    assert (tmp_path / "run.json").read_text() == whole


@pytest.mark.parametrize(
    "command",
    [
        ["report", "run.json", "-o"],
        ["load", ":7", "--html"],
        ["compare", "run.json", "run.json", "--html"],
    ],
)
def test_a_page_needs_matplotlib(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without it the error says how to get it, before anything is loaded."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run([*command, "x.html"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert told == "Error: a page needs matplotlib: pip install 'fastsock[report]'"


SHORT = ["-n", "200", "--wait", "block"]


def test_load_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.html"
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        assert run(["load", str(server.endpoint), *SHORT, "--html", str(out)]) in (0, 4)
        assert capsys.readouterr().out.startswith(str(server.endpoint))
        assert str(server.endpoint) in check(out.read_text()).text
        assert run(["load", str(server.endpoint), *SHORT, "--html", str(out), "--json", "-"]) in (
            0,
            4,
        )
        json.loads(capsys.readouterr().out)


def test_load_writes_a_page_of_a_series(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its text has the targets; report draws the same page of its file."""
    out, saved, again = (tmp_path / name for name in ("page.html", "series.json", "again.html"))
    words = [*SHORT, "--repeat", "3", "--target", "rate>1000M", "--target", "p50<10s"]
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        files = ["--html", str(out), "--json", str(saved)]
        assert run(["load", str(server.endpoint), *words, *files]) in (3, 4)
    text = capsys.readouterr().out
    assert "target    rate>1000M: MISSED in 3 of 3 runs\ntarget    p50<10s: met in 3 runs" in text
    assert "; 3 runs missed a target" in out.read_text()
    assert check(out.read_text()).text.count("1 of 2 targets missed") == 3
    assert run(["report", str(saved), "-o", str(again)]) == 0
    assert again.read_text() == out.read_text()


def test_load_finds_before_the_run_that_a_page_cannot_be_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for place, told in (("/nowhere/x.html", "cannot write"), ("-", "is not a file")):
        assert run(["load", ":7", "--html", place]) == 2
        assert told in capsys.readouterr().err


def test_a_page_that_cannot_be_drawn_loses_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> str:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(page, "of", broken)
    out, saved = tmp_path / "run.html", tmp_path / "run.json"
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        words = ["load", str(server.endpoint), *SHORT, "--html", str(out), "--json", str(saved)]
        assert run(words) == 2
    found = capsys.readouterr()
    assert "no fonts" in " ".join(found.err.split())
    assert found.out.startswith(str(server.endpoint))
    assert json.loads(saved.read_text())["messages"] == 200


def test_a_disk_that_is_full_is_exit_code_2(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["report", "-o"], ["compare", files["open"], "--html"]):
        assert run([*command, "/dev/full", files["open"]]) == 2
        assert "cannot write /dev/full: No space left on device" in capsys.readouterr().err


def test_compare_writes_a_page(runs: dict[str, Document], tmp_path: Path) -> None:
    """It begins with what the command prints; `before` and `after` name the runs."""
    before, after, out = (str(tmp_path / name) for name in ("<b>.json", "after.json", "page.html"))
    slow = with_latencies(runs["closed"], [90_000_000] * 2000)
    slow["options"]["wait"] = "spin"
    bad = judged(runs["closed"], "the client was <away>")
    every = [judged(runs["closed"])] * 4
    Path(before).write_text(json.dumps(series([*every, bad])))
    Path(after).write_text(json.dumps(series([judged(slow)] * 5)))
    command = ["compare", before, after, "--target", "p50<+5%", "--target", "rate>-5%"]
    assert run([*command, "--html", out]) == 4
    text = Path(out).read_text()
    told = check(text).text
    assert "<h1>5 runs before, 5 runs after</h1>" in text
    assert "&lt;b&gt;.json: 5 runs of tcp://" in text
    opening = text[: text.index("<h2>")]
    assert "AFTER is slower: p50, p90, p99" in opening
    assert "no difference shown: rate" in opening
    assert "1 of 10 runs not valid; 1 of 2 targets missed</strong>" in opening
    assert "before, run 5, started " in opening and "the client was &lt;away&gt;" in opening
    assert re.search(
        r'class="missed">missed</td><td>p50&lt;\+5%</td><td class="number">\S+ times<', text
    )
    assert re.search(
        r'class="met">met</td><td>rate&gt;-5%</td><td class="number">no difference', text
    )
    assert "Note: wait differs: block before, spin after." in opening
    assert "4 of 5 before, 4 of 5 after" in told
    assert "99% interval" in opening and "after, run 4</summary>" in text


def test_a_page_of_a_comparison_of_single_runs(files: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert run(["compare", files["sent"], files["sent"], "--html", str(out)]) in (0, 4)
    told = check(out.read_text()).text
    assert "1 run before, 1 run after" in told
    assert "no claim: rate" in told
    assert "Note: fewer than 3 runs a side: these are figures, and nothing is claimed." in told


def test_the_document_is_not_changed(runs: dict[str, Document]) -> None:
    one = staged(runs["open"])
    before = copy.deepcopy(one)
    drawn(one)
    assert one == before
