"""Runs of several machines at the same time, merged into one report."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

from fastsock._native.client.histogram import Histogram
from fastsock.client import hdr, target_results, verdict
from fastsock.client.document import HISTOGRAMS
from fastsock.client.document_reader import reports_of
from fastsock.client.evidence import ClientEvidence
from fastsock.client.report import (
    Finding,
    Interval,
    Intervals,
    Latency,
    LoadReport,
    Outages,
    StageFigures,
    TcpStory,
)
from fastsock.client.saved import Saved
from fastsock.client.stages import Stage, Stages
from fastsock.client.targets import COUNTS, Target, metrics_of
from fastsock.client.text import SHOWN
from fastsock.units import format_duration

NOTE = "merged"

#: Options that must be the same, for the runs to be parts of one load.
_SAME = ("mode", "size", "depth", "arrivals", "duration", "warmup")

_MOST = 0.9  # of the longest window, in which all runs should overlap
_DIGITS = 6  # of the seconds of a boundary between intervals: it is a printed number


class NotMergeableError(Exception):
    """The runs are no parts of one load; ``reasons`` has a line for each reason."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = tuple(reasons)


@dataclass(frozen=True, slots=True)
class Part:
    """One run: its name and its report."""

    name: str
    report: LoadReport

    @classmethod
    def all_of(cls, saved: Saved) -> Iterator[Part]:
        """The runs of a file or a directory; ValueError if one is damaged."""
        for name, report in reports_of(saved):
            try:
                window_of(report)
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{name} is damaged: {error}") from None
            yield cls(name, report)


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
    histograms = {name: _histogram(parts, name) for name in HISTOGRAMS}
    latencies = {
        name: _latency([getattr(each, name) for each in reports], histogram, options)
        for name, histogram in histograms.items()
    }
    shown = {HISTOGRAMS[name]: each for name, each in histograms.items() if len(each)}
    report = LoadReport(
        endpoint=first.endpoint,
        options=options,
        duration=max(each.duration for each in reports),
        messages=sum(each.messages for each in reports),
        bytes=sum(each.bytes for each in reports),
        **latencies,  # type: ignore[arg-type]
        histograms={name: hdr.encode(each) for name, each in shown.items()},
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
        intervals=_intervals(reports),
        stages=_stages(reports),
        host=first.host,
        merged=tuple(row for part in parts for row in _runs_of(part)),
    )
    targets = options.get("targets") or ()
    report = replace(report, targets=target_results.results_of(targets, report, shown))
    failures = _failures(metrics_of(targets))
    found = tuple(_findings(parts, lambda each: (*each.reasons, *filter(failures, each.notes))))
    notes = _findings(parts, lambda each: (note for note in each.notes if not failures(note)))
    return replace(
        report,
        reasons=found or verdict.reasons_of_merged(_seen(report, histograms, targets)),
        notes=(*notes, *_notes(parts, report)),
    )


def _failures(decided: set[str]) -> Callable[[Finding], bool]:
    """Whether a note is a failure that a target of its own run alone decides."""
    return lambda note: note.code in COUNTS and note.code not in decided


# --- what can be merged -------------------------------------------------------------------------


def _why_not(parts: Sequence[Part]) -> Iterator[str]:
    for number, part in enumerate(parts):
        for earlier in parts[:number]:
            if part.report == earlier.report:
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
    yield "length of the stages", _lengths


def _option(name: str) -> Callable[[LoadReport], Any]:
    return lambda report: report.options.get(name)


def _lengths(report: LoadReport) -> str:
    stages = report.options.get("stages") or "none"
    return ", ".join(stage.partition("@")[0].strip() for stage in stages.split(","))


def _not_at_once(parts: Sequence[Part]) -> Iterator[str]:
    last = max(parts, key=lambda part: window_of(part.report)[0])
    ended = min(parts, key=lambda part: window_of(part.report)[1])
    begin, end = window_of(last.report)[0], window_of(ended.report)[1]
    if begin >= end:
        yield (
            f"the runs do not overlap in time: {ended.name} ended at {_clock(end)}, before "
            f"{last.name} began at {_clock(begin)}; --not-at-once merges them all the same"
        )


def window_of(report: LoadReport) -> tuple[datetime, datetime]:
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
    """Those that the runs have in common; null for others, but for those that are joined."""
    options: dict[str, Any] = {}
    for name in reports[0].options:
        values = [report.options.get(name) for report in reports]
        if name in _JOINED and None not in values:
            options[name] = _JOINED[name](values)
        else:
            options[name] = values[0] if all(each == values[0] for each in values) else None
    return options


def _common(values: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    return tuple(each for each in values[0] if all(each in others for others in values))


def _all(values: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(each for some in values for each in some))


def _summed(values: Sequence[str]) -> str:
    """Stages of which each has the sum of the rates."""
    runs = [Stages().check("stages", each) for each in values]
    return ", ".join(
        str(
            Stage(
                stages[0].duration,
                sum(each.rate_from for each in stages),
                sum(each.rate_to for each in stages),
            )
        )
        for stages in zip(*runs, strict=True)
    )


#: Options of which the merged run has what this makes of those of the runs.
_JOINED: dict[str, Callable[[Sequence[Any]], Any]] = {
    **dict.fromkeys(("connections", "rate", "threads", "messages"), sum),
    "stages": _summed,
    "sources": _all,
    "targets": _common,
    "percentiles": lambda values: _common(values) or SHOWN,
}


def _histogram(parts: Sequence[Part], name: str) -> Histogram:
    """One distribution of all parts, bucket by bucket."""
    merged = Histogram()
    for part in parts:
        count, text = (
            getattr(part.report, name).count,
            part.report.histograms.get(HISTOGRAMS[name]),
        )
        if not count:
            continue
        if not isinstance(text, str):
            raise ValueError(f"{part.name} has no histogram {HISTOGRAMS[name]!r} to merge")
        try:
            histogram = hdr.decode(text)
            if len(histogram) != count:
                raise ValueError(f"it has {len(histogram)} values, where {count} are announced")
            merged.add_counts(histogram.counts())
        except ValueError as error:
            raise ValueError(f"{part.name}: histogram {HISTOGRAMS[name]!r}: {error}") from None
    return merged


def _latency(parts: Sequence[Latency], histogram: Histogram, options: Mapping[str, Any]) -> Latency:
    """The histogram's percentiles, with the exact extremes and mean of the parts."""
    recorded = [each for each in parts if each.count]
    if not recorded:
        return Latency()
    found = Latency.of(histogram, options.get("percentiles") or ())
    highest = max(each.max for each in recorded)
    exact: dict[str, Any] = {
        "min": min(each.min for each in recorded),
        "mean": math.fsum(each.mean * each.count for each in recorded) / found.count,
        "max": highest,
        "others": tuple((percent, min(value, highest)) for percent, value in found.others),
    }
    for each in fields(Latency):
        if each.name.startswith("p"):
            exact[each.name] = min(getattr(found, each.name), highest)
    return replace(found, **exact)


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


def _runs_of(part: Part) -> Iterator[Mapping[str, Any]]:
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


def _seen(
    report: LoadReport, histograms: Mapping[str, Histogram], targets: Sequence[Target]
) -> verdict.Seen:
    """What the machines have seen together, as far as it is judged again."""
    options = report.options
    return verdict.Seen(
        options=_Load(
            options.get("mode") or "echo",
            report.offered is not None,
            options.get("threads") or 1,
            options.get("wait") or "",
            targets=targets,
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


def _notes(parts: Sequence[Part], report: LoadReport) -> Iterator[Finding]:
    reports = [part.report for part in parts]
    endpoints = list(dict.fromkeys(each.endpoint for each in reports))
    if len(endpoints) > 1:
        yield Finding(NOTE, f"the runs loaded several endpoints: {', '.join(endpoints)}")
    windows = [window_of(each) for each in reports]
    common = min(end for _, end in windows) - max(begin for begin, _ in windows)
    overlap, longest = common.total_seconds(), max(each.duration for each in reports)
    if overlap <= 0:
        yield Finding(NOTE, "the runs were not at the same time: their summed rate is of no time")
    elif overlap < longest * _MOST:
        yield Finding(
            NOTE,
            f"all runs overlap for {format_duration(overlap)} of {format_duration(longest)} only: "
            "their summed rate is that of this time at most",
        )
    if report.intervals is None and any(each.intervals for each in reports):
        yield Finding(
            NOTE, "the intervals are left out: a run has none, or none that end at the same times"
        )
    if report.stages is None and any(each.stages for each in reports):
        yield Finding(NOTE, "the stages are left out: a run does not have the figures of each")
    elif any(stage.messages and not stage.latency.count for stage in report.stages or ()):
        yield Finding(NOTE, "the stages have no latency: a run keeps no histogram of a stage")
    every = _all([each.options.get("targets") or () for each in reports])
    if alone := [each for each in every if each not in (report.options.get("targets") or ())]:
        yield Finding(NOTE, f"targets of some runs alone are left out: {', '.join(alone)}")


# --- intervals and stages -----------------------------------------------------------------------


def _intervals(reports: Sequence[LoadReport]) -> Intervals | None:
    """The sums of all parts, from one boundary that all have to the next; None without such."""
    found = [each.intervals for each in reports if each.intervals]
    if len(found) < len(reports):
        return None
    inside = [[row for row in each.rows if not row.after_window] for each in found]
    ends = sorted(set.intersection(*({_end(row) for row in rows} for rows in inside)))
    if not ends or any(_end(rows[-1]) > ends[-1] for rows in inside):
        return None
    groups: dict[float, list[Interval]] = {end: [] for end in ends}
    for each in inside:
        for end, group in groupby(each, lambda row: ends[bisect_left(ends, _end(row))]):
            rows = list(group)
            groups[end].append(_row(rows, rows[-1].outstanding))
    late = [row for each in found for row in each.rows if row.after_window]
    return Intervals(
        max(each.interval_s for each in found),
        max(each.joined for each in found),
        tuple(
            _row(rows, sum(each.outstanding for each in rows))
            for rows in (*groups.values(), late)
            if rows
        ),
    )


def _end(row: Interval) -> float:
    return round(row.end, _DIGITS)


def _row(rows: Sequence[Interval], outstanding: int) -> Interval:
    return Interval(
        start=min(each.start for each in rows),
        end=max(each.end for each in rows),
        messages=sum(each.messages for each in rows),
        errors=sum(each.errors for each in rows),
        outstanding=outstanding,
        latency=_largest([each.latency for each in rows]),
        after_window=rows[0].after_window,
    )


def _largest(parts: Sequence[Latency]) -> Latency:
    """Count and maximum: percentiles without histograms cannot be added."""
    recorded = [each for each in parts if each.count]
    if not recorded:
        return Latency()
    return Latency(sum(each.count for each in recorded), max=max(each.max for each in recorded))


def _stages(reports: Sequence[LoadReport]) -> tuple[StageFigures, ...] | None:
    found = [each.stages for each in reports if each.stages]
    if len(found) < len(reports):
        return None
    texts = _summed([each.options["stages"] for each in reports]).split(", ")
    return tuple(
        replace(
            parts[0],
            stage=text,
            rate_from=sum(each.rate_from for each in parts),
            rate_to=sum(each.rate_to for each in parts),
            offered=sum(each.offered for each in parts),
            messages=sum(each.messages for each in parts),
            latency=Latency(),
        )
        for text, *parts in zip(texts, *found, strict=True)
    )
