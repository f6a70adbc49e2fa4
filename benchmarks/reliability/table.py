"""Write what was measured into docs/reliability.md: ``python -m benchmarks.reliability.table``.

The text between the markers is generated from ``benchmarks/results/reliability.json`` alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.page import ROOT, write_generated
from benchmarks.reliability.run import RELIABILITY
from fastsock.bench.contenders import NATIVE, TWIN

PAGE = ROOT / "docs" / "reliability.md"
KIB, MIB = 1 << 10, 1 << 20
#: An engine with so many times the figure of the next is named.
FAR = 3
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?<!,)")
NAME_BEFORE_UNIT = re.compile(r"( \(\w+\)) (ms|s|us|%|KiB(?:/s)?|MiB)(?!\w)")

Figures = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure of a probe: what is promised, how it is tested, and how it is written."""

    probe: str
    title: str
    promise: str
    test: str
    cell: Callable[[Figures], str]


def of_runs(figures: Figures) -> str:
    done = f"{figures['verdict']} {figures['complete']}/{figures['runs']}"
    if figures["verdict"] == "ok":
        return done
    return f"{done}, {figures['least_bytes'] / MIB:.1f} of {figures['of'] / MIB:.0f} MiB"


def short_echo(figures: Figures) -> str:
    if figures["verdict"] == "ok":
        return "ok"
    return f"{figures['verdict']}, {figures['bytes']} of {figures['of']} B"


def taken(figures: Figures) -> str:
    word = "grows" if figures["verdict"] == "grows" else "ok"
    all_of_it = "all " if figures["taken_bytes"] >= figures["cap_bytes"] else ""
    growth = max(figures["growth_bytes"], 0) / KIB
    return f"{word}, {growth:,.0f} KiB; took {all_of_it}{figures['taken_bytes'] / MIB:.1f} MiB"


def others(figures: Figures) -> str:
    if figures["p99_alone_us"] is None or figures["p99_beside_us"] is None:
        return "others wait"
    return f"{figures['p99_alone_us']:.0f} -> {figures['p99_beside_us']:.0f} us"


def starved(figures: Figures) -> str:
    return f"{figures['verdict']}, {figures['cpu_percent']:.1f} %"


def log_rate(figures: Figures) -> str:
    return f"{figures['log_bytes_per_s'] / KIB:.1f} KiB/s"


def recovery(figures: Figures) -> str:
    if figures["verdict"] == "dies":
        return "never"
    if figures["closed"]:
        waiting = f"{figures['closed']} closed"
    elif figures["served"] == figures["clients"]:
        waiting = "all served"
    else:
        waiting = seconds(figures["recovery_s"])
    return f"{waiting}; {seconds(figures['new_client_s'])}"


def seconds(value: float | None) -> str:
    if value is None:
        return "not seen"
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.1f} s"


def resets(figures: Figures) -> str:
    return f"{figures['verdict']}, {figures['resets']} / {figures['descriptors_left']}"


def queued(figures: Figures) -> str:
    return f"{figures['verdict']}, {figures['queued']}; {seconds(figures['served_after_s'])}"


def stopped(name: str) -> Callable[[Figures], str]:
    def cell(figures: Figures) -> str:
        one = figures[name]
        if "None" in one["exit_codes"]:
            return f"hangs, > {one['max_ms'] / 1e3:.0f} s"
        text = f"{one['median_ms']:.0f} ms, {'/'.join(one['exit_codes'])}"
        left = one["processes_left"]
        return f"{text}, {left} processes left" if left else text

    return cell


def in_flight(figures: Figures) -> str:
    done = f"{figures['verdict']} {figures['complete']}/{figures['clients']}"
    lost = figures["lost_bytes"]
    return f"{done}, {lost / KIB:.0f} KiB lost" if lost else done


BYTES = (
    Measure(
        "short_echo",
        "short writes, 1 MiB",
        "Byte-exact, in order, once",
        "256 writes of 1 byte, each answered before the next, then 1 MiB in one go",
        short_echo,
    ),
    Measure(
        "half_close",
        "half-close",
        "All comes back after a half-close, then the end",
        "8 MiB, then a half-close: complete of all runs",
        of_runs,
    ),
    Measure(
        "slow_reader",
        "slow reader",
        "Slow readers lose nothing",
        "4 MiB from a client that reads only when nothing more is taken from it",
        of_runs,
    ),
    Measure(
        "bytes_in_flight",
        "SIGTERM with bytes in flight",
        "A drain answers what was sent before it",
        "stopped (SIGSTOP); 4 clients and 4 more that wait for accept send 16 KiB and half-close; "
        "SIGTERM; goes on: clients with a complete echo",
        in_flight,
    ),
)
NEVER_READING = (
    Measure(
        "stuck_readers",
        "memory each; taken from one",
        "Bounded memory",
        "clients that send up to 32 MiB and never read: growth of the server's memory for each, "
        "and what was taken from one of them, kernel buffers included",
        taken,
    ),
    Measure(
        "stuck_readers",
        "others' p99",
        "Other clients do not notice",
        "one client's p99 with 64 B messages, without and beside those clients",
        others,
    ),
)
DESCRIPTORS = (
    Measure(
        "descriptor_limit",
        "CPU",
        "No spin at the descriptor limit (2 % of a CPU)",
        "`prlimit` leaves 5 descriptors, 200 clients come: CPU while they wait",
        starved,
    ),
    Measure(
        "descriptor_limit",
        "log",
        "At most a line of log a second",
        "the same: bytes written to stdout and stderr",
        log_rate,
    ),
    Measure(
        "descriptor_limit",
        "a waiting client; a new one",
        "Serving again by itself",
        "the served ones close: time until one that waits is answered; all close: time until a new "
        "one is",
        recovery,
    ),
)
CPU_AND_LOG = Measure(
    "descriptor_limit",
    "CPU; log",
    "",
    "",
    lambda figures: f"{starved(figures)}; {log_rate(figures)}",
)
RESETS = (
    Measure(
        "resets",
        "resets",
        "A reset costs one connection and leaves nothing",
        "clients that reset in mid-transfer; descriptors that are still open afterwards",
        resets,
    ),
    Measure(
        "reset_before_accept",
        "resets before accept",
        "A reset before accept costs no other client anything",
        "clients that reset while the server is stopped (SIGSTOP); time until the next is served",
        queued,
    ),
)
ENDS = (
    Measure(
        "stop_idle",
        "SIGTERM, idle",
        "Stops when told",
        "SIGTERM to the idle server: time until its process has ended, exit code",
        stopped("SIGTERM"),
    ),
    Measure("stop_idle", "SIGINT, idle", "", "the same with SIGINT", stopped("SIGINT")),
    Measure(
        "stop_busy", "SIGTERM, busy", "", "SIGTERM while 64 clients load it", stopped("SIGTERM")
    ),
    Measure("stop_busy", "SIGINT, busy", "", "the same with SIGINT", stopped("SIGINT")),
)


def packets(figures: Figures) -> str:
    return f"{figures['verdict']}, {figures['packets']:,}"


def answered(figures: Figures) -> str:
    return f"{figures['verdict']} {figures['answered']}/{figures['of']}"


DATAGRAMS = (
    Measure("forged_from_other", "forged from another of its kind", "", "", packets),
    Measure("forged_from_itself", "forged from itself", "", "", packets),
    Measure("forged_from_plain", "forged from the C server", "", "", packets),
    Measure("answers_from_asked", "answers from the address asked", "", "", answered),
)
ALL = (*BYTES, *NEVER_READING, *DESCRIPTORS, *RESETS, *ENDS)


def lines_of(document: dict[str, Any]) -> Iterator[str]:
    host, streams = document["host"], document["streams"]
    own = [row for row in streams if row["group"] == NATIVE]
    twins = [row for row in streams if row["group"] == TWIN]
    rivals = [row for row in streams if row["group"] not in (NATIVE, TWIN)]
    beside = [*own[:1], *twins, *rivals]
    yield (
        f"Commit {document['commit']}, {document['date']}; {host['cpus']} CPUs ({host['cpu']}), "
        f"kernel {host['kernel']}, Python {host['python']}; the run took {document['took_s']} s."
    )
    yield from heading("fastsock, all engines")
    yield from by_promise(own)
    yield from heading("Other servers")
    yield from faults(beside)
    yield from heading("Clients that never read")
    yield from by_server(beside, NEVER_READING)
    yield from heading("At the descriptor limit")
    yield from by_server(beside, (CPU_AND_LOG, DESCRIPTORS[-1]))
    yield from heading("Datagrams")
    yield from side_by_side(document["datagrams"], DATAGRAMS)
    yield from heading("Versions and commands")
    yield from versions([*own[:1], *twins[:1], *rivals])


def heading(title: str) -> Iterator[str]:
    yield from ("", f"### {title}", "")


def table_head(*titles: str) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"


def by_promise(rows: list[Row]) -> Iterator[str]:
    """What all engines do, in one cell."""
    yield from table_head("promise", "how tested", "measured")
    for measure in ALL:
        cell = ranges({engine_of(row): cell_of(row, measure) for row in rows})
        yield f"| {measure.promise} | {measure.test} | {cell} |"


def engine_of(row: Row) -> str:
    return str(row["name"]).split()[-1]


def ranges(cells: dict[str, str]) -> str:
    """Cells that differ in their numbers alone, together; others with the names of the engines."""
    alike: dict[str, list[str]] = {}
    for engine, cell in cells.items():
        alike.setdefault(NUMBER.sub("#", cell), []).append(engine)
    most = max(alike.values(), key=len, default=[])
    texts = []
    for shape, engines in alike.items():
        text = shape
        for numbers in zip(*(NUMBER.findall(cells[engine]) for engine in engines), strict=True):
            text = text.replace("#", span(numbers, engines), 1)
        text = NAME_BEFORE_UNIT.sub(r" \2\1", text)
        texts.append(text if engines is most else f"{', '.join(engines)}: {text}")
    return "; ".join(texts) or "not probed"


def span(numbers: tuple[str, ...], engines: list[str]) -> str:
    """The least and the most; with the engine's name if it has far more than all others."""
    values = [float(each.replace(",", "")) for each in numbers]
    *_, second, high = sorted([0.0, *values])
    low, most = values.index(min(values)), values.index(high)
    if low == most or min(values) == high:
        return numbers[low]
    name = f" ({engines[most]})" if high > FAR * max(second, 1) else ""
    return f"{numbers[low]} to {numbers[most]}{name}"


def by_server(rows: list[Row], measures: tuple[Measure, ...]) -> Iterator[str]:
    yield from table_head("server", *(measure.title for measure in measures))
    for row in rows:
        if row["unusable"]:
            cells = [row["unusable"], *[""] * (len(measures) - 1)]
        else:
            cells = [cell_of(row, measure) for measure in measures]
        yield f"| {' | '.join((row['name'], *cells))} |"


def side_by_side(rows: list[Row], measures: tuple[Measure, ...]) -> Iterator[str]:
    """A column a server."""
    yield from table_head("", *(row["name"] for row in rows))
    for measure in measures:
        cells = (row["unusable"] or cell_of(row, measure) for row in rows)
        yield f"| {' | '.join((measure.title, *cells))} |"


def cell_of(row: Row, measure: Measure) -> str:
    figures = row["results"].get(measure.probe)
    if figures is None:
        return "not probed"
    return figures["error"] if figures["verdict"] == "failed" else measure.cell(figures)


def faults(rows: list[Row]) -> Iterator[str]:
    """How many probes went well, and what was measured in each that did not."""
    yield from table_head("server", "ok", "not as promised")
    for row in rows:
        if row["unusable"]:
            yield f"| {row['name']} | - | {row['unusable']} |"
        elif row["results"]:
            verdicts = [one["verdict"] for one in row["results"].values()]
            wrong = "; ".join(wrong_in(row)) or "-"
            right = f"{verdicts.count('ok')}/{len(verdicts)}"
            yield f"| {row['name']} | {right} | {wrong} |"


def wrong_in(row: Row) -> Iterator[str]:
    """The first figure of each probe that went wrong; of an end, each that is not orderly."""
    for probe, one in row["results"].items():
        verdict = one["verdict"]
        measures = [each for each in ALL if each.probe == probe]
        cells = {each.title: cell_of(row, each) for each in measures}
        if verdict in ("hangs", "leaves children"):
            for title, cell in cells.items():
                if "hangs" in cell or "left" in cell:
                    yield f"{title}: {cell}"
        elif verdict != "ok":
            cell = cells[measures[0].title]
            shown = cell if cell.startswith(verdict) or verdict == "failed" else verdict
            yield f"{probe.replace('_', ' ')}: {shown}"


def versions(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        version = row["version"] or row["unusable"]
        added = f"; for the bytes in flight with `{row['draining']}`" if row["draining"] else ""
        yield f"- {row['name']} ({version}): `{row['command']}`{added}"


def main() -> None:
    write_generated(PAGE, RELIABILITY, lines_of(json.loads(RELIABILITY.read_text())))


if __name__ == "__main__":
    main()
