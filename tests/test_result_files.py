"""The commands that read results, on every sort of file that has some."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import fastsock
from fastsock.cli import run
from fastsock.client import merge
from fastsock.client.merge import Part
from fastsock.client.report import LoadReport
from fastsock.client.saved import read

Document = dict[str, Any]

SCHEMA = json.loads((Path(__file__).parent.parent / "docs" / "load-2.schema.json").read_text())
ONE_AFTER_THE_OTHER = "--not-at-once"


def valid(report: LoadReport) -> Document:
    """The document of a run, made to be valid: the machine may be busy."""
    document = report.as_dict() | {"valid": True, "reasons": [], "notes": []}
    document["client"] |= dict.fromkeys(("away_s", "delayed_s", "late_s", "longest_s"), 0.0)
    latencies, histograms = document["latency_us"], document["histograms"]
    if histograms.get("latency"):
        latencies["from_intended_send_without_away"] = latencies["from_intended_send"]
        histograms["latency_without_away"] = histograms["latency"]
    return document


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A series, a directory of it and of a run, merged runs, and a series without latencies."""
    folder = tmp_path_factory.mktemp("results")
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        runs = [
            valid(
                fastsock.load(server.endpoint, rate=2000, duration=0.3, interval=0.1, wait="block")
            )
            for _ in range(3)
        ]
    with fastsock.Server("tcp://127.0.0.1:0", service="discard") as server:
        sent = [
            valid(fastsock.load(server.endpoint, mode="send", duration=0.1, wait="block"))
            for _ in range(2)
        ]

    def write(name: str, document: Document) -> str:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document))
        return str(path)

    def series(name: str, documents: list[Document]) -> str:
        first = {key: documents[0][key] for key in ("label", "started_at", "endpoint")}
        schema = {"schema": "fastsock.series/1", "kind": "repeat", "runs": documents}
        return write(name, {**schema, **first, "confidence": None, "find_max": None})

    found = {"series": series("series.json", runs), "one way": series("sent.json", sent)}
    series("both/series.json", runs[:2])
    write("both/run.json", runs[2])
    found["directory"] = str(folder / "both")
    parts = list(Part.all_of(read(found["series"])))
    report = merge.merge(parts, at_once=False)
    assert report.intervals is not None
    found["merged"] = write("merged.json", valid(report))
    assert {row["p99"] for row in valid(report)["intervals"]["rows"]} == {None}
    # Here, because matplotlib keeps its fonts open.
    assert run(["report", found["merged"], "-o", str(folder / "page.html")]) == 0
    return found


@pytest.mark.parametrize(
    ("place", "lines"), [("series", 4), ("directory", 4), ("one way", 3), ("merged", None)]
)
def test_report(
    place: str,
    lines: int | None,
    places: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Several runs are a table and one is its text; the page has each."""
    assert run(["report", places[place]]) == 0
    text = capsys.readouterr().out
    if lines is None:
        assert "merged    3 runs:" in text and "intended" in text
    else:
        assert sum(line.endswith(("valid", "yes")) for line in text.splitlines()) == lines
    page = tmp_path / "page.html"
    assert run(["report", places[place], "-o", str(page)]) == 0
    assert ("<svg" in page.read_text()) is (place != "one way")


@pytest.mark.parametrize(
    ("before", "after", "code", "says"),
    [
        ("series", "series", 0, "no difference shown"),
        ("series", "directory", 0, "no difference shown"),
        ("directory", "directory", 0, "no difference shown"),
        ("merged", "merged", 0, "no claim"),
        ("one way", "one way", 0, "no claim"),
        ("series", "merged", 1, "connections differs: 1 before, 3 after"),
        ("one way", "series", 1, "mode differs: send before, echo after"),
    ],
)
def test_compare(
    before: str,
    after: str,
    code: int,
    says: str,
    places: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["compare", places[before], places[after]]) == code
    found = capsys.readouterr()
    assert says in " ".join((found.out + found.err).split())


@pytest.mark.parametrize(
    ("given", "code", "check"),
    [
        (["series"], 0, lambda each: len(each["merged"]) == 3),
        (["directory"], 0, lambda each: len(each["merged"]) == 3),
        (["one way"], 0, lambda each: each["latency_us"]["from_intended_send"] is None),
        (["one way", "series"], 1, None),
        (["series", "directory"], 1, None),  # the same runs
        (["merged"], 2, None),  # one run
    ],
)
def test_merge(
    given: list[str],
    code: int,
    check: Callable[[Document], bool] | None,
    places: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [places[each] for each in given]
    assert run(["merge", *files, "--json", "-", ONE_AFTER_THE_OTHER]) == code
    found = capsys.readouterr()
    if check is None:
        assert found.err.startswith("Error: ")
        return
    document = json.loads(found.out)
    assert not [each.message for each in Draft202012Validator(SCHEMA).iter_errors(document)]
    assert check(document)


def test_runs_of_a_series_were_not_at_once(
    places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["merge", places["series"]]) == 1
    assert ONE_AFTER_THE_OTHER in capsys.readouterr().err
