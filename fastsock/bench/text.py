"""A comparison as text: a table that fits the terminal, and in words what was found."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence

from fastsock.bench import comparison as compare
from fastsock.bench.contenders import NATIVE, RIVAL, TWIN
from fastsock.units import format_duration, format_rate, format_size, plural

TITLES = ("server", "rate", "p50", "p99", "CPU", "memory", "each", "rate ratio")
#: Columns that a table leaves out, the first alone or both, where it is wider than the terminal.
OPTIONAL = ("each", "memory")
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
    for note in notes_of(comparison, titles=table[0].split()):
        yield from textwrap.wrap(note, width, subsequent_indent="  ")
    for sentence in found_in(comparison, groups):
        yield from textwrap.wrap(sentence, width, subsequent_indent="  ")


def found_in(comparison: compare.Comparison, groups: Mapping[str, str]) -> Iterator[str]:
    """What the table says, in words; nothing of a single server."""
    rates = {
        each.name: ratio for each in comparison.results if (ratio := comparison.rate_ratio(each))
    }
    if len(rates) < 2:
        return
    costs = {
        each.name: compare.Interval.of(each.cpu_per_echo)
        for each in comparison.results
        if each.name in rates
    }
    fastest = leaders(rates, groups, lambda rate: -rate.median)
    cheapest = leaders(costs, groups, lambda cost: cost.median)
    rate = {name: f"{rates[name].median:.2f}" for name in fastest}
    rate[fastest[0]] += f" of {comparison.reference}"
    cost = {name: format_duration(costs[name].median / 1e6) for name in cheapest}
    yield f"found: highest rate: {in_words(rate, groups)}"
    if len(fastest) > 1 and rates[fastest[0]].low <= rates[fastest[1]].high:
        yield "  their intervals overlap: this run does not say which of the two is faster"
    yield f"found: least CPU per echo: {in_words(cost, groups)}"


def leaders(
    figures: Mapping[str, compare.Interval],
    groups: Mapping[str, str],
    order: Callable[[compare.Interval], float],
) -> list[str]:
    """The first server of each group, in order."""
    ordered = sorted(figures, key=lambda name: order(figures[name]))
    seen: dict[str, str] = {}
    for name in ordered:
        seen.setdefault(groups[name], name)
    return list(seen.values())


def in_words(figures: Mapping[str, str], groups: Mapping[str, str]) -> str:
    """``fastsock epoll, 1.00; of the standard library: stdlib selectors, 0.81``."""
    (first, figure), *others = figures.items()
    texts = [f"{first}, {figure}"]
    texts += [f"{GROUPS[groups[name]]}: {name}, {figure}" for name, figure in others]
    return "; ".join(texts)


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


def notes_of(comparison: compare.Comparison, titles: Sequence[str] = TITLES) -> Iterator[str]:
    """What the columns mean, and what is to know of this comparison."""
    confidence = compare.Interval.of(comparison.results[0].rates).confidence
    interval = f" of the rounds, and its {confidence:.0%} interval" if confidence else ""
    yield f"rate ratio: relative to {comparison.reference}, higher is better; median{interval}"
    yield (
        f"CPU: of the server per echo; the kernel alone takes "
        f"{comparison.floor_us.median:.2f} us for both ends"
    )
    if "memory" in titles:
        each = "; each: for each of them" if "each" in titles else ""
        yield f"memory: with all connections open{each}"
    if comparison.one_cpu:
        yield "server and client share the only CPU, so the client waits by blocking"
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
