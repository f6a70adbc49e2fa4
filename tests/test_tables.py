"""Tests of the tables and the picture that are made of a comparison's results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
CASE = "64 connections, 64 B"


@pytest.fixture(scope="module", autouse=True)
def benchmarks_can_be_imported() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield


@pytest.fixture
def results() -> dict[str, Any]:
    """A copy for each test, which may change it."""
    return published()


def published() -> dict[str, Any]:
    path = ROOT / "benchmarks" / "results" / "comparison.json"
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def case_of(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(case for case in results["cases"] if case["name"] == name)


def test_the_page_has_a_row_per_server(results: dict[str, Any]) -> None:
    """Below a line with the reference's rate; a server that is left out is named with why."""
    from benchmarks.table import lines_of

    case = case_of(results, CASE)
    case["left_out"] = {"Go": "is not installed (apt-get install golang-go)"}
    case["results"] = [each for each in case["results"] if each["name"] in ("C epoll", "trio")]
    lines = list(lines_of(results | {"cases": [case]}))
    place = lines.index("### Many")
    assert lines[place + 2].startswith(f"**{CASE}.** C epoll does ")
    assert lines[-1] == "Left out where absent: Go is not installed (apt-get install golang-go)."
    rows = [line for line in lines if line.startswith("|")]
    assert rows[0] == "| server | rate | CPU us | p99 us |"
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| C epoll", "| trio"]
    assert {row.count("|") for row in rows} == {5}


def test_a_table_has_four_columns_at_most(results: dict[str, Any]) -> None:
    """More do not fit a phone."""
    from benchmarks.ahead import behind_lines
    from benchmarks.table import lines_of, readme_lines

    for lines in (lines_of(results), readme_lines(results), behind_lines(results)):
        assert max(line.count("|") for line in lines) == 5


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ({"median": 1.0, "low": 0.96, "high": 1.04}, "1.00"),
        ({"median": 2.0, "low": 1.5, "high": 2.1}, "2.00 (1.50-2.10)"),
        ({"median": 0.0002, "low": 0.0, "high": 0.0008}, "0.0002 (0.0000-0.0008)"),
        (None, "-"),
    ],
)
def test_a_rate_has_its_interval_where_it_is_wide(
    interval: dict[str, float] | None, text: str
) -> None:
    from benchmarks.table import narrow

    assert narrow(interval) == text


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The picture of one case and two servers. Once per module: matplotlib keeps its fonts open."""
    from benchmarks.picture import draw

    results = published()
    case = case_of(results, CASE)
    case["results"] = [each for each in case["results"] if each["name"] in ("C epoll", "trio")]
    case["results"][1]["rate_ratio"]["median"] = 0.25
    results |= {"cases": [case], "commit": "0123abc"}
    path = tmp_path_factory.mktemp("picture") / "drawn.svg"
    draw(results, path)
    return results, path


def test_the_picture_of_the_readme(drawn: tuple[dict[str, Any], Path]) -> None:
    """A bar for each server and case that there is, by its rate relative to the C loop's."""
    results, path = drawn
    root = ElementTree.fromstring(path.read_text())
    bars = {name for element in root.iter() if ": " in (name := element.get("id") or "")}
    panels = ("64 connections", "CPU us per echo")
    assert bars == {f"{panel}: {name}" for panel in panels for name in ("C epoll", "trio")}
    text = " ".join(root.itertext())
    assert "0.25" in text
    assert results["host"]["cpu"] in text
    assert results["date"][:10] in text
    assert "0123abc" in text


def test_the_picture_can_be_read_on_a_phone(drawn: tuple[dict[str, Any], Path]) -> None:
    """360 units wide, text of 12 at least, light and dark by classes, named for screen readers."""
    root = ElementTree.fromstring(drawn[1].read_text())
    by_tag = {element.tag.rpartition("}")[2]: element for element in root.iter()}
    assert root.attrib["viewBox"].startswith("0 0 360 ")
    sizes = [float(each.attrib["font-size"]) for each in root.iter() if each.get("font-size")]
    assert min(sizes) == 12
    assert "prefers-color-scheme:dark" in str(by_tag["style"].text)
    assert not [each for each in root.iter() if "#" in each.get("style", "") + each.get("fill", "")]
    assert by_tag["title"].text == "Rate relative to C epoll, and CPU time"
    assert "AMD EPYC" in str(by_tag["desc"].text)


def test_the_rates_of_the_picture() -> None:
    """None without an answer, and none where the C loop is not the reference."""
    from benchmarks.picture import rates

    results = [
        {"name": "C epoll", "rate_ratio": {"median": 1.0}},
        {"name": "trio", "rate_ratio": None},
    ]
    case = {"reference": "C epoll", "results": results}
    assert dict(rates(case)) == {"C epoll": 1.0}
    assert dict(rates(case | {"reference": "fastsock epoll"})) == {}


def test_cases_of_another_commit_are_named(results: dict[str, Any]) -> None:
    from benchmarks.table import lines_of

    assert not [
        line for line in lines_of(results | {"cases": results["cases"][:0]}) if "Of commit" in line
    ]
    results["cases"][1]["commit"] = "0123456789"
    name = results["cases"][1]["name"]
    assert f"Of commit 0123456789: {name}." in lines_of(results)


def test_cases_at_a_given_rate(results: dict[str, Any]) -> None:
    """A column each, three in a table; a server that does not keep the rate is marked."""
    from benchmarks.table import lines_of

    results["cases"] = results["cases"][:5]
    for number, case in enumerate(results["cases"], 1):
        case["case"] |= {"rate": 1000.0 * number, "connections": number}
        for result in case["results"]:
            share = 1.0 if result["name"] != "trio" else 0.756
            result["messages_per_s"]["median"] = 1000.0 * number * share
    lines = list(lines_of(results))
    assert [line for line in lines if line.startswith("#")] == ["### At a given rate"]
    heads = [line for line in lines if line.startswith("| server")]
    assert heads == [
        "| server | 1 at 1k/s | 2 at 2k/s | 3 at 3k/s |",
        "| server | 4 at 4k/s | 5 at 5k/s |",
    ]
    trio, _ = (line.split(" | ") for line in lines if line.startswith("| trio"))
    assert [cell.endswith("(0.76 of the rate)") for cell in trio[1:]] == [True, True, False]
    assert trio[3] == " |"  # it has no part in this case
    assert not [line for line in lines if line.startswith("| C epoll") and "of the rate" in line]


def test_figures_that_are_not_valid(results: dict[str, Any]) -> None:
    """They are marked behind the server's name, with a reason below the tables."""
    from benchmarks.table import lines_of

    results["cases"] = results["cases"][:3]
    assert "Not valid:" not in lines_of(results)
    results["cases"][0]["results"][0]["problems"] = ["1 bytes corrupt", "640 bytes lost", "errors"]
    lines = list(lines_of(results))
    (marked,) = (line for line in lines if "(not valid)" in line)
    assert marked.startswith("| fastsock epoll (not valid) |")
    assert lines[-1] == "- fastsock epoll, 1 connection, 64 B: 1 bytes corrupt, and 2 more"


def test_the_table_of_the_readme(results: dict[str, Any]) -> None:
    """A row a server of the picture, in its order; our own are bold."""
    from benchmarks.picture import SERVERS
    from benchmarks.table import readme_lines

    rows = [line.split(" | ")[0] for line in readme_lines(results) if line.startswith("|")][2:]
    assert rows[0] == "| **fastsock epoll**"
    assert len(rows) == len(SERVERS)


@pytest.mark.parametrize(
    ("schema", "interval"),
    [("fastsock.bench/3", "quartiles"), ("fastsock.bench/4", "95 % confidence interval")],
)
def test_the_pages_say_what_the_interval_is(
    results: dict[str, Any], schema: str, interval: str
) -> None:
    """By the schema of the results."""
    from benchmarks.table import lines_of, readme_lines

    results["schema"] = schema
    for lines in (lines_of(results), readme_lines(results)):
        assert f"; median and {interval}" in "\n".join(lines)
