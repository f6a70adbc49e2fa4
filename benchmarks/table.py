"""Write the tables of docs/benchmarks.md, and docs/benchmarks.svg: ``python -m benchmarks.table``.

The text between the two markers is generated from ``benchmarks/results/comparison.json``; the
method around it is written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from benchmarks.page import ROOT, write_generated
from benchmarks.picture import draw
from benchmarks.run import COMPARISON

PAGE = ROOT / "docs" / "benchmarks.md"
DRAWN = PAGE.with_suffix(".svg")
TITLES = (
    "messages/s",
    "p50 us",
    "p99 us",
    "CPU us/echo",
    "rate ratio",
    "CPU ratio",
    "calls/echo",
)


def lines_of(document: dict[str, Any]) -> Iterator[str]:
    host, method = document["host"], document["method"]
    yield (
        f"Commit {document['commit']}, {document['date']}; {host['cpus']} CPUs ({host['cpu']}), "
        f"kernel {host['kernel']}, Python {host['python']}; medians of {method['windows']} windows "
        f"of {method['window_s']:g} s after {method['warmup_s']:g} s of warm-up."
    )
    counted = method.get("syscalls_by")
    if counted:
        yield f"System calls were counted by {counted}."
    for case in document["cases"]:
        yield ""
        yield f"### {case['name']}"
        yield ""
        yield f"Floor: {case['floor_us']['median']:.2f} us an echo, both ends."
        yield ""
        titles = TITLES if counted else TITLES[:-1]
        yield f"| server | {' | '.join(titles)} |"
        yield f"|---|{'---:|' * len(titles)}"
        for result in case["results"]:
            cells = cells_of(result)
            yield f"| {' | '.join(cells if counted else cells[:-1])} |{problems_of(result)}"
        if case["left_out"]:
            yield ""
            reasons = [f"{name} {reason}" for name, reason in case["left_out"].items()]
            yield f"Left out: {'; '.join(reasons)}."


def cells_of(result: dict[str, Any]) -> list[str]:
    calls = result.get("syscalls_per_echo")
    return [
        result["name"],
        f"{result['messages_per_s']['median']:,.0f}",
        f"{result['p50_us']['median']:.1f}",
        f"{result['p99_us']['median']:.1f}",
        f"{result['server_cpu_us_per_echo']['median']:.2f}",
        spread(result["first_over_this_rate"]),
        spread(result["first_over_this_cpu"]),
        "-" if calls is None else f"{calls:.2f}",
    ]


def problems_of(result: dict[str, Any]) -> str:
    return f" (not valid: {'; '.join(result['problems'])})" if result["problems"] else ""


def spread(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} ({value['low']:.2f}-{value['high']:.2f})"


def main() -> None:
    results = json.loads(COMPARISON.read_text())
    write_generated(PAGE, COMPARISON, lines_of(results))
    draw(results, DRAWN)
    print(DRAWN)


if __name__ == "__main__":
    main()
