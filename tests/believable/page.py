"""Write what the tests saw into docs/believable.md: ``python -m tests.believable.page``.

The text between the markers is generated from the records in build/believable alone, which
``make believable`` writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from benchmarks.page import ROOT, write_generated
from fastsock.host import host_facts
from tests.believable.records import FOLDER

PAGE = ROOT / "docs" / "believable.md"

Record = dict[str, Any]

#: Sections by the beginning of a record's name, in the order of the page; the last takes the rest.
SECTIONS: dict[str, tuple[str, ...]] = {
    "The client is disturbed": ("client-",),
    "More spinning threads than CPUs": ("threads-",),
    "The server is disturbed": ("server-shares", "server-stopped"),
    "Offered load and capacity": ("capacity-", "overload-", "late-", "low-", "idle-"),
    "Servers that do what they must not": ("never-", "server-", "datagrams-"),
    "Proxies": ("nginx", "haproxy"),
    "Ended by a signal": ("interrupted-",),
    "Healthy runs": ("healthy",),
    "A link with known faults, and the packets themselves": ("",),
}
SIZES = ("below", "near", "above")


def section_of(record: Record) -> str:
    name = record["name"]
    return next(title for title, begins in SECTIONS.items() if name.startswith(begins))


def order(record: Record) -> tuple[str, int, str]:
    size = record.get("size")
    name = record["name"].removesuffix(f"-{size}")
    return name, SIZES.index(size) if size else 0, record["disturbance"]


def lines_of(records: list[Record]) -> Iterator[str]:
    host = host_facts()
    programs = sorted({record["version"] for record in records if "version" in record})
    software = [f"Linux {host['kernel']}", f"Python {host['python']}", *programs]
    yield f"Measured on {datetime.now(UTC):%Y-%m-%d} with {host['cpus']} CPUs ({host['cpu']}),"
    yield f"{', '.join(software)}."
    for title in SECTIONS:
        if chosen := sorted((each for each in records if section_of(each) == title), key=order):
            yield from ("", f"### {title}", "")
            yield from table_of(chosen)


def table_of(records: list[Record]) -> Iterator[str]:
    if "runs" in records[0]:
        yield from healthy(records[0])
    elif "valid" in records[0]["seen"]:
        yield "| disturbance | right | valid | what the report said |"
        yield "|---|---|---|---|"
        for record in records:
            seen = record["seen"]
            valid = "yes" if seen["valid"] else "no"
            said = [*seen["reasons"], *(f"note: {note}" for note in seen["notes"])]
            yield row(record["disturbance"], record["expected"], valid, "; ".join(said) or "-")
    else:
        yield "| disturbance | right | seen |"
        yield "|---|---|---|"
        for record in records:
            yield row(record["disturbance"], in_words(record["expected"]), in_words(record["seen"]))


def healthy(record: Record) -> Iterator[str]:
    runs = record["runs"]
    yield f"{len(runs)} runs in one series: {record['flagged']} flagged. Of these,"
    yield f"{record['excused']} are explained by the driver's own reading of the CPU time that"
    yield "other processes used and the hypervisor took. The table has it in ms: the most beside"
    yield "one run, and the sum of all of that kind."
    yield ""
    yield "| kind | runs | flagged | steal | other processes |"
    yield "|---|---:|---:|---:|---:|"
    for kind in dict.fromkeys(run["kind"] for run in runs):
        chosen = [run for run in runs if run["kind"] == kind]
        flagged = [", ".join(run["codes"]) for run in chosen if not run["valid"]]
        figures = [
            f"{max(spent) * 1e3:.0f}, {sum(spent) * 1e3:.0f}"
            for spent in ([run["beside"][name] for run in chosen] for name in ("steal", "others"))
        ]
        yield row(kind, str(len(chosen)), "; ".join(flagged) or "0", *figures)


def row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def in_words(seen: Any) -> str:
    """Figures of any shape in a line."""
    if isinstance(seen, dict):
        return ", ".join(f"{name} {in_words(value)}" for name, value in seen.items())
    if isinstance(seen, list):
        return "(" + ", ".join(map(in_words, seen)) + ")"
    return f"{seen:,.6g}" if isinstance(seen, float) else str(seen)


def main() -> None:
    records = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    if not records:
        raise SystemExit(f"{FOLDER} holds no records; make believable writes them")
    write_generated(PAGE, FOLDER, lines_of(records))


if __name__ == "__main__":
    main()
