"""Write the tables of docs/engines.md, and docs/pictures/engines.svg.

``python -m benchmarks.engines_page`` generates the text between the markers from
``benchmarks/results/comparison.json``; the text around it is written by hand. The picture is drawn
from ``benchmarks/results/engines.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.figures import CROWD, MANY, ONE
from benchmarks.page import ROOT, write_generated
from benchmarks.run import COMPARISON, RESULTS
from fastsock.bench.picture import TWIN, draw_engines

PAGE = ROOT / "docs" / "engines.md"
ENGINES = RESULTS / "engines.json"
DRAWN = ROOT / "docs" / "pictures" / "engines.svg"
#: A section of the page, and the servers in its table.
SECTIONS = {
    "serial": ("fastsock serial", "stdlib serial"),
    "threads": ("fastsock threads", "stdlib threads"),
    "fork": ("fastsock fork",),
    "poll": ("fastsock poll",),
    "epoll": ("fastsock epoll", "stdlib selectors"),
    "asyncio": ("stdlib asyncio",),
    "io_uring": ("fastsock io_uring",),
}
CASES = {ONE: "1", MANY: "64", CROWD: "1000"}

Cell = Callable[[dict[str, Any]], str]


def short(value: float, units: tuple[str, ...], factor: int) -> str:
    """`value`, given in the first unit, with two or three digits in the unit that fits."""
    at = 0
    while value >= factor and at < len(units) - 1:
        value, at = value / factor, at + 1
    return f"{value:.{0 if value >= 10 else 1}f}&nbsp;{units[at]}"


def memory(result: dict[str, Any]) -> str:
    return short(result["memory_bytes"]["per_connection"], ("B", "KiB", "MiB"), 1024)


ROWS: dict[str, Cell] = {
    "rate / C epoll": lambda result: f"{result['rate_ratio']['median']:.2f}",
    "p99": lambda result: short(result["p99_us"]["median"], ("us", "ms", "s"), 1000),
    "CPU per echo": lambda result: short(
        result["server_cpu_us_per_echo"]["median"], ("us", "ms", "s"), 1000
    ),
    "calls per echo": lambda result: f"{result['syscalls_per_echo']:.1f}",
    "memory each": memory,
}


def lines_of(section: str, document: dict[str, Any]) -> Iterator[str]:
    """The table of a section: a column for each case that one of its servers takes part in."""
    cases = {case["name"]: case["results"] for case in document["cases"] if case["name"] in CASES}
    results = {
        (name, row["name"]): row for name in CASES for row in cases[name] if not row["problems"]
    }
    servers = SECTIONS[section]
    columns = [name for name in CASES if any((name, server) in results for server in servers)]
    yield f"| connections | {' | '.join(CASES[name] for name in columns)} |"
    yield f"|---|{'---:|' * len(columns)}"
    for server in servers:
        if len(servers) > 1:
            twin = server.startswith(TWIN)
            yield f"| **{'twin' if twin else 'native'}** |{' |' * len(columns)}"
        for title, cell in ROWS.items():
            found = (results.get((name, server)) for name in columns)
            yield f"| {title} | {' | '.join(cell(row) if row else '-' for row in found)} |"


PARTS = {section: partial(lines_of, section) for section in SECTIONS}


def draw() -> None:
    draw_engines(json.loads(ENGINES.read_text()), DRAWN)
    print(DRAWN)


def main() -> None:
    results = json.loads(COMPARISON.read_text())
    for section, lines in PARTS.items():
        write_generated(PAGE, COMPARISON, lines(results), section)
    draw()


if __name__ == "__main__":
    main()
