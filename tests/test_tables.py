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
    """System calls have a column where they were counted; a server left out is named with why."""
    from benchmarks.table import lines_of

    case = case_of(results, CASE)
    case["left_out"] = {"Go": "is not installed (apt-get install golang-go)"}
    case["results"] = case["results"][:2]
    case["results"][0]["syscalls_per_echo"] = 2.0468
    case["results"][1]["syscalls_per_echo"] = None
    results |= {"cases": [case], "method": results["method"] | {"syscalls_by": "perf"}}
    lines = list(lines_of(results))
    assert "System calls were counted by perf." in lines
    rows = [line for line in lines if line.startswith("| fastsock")]
    assert [row.rpartition("| ")[2] for row in rows] == ["2.05 |", "- |"]
    assert lines[-1] == "Left out where absent: Go is not installed (apt-get install golang-go)."
    titles, dashes = (line for line in lines if line.startswith("|") and line not in rows)
    assert {line.count("|") for line in (titles, dashes, *rows)} == {8}


def test_the_page_without_system_calls(results: dict[str, Any]) -> None:
    """Without a count there is no column."""
    from benchmarks.table import lines_of

    results["method"]["syscalls_by"] = None
    assert not [line for line in lines_of(results) if "calls/echo" in line]


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


def test_cases_with_the_same_servers_stand_side_by_side(results: dict[str, Any]) -> None:
    """Three of them have a column each, in one table a figure; a server may miss in some."""
    from benchmarks.table import lines_of

    together = ("1 connection, 64 B", CASE, "1000 connections, 64 B")
    results["cases"] = [case for case in results["cases"] if case["name"] in together]
    lines = list(lines_of(results))
    assert "### Rate relative to C epoll" in lines
    columns = next(line for line in lines if line.startswith("| server"))
    assert columns.split(" | ")[1:3] == ["1 connection, 64 B", CASE]
    serial = next(line for line in lines if line.startswith("| fastsock serial"))
    assert serial.endswith("|  |  |")
    c_loop = next(line for line in lines if line.startswith("| C epoll |"))
    assert c_loop == "| C epoll | 1.00 (1.00-1.00) | 1.00 (1.00-1.00) | 1.00 (1.00-1.00) |"


def test_cases_of_another_commit_are_named(results: dict[str, Any]) -> None:
    from benchmarks.table import lines_of

    assert not [
        line for line in lines_of(results | {"cases": results["cases"][:0]}) if "Of commit" in line
    ]
    results["cases"][1]["commit"] = "0123456789"
    name = results["cases"][1]["name"]
    assert f"Of commit 0123456789: {name}." in lines_of(results)


def test_a_table_has_six_cases_at_most(results: dict[str, Any]) -> None:
    """More of them have several tables, about equally wide."""
    from benchmarks.table import lines_of

    results["cases"] = results["cases"][:8]
    lines = list(lines_of(results))
    heads = [line.count("---:") for line in lines if line.startswith("|---")]
    assert heads == [4] * 8
    headings = [line for line in lines if line.startswith("### Rate")]
    assert headings == [f"### Rate relative to C epoll ({number} of 2)" for number in (1, 2)]


def test_cases_at_a_given_rate(results: dict[str, Any]) -> None:
    """CPU and p99, in tables of their own; a server that does not keep the rate is marked."""
    from benchmarks.table import lines_of

    results["cases"] = results["cases"][:6]
    for case in results["cases"][3:]:
        case["case"]["rate"] = 1000.0
        for result in case["results"]:
            result["messages_per_s"]["median"] = 1000.0 if result["name"] != "trio" else 756.0
    served = [[result["name"] for result in case["results"]] for case in results["cases"][3:]]
    lines = list(lines_of(results))
    place = lines.index("### CPU us/echo, at a given rate")
    trio = next(line for line in lines[place:] if line.startswith("| trio"))
    assert trio.count("(0.76 of the rate)") == sum("trio" in names for names in served) > 0
    c_loop = next(line for line in lines[place:] if line.startswith("| C epoll"))
    assert "of the rate" not in c_loop
    assert lines[place:].count("### p99 us, at a given rate") == 1
    assert not [line for line in lines[place:] if line.startswith("### calls")]


def test_figures_that_are_not_valid(results: dict[str, Any]) -> None:
    """They are marked, with a reason below the tables."""
    from benchmarks.table import lines_of

    results["cases"] = results["cases"][:3]
    assert "Not valid:" not in lines_of(results)
    results["cases"][0]["results"][0]["problems"] = ["1 bytes corrupt", "640 bytes lost", "errors"]
    lines = list(lines_of(results))
    assert len([line for line in lines if "(not valid)" in line]) == 4
    assert lines[-1] == "- fastsock epoll, 1 connection, 64 B: 1 bytes corrupt, and 2 more"


def test_a_case_with_a_table_of_its_own_marks_its_rows(results: dict[str, Any]) -> None:
    """In the first column: what follows the last is not shown."""
    from benchmarks.table import lines_of

    (case, *_) = results["cases"] = results["cases"][:1]
    case["case"]["rate"] = 1000.0
    first = case["results"][0]
    first["messages_per_s"]["median"], first["problems"] = 500.0, ["errors"]
    row = next(line for line in lines_of(results) if line.startswith("| fastsock epoll"))
    assert row.startswith("| fastsock epoll (0.50 of the rate) (not valid) | 500 |")


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
