"""Servers that are ahead of fastsock as it comes: ``python -m benchmarks.ahead [JSON...]``.

A server is ahead in a case if its rate over fastsock's, round by round, has a lower quartile above
1.02; or, at a given rate that both keep, if fastsock's CPU time per echo over its own has one above
1.10. It takes at least 15 rounds to say so. With several documents a server must be ahead in each.
The exit code is 1 if one is ahead, and 2 if a case cannot be judged.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.run import COMPARISON

ROUNDS = 15
RATE, CPU = 1.02, 1.10
#: Of the rate that was asked for: a server that answers less does not keep it.
KEPT = 0.99

RATES, COSTS = "messages_per_s", "server_cpu_us_per_echo"

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Judged:
    """A server in a case beside fastsock; the ratio is above 1 where the server is better."""

    case: str
    server: str
    figure: str  # "rate" or "CPU"
    low: float
    median: float
    high: float
    theirs: float = 0.0  # medians of the figure
    ours: float = 0.0
    valid: bool = True

    @property
    def in_microseconds(self) -> str:
        return f"{self.theirs:.2f}, {self.ours:.2f}"

    @property
    def ahead(self) -> bool:
        return self.low > {"rate": RATE, "CPU": CPU}[self.figure]


@dataclass(frozen=True, slots=True)
class NotJudged:
    """Why a case, or a server in it, is not compared."""

    case: str
    reason: str
    server: str = ""


def judged(document: Document) -> Iterator[Judged | NotJudged]:
    for case in document["cases"]:
        yield from judged_in(case)


def judged_in(case: Document) -> Iterator[Judged | NotJudged]:
    name, results = case["name"], {each["name"]: each for each in case["results"]}
    own = next((results[each] for each in defaults(case) if each in results), None)
    if own is None:
        yield NotJudged(name, "fastsock does not take part")
        return
    if problem := unjudgeable(case["results"]):
        yield NotJudged(name, problem)
        return
    rate = case["case"].get("rate")
    if rate and not keeps(own, rate):
        yield NotJudged(name, f"fastsock has {share(own, rate)} of the rate asked for")
    for server, result in results.items():
        if result is own:
            continue
        valid = not (result["problems"] or own["problems"])
        pairs = {"rate": (values(result, RATES), values(own, RATES))}
        if rate and keeps(own, rate):
            if keeps(result, rate):
                pairs["CPU"] = (values(own, COSTS), values(result, COSTS))
            else:
                yield NotJudged(name, "the server does not keep the rate", server)
        for figure, (better, worse) in pairs.items():
            if quotients := [a / b for a, b in zip(better, worse, strict=True) if b]:
                quartiles = statistics.quantiles(quotients, method="inclusive")
                key = RATES if figure == "rate" else COSTS
                medians = (each[key]["median"] for each in (result, own))
                yield Judged(name, server, figure, *quartiles, *medians, valid=valid)


def defaults(case: Document) -> Iterator[str]:
    """What fastsock is called where no option is given."""
    kind = case["case"]["kind"]
    suffix = "" if kind == "tcp" else f", {kind}"
    yield f"fastsock epoll{suffix}"
    yield f"fastsock datagrams{suffix}"
    yield "native epoll, busy main thread"


def unjudgeable(results: Sequence[Document]) -> str:
    if any("per_window" not in each for each in results):
        return "the results have no values per window"
    fewest = min(each["windows"] for each in results)
    return f"{fewest} windows are fewer than {ROUNDS}" if fewest < ROUNDS else ""


def values(result: Document, figure: str) -> list[float]:
    found: list[float] = result["per_window"][figure]
    return found


def keeps(result: Document, rate: float) -> bool:
    return bool(result[RATES]["median"] >= KEPT * rate)


def share(result: Document, rate: float) -> str:
    return f"{result[RATES]['median'] / rate:.2f}"


def in_each(documents: Sequence[Document]) -> tuple[list[list[Judged]], list[NotJudged]]:
    """What is ahead in every document, one entry a document; and what is not judged in some."""
    found = [list(judged(document)) for document in documents]
    ahead = [
        {(each.case, each.server, each.figure): each for each in of_one if is_ahead(each)}
        for of_one in found
    ]
    both = [[each[key] for each in ahead] for key in ahead[0] if all(key in each for each in ahead)]
    left = {each: None for of_one in found for each in of_one if isinstance(each, NotJudged)}
    names = [{case["name"]: None for case in document["cases"]} for document in documents]
    for name in dict.fromkeys(name for each in names for name in each):
        if not all(name in each for each in names):
            left[NotJudged(name, "it is not in every document")] = None
    return both, list(left)


def is_ahead(entry: Judged | NotJudged) -> bool:
    return isinstance(entry, Judged) and entry.ahead


def lines_of(ahead: Sequence[Sequence[Judged]]) -> Iterator[str]:
    """A table of at most 80 columns, with a line for each document."""
    if ahead:
        yield f"{'ahead of fastsock':36}in      better by, with quartiles"
    for case, rows in groupby(ahead, key=lambda row: row[0].case):
        yield case
        for row in rows:
            first, *others = (by(each) for each in row)
            yield f"  {row[0].server:34}{row[0].figure:8}{first}"
            for other in others:
                yield f"{'':44}{other}"


def by(each: Judged) -> str:
    mark = "" if each.valid else "  not valid"
    return f"{each.median:.2f} ({each.low:.2f}-{each.high:.2f}){mark}"


def behind_lines(document: Document) -> Iterator[str]:
    """The rows where fastsock is behind, for the page: CPU in microseconds."""
    ahead, left = in_each([document])
    if ahead:
        yield "| case | server | rate | CPU us |"
        yield "|---|---|---:|---:|"
    for case, of_case in groupby((row for (row,) in ahead), key=lambda row: row.case):
        for server, rows in groupby(of_case, key=lambda row: row.server):
            shown = {row.figure: row for row in rows}
            rate, cpu = shown.get("rate"), shown.get("CPU")
            cells = [case, server, by(rate) if rate else "", cpu.in_microseconds if cpu else ""]
            yield f"| {' | '.join(cells)} |"
    if not ahead:
        yield "No server is ahead in a row that could be judged."
    for reason in reasons(left, len(document["cases"])):
        yield ""
        yield reason


def reasons(left: Sequence[NotJudged], cases: int) -> Iterator[str]:
    """Each reason once, with its rows; there are so many cases."""
    for reason in dict.fromkeys(each.reason for each in left):
        rows = [each for each in left if each.reason == reason]
        names = [f"{each.case} ({each.server})" if each.server else each.case for each in rows]
        yield f"Not judged, as {reason}: {'all' if len(names) == cases else '; '.join(names)}."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("documents", type=Path, nargs="*", default=[COMPARISON], metavar="JSON")
    paths = parser.parse_args().documents
    documents = [json.loads(path.read_text()) for path in paths]
    ahead, left = in_each(documents)
    for line in lines_of(ahead):
        print(line)
    for reason in reasons(left, len(documents[0]["cases"])):
        print(textwrap.fill(reason, 80, subsequent_indent="  "))
    if ahead:
        return 1
    if any(not each.server for each in left):
        return 2
    print("no server is ahead")
    return 0


if __name__ == "__main__":
    sys.exit(main())
