"""Reports of workers whose load is several runs, one after the other (fastsock.locust)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastsock._native.client.histogram import Histogram
from fastsock.client import hdr
from fastsock.client.document import HISTOGRAMS
from fastsock.client.merge import NOTE, Part, merge, window_of
from fastsock.client.options import LoadOptions
from fastsock.client.report import Finding, Interval, Latency, LoadReport
from fastsock.host import host_facts
from fastsock.units import plural

#: The tags of an interval's histograms, and the distributions of a report that hold them.
_TAGS = {
    "intended": ("latency", "latency_without_away"),
    "sent": ("latency_from_send",),
    "connect": ("connect_latency",),
}


class Progress:
    """What the intervals of a run that goes on have brought so far."""

    def __init__(self, endpoint: str, options: LoadOptions, started_at: str) -> None:
        self._endpoint, self._options, self._started_at = endpoint, options, started_at
        self._histograms: dict[str, Histogram] = {}
        self._seconds = 0.0
        self._messages = self._outstanding = 0

    def add(self, row: Interval) -> None:
        self._seconds = max(self._seconds, row.end)
        if self._options.open_loop or not row.after_window:
            self._messages += row.messages
        self._outstanding = row.outstanding
        for tag, histogram in row.histograms.items():
            self._histograms.setdefault(tag, Histogram()).add(histogram)

    def report(self, errors: Mapping[str, int], datagrams: Mapping[str, int] | None) -> LoadReport:
        """A report of it. What the client has seen of itself is not known before the end."""
        options = self._options
        histograms = dict(self._histograms)
        if not options.open_loop and "sent" in histograms:
            histograms["intended"] = histograms["sent"]
        latencies = {"latency": Latency(), "latency_from_send": Latency()}
        found = {
            name: histograms[tag]
            for tag, names in _TAGS.items()
            for name in names
            if tag in histograms
        }
        latencies |= {name: Latency.of(each, options.percentiles) for name, each in found.items()}
        return LoadReport(
            endpoint=self._endpoint,
            options=options.as_dict() | {"interval": None},
            duration=self._seconds,
            messages=self._messages,
            bytes=self._messages * options.size,
            **latencies,  # type: ignore[arg-type]
            histograms={HISTOGRAMS[name]: hdr.encode(each) for name, each in found.items()},
            started_at=self._started_at,
            # The address that was chosen for a name is told at the end only.
            address=self._endpoint.partition("://")[2],
            offered_per_s=options.offered_per_s,
            offered=self._messages + self._outstanding if options.open_loop else None,
            answered_in_window=self._messages,
            errors=errors,
            datagrams=datagrams,
            host=host_facts(),
        )


def cut_off(report: LoadReport, why: str) -> LoadReport:
    """A report of a run whose end nothing tells."""
    return replace(report, reasons=(*report.reasons, Finding("interrupted", why)))


def joined(runs: Sequence[LoadReport], label: str) -> LoadReport:
    """Runs of one load, one after the other, as one run with this label.

    It has the greatest number of connections, and lasts from the first begin to the last end.
    """
    if len(runs) == 1:
        return replace(runs[0], options={**runs[0].options, "label": label})
    parts = [Part(f"run {number}", each) for number, each in enumerate(runs, 1)]
    whole = merge(parts, at_once=False)
    windows = [window_of(each) for each in runs]
    span = max(end for _, end in windows) - min(begin for begin, _ in windows)
    duration = max(span.total_seconds(), sum(each.duration for each in runs))
    options = {**whole.options, "label": label}
    for name in ("connections", "rate", "threads"):
        options[name] = max((each.options[name] or 0 for each in runs), default=0) or None
    known = [each.server_cpu for each in runs if each.server_cpu is not None]
    notes = [each for each in whole.notes if each.code != NOTE]
    text = f"{plural(len(runs), 'run')}, one after the other: the number of users changed"
    return replace(
        whole,
        options=options,
        duration=duration,
        offered_per_s=None if whole.offered is None else whole.offered / duration,
        server_cpu=sum(known) if known else None,
        client=replace(
            whole.client,
            cpus=max(each.client.cpus for each in runs),
            spinning_threads=max(each.client.spinning_threads for each in runs),
        ),
        reasons=_one_of_each(whole.reasons),
        notes=(*_one_of_each(notes), Finding(NOTE, text)),
        merged=(),
    )


def _one_of_each(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The first with each code: many runs may fail alike."""
    first = {each.code: each for each in reversed(findings)}
    more = Counter(each.code for each in findings)
    return tuple(
        Finding(code, f"{each.text} (and {more[code] - 1} more like it)")
        if more[code] > 1
        else each
        for code, each in reversed(first.items())
    )


def report_of_fleet(parts: Sequence[Part]) -> LoadReport:
    """One report of all workers, as ``fastsock merge`` makes it."""
    return parts[0].report if len(parts) == 1 else merge(parts, at_once=False)


def differences(loads: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """Why loads with these names and options cannot be merged; empty if they can be.

    The options have "kind of endpoint" among them.
    """
    (first, options), *others = loads
    for name, each in others:
        for key in ("kind of endpoint", "mode", "size", "depth", "arrivals"):
            if each[key] != options[key]:
                return f"{key} is {options[key]} in {first} and {each[key]} in {name}"
        if (each["rate"] is None) != (options["rate"] is None):
            return f"rate is given in one of {first} and {name} only"
    return ""
