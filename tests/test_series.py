"""Series of runs: --repeat and --confidence."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import misbehaving
import pytest
from clients import wait_until
from jsonschema import Draft202012Validator
from load_runs import SERVED
from referencing import Registry, Resource

import fastsock
from fastsock.cli import run
from fastsock.cli.series import _code_of as code_of
from fastsock.client import series
from fastsock.client.load import LoadInterrupted
from fastsock.client.report import Finding, Latency, LoadReport, TargetResult
from fastsock.client.saved import read
from fastsock.client.series import Confidence, Series
from fastsock.signals import Ended

DOCS = Path(__file__).parent.parent / "docs"
WELL = Confidence(95, 5)


def validate(document: Any) -> list[str]:
    schema, of_runs = (
        json.loads((DOCS / f"{name}.schema.json").read_text()) for name in ("series-1", "load-2")
    )
    Draft202012Validator.check_schema(schema)
    registry: Any = Registry().with_resource(of_runs["$id"], Resource.from_contents(of_runs))
    found = Draft202012Validator(schema, registry=registry).iter_errors(document)
    return [each.message for each in found]


@pytest.fixture(scope="module")
def real() -> LoadReport:
    """One real run, made to be valid: the machine may be busy."""
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        report = fastsock.load(server.endpoint, messages=2000, wait="block")
    return replace(report, reasons=(), notes=())


def of(real: LoadReport, *factors: float) -> Iterator[LoadReport]:
    """Runs that took so many times as long for everything."""
    for factor in factors:
        latency = replace(real.latency, p50=50 * factor, p99=100 * factor)
        yield replace(real, duration=factor, messages=2000, latency=latency)


def making(*runs: LoadReport | BaseException) -> Callable[[], LoadReport]:
    """What makes these runs, one at a call."""
    left = iter(runs)

    def make() -> LoadReport:
        made = next(left)
        if isinstance(made, BaseException):
            raise made
        return made

    return make


# --- the loop -----------------------------------------------------------------------------------


def test_it_ends_when_rate_and_p99_are_known(real: LoadReport) -> None:
    factors = (1.0, 1.2, 1.0, 1.1, 1.05, 1.08, 1.06, 1.07, 1.07, 1.07, 1.07)
    made = series.repeat(making(*of(real, *factors)), 20, WELL)
    assert 3 < len(made.runs) < len(factors)
    assert made.converged and made.valid
    for metric in ("rate", "p99"):
        interval = made.interval(metric)
        assert interval and interval.half_width <= 0.05
    before = series.is_known(made.runs[:-1], WELL)
    assert not before


def test_it_makes_at_least_three_runs(real: LoadReport) -> None:
    made = series.repeat(making(*of(real, *[1.0] * 9)), 9, WELL)
    assert len(made.runs) == 3 and made.converged


def test_what_does_not_converge_is_not_valid(real: LoadReport) -> None:
    made = series.repeat(making(*of(real, 1.0, 2.0, 1.0, 2.0)), 4, WELL)
    assert len(made.runs) == 4
    assert made.converged is False and not made.valid and not made.failed
    assert "not known within 5% at 95% after 4 runs; rate within" in " ".join(str(made).split())


def test_without_confidence_it_makes_all(real: LoadReport) -> None:
    made = series.repeat(making(*of(real, *[1.0] * 5)), 5)
    assert len(made.runs) == 5 and made.converged is None and made.valid
    assert "rate      2k/s, 95% interval 2k/s to 2k/s, within 0%" in str(made)


def test_p99_that_is_a_matter_of_chance_is_not_known(real: LoadReport) -> None:
    runs = [replace(each, latency=replace(each.latency, count=99)) for each in of(real, 1, 1, 1)]
    made = series.repeat(making(*runs), 3, WELL)
    assert not made.converged
    assert "p99 of a run has fewer than 10 answers above it" in " ".join(str(made).split())


def test_runs_one_way_have_no_p99(real: LoadReport) -> None:
    runs = [replace(each, latency=Latency()) for each in of(real, 1, 1, 1)]
    made = series.repeat(making(*runs), 5, WELL)
    assert made.converged and len(made.runs) == 3
    confidence = made.as_dict()["confidence"]
    assert confidence["p99"] is None and confidence["rate"]["estimate"] == pytest.approx(2000)


def test_a_run_that_failed_without_an_answer_ends_it(real: LoadReport) -> None:
    """One without an answer that has not failed does not: its machine was busy."""
    (good,) = of(real, 1.0)
    nothing = replace(
        good,
        messages=0,
        answered_in_window=0,
        latency=Latency(),
        reasons=(Finding("no_messages", "no message was answered in the window"),),
    )
    assert series.repeat(making(good, nothing, good), 3).runs == (good, nothing, good)
    nothing = replace(nothing, errors={"refused": 1})
    made = series.repeat(making(good, nothing, good), 3)
    assert made.runs == (good, nothing) and not made.valid and made.failed
    assert made.interval("rate") is None
    assert str(made).splitlines()[3].split()[:4] == ["2", "0/s", "-", "-"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_what_was_measured(real: LoadReport, number: signal.Signals) -> None:
    """In a run, of which a part was measured or nothing, and between two runs."""
    runs = tuple(of(real, 1.0, 1.0, 1.0))
    part = replace(
        runs[0], messages=5, duration=1e-3, reasons=(Finding("interrupted", "interrupted"),)
    )
    nothing = replace(part, messages=0, answered_in_window=0)
    between = KeyboardInterrupt() if number == signal.SIGINT else Ended(number)
    for end, more in (
        (LoadInterrupted(part, number), (part,)),
        (LoadInterrupted(nothing, number), ()),
        (between, ()),
    ):
        made = series.repeat(making(*runs, end), 9)
        assert made.runs == runs + more
        assert made.ended_by is number
        interval = made.interval("rate")
        assert interval is not None and interval.estimate == pytest.approx(2000)
        assert f"interrupted after {len(made.runs)} of at most 9 runs" in str(made)
    assert series.repeat(making(LoadInterrupted(nothing, number)), 9).runs == (nothing,)
    with pytest.raises(type(between)):
        series.repeat(making(between), 9)


def test_a_run_that_cannot_be_made(real: LoadReport) -> None:
    runs = tuple(of(real, 1.0, 1.0))
    made = series.repeat(making(*runs, OSError(24, "Too many open files")), 9)
    assert made.runs == runs and made.failed
    assert "run 3 could not be made: Too many open files" in str(made)
    with pytest.raises(OSError, match="Too many"):
        series.repeat(making(OSError(24, "Too many open files")), 9)


def test_the_text_has_80_columns(real: LoadReport) -> None:
    """Whatever the reasons; the text has the first three, and the JSON all."""
    codes = ("client_delayed", "errors", "not_steady", "overload", "corrupt", "too_many_spinning")
    reasons = tuple(Finding(code, f"{code}: {'because ' * 20}") for code in codes)
    runs = tuple(replace(each, reasons=reasons) for each in of(real, *[1e-9, 1e9] * 50))
    text = str(Series(runs, 1000, WELL))
    assert max(map(len, text.splitlines())) <= 80
    assert "and 97 more runs" in text
    assert len(text.splitlines()) < 130


# --- the command --------------------------------------------------------------------------------


def test_repeat(server: fastsock.Server, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "series.json"
    options = ["-n", "1500", "--wait", "block", "--label", "four", "--json", str(path)]
    assert run(["load", str(server.endpoint), "--repeat", "4", *options]) in SERVED
    text = capsys.readouterr().out
    rows = [line.split() for line in text.splitlines() if line[:9].strip().isdigit()]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    for metric in ("rate", "p50", "p99"):
        assert f"\n{metric:9} " in text
    document = json.loads(path.read_text())
    assert validate(document) == []
    assert document["kind"] == "repeat" and document["confidence"] is None
    assert document["label"] == "four"
    assert len(read(str(path)).runs) == 4
    assert run(["compare", str(path), str(path)]) in SERVED
    assert capsys.readouterr().out.count("no difference shown") == 4


def test_a_target_that_some_run_missed(real: LoadReport) -> None:
    """It is exit code 3 of the series, and its text has how many runs missed it."""
    runs = tuple(
        replace(each, targets=(TargetResult("p50<1ms", "p50", "<", 1e-3, 1e-4, met, "p50<1ms"),))
        for each, met in zip(of(real, 1.0, 1.0, 1.0), (True, False, True), strict=True)
    )
    for made, code, text in (
        (Series(runs, 3), 3, "target    p50<1ms: MISSED in 1 of 3 runs"),
        (Series(runs[::2], 2), 0, "target    p50<1ms: met in 2 runs"),
        (Series((*runs, replace(runs[0], errors={"reset": 1})), 4), 1, "MISSED in 1 of 4 runs"),
    ):
        assert code_of(made) == code
        assert text in str(made)


def test_confidence(server: fastsock.Server, capsys: Any) -> None:
    """A busy machine may not let it converge; it ends after the most runs, and says so."""
    command = ["load", str(server.endpoint), "-n", "1500", "--wait", "block", "--json", "-"]
    code = run([*command, "--confidence", "90,100", "--repeat", "8"])
    document = json.loads(capsys.readouterr().out)
    assert validate(document) == []
    confidence = document["confidence"]
    assert (confidence["level_percent"], confidence["within_percent"]) == (90, 100)
    assert 3 <= len(document["runs"]) <= confidence["most"] == 8
    valid = all(each["valid"] for each in document["runs"])
    assert code == (0 if valid and confidence["converged"] else 4)
    assert confidence["rate"]["low"] <= confidence["rate"]["estimate"]
    assert run([*command, "--confidence", "99,0.1", "--repeat", "3"]) == 4
    assert json.loads(capsys.readouterr().out)["confidence"]["converged"] is False


def test_nothing_listens(capsys: Any, tmp_path: Path) -> None:
    """It is said as for one run; the series has the run."""
    path = tmp_path / "series.json"
    with misbehaving.refusing_address() as address:
        target = "tcp://{}:{}".format(*address)
        assert run(["load", target, "--repeat", "3", "--json", str(path)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "start a server: fastsock serve" in " ".join(output.err.split())
    assert len(read(str(path)).runs) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--repeat", "0"], "--repeat 0 is out of range; expected 1 to 1000"),
        (["--repeat", "x"], "--repeat 'x'"),
        (["--confidence", "95"], "is not LEVEL,PERCENT; write 95,5"),
        (["--confidence", "95,5,1"], "is not LEVEL,PERCENT"),
        (["--confidence", "nan,5"], "level nan is out of range"),
        (["--confidence", "95,0"], "width 0 is out of range"),
        (["--confidence", "100,5"], "level 100 is out of range"),
        (["--confidence", "95,5", "--repeat", "2"], "--confidence takes at least 3 runs"),
        (["--repeat", "2", "--size", "x"], "--size 'x' is not a size"),
        (["--repeat", "2", "--json", "/nowhere/x"], "cannot write /nowhere/x"),
    ],
)
def test_usage(arguments: list[str], said: str, capsys: Any) -> None:
    assert run(["load", "127.0.0.1:1", *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_confidence_may_have_per_cent() -> None:
    assert Confidence.parse("99%,2.5%") == Confidence(99, 2.5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command(
    server: fastsock.Server, number: signal.Signals, tmp_path: Path
) -> None:
    path = tmp_path / "series.json"
    command = ["load", str(server.endpoint), "--repeat", "1000", "-d", "200ms", "--wait", "block"]
    with subprocess.Popen(
        [sys.executable, "-m", "fastsock", *command, "--json", str(path)], stdout=subprocess.PIPE
    ) as process:
        wait_until(lambda: server.stats().accepted >= 3)
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    document = json.loads(path.read_text())
    assert validate(document) == []
    assert 2 <= len(document["runs"]) < 1000
    assert b"of at most 1000 runs" in output


def test_every_field_is_described() -> None:
    page = (DOCS / "results.md").read_text()
    schema = json.loads((DOCS / "series-1.schema.json").read_text())
    parts = (schema, schema["properties"]["confidence"], schema["$defs"]["interval"])
    for part in parts:
        assert not {name for name in part["properties"] if f"`{name}`" not in page}
