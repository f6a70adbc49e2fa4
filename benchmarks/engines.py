"""Measure and draw every engine: ``python -m benchmarks.engines``.

Writes ``benchmarks/results/engines.json`` and ``docs/pictures/engines.svg``.
Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import sys

from benchmarks.engines_page import ENGINES, draw
from benchmarks.run import commit, write
from fastsock.bench.comparison import Case, Method, compare, document
from fastsock.bench.contenders import every_engine


def main() -> None:
    method = Method()
    comparisons = {}
    for connections in (1, 10, 100, 1000):
        case = Case(connections)
        print(case.title, file=sys.stderr)
        comparisons[case.title] = compare(every_engine(), case, method)
    write(document(comparisons, method, commit=commit()), ENGINES)
    draw()


if __name__ == "__main__":
    main()
