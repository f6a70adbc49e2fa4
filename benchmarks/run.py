"""Run every case, interleaved, and keep the results: ``python -m benchmarks.run``.

Writes ``benchmarks/results/comparison.json``. Nothing else should run on the machine meanwhile.
Parts that were run one by one (``--case``, ``--output``) are put together with ``--merge``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import syscalls
from benchmarks.cases import CASES, NamedCase
from fastsock.bench.comparison import Comparison, Method, compare, document, taking_part

RESULTS = Path(__file__).parent / "results"
COMPARISON = RESULTS / "comparison.json"
#: No case has a server with a process per connection where there are more than a few connections.
WARMUP_PER_CONNECTION = 0.0003  # seconds
COUNTING = 0.8  # seconds, about, to count the system calls of a server

_INNERMOST = re.compile(r"[\[{][^\[\]{}]*[\]}]")
_BREAK = re.compile(r"\n *")  # JSON has no such in a text

#: Of a document's host: what parts that are put together have in common.
_MACHINE = ("cpu", "cpus", "kernel", "python", "fastsock")


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


def chosen(texts: Sequence[str]) -> list[NamedCase]:
    """The cases whose name is one of `texts`, or contains one; all without a text."""
    names = [case.name for case in CASES]
    for text in texts:
        if not any(text in name for name in names):
            raise SystemExit(f"no case's name contains {text!r}; there are: {'; '.join(names)}")
    exact = {text for text in texts if text in names}
    return [
        case
        for case in CASES
        if not texts
        or case.name in exact
        or any(text in case.name for text in texts if text not in exact)
    ]


def seconds_of(cases: Iterable[NamedCase], method: Method, tool: str | None) -> float:
    """About how long they take if no window is disturbed."""
    total = 0.0
    for case in cases:
        contenders = case.contenders(case.load)
        counting = COUNTING * len(taking_part(contenders, case.load)) if tool else 0.0
        total += method.seconds(contenders, case.load) + counting
    return total


def merged(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The cases of all documents, in the order of CASES.

    Raises:
        ValueError: two have the same case, or are not of one commit, machine and method.

    """
    first, *others = documents
    for other in others:
        for key in ("schema", "commit", "method"):
            if other[key] != first[key]:
                raise ValueError(f"{key} is {first[key]} and {other[key]}")
        for key in _MACHINE:
            if other["host"][key] != first["host"][key]:
                raise ValueError(f"{key} is {first['host'][key]} and {other['host'][key]}")
    cases = [case for document in documents for case in document["cases"]]
    names = [case["name"] for case in cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"measured twice: {'; '.join(twice)}")
    place = {case.name: number for number, case in enumerate(CASES)}
    return first | {"cases": sorted(cases, key=lambda case: place.get(case["name"], len(place)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=15, help="turns of each server")
    parser.add_argument("--window", type=float, default=0.25, help="seconds of a turn")
    parser.add_argument("--warmup", type=float, default=0.1, help="seconds dropped before it")
    parser.add_argument(
        "--case",
        action="append",
        default=[],
        metavar="TEXT",
        help="the case of this name, or those whose name contains it; may be given again",
    )
    parser.add_argument("--output", type=Path, default=COMPARISON)
    parser.add_argument(
        "--merge", type=Path, nargs="+", metavar="JSON", help="run nothing: put these together"
    )
    options = parser.parse_args()
    if options.merge:
        try:
            results = merged([json.loads(path.read_text()) for path in options.merge])
        except ValueError as error:
            raise SystemExit(f"not of one run: {error}") from None
        write(results, options.output)
        return
    cases = chosen(options.case)
    tool = syscalls.usable_tool()
    if tool is None:
        print("without system calls: apt-get install strace", file=sys.stderr)
    method = Method(options.windows, options.window, options.warmup, WARMUP_PER_CONNECTION)
    for name, reason in unusable(cases).items():
        print(f"without {name}: it {reason}", file=sys.stderr)
    seconds = seconds_of(cases, method, tool)
    print(f"{len(cases)} cases, about {seconds / 60:.0f} minutes", file=sys.stderr)
    comparisons = {case.name: run_case(case, method, tool) for case in cases}
    write(document(comparisons, method, commit=commit(), syscalls_by=tool), options.output)


def write(results: dict[str, Any], path: Path) -> None:
    """As JSON, with the innermost lists and objects on a line each."""
    text = json.dumps(results, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_INNERMOST.sub(lambda found: _BREAK.sub(" ", found[0]), text) + "\n")
    print(path)


if __name__ == "__main__":
    main()
