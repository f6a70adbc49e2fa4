"""Runs of several machines at the same time, merged into one report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from fastsock._native.client.histogram import Histogram
from fastsock.client import hdr, verdict
from fastsock.client.document import LATENCIES
from fastsock.client.document_reader import report_of
from fastsock.client.evidence import ClientEvidence
from fastsock.client.report import Finding, Latency, LoadReport, Outages, TcpStory
from fastsock.client.saved import Saved
from fastsock.client.stages import Stage
from fastsock.client.targets import Target
from fastsock.units import format_duration

NOTE = "merged"

#: Options that must be the same, for the runs to be parts of one load.
_SAME = ("mode", "size", "depth", "arrivals", "duration", "warmup", "stages")
#: Options of which the merged run has the sum.
_SUMMED = ("connections", "rate", "threads", "messages")
#: Distributions in LoadReport, and their names in `histograms`.
_HISTOGRAMS = {name: name.removesuffix("_latency") for name in LATENCIES}

_MOST = 0.9  # of the longest window, in which all runs should overlap
_CLOCK = 1e-6  # seconds by which boundaries of intervals may differ: they are printed numbers


class NotMergeableError(Exception):
    """The runs are no parts of one load; ``reasons`` has a line for each reason."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = tuple(reasons)


@dataclass(frozen=True, slots=True)
class Part:
    """One run: its name, its document and its report."""

    name: str
    document: dict[str, Any]
    report: LoadReport

    @classmethod
    def all_of(cls, saved: Saved) -> Iterator[Part]:
        """The runs of a file or a directory; ValueError if one is damaged."""
        for number, document in enumerate(saved.runs, 1):
            name = saved.path if len(saved.runs) == 1 else f"{saved.path} (run {number})"
            try:
                report = report_of(document)
                _window(report)
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{name} is damaged: {error}") from None
            yield cls(name, document, report)


def merge(parts: Sequence[Part], *, at_once: bool = True) -> LoadReport:
    """Merge at least two runs; with `at_once` their windows must overlap.

    Raises:
        NotMergeableError: they are no parts of one load.
        ValueError: a histogram is missing or damaged.

    """
    if reasons := [*_why_not(parts), *(_not_at_once(parts) if at_once else ())]:
        raise NotMergeableError(reasons)
    reports = [part.report for part in parts]
    first, options = reports[0], _options(reports)
    histograms = {name: _histogram(parts, name) for name in LATENCIES}
    latencies = {
        name: _latency([getattr(each, name) for each in reports], histogram)
        for name, histogram in histograms.items()
    }
    report = LoadReport(
        endpoint=first.endpoint,
        options=options,
        duration=max(each.duration for each in reports),
        messages=sum(each.messages for each in reports),
        bytes=sum(each.bytes for each in reports),
        **latencies,  # type: ignore[arg-type]
        histograms={
            _HISTOGRAMS[name]: hdr.encode(each) for name, each in histograms.items() if len(each)
        },
        started_at=min(each.started_at for each in reports),
        address=first.address,
        offered_per_s=_sum([each.offered_per_s for each in reports]),
        offered=None if first.offered is None else sum(each.offered or 0 for each in reports),
        answered_in_window=sum(each.answered_in_window for each in reports),
        errors=_counted([each.errors for each in reports]),
        lost_bytes=sum(each.lost_bytes for each in reports),
        corrupt_bytes=sum(each.corrupt_bytes for each in reports),
        no_eof=sum(each.no_eof for each in reports),
        datagrams=first.datagrams and _counted([each.datagrams or {} for each in reports]),
        outages=_outages([each.outages for each in reports if each.outages]),
        tcp=_tcp([each.tcp for each in reports if each.tcp]),
        client=_client(reports),
        server_cpu=_server_cpu(reports),
        host=first.host,
        merged=tuple(row for part in parts for row in _rows(part)),
    )
    reasons_of_parts = tuple(_findings(parts, lambda report: report.reasons))
    return replace(
        report,
        reasons=reasons_of_parts or verdict.reasons_of_merged(_seen(report, histograms)),
        notes=(*_findings(parts, lambda report: report.notes), *_notes(parts)),
    )


def document_of(report: LoadReport, parts: Sequence[Part]) -> dict[str, Any]:
    """The document of a merged report, with the intervals of its parts."""
    return {**report.as_dict(), "intervals": _intervals(parts)}


# --- what can be merged -------------------------------------------------------------------------


def _why_not(parts: Sequence[Part]) -> Iterator[str]:
    for number, part in enumerate(parts):
        for earlier in parts[:number]:
            if part.document == earlier.document:
                yield f"{part.name} is the same run as {earlier.name}"
                break
    for name, read in _loads():
        first, *others = parts
        value = read(first.report)
        for part in others:
            if read(part.report) != value:
                yield (
                    f"{name} differs: {value} in {first.name}, {read(part.report)} in {part.name}"
                )
                break


def _loads() -> Iterator[tuple[str, Callable[[LoadReport], Any]]]:
    yield "kind of endpoint", lambda report: report.endpoint.partition("://")[0]
    yield "loop", lambda report: "closed" if report.offered is None else "open"
    for name in _SAME:
        yield name, _option(name)


def _option(name: str) -> Callable[[LoadReport], Any]:
    return lambda report: report.options.get(name)


def _not_at_once(parts: Sequence[Part]) -> Iterator[str]:
    last = max(parts, key=lambda part: _window(part.report)[0])
    ended = min(parts, key=lambda part: _window(part.report)[1])
    begin, end = _window(last.report)[0], _window(ended.report)[1]
    if begin >= end:
        yield (
            f"the runs do not overlap in time: {ended.name} ended at {_clock(end)}, before "
            f"{last.name} began at {_clock(begin)}; --not-at-once merges them all the same"
        )


def _window(report: LoadReport) -> tuple[datetime, datetime]:
    """When the measured window began and ended, by the clock of its machine."""
    started = datetime.fromisoformat(report.started_at)
    if started.tzinfo is None:
        started = started.replace(tzinfo=UTC)
    begin = started + timedelta(seconds=report.options.get("warmup") or 0.0)
    return begin, begin + timedelta(seconds=report.duration)


def _clock(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- the parts of a report ----------------------------------------------------------------------


def _options(reports: Sequence[LoadReport]) -> dict[str, Any]:
    """Those that the runs have in common; null for others, but for the sums."""
    options: dict[str, Any] = {}
    for name in reports[0].options:
        values = [report.options.get(name) for report in reports]
        options[name] = values[0] if all(each == values[0] for each in values) else None
        if name in _SUMMED and None not in values:
            options[name] = sum(values)
    return options


def _histogram(parts: Sequence[Part], name: str) -> Histogram:
    """One distribution of all parts, bucket by bucket."""
    merged = Histogram()
    for part in parts:
        count, text = (
            getattr(part.report, name).count,
            part.report.histograms.get(_HISTOGRAMS[name]),
        )
        if not count:
            continue
        if not isinstance(text, str):
            raise ValueError(f"{part.name} has no histogram {_HISTOGRAMS[name]!r} to merge")
        try:
            histogram = hdr.decode(text)
            if len(histogram) != count:
                raise ValueError(f"it has {len(histogram)} values, where {count} are announced")
            merged.add_counts(histogram.counts())
        except ValueError as error:
            raise ValueError(f"{part.name}: histogram {_HISTOGRAMS[name]!r}: {error}") from None
    return merged


def _latency(parts: Sequence[Latency], histogram: Histogram) -> Latency:
    """The histogram's percentiles, with the exact extremes and mean of the parts."""
    recorded = [each for each in parts if each.count]
    if not recorded:
        return Latency()
    found = Latency(**histogram.summary_us())
    highest = max(each.max for each in recorded)
    exact = {
        "min": min(each.min for each in recorded),
        "mean": math.fsum(each.mean * each.count for each in recorded) / found.count,
        "max": highest,
    }
    for each in fields(Latency):
        if each.name.startswith("p"):
            exact[each.name] = min(getattr(found, each.name), highest)
    return replace(found, **exact)  # type: ignore[arg-type]


def _counted(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter(dict.fromkeys(counts[0], 0))
    for each in counts:
        total.update(each)
    return dict(total)


def _outages(parts: Sequence[Outages]) -> Outages | None:
    if not parts:
        return None
    return Outages(
        count=sum(each.count for each in parts),
        seconds=sum(each.seconds for each in parts),
        longest_s=max(each.longest_s for each in parts),
        messages=sum(each.messages for each in parts),
    )


def _tcp(parts: Sequence[TcpStory]) -> TcpStory | None:
    connections = sum(each.connections for each in parts)
    if not connections:
        return None
    return TcpStory(
        connections=connections,
        retransmits=sum(each.retransmits for each in parts),
        rtt_us=sum(each.rtt_us * each.connections for each in parts) / connections,
        max_rtt_us=max(each.max_rtt_us for each in parts),
        min_rtt_us=min((each.min_rtt_us for each in parts if each.min_rtt_us), default=None),
    )


def _client(reports: Sequence[LoadReport]) -> ClientEvidence:
    """Sums, and the mean of `busy` over the threads; unknown if that of one part is."""
    clients = [report.client for report in reports]
    if not all(each.known for each in clients):
        return ClientEvidence()
    threads = [report.options.get("threads") or 1 for report in reports]
    busy = sum(each.busy * count for each, count in zip(clients, threads, strict=True))
    return ClientEvidence(
        busy=busy / sum(threads),
        away_s=sum(each.away_s for each in clients),
        delayed_s=sum(each.delayed_s for each in clients),
        late_s=sum(each.late_s for each in clients),
        longest_s=max(each.longest_s for each in clients),
        throttled_s=_sum(each.throttled_s for each in clients),
        stolen_s=_sum(each.stolen_s for each in clients),
        schedstat=all(each.schedstat for each in clients),
        spinning_threads=sum(each.spinning_threads for each in clients),
        cpus=sum(each.cpus for each in clients),
    )


def _sum(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None if none is."""
    known = [each for each in values if each is not None]
    return sum(known) if known else None


def _server_cpu(reports: Sequence[LoadReport]) -> float | None:
    """That of the one server: clients beside it read the same time of the same process."""
    known = [each.server_cpu for each in reports if each.server_cpu is not None]
    places = [(each.endpoint, each.options.get("server_pid")) for each in reports]
    same = all(each == places[0] for each in places)
    return max(known) if len(known) == 1 or (known and same) else None


def _rows(part: Part) -> Iterator[Mapping[str, Any]]:
    """A row for each run of the part, which may be merged itself."""
    report = part.report
    if report.merged:
        yield from report.merged
        return
    yield {
        "file": part.name,
        "label": report.label,
        "started_at": report.started_at,
        "duration_s": report.duration,
        "connections": report.options.get("connections"),
        "messages": report.messages,
        "messages_per_s": report.messages_per_s,
        "valid": report.valid,
        "host": dict(report.host),
    }


# --- the verdict --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Load:
    """The options by which a run is judged."""

    mode: str
    open_loop: bool
    threads: int
    wait: str
    stages: Sequence[Stage] | None = None
    sources: Sequence[str] = ()
    targets: Sequence[Target] = ()


def _seen(report: LoadReport, histograms: Mapping[str, Histogram]) -> verdict.Seen:
    """What the machines have seen together, as far as it is judged again."""
    options = report.options
    return verdict.Seen(
        options=_Load(
            options.get("mode") or "echo",
            report.offered is not None,
            options.get("threads") or 1,
            options.get("wait") or "",
        ),
        where=report.address,
        duration=report.duration,
        messages=report.messages,
        offered=report.offered or 0,
        in_window=report.answered_in_window,
        errors=report.errors,
        other_errno=0,
        silent=False,
        given_up=0,
        no_eof=report.no_eof,
        cut_off=0,
        lost=report.lost_bytes,
        corrupt=report.corrupt_bytes,
        datagrams=report.datagrams,
        latency=histograms["latency"],
        latency_without_away=histograms["latency_without_away"],
        trends=(),
        client=report.client,
        interrupted_by=None,
    )


def _findings(
    parts: Sequence[Part], read: Callable[[LoadReport], Iterable[Finding]]
) -> Iterator[Finding]:
    """Of all parts, each with the name of its part: the label, where no two have the same."""
    labels = {part.report.label for part in parts} - {None}
    for part in parts:
        name = part.report.label if len(labels) == len(parts) else part.name
        yield from (Finding(each.code, f"{name}: {each.text}") for each in read(part.report))


def _notes(parts: Sequence[Part]) -> Iterator[Finding]:
    endpoints = list(dict.fromkeys(part.report.endpoint for part in parts))
    if len(endpoints) > 1:
        yield Finding(NOTE, f"the runs loaded several endpoints: {', '.join(endpoints)}")
    windows = [_window(part.report) for part in parts]
    common = min(end for _, end in windows) - max(begin for begin, _ in windows)
    overlap, longest = common.total_seconds(), max(part.report.duration for part in parts)
    if overlap <= 0:
        yield Finding(NOTE, "the runs were not at the same time: their summed rate is of no time")
    elif overlap < longest * _MOST:
        yield Finding(
            NOTE,
            f"all runs overlap for {format_duration(overlap)} of {format_duration(longest)} only: "
            "their summed rate is that of this time at most",
        )
    if _intervals(parts) is None and any(part.document.get("intervals") for part in parts):
        yield Finding(NOTE, "the intervals have other boundaries in each run: they are left out")
    if any(part.document.get("stages") for part in parts):
        yield Finding(NOTE, "the stages have no histograms to merge: they are left out")


# --- intervals ----------------------------------------------------------------------------------


def _intervals(parts: Sequence[Part]) -> dict[str, Any] | None:
    """Those of all parts, row by row; None where their boundaries are not equal."""
    found: list[Any] = [part.document.get("intervals") for part in parts]
    if not all(found):
        return None
    try:
        rows = [each["rows"] for each in found]
        if len({len(each) for each in rows}) > 1 or not all(map(_aligned, zip(*rows, strict=True))):
            return None
        merged = [_row(each) for each in zip(*rows, strict=True)]
        settings = {name: found[0][name] for name in ("interval_s", "joined")}
    except (TypeError, KeyError, ValueError):
        raise ValueError(
            f"{parts[0].name}: its intervals, or those of another, are damaged"
        ) from None
    return {**settings, "rows": merged}


def _aligned(rows: Sequence[Mapping[str, Any]]) -> bool:
    first = rows[0]
    return all(
        abs(row[edge] - first[edge]) <= _CLOCK for row in rows for edge in ("start_s", "end_s")
    )


def _row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Percentiles of one row are not known: it has no histogram."""
    highest = [row["max"] for row in rows if row["max"] is not None]
    return {
        **{name: rows[0][name] for name in ("start_s", "end_s")},
        **{name: sum(row[name] for row in rows) for name in ("messages", "errors", "outstanding")},
        "p50": None,
        "p99": None,
        "max": max(highest, default=None),
        "after_window": rows[0]["after_window"],
    }
