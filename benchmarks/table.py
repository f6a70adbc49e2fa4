"""Write the measured tables into docs/benchmarks.md: ``python -m benchmarks.table``.

The text between the two markers is generated from ``benchmarks/results/comparison.json``; the
method around it is written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from benchmarks.page import ROOT, write_generated
from benchmarks.run import COMPARISON

PAGE = ROOT / "docs" / "benchmarks.md"


def lines_of(document: dict[str, Any]) -> Iterator[str]:
    host, method = document["host"], document["method"]
    yield (
        f"Commit {document['commit']}, {document['date']}; {host['cpus']} CPUs ({host['cpu']}), "
        f"kernel {host['kernel']}, Python {host['python']}; medians of {method['windows']} windows "
        f"of {method['window_s']:g} s after {method['warmup_s']:g} s of warm-up."
    )
    for case in document["cases"]:
        yield ""
        yield f"### {case['name']}"
        yield ""
        yield f"Floor: {case['floor_us']['median']:.2f} us an echo, both ends."
        yield ""
        yield "| server | messages/s | p50 us | p99 us | CPU us/echo | rate ratio | CPU ratio |"
        yield "|---|---:|---:|---:|---:|---:|---:|"
        yield from map(row_of, case["results"])


def row_of(result: dict[str, Any]) -> str:
    cells = (
        result["name"],
        f"{result['messages_per_s']['median']:,.0f}",
        f"{result['p50_us']['median']:.1f}",
        f"{result['p99_us']['median']:.1f}",
        f"{result['server_cpu_us_per_echo']['median']:.2f}",
        spread(result["first_over_this_rate"]),
        spread(result["first_over_this_cpu"]),
    )
    problems = f" (not valid: {'; '.join(result['problems'])})" if result["problems"] else ""
    return f"| {' | '.join(cells)} |{problems}"


def spread(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} ({value['low']:.2f}-{value['high']:.2f})"


def main() -> None:
    write_generated(PAGE, COMPARISON, lines_of(json.loads(COMPARISON.read_text())))


if __name__ == "__main__":
    main()
