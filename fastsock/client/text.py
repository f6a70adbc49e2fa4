"""A LoadReport as text: lines of at most 80 columns, and one line.

A word that no line has room for, such as a Unix path of 107 bytes, stands whole on a line of its
own.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastsock.client.percentiles import name_of
from fastsock.client.report import Latency, LoadReport, Outages
from fastsock.client.verdict import SIGNIFICANT
from fastsock.units import format_bits, format_duration, format_rate, format_size, plural

COLUMNS = 80
INDENT = 10
COUNTED = {"echo": "messages", "send": "sent", "receive": "received"}
WIDTH = 8  # of a latency
CELLS = 7  # of them in a line
SHOWN = (50.0, 90.0, 99.0, 99.9)  # where the options do not say

#: Units of latencies, in microseconds, with the decimals that are shown.
UNITS = (("us", 1, 1), ("ms", 1000, 3), ("s", 1_000_000, 3))


def of(report: LoadReport) -> str:
    """What ``fastsock load`` prints."""
    return "\n".join(lines_of(report))


def in_short(report: LoadReport) -> str:
    """One line: the endpoint, the rate, p99 and the verdict."""
    latency = report.latency
    p99 = f", p99 {format_duration(latency.p99 / 1e6)}" if latency.count else ""
    verdict = "valid" if report.client.known else "validity unknown"
    if report.reasons:
        first, *others = report.reasons
        more = f"; and {plural(len(others), 'more reason')}" if others else ""
        verdict = f"not valid: {textwrap.shorten(first, 100, placeholder=' ...')}{more}"
    if report.missed:
        verdict += f", {plural(len(report.missed), 'target')} missed"
    rate = format_rate(report.messages_per_s)
    return f"<fastsock.LoadReport {report.endpoint}: {rate}{p99}, {verdict}>"


def lines_of(report: LoadReport) -> Iterator[str]:
    yield from head_of(report)
    mode = mode_of(report.options)
    figures = [
        str(report.messages),
        format_rate(report.messages_per_s),
        f"{format_size(int(report.bytes_per_s))}/s",
    ]
    if mode != "echo":
        figures.append(format_bits(report.bytes_per_s * 8))
    yield f"{COUNTED[mode]:9} {'   '.join(figures)}"
    latencies = list(latencies_of(report))
    if latencies:
        for columns in blocks_of(report.options.get("percentiles", SHOWN)):
            yield titles_of(columns)
            for name, latency in latencies:
                yield latency_line(name, latency, columns)
    yield from stages_of(report)
    if report.datagrams is not None:
        counts = ", ".join(f"{kind} {count}" for kind, count in report.datagrams.items())
        yield from filled("datagrams", counts)
    if report.server_cpu is not None and report.messages:
        yield f"server    {report.server_cpu / report.messages * 1e6:.2f} us of CPU per message"
    if report.tcp is not None and report.tcp.retransmits:
        yield (
            f"tcp       {plural(report.tcp.retransmits, 'retransmit')}, round trip "
            f"{format_duration(report.tcp.rtt_us / 1e6)}"
        )
    if report.outages is not None:
        yield from filled("outages", outages_of(report.outages))
    if report.client.known:
        yield f"client    busy {report.client.busy:.0%}"
    if report.merged:
        files = tuple(each["file"] for each in report.merged)
        yield from filled("merged", f"{len(files)} runs: {', '.join(files)}", files)
    names = (report.endpoint, report.address)
    for note in report.notes:
        yield from filled("note", note, names)
    for result in report.targets or ():
        yield from filled("target", str(result))
    good = "yes" if report.client.known else "unknown: this client does not observe itself"
    yield from filled("valid", good if report.valid else "NO")
    for reason in report.reasons:
        yield from filled("", reason, names)


def stages_of(report: LoadReport) -> Iterator[str]:
    for stage in report.stages or ():
        words = [f"{stage.stage}: {format_rate(stage.messages_per_s)}"]
        if stage.offered != stage.messages:
            words.append(f"{stage.offered - stage.messages} of {stage.offered} unanswered")
        if stage.latency.count:
            for name, value in (
                ("p50", stage.latency.p50),
                ("p99", stage.latency.p99),
                ("max", stage.latency.max),
            ):
                words.append(f"{name} {format_duration(value / 1e6)}")
        yield from filled("stage", ", ".join(words))


def head_of(report: LoadReport) -> Iterator[str]:
    """Where and how: on one line if that has room."""
    options = report.options
    how = ", ".join(
        (
            plural(options.get("connections", 1), "connection"),
            f"{format_size(options.get('size', 0))} messages",
            *load_of(options),
            f"window {format_duration(report.duration)}",
        )
    )
    line = f"{report.endpoint}: {how}"
    if columns_of(line) <= COLUMNS:
        yield line
    else:
        yield report.endpoint
        yield from filled("", how)


def mode_of(options: Mapping[str, Any]) -> str:
    mode: str = options.get("mode", "echo")  # the twin has no other
    return mode


def load_of(options: Mapping[str, Any]) -> Iterator[str]:
    """The load in a few words."""
    mode, rate = mode_of(options), options.get("rate")
    if mode != "echo":
        yield mode
    if options.get("stages"):
        yield f"open loop, {plural(options['stages'].count(',') + 1, 'stage')}"
    elif rate is not None:
        yield f"open loop, {format_rate(rate)}"
    elif mode == "echo":
        yield f"depth {options.get('depth', 1)}"


def latencies_of(report: LoadReport) -> Iterator[tuple[str, Latency]]:
    """The distributions that this run has."""
    closed_loop = report.offered is None
    if mode_of(report.options) == "echo":
        if closed_loop:
            yield "latency", report.latency
        else:
            yield "intended", report.latency
            yield "sent", report.latency_from_send
    if not closed_loop:
        yield "delay", report.send_delay
    if report.connect_latency.count:
        yield "connect", report.connect_latency


def blocks_of(percentiles: Sequence[float]) -> Iterator[Sequence[str | float]]:
    """What stands in the columns: in a first line min, mean, max and percentiles, the others below.

    A percentile is its number.
    """
    first = CELLS - 3
    yield ("min", "mean", *percentiles[:first], "max")
    if len(percentiles) > first:
        yield percentiles[first:]


def titles_of(columns: Sequence[str | float]) -> str:
    names = (each if isinstance(each, str) else name_of(each) for each in columns)
    return " " * 9 + "".join(f" {name:>{WIDTH}}" for name in names)


def latency_line(name: str, latency: Latency, columns: Sequence[str | float]) -> str:
    """One distribution; a percentile that is a matter of chance is ``-``."""
    values = [_value(latency, column) for column in columns]
    for unit, factor, decimals in UNITS:
        cells = [figure(each and each / factor, decimals) for each in values]
        line = f"{name:9} {' '.join(cells)} {unit}"
        if columns_of(line) <= COLUMNS:
            break
    return line


def _value(latency: Latency, column: str | float) -> float | None:
    if not latency.count:
        return None
    if isinstance(column, str):
        value: float = getattr(latency, column)
        return value
    value = latency.at(column)
    return value if latency.count_above(column) >= SIGNIFICANT and value == value else None


def figure(value: float | None, decimals: int = 1) -> str:
    """A number in `WIDTH` columns, with fewer decimals if that makes it fit."""
    if value is None:
        return "-".rjust(WIDTH)
    for fewer in range(decimals, -1, -1):
        text = f"{value:{WIDTH}.{fewer}f}"
        if len(text) <= WIDTH:
            break
    return text


def outages_of(outages: Outages) -> str:
    if not outages.count:
        return "none"
    return (
        f"{outages.count}, {format_duration(outages.seconds)} in all, longest "
        f"{format_duration(outages.longest_s)}, {outages.messages} messages without an answer"
    )


def filled(title: str, text: str, names: tuple[str, ...] = ()) -> Iterator[str]:
    """A titled text over as many lines as it takes; `names` are not taken apart at spaces."""
    for name in names:
        text = text.replace(name, name.replace(" ", "\0"))  # no name has a NUL
    line = f"{title:{INDENT - 1}}"
    for word in text.split(" "):
        if columns_of(line) + 1 + columns_of(word) > COLUMNS and line.strip():
            yield line.rstrip()
            line = " " * (INDENT - 1)
        line += f" {word}".replace("\0", " ")
        if columns_of(line) > COLUMNS:  # the word alone
            yield line.strip()
            line = " " * (INDENT - 1)
    if line.strip():
        yield line.rstrip()


def columns_of(text: str) -> int:
    """Columns on a terminal, or more: no character takes more of them than it has bytes in UTF-8.

    A character of an Asian script takes two.
    """
    return len(text.encode(errors="replace"))
