"""Measure and draw every engine: ``python -m benchmarks.engines``.

Writes ``benchmarks/results/engines.json`` and ``docs/pictures/engines.svg``.
Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import sys

from benchmarks.page import ROOT
from benchmarks.run import RESULTS, commit, write
from fastsock.bench import picture
from fastsock.bench.comparison import Case, Method, compare, document
from fastsock.bench.contenders import every_engine

ENGINES = RESULTS / "engines.json"
DRAWN = ROOT / "docs" / "pictures" / "engines.svg"


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
    print(DRAWN)


if __name__ == "__main__":
    main()
