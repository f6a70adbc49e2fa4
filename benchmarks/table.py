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
JSON_ALONE = (
    "16 connections, 16 KiB",
    "8 connections, 1 MiB",
    "4 connections, 64 B, one CPU for server and client",
    "UDP, 1 x 128 in flight, 64 B",
)
#: So many connections are few, and so many bytes a big message.
FEW, BIG = 2, 16 << 10
#: Cases at a given rate that share a table; and half an interval that is shown, of the rate.
PACED, WIDE = 3, 0.05

Cell = Callable[[dict[str, Any]], str]
FIGURES: dict[str, Cell] = {
    "messages/s": lambda result: f"{result['messages_per_s']['median']:,.0f}",
    "p99 us": lambda result: microseconds(result["p99_us"]),
    "CPU us": lambda result: f"{result['server_cpu_us_per_echo']['median']:.2f}",
    "rate ratio": lambda result: spread(result["rate_ratio"]),
    "rate": lambda result: narrow(result["rate_ratio"]),
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


def narrow(value: dict[str, float] | None) -> str:
    """With its interval only where that is wide: a phone has little room."""
    text = spread(value)
    wide = value is not None and value["high"] - value["low"] > 2 * WIDE * value["median"]
    return text if wide else text.partition(" ")[0]


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
        "*Rate* is relative to the reference, within a round: higher is better; "
        f"{interval_of(document)} of the rounds. The interval is left out where half its width is "
        f"at most {WIDE * 100:g} % of the rate."
    )
    shown = [case for case in document["cases"] if case["name"] not in JSON_ALONE]
    if len(shown) < len(document["cases"]):
        yield f"Only in the JSON, as they are like the cases beside them: {'; '.join(JSON_ALONE)}."
    for title, group in groupby(shown, key=group_of):
        yield from ("", f"### {title}")
        cases = list(group)
        if rate_asked(cases[0]):
            yield from paced(cases)
        else:
            for case in cases:
                yield from table_of(case)
    yield from left_out(document)
    yield from not_valid(document)


def group_of(case: dict[str, Any]) -> str:
    """The heading that the case stands under."""
    load = case["case"]
    if not load["pinned"]:
        return "Beside a busy main thread"
    if load["kind"] != "tcp":
        return {"udp": "UDP", "unixgram": "Unix datagrams", "unix": "Unix streams"}[load["kind"]]
    if load["one_cpu"]:
        return "One CPU for server and client"
    if rate_asked(case):
        return "At a given rate"
    if load["reconnect_every"]:
        return "Connect, echo, close"
    if load["size"] >= BIG:
        return "Big messages"
    return "Few connections" if load["connections"] <= FEW and not load["idle"] else "Many"


def interval_of(document: dict[str, Any]) -> str:
    """What a ratio and its brackets are."""
    quartiles = document["schema"] == "fastsock.bench/3"
    return f"median and {'quartiles' if quartiles else '95 % confidence interval'}"


def rate_asked(case: dict[str, Any]) -> float:
    """Messages a second of an open loop; 0 in a closed one."""
    return case["case"].get("rate") or 0.0


def table_of(case: dict[str, Any]) -> Iterator[str]:
    """A row a server."""
    titles = ("rate", "CPU us", "p99 us")
    floor, reference = case["floor_us"]["median"], case["reference"]
    rate = rate_of(case, reference)
    yield ""
    yield f"**{case['name']}.** {reference} does {rate} messages/s. Floor: {floor:.2f} us."
    yield ""
    yield from head("server", *titles)
    for result in case["results"]:
        name = result["name"] + problems_of(result)
        yield f"| {' | '.join([name, *(FIGURES[title](result) for title in titles)])} |"


def paced(cases: list[dict[str, Any]]) -> Iterator[str]:
    """A column a case and a row a server: what an open loop costs."""
    floor = cases[0]["floor_us"]["median"]
    yield from ("", "CPU us/echo; p99 us. The columns are connections at messages/s, 64 B each.")
    yield f"Floor: {floor:.2f} us."
    for first in range(0, len(cases), PACED):
        chosen = cases[first : first + PACED]
        yield ""
        yield from head("server", *(asked(case) for case in chosen))
        results = [{result["name"]: result for result in case["results"]} for case in chosen]
        for name in dict.fromkeys(name for each in results for name in each):
            cells = [
                cost(each[name], case) if name in each else ""
                for case, each in zip(chosen, results, strict=True)
            ]
            yield f"| {' | '.join([name, *cells])} |"


def asked(case: dict[str, Any]) -> str:
    return f"{case['case']['connections']} at {rate_asked(case) / 1000:g}k/s"


def cost(result: dict[str, Any], case: dict[str, Any]) -> str:
    figures = f"{FIGURES['CPU us'](result)}; {FIGURES['p99 us'](result)}"
    return figures + rate_not_kept(result, case) + problems_of(result)


def rate_not_kept(result: dict[str, Any], case: dict[str, Any]) -> str:
    rate = rate_asked(case)
    return "" if keeps(result, rate) else f" ({share(result, rate)} of the rate)"


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
            titles = ("messages/s", "rate ratio", "CPU us")
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
