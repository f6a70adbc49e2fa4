"""Write the tables of docs/benchmarks.md and README.md, and docs/pictures/benchmarks.svg.

``python -m benchmarks.table`` generates the text between the markers from
``benchmarks/results/comparison.json``; the text around it is written by hand. With another JSON as
an argument it prints what it would write into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import Any

from benchmarks.ahead import behind_lines, keeps, share
from benchmarks.page import ROOT, write_generated
from benchmarks.picture import REFERENCE, SERVERS, draw
from benchmarks.run import COMPARISON
from fastsock.bench.picture import NATIVE

PAGE = ROOT / "docs" / "benchmarks.md"
DRAWN = PAGE.parent / "pictures" / "benchmarks.svg"
README = ROOT / "README.md"
#: The part of the page with the rows where fastsock is behind.
BEHIND = "rows where fastsock is behind"
README_CASE = "64 connections, 64 B"

#: So many cases with the same servers, more than FEW, have one table a figure, with a column a
#: case and COLUMNS of them at most.
WIDE, FEW, COLUMNS = 3, 4, 6

Cell = Callable[[dict[str, Any]], str]
FIGURES: dict[str, Cell] = {
    "messages/s": lambda result: f"{result['messages_per_s']['median']:,.0f}",
    "p50 us": lambda result: microseconds(result["p50_us"]),
    "p99 us": lambda result: microseconds(result["p99_us"]),
    "CPU us/echo": lambda result: f"{result['server_cpu_us_per_echo']['median']:.2f}",
    "rate ratio": lambda result: spread(result["rate_ratio"]),
    "calls/echo": lambda result: calls(result.get("syscalls_per_echo")),
}


def microseconds(interval: dict[str, float] | None) -> str:
    if interval is None:
        return "-"
    value = interval["median"]
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def spread(value: dict[str, float] | None) -> str:
    if value is None:
        return "-"
    digits = 2 if value["median"] >= 0.01 else 4
    return f"{value['median']:.{digits}f} ({value['low']:.{digits}f}-{value['high']:.{digits}f})"


def calls(count: float | None) -> str:
    return "-" if count is None else f"{count:.2f}"


def lines_of(document: dict[str, Any]) -> Iterator[str]:
    host, method = document["host"], document["method"]
    yield (
        f"Commit {document['commit']}, {document['date']}; {host['cpus']} CPUs ({host['cpu']}), "
        f"kernel {host['kernel']}, Python {host['python']}; medians of {method['windows']} windows "
        f"of {method['window_s']:g} s after {method['warmup_s']:g} s of warm-up."
    )
    # Cases that were measured again after a change that concerns them.
    again = [case for case in document["cases"] if "commit" in case]
    for commit, cases_of in groupby(again, key=lambda case: str(case["commit"])):
        yield f"Of commit {commit}: {'; '.join(case['name'] for case in cases_of)}."
    yield (
        "The rate ratio is the row's rate relative to that of the reference row, within a round: "
        f"higher is better; {interval_of(document)} of the rounds."
    )
    counted = method.get("syscalls_by")
    if counted:
        yield f"System calls were counted by {counted}."
    for _, group in groupby(document["cases"], key=alike):
        cases = list(group)
        if len(cases) < WIDE or len(cases[0]["results"]) <= FEW:
            for case in cases:
                yield from narrow(case, bool(counted))
        elif rate_asked(cases[0]):
            yield from paced(cases)
        else:
            tables = ceil(len(cases) / COLUMNS)
            columns = ceil(len(cases) / tables)
            for number in range(tables):
                of = f" ({number + 1} of {tables})" if tables > 1 else ""
                part = cases[number * columns : (number + 1) * columns]
                yield from wide(part, of, bool(counted))
    yield from left_out(document)
    yield from not_valid(document)


def interval_of(document: dict[str, Any]) -> str:
    """What a ratio and its brackets are."""
    quartiles = document["schema"] == "fastsock.bench/3"
    return f"median and {'quartiles' if quartiles else '95 % confidence interval'}"


def alike(case: dict[str, Any]) -> tuple[str, str, bool, bool]:
    """Cases that follow each other and have this in common are compared side by side."""
    first = case["results"][0]["name"]
    return case["reference"], first, bool(rate_asked(case)), bool(case.get("one_cpu"))


def rate_asked(case: dict[str, Any]) -> float:
    """Messages a second of an open loop; 0 in a closed one."""
    return case["case"].get("rate") or 0.0


def narrow(case: dict[str, Any], counted: bool) -> Iterator[str]:
    """One table, with a column a figure."""
    floor = case["floor_us"]["median"]
    yield from ("", f"### {case['name']}", "")
    yield f"Reference: {case['reference']}. Floor: {floor:.2f} us an echo, both ends."
    yield ""
    titles = [title for title in FIGURES if counted or title != "calls/echo"]
    yield from head("server", *titles)
    for result in case["results"]:
        name = result["name"] + rate_not_kept(result, case) + problems_of(result)
        yield f"| {' | '.join([name, *(FIGURES[title](result) for title in titles)])} |"


def wide(cases: list[dict[str, Any]], of: str, counted: bool) -> Iterator[str]:
    """A table a figure, with a column a case; the reference's rates and the floors below."""
    reference = cases[0]["reference"]
    for title in ("rate ratio", "CPU us/echo", "p99 us", "calls/echo"):
        if title == "calls/echo" and not counted:
            continue
        heading = f"Rate relative to {reference}" if title == "rate ratio" else title
        yield from ("", f"### {heading}{of}", "")
        yield from side_by_side(cases, FIGURES[title])
        if title == "rate ratio":
            rates = (rate_of(case, reference) for case in cases)
            yield f"| {' | '.join([f'{reference}, messages/s', *rates])} |"
        elif title == "CPU us/echo":
            yield floors(cases)


def paced(cases: list[dict[str, Any]]) -> Iterator[str]:
    """What open loops cost; a server that does not keep the rate has its share of it beside it."""
    for title in ("CPU us/echo", "p99 us"):
        yield from ("", f"### {title}, at a given rate", "")
        yield from side_by_side(cases, FIGURES[title])
        if title == "CPU us/echo":
            yield floors(cases)


def side_by_side(cases: list[dict[str, Any]], cell: Cell) -> Iterator[str]:
    """A column a case, and a row a server, whether or not it is in each."""
    yield from head("server", *(case["name"] for case in cases))
    results = [{result["name"]: result for result in case["results"]} for case in cases]
    for name in dict.fromkeys(name for each in results for name in each):
        cells = []
        for case, each in zip(cases, results, strict=True):
            if result := each.get(name):
                cells.append(cell(result) + rate_not_kept(result, case) + problems_of(result))
            else:
                cells.append("")
        yield f"| {' | '.join([name, *cells])} |"


def rate_not_kept(result: dict[str, Any], case: dict[str, Any]) -> str:
    rate = rate_asked(case)
    return f" ({share(result, rate)} of the rate)" if rate and not keeps(result, rate) else ""


def floors(cases: list[dict[str, Any]]) -> str:
    values = (f"{case['floor_us']['median']:.2f}" for case in cases)
    return f"| {' | '.join(['the floor, both ends', *values])} |"


def head(*titles: str) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"|---|{'---:|' * (len(titles) - 1)}"


def rate_of(case: dict[str, Any], name: str) -> str:
    (rate,) = (FIGURES["messages/s"](each) for each in case["results"] if each["name"] == name)
    return rate


def problems_of(result: dict[str, Any]) -> str:
    return " (not valid)" if result["problems"] else ""


def not_valid(document: dict[str, Any]) -> Iterator[str]:
    """Why figures are not valid: the first reason of each row, and how many more it has."""
    rows = [
        (f"{result['name']}, {case['name']}", result["problems"])
        for case in document["cases"]
        for result in case["results"]
        if result["problems"]
    ]
    if rows:
        yield from ("", "Not valid:", "")
    for row, (problem, *others) in rows:
        more = f", and {len(others)} more" if others else ""
        yield f"- {row}: {problem}{more}"


def left_out(document: dict[str, Any]) -> Iterator[str]:
    """Each absent server once, with the reason."""
    absent = {name: why for case in document["cases"] for name, why in case["left_out"].items()}
    if absent:
        reasons = [f"{name} {reason}" for name, reason in absent.items()]
        yield from ("", f"Left out where absent: {'; '.join(reasons)}.")


def readme_lines(document: dict[str, Any]) -> Iterator[str]:
    """The servers of the picture in its first case."""
    yield (
        "The rate is relative to a plain epoll loop in C: higher is better; "
        f"{interval_of(document)}."
    )
    yield ""
    (case,) = (case for case in document["cases"] if case["name"] == README_CASE)
    results = {result["name"]: result for result in case["results"]}
    yield from head("server", "messages/s", f"rate relative to {REFERENCE}", "CPU us/echo")
    for name, label in SERVERS.items():
        if name in results:
            titles = ("messages/s", "rate ratio", "CPU us/echo")
            cells = [label, *(FIGURES[title](results[name]) for title in titles)]
            if name.startswith(NATIVE):
                cells = [f"**{cell}**" for cell in cells]
            yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path, nargs="?", help="print the tables of this document")
    other = parser.parse_args().json
    results = json.loads((other or COMPARISON).read_text())
    if other:
        print(*behind_lines(results), "", *lines_of(results), sep="\n")
        return
    write_generated(PAGE, COMPARISON, behind_lines(results), BEHIND)
    write_generated(PAGE, COMPARISON, lines_of(results))
    write_generated(README, COMPARISON, readme_lines(results))
    draw(results, DRAWN)
    print(DRAWN)


if __name__ == "__main__":
    main()
