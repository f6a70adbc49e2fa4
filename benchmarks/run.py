"""Run every case, interleaved, and keep the results: ``python -m benchmarks.run``.

Writes ``benchmarks/results/comparison.json``. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import syscalls
from benchmarks.cases import CASES, NamedCase
from fastsock.bench.comparison import Comparison, Method, compare, document

RESULTS = Path(__file__).parent / "results"
COMPARISON = RESULTS / "comparison.json"


def commit() -> str:
    """The commit that was measured, with ``+`` if the tree had changes; perhaps "unknown"."""
    describe = ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude", "*"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, cwd=Path(__file__).parent)
    except FileNotFoundError:  # of git
        return "unknown"
    return done.stdout.strip() or "unknown"


def unusable(cases: Iterable[NamedCase]) -> dict[str, str]:
    """Servers that cannot be run here, and why: not installed, for one."""
    contenders = [each for case in cases for each in case.contenders(case.load)]
    return {each.name: each.unusable for each in contenders if each.unusable}


def run_case(case: NamedCase, method: Method, tool: str | None) -> Comparison:
    print(case.name, file=sys.stderr)
    return compare(
        case.contenders(case.load),
        case.load,
        method,
        reference="C recvfrom" if case.load.kind == "udp" else "C epoll",
        progress=lambda text: print(f"  {text}", file=sys.stderr),
        syscalls_per_echo=partial(syscalls.per_echo, tool) if tool else None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=7, help="turns of each server")
    parser.add_argument("--window", type=float, default=0.4, help="seconds of a turn")
    parser.add_argument("--warmup", type=float, default=0.15, help="seconds dropped before it")
    parser.add_argument("--case", help="only the cases whose name contains this")
    parser.add_argument("--output", type=Path, default=COMPARISON)
    options = parser.parse_args()
    cases = [case for case in CASES if options.case is None or options.case in case.name]
    tool = syscalls.usable_tool()
    if tool is None:
        print("without system calls: apt-get install strace", file=sys.stderr)
    method = Method(options.windows, options.window, options.warmup)
    for name, reason in unusable(cases).items():
        print(f"without {name}: it {reason}", file=sys.stderr)
    seconds = sum(method.seconds(case.contenders(case.load), case.load) for case in cases)
    print(f"{len(cases)} cases, about {seconds / 60:.0f} minutes", file=sys.stderr)
    comparisons = {case.name: run_case(case, method, tool) for case in cases}
    write(document(comparisons, method, commit=commit(), syscalls_by=tool), options.output)


def write(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    print(path)


if __name__ == "__main__":
    main()
