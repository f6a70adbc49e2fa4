"""Write what the tests saw into docs/believable.md: ``python -m tests.believable.page``.

The text between the markers is generated from the records in build/believable alone, which
``make believable`` writes.
"""

from __future__ import annotations

import json
import re
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
#: What the page compares of a link's records, and where it is in them.
COMPARED: dict[str, dict[str, tuple[str, ...]]] = {
    "link_us": {"p50 of the report": ("p50_us",), "of the link": ("link_us.p50",)},
    "client_us": {
        "p50; p99 of the report": ("client_us.p50", "client_us.p99"),
        "of the packets": ("wire_us.p50", "wire_us.p99"),
    },
}
FAULTS = ("lost", "duplicated", "reordered", "late")
#: An option with its value, which the page shows as code.
OPTION = re.compile(r"--[a-z-]+ [a-z-]+")
LAST_PART = re.compile(r"[;:] (?!.*[;:] ).*")
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
        yield from verdicts(records)
    else:
        yield from links(records)


def verdicts(records: list[Record]) -> Iterator[str]:
    """A row for all runs with the same disturbance and the same right verdict."""
    example = max(records, key=lambda each: len(said(each)))
    if len(said(example)) > len(str(example["disturbance"])):
        yield f"For example, *{example['disturbance']}*: {said(example)}."
        yield ""
    yield from table_head("disturbance", "right", "report")
    rows: dict[tuple[str, str], list[Record]] = {}
    for each in records:
        rows.setdefault((base_of(each), each["expected"]), []).append(each)
    for (base, expected), chosen in rows.items():
        alike = [each for each in records if base_of(each) == base]
        name = base if 1 < len(alike) == len(chosen) else with_variants(base, chosen)
        yield row(name, spaced(expected), spaced(report(chosen)))


def base_of(record: Record) -> str:
    """The disturbance without its last part: the loop, how the client waits, the kind of load."""
    return LAST_PART.sub("", str(record["disturbance"]))


def with_variants(base: str, records: list[Record]) -> str:
    first, *others = (str(each["disturbance"]) for each in records)
    return ", ".join([first, *(other[len(base) + 2 :] for other in others)])


def said(record: Record) -> str:
    """The first two reasons."""
    return "; ".join(record["seen"]["reasons"][:2])


def report(records: list[Record]) -> str:
    """The verdicts, and the codes of all reasons."""
    runs, valid = len(records), sum(each["seen"]["valid"] for each in records)
    codes = dict.fromkeys(code for each in records for code in each["seen"]["codes"])
    if valid in (0, runs):
        verdict = "valid" if valid else "not valid"
        verdict += f" ({runs} runs)" if runs > 1 else ""
    else:
        verdict = f"{valid} of {runs} valid"
    return f"{verdict}: {', '.join(codes)}" if codes else verdict


def spaced(codes: str) -> str:
    """Codes and keys as words: a line of a narrow table can break between them."""
    return codes.replace("_", " ")


def links(records: list[Record]) -> Iterator[str]:
    """Faults that were counted, delays, and the packets themselves; one line of what is left."""
    counted: dict[tuple[str, str], list[bool]] = {}
    for each in records:
        if isinstance(each["expected"], dict):
            name = each["disturbance"].partition(": ")[2]
            faults = {key: each["expected"][key] for key in FAULTS if each["expected"][key]}
            right = each["seen"]["datagrams"] == each["expected"]
            counted.setdefault((name, in_words(faults) or "none"), []).append(right)
    yield "UDP, closed and open loop, native and twin: runs that counted exactly what the link did."
    yield ""
    yield from table_head("fault", "what the link did", "right")
    for (name, faults), right in counted.items():
        yield row(name, faults, f"{sum(right)} of {len(right)}")
    for shape, columns in COMPARED.items():
        chosen = [each for each in records if shape in each["seen"]]
        if chosen:
            yield from ("", f"Right is: {chosen[0]['expected']}. In us:", "")
            yield from table_head("link", *columns)
            for each in chosen:
                name = each["disturbance"].removeprefix("none: ").removeprefix("a link of ")
                yield row(name, *(found(each["seen"], paths) for paths in columns.values()))
    for each in records:
        if not isinstance(each["expected"], dict) and not COMPARED.keys() & each["seen"].keys():
            name = each["disturbance"]
            yield from ("", f"{name[0].upper()}{name[1:]}: {spaced(in_words(each['seen']))}.")
            yield f"Right is: {each['expected']}."


def found(seen: Record, paths: tuple[str, ...]) -> str:
    """Figures at these places, as "client_us.p50"."""
    cells = []
    for path in paths:
        value: Any = seen
        for key in path.split("."):
            value = value[key]
        cells.append(f"{value:,.0f}")
    return "; ".join(cells)


def healthy(record: Record) -> Iterator[str]:
    runs = record["runs"]
    kinds = {run["kind"]: [each for each in runs if each["kind"] == run["kind"]] for run in runs}
    flagged = {
        kind: codes
        for kind, of_kind in kinds.items()
        if (codes := [code for run in of_kind if not run["valid"] for code in run["codes"]])
    }
    yield f"{len(runs)} runs of {len(kinds)} kinds in turns: {record['flagged']} flagged. Of these,"
    yield f"{record['excused']} are explained by the CPU time that the driver itself saw the"
    yield "hypervisor (*steal*) and other processes take. The most beside one run, in ms:"
    yield ""
    yield from table_head("kind", "flagged", "steal", "others")
    for kind, codes in flagged.items():
        most = [
            max(run["beside"][name] for run in kinds[kind]) * 1e3 for name in ("steal", "others")
        ]
        yield row(kind, spaced(", ".join(dict.fromkeys(codes))), *(f"{each:.0f}" for each in most))
    yield ""
    yield f"None flagged: {'; '.join(kind for kind in kinds if kind not in flagged)}."


def table_head(*titles: str) -> Iterator[str]:
    yield row(*titles)
    yield "|---" * len(titles) + "|"


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
    lines = (OPTION.sub(r"`\g<0>`", line) for line in lines_of(records))
    write_generated(PAGE, FOLDER, lines)


if __name__ == "__main__":
    main()
