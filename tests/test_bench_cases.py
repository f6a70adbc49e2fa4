"""The published comparison: its cases, a part of them, and parts that are put together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastsock.bench.comparison import Method, taking_part
from fastsock.client.options import LoadOptions

ROOT = Path(__file__).resolve().parent.parent
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT))
    from benchmarks import ahead, run
    from benchmarks.cases import CASES, NamedCase

Document = dict[str, Any]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_can_be_run(case: NamedCase) -> None:
    """Its load is one that the client takes, and fastsock as it comes is one of the servers."""
    load = case.load
    LoadOptions(connections=load.connections, size=load.size, depth=load.depth, rate=load.rate)
    names = [each.name for each in taking_part(case.contenders(load), load)]
    assert len(set(names)) == len(names)
    default = next(iter(set(ahead.defaults({"case": {"kind": load.kind}})) & set(names)))
    assert names[0] == default


def test_a_part_of_the_cases() -> None:
    """By name or by a part of it; a text that is a whole name stands for that case alone."""
    assert [case.name for case in run.chosen(["1 connection, 64 B"])] == ["1 connection, 64 B"]
    names = [case.name for case in run.chosen(["UDP", "16 KiB"])]
    assert names[0] == "16 connections, 16 KiB"
    assert all("UDP" in name for name in names[1:])
    assert run.chosen([]) == list(CASES)
    with pytest.raises(SystemExit, match="no case's name contains 'fancy'; there are: 1 conn"):
        run.chosen(["UDP", "fancy"])


def test_all_cases_take_less_than_three_quarters_of_an_hour() -> None:
    """With the windows that it takes to judge them."""
    method = Method(ahead.ROUNDS, 0.25, 0.1, run.WARMUP_PER_CONNECTION)
    assert run.seconds_of(CASES, method, "perf") < 45 * 60


def part_of(*names: str, **different: Any) -> Document:
    host = {"cpu": "a", "cpus": 2, "kernel": "6", "python": "3", "fastsock": "0"}
    host |= {key: different.pop(key) for key in list(different) if key in host}
    document = {"schema": "fastsock.bench/4", "commit": "0123abc", "method": {"windows": 15}}
    cases = [{"name": name} for name in names]
    return document | {"host": host | {"load_average": len(names)}, "cases": cases} | different


def test_parts_of_one_run() -> None:
    """In the order of the cases; what is not among them stands last."""
    first, second, *_ = (case.name for case in CASES)
    whole = run.merged([part_of(second, "another"), part_of(first)])
    assert [case["name"] for case in whole["cases"]] == [first, second, "another"]
    assert whole["commit"] == "0123abc"


def test_results_are_written_in_short_lines(tmp_path: Path) -> None:
    """A line for each innermost list or object; texts stay as they are."""
    document = {"cases": [{"name": "a [b]  {c}\n d", "values": [1.5, 2.5], "empty": []}]}
    run.write(document, tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert json.loads(text) == document
    assert '"values": [ 1.5, 2.5 ],' in text


@pytest.mark.parametrize(
    ("other", "error"),
    [
        (part_of("b", commit="4567def"), "commit is 0123abc and 4567def"),
        (part_of("b", kernel="7"), "kernel is 6 and 7"),
        (part_of("b", method={"windows": 2}), "method is .* and "),
        (part_of("b", "a"), "measured twice: a"),
    ],
)
def test_parts_that_are_not_of_one_run(other: Document, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        run.merged([part_of("a"), other])
