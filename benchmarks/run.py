"""Run every case, interleaved, and keep the results: ``python -m benchmarks.run``.

Writes ``benchmarks/results/comparison.json``. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, NamedCase
from fastsock.compare import compare
from fastsock.report import host_facts

RESULTS = Path(__file__).parent / "results"
COMPARISON = RESULTS / "comparison.json"


def commit() -> str:
    """The commit that was measured, with ``+`` if the tree had changes."""
    describe = ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude", "*"]
    done = subprocess.run(describe, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() or "unknown"


def run_case(case: NamedCase, windows: int, window: float, warmup: float) -> dict[str, Any]:
    print(case.name, file=sys.stderr)
    comparison = compare(
        case.contenders(case.load),
        case.load,
        windows=windows,
        window=window,
        warmup=warmup,
        progress=lambda text: print(f"  {text}", file=sys.stderr),
    )
    return {"name": case.name, **comparison.as_dict()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=11, help="turns of each server")
    parser.add_argument("--window", type=float, default=0.5, help="seconds of a turn")
    parser.add_argument("--warmup", type=float, default=0.2, help="seconds dropped before it")
    parser.add_argument("--case", help="only the cases whose name contains this")
    parser.add_argument("--output", type=Path, default=COMPARISON)
    options = parser.parse_args()
    cases = [case for case in CASES if options.case is None or options.case in case.name]
    document = {
        "commit": commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": host_facts(),
        "method": {
            "windows": options.windows,
            "window_s": options.window,
            "warmup_s": options.warmup,
        },
        "cases": [
            run_case(case, options.windows, options.window, options.warmup) for case in cases
        ],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    print(options.output)


if __name__ == "__main__":
    main()
