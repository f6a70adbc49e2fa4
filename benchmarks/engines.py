"""Measure and draw every engine: ``python -m benchmarks.engines``.

Writes ``benchmarks/results/engines.json``, ``docs/engines.svg`` and the tables of the page.
Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.page import ROOT, write_generated
from benchmarks.run import RESULTS, commit, write
from benchmarks.table import lines_of
from fastsock.bench import picture
from fastsock.bench.comparison import Case, Method, compare, document
from fastsock.bench.contenders import every_engine

ENGINES = RESULTS / "engines.json"
DRAWN = ROOT / "docs" / "engines.svg"
PAGE = ROOT / "docs" / "nine-steps.md"


def page_lines(results: dict[str, Any]) -> Iterator[str]:
    yield "![Rate, p99, CPU and memory of every engine](engines.svg)"
    yield ""
    for line in lines_of(results):
        yield f"#{line}" if line.startswith("###") else line


def main() -> None:
    method = Method()
    comparisons = {}
    for connections in (1, 10, 100, 1000):
        case = Case(connections)
        print(case.title, file=sys.stderr)
        comparisons[case.title] = compare(every_engine(), case, method)
    results = document(comparisons, method, commit=commit())
    write(results, ENGINES)
    picture.draw_engines(results, DRAWN)
    write_generated(PAGE, ENGINES, page_lines(results))


if __name__ == "__main__":
    main()
