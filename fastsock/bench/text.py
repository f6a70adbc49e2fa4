"""A comparison as text: a table that fits the terminal, and in words what was found."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence

from fastsock.bench import comparison as compare
from fastsock.bench.contenders import NATIVE, RIVAL, TWIN
from fastsock.units import format_duration, format_rate, format_size, plural

TITLES = ("server", "rate", "p50", "p99", "CPU", "memory", "/conn", "rate ratio")
#: Columns that a table leaves out, the first alone or both, where it is wider than the terminal.
OPTIONAL = ("/conn", "memory")
#: The servers of a group, in words.
GROUPS = {NATIVE: "of fastsock", TWIN: "of the standard library", RIVAL: "of the rivals"}

Row = dict[str, str]  # the cell of each title


def lines_of(
    name: str, comparison: compare.Comparison, groups: Mapping[str, str], width: int
) -> Iterator[str]:
    """The comparison called `name`; `groups` has the group of each server, by its name."""
    rows = [*(row_of(comparison, result) for result in comparison.results)]
    rows += [{"server": left_out, "rate": "n/a"} for left_out in comparison.left_out]
    table = list(table_lines(rows, width))
    yield f"{name}: medians of {plural(len(comparison.results[0].rates), 'window')}"
    yield ""
    yield from table
    yield ""
    for note in notes_of(comparison, table[0]):
        yield from textwrap.wrap(note, width, subsequent_indent="  ")
    for sentence in found_in(comparison, groups):
        yield from textwrap.wrap(sentence, width, subsequent_indent="  ")


def found_in(comparison: compare.Comparison, groups: Mapping[str, str]) -> Iterator[str]:
    """What the table shows, in words; nothing of a single server."""
    if len(comparison.results) < 2:
        return
    if any(result.all_problems() for result in comparison.results):
        yield "found: nothing, as some figures are not valid"
        return
    ratios = {each.name: comparison.rate_ratio(each) for each in comparison.results}
    rates = {name: ratio for name, ratio in ratios.items() if ratio}
    costs = {each.name: compare.Interval.of(each.cpu_per_echo) for each in comparison.results}
    costs = {name: cost for name, cost in costs.items() if name in rates and cost.median}
    if len(rates) < 2:
        return
    if any(rate.confidence < compare.CONFIDENCE for rate in rates.values()):
        yield f"found: nothing, as it takes at least {compare.FEWEST} windows to rank servers"
        return
    fastest = sorted(rates, key=lambda name: -rates[name].median)
    yield f"found: highest rate: {first_of(fastest, rates, groups, ratio_only)}"
    if len(costs) > 1:
        cheapest = sorted(costs, key=lambda name: costs[name].median)
        yield f"found: least CPU per echo: {first_of(cheapest, costs, groups, microseconds)}"


def first_of(
    ordered: Sequence[str],
    figures: Mapping[str, compare.Interval],
    groups: Mapping[str, str],
    shown: Callable[[compare.Interval], str],
) -> str:
    """The first server, those whose intervals overlap with its own, the first of other groups."""
    best = figures[ordered[0]]
    equal = [name for name in ordered if figures[name].median == best.median]
    near = [
        name
        for name in ordered[len(equal) :]
        if figures[name].low <= best.high and best.low <= figures[name].high
    ]
    parts = [f"{in_words(equal)} ({shown(best)})"]
    if near:
        subject, verb = ("interval", "overlaps") if len(near) == 1 else ("intervals", "overlap")
        them = "them" if len(equal) > 1 else "it"
        parts.append(f"the {subject} of {in_words(near)} {verb} with {them}")
    said = {groups[name] for name in (*equal, *near)}
    for name in ordered:
        if groups[name] not in said:
            said.add(groups[name])
            parts.append(f"{GROUPS[groups[name]]}: {name} ({shown(figures[name])})")
    return "; ".join(parts)


def ratio_only(ratio: compare.Interval) -> str:
    return f"rate ratio {ratio.median:.2f}"


def microseconds(cost: compare.Interval) -> str:
    return format_duration(cost.median / 1e6)


def in_words(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def table_lines(rows: Sequence[Row], width: int) -> Iterator[str]:
    """The rows under a head, with as many columns as fit.

    A server's name that leaves no room for its row has a line of its own.
    """
    head = {title: title for title in TITLES}
    widest = {title: max(len(row.get(title, "")) for row in (head, *rows)) for title in TITLES}
    for without, gap in (((), "  "), ((), " "), (OPTIONAL[:1], " "), (OPTIONAL, " ")):
        titles = [title for title in TITLES[1:] if title not in without]
        figures = sum(widest[title] + len(gap) for title in titles)
        if widest["server"] + figures <= width:
            break
    room = min(width - figures, widest["server"])
    for row in (head, *rows):
        first = row["server"]
        if len(first) > room:
            yield first
            first = ""
        cells = (row.get(title, "").rjust(widest[title]) for title in titles)
        yield gap.join((first.ljust(room), *cells)).rstrip()
        if row is head:
            yield "-" * (room + figures)


def notes_of(comparison: compare.Comparison, head: str) -> Iterator[str]:
    """What the columns under `head` mean, and what is to know of this comparison."""
    confidence = compare.Interval.of(comparison.results[0].rates).confidence
    interval = f", and the {confidence:.0%} confidence interval of the median" * bool(confidence)
    yield (
        f"rate ratio: relative to {comparison.reference}, higher is better; median of the "
        f"rounds{interval}"
    )
    yield (
        f"CPU: of the server per echo; the kernel alone takes "
        f"{comparison.floor_us.median:.2f} us for both ends"
    )
    if "memory" in head:
        each = "; /conn: what one connection adds" if "/conn" in head else ""
        yield f"memory: with all connections open{each}"
    if comparison.case.one_cpu:
        yield "server and client share one CPU, so the client waits by blocking"
    if left_alone := [each.name for each in comparison.results if not each.stopped_between_turns]:
        yield (
            f"not stopped while the others had their turns, nor kept on one CPU: "
            f"{in_words(left_alone)}"
        )
    if repeated := sum(result.repeated for result in comparison.results):
        yield f"{plural(repeated, 'disturbed window')} measured again"
    if any(comparison.rate_ratio(result) is None for result in comparison.results):
        yield "-: in most windows of this server or of the reference nothing was answered"
    for reason in dict.fromkeys(comparison.left_out.values()):
        yield f"n/a: the server {reason}"


def row_of(comparison: compare.Comparison, result: compare.Result) -> Row:
    medians = [
        compare.Interval.of(values).median
        for values in (result.rates, result.p50s, result.p99s, result.cpu_per_echo)
    ]
    rate, *times = medians
    figures = [format_rate(rate), *(format_duration(each / 1e6) for each in times)]
    if not result.cpu_per_echo:
        figures[-1] = "unknown"
    memory = result.memory
    sizes = (memory.connected, max(memory.per_connection, 0)) if memory else ()
    cells = (
        result.name,
        *(figures if rate else "-" * len(figures)),
        *([format_size(size) for size in sizes] or ("unknown", "unknown")),
        ratio_text(comparison.rate_ratio(result)),
    )
    return dict(zip(TITLES, cells, strict=True))


def ratio_text(ratio: compare.Interval | None) -> str:
    if ratio is None:
        return "-"
    interval = f" ({ratio.low:.2f}-{ratio.high:.2f})" if ratio.confidence else ""
    return f"{ratio.median:.2f}{interval}"
