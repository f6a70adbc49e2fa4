"""What the page and the table say of one run, read from its document (``fastsock.load/2``)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

from fastsock.client.hdr import decode, step_of
from fastsock.client.percentiles import name_of
from fastsock.client.verdict import SIGNIFICANT
from fastsock.units import format_bits, format_duration, format_rate, format_size, plural

#: Percentiles of the tables; those that a run has too few answers for are left out.
PERCENTS = (50.0, 90.0, 95.0, 99.0, 99.9, 99.99, 99.999)
_POINTS = 240  # of a line; more are not seen
_BINS = 64
_LONGEST_TEXT = 300  # characters of one text from a file


class Distribution:
    """A whole latency distribution, in microseconds."""

    def __init__(self, text: str) -> None:
        self._histogram = decode(text)
        self.count = len(self._histogram)

    def percentile(self, percent: float) -> float:
        return self._histogram.percentile(percent) / 1e3

    def is_chance(self, percent: float) -> bool:
        """Whether too few answers are above a percentile for it to mean anything."""
        return self._histogram.count_above(percent) < SIGNIFICANT

    def curve(self) -> list[tuple[float, float]]:
        """Points of latency over 1 / (1 - percentile), from 1 (the smallest) to the largest."""
        steps = min(_POINTS, max(2, self.count))
        ways = [self.count ** (step / (steps - 1)) for step in range(steps)]
        points = [(way, self.percentile(100 * (1 - 1 / way))) for way in ways]
        return [*points[:-1], (ways[-1], self.percentile(100))]

    def bins(self, edges: Sequence[float]) -> list[int]:
        """How many values are between the edges."""
        found = [0] * (len(edges) - 1)
        ratio = math.log(edges[-1] / edges[0])
        for index, count in self._histogram.counts():
            value = max(step_of(index)[1] / 1e3, edges[0])
            place = math.log(value / edges[0]) / ratio * len(found)
            found[min(int(place), len(found) - 1)] += count
        return found


class Row(NamedTuple):
    """What happened between two times since the window began. Seconds and microseconds."""

    start: float
    end: float
    messages: int
    errors: int
    outstanding: int
    p50: float | None
    p99: float | None
    max: float | None

    @property
    def rate(self) -> float:
        return self.messages / (self.end - self.start) if self.end > self.start else 0.0


class Stage(NamedTuple):
    name: str
    start: float
    end: float
    rate_from: float
    rate_to: float
    offered: int
    messages: int
    rate: float
    latency: Mapping[str, Any]


class Target(NamedTuple):
    target: str
    seen: str
    met: bool


@dataclass(frozen=True, eq=False)
class Run:
    """One run; of the fields that only some documents have, those that are missing are empty."""

    document: Mapping[str, Any]
    name: str
    file: str
    options: Mapping[str, Any]
    distributions: Mapping[str, Distribution]
    rows: tuple[Row, ...]
    after_window: Row | None
    #: So many rows of the document make one of `rows`.
    joined: int
    stages: tuple[Stage, ...]
    targets: tuple[Target, ...]
    #: The file, the directory or the side of a comparison that it is of.
    group: str

    @classmethod
    def of(cls, document: Mapping[str, Any], file: str, name: str = "", group: str = "") -> Run:
        """Read a document; without a name it is called by its label, or by its file."""
        every = [
            (_row(each), bool(each["after_window"]))
            for each in (document.get("intervals") or {}).get("rows", ())
        ]
        rows = [row for row, after in every if not after and row.end != row.start]
        if any(row.end < row.start for row in rows) or any(
            after.start < before.end for before, after in pairwise(rows)
        ):
            raise ValueError("its intervals are not in their order")
        late = [row for row, after in every if after and (row.messages or row.errors)]
        factor = max(1, math.ceil(len(rows) / _POINTS))
        return cls(
            document=document,
            name=cut(name or document.get("label") or file),
            file=file,
            options=document["options"],
            distributions={
                name: Distribution(text) for name, text in document["histograms"].items()
            },
            rows=tuple(_joined(rows[at : at + factor]) for at in range(0, len(rows), factor)),
            after_window=late[0] if late else None,
            joined=factor,
            stages=tuple(_stage(each) for each in document.get("stages") or ()),
            targets=tuple(_target(each) for each in document.get("targets") or ()),
            group=group,
        )

    def with_file(self) -> Run:
        """The same run, with its file in the name: another run has the same label."""
        return replace(self, name=cut(f"{self.name} ({self.file})"))

    @property
    def valid(self) -> bool:
        return bool(self.document["valid"])

    @property
    def verdict(self) -> str:
        if not self.valid:
            return "Not valid"
        return "Valid" if self.document.get("client") else "Validity unknown"

    @property
    def reasons(self) -> list[str]:
        return [cut(each["text"], 1000) for each in self.document["reasons"]]

    @property
    def notes(self) -> list[str]:
        return [cut(each["text"], 1000) for each in self.document.get("notes") or ()]

    @property
    def missed(self) -> list[Target]:
        return [target for target in self.targets if not target.met]

    @property
    def duration(self) -> float:
        return float(self.document["duration_s"])

    @property
    def rate(self) -> float:
        return float(self.document["messages_per_s"])

    @property
    def offered(self) -> float | None:
        """The constant rate of an open loop."""
        rate = self.options.get("rate")
        return None if rate is None else float(rate)

    @property
    def open_loop(self) -> bool:
        return self.offered is not None or bool(self.stages)

    @property
    def percents(self) -> list[float]:
        """Those of the tables, and others that the run was to show."""
        return sorted({*PERCENTS, *map(float, self.options.get("percentiles") or ())})

    @property
    def latency(self) -> Distribution | None:
        """From the intended send time; in a closed loop also from the actual one."""
        return self.distributions.get("latency")

    def percentile(self, percent: float) -> float | None:
        """Of the latency; None where it is a matter of chance, or nothing was answered."""
        latency = self.latency
        if latency is None or latency.is_chance(percent):
            return None
        return latency.percentile(percent)

    @property
    def max(self) -> float | None:
        found = self.document["latency_us"].get("from_intended_send") or {}
        return found.get("max")

    @property
    def failed(self) -> int:
        """Failed connections."""
        return sum(self.document["errors"].values())

    def counts(self) -> Iterator[tuple[str, str]]:
        """What was counted, by name; of what went wrong the counts that are not 0."""
        document = self.document
        what = {"send": "sent", "receive": "received"}.get(self.options.get("mode", ""), "answered")
        yield f"messages {what}", count(document["messages"])
        for kind, number in document["errors"].items():
            if number:
                yield f"connections: {cut(kind).replace('_', ' ')}", count(number)
        for field in ("lost_bytes", "corrupt_bytes"):
            if document.get(field):
                yield field.replace("_", " "), count(document[field])
        if document.get("unanswered"):
            yield "messages without an answer", count(document["unanswered"])
        if document.get("no_eof"):
            yield "connections that the server did not close", count(document["no_eof"])

    def load(self) -> str:
        """The load in one sentence."""
        options, mode = self.options, self.options.get("mode", "echo")
        connections = plural(int(options.get("connections", 1)), "connection")
        size = format_size(options.get("size", 0))
        does = {"send": "sent one way", "receive": "received"}.get(mode, "echoed")
        text = f"{connections}, messages of {size} {does}"
        if self.stages:
            text += f", in an open loop of {plural(len(self.stages), 'stage')}"
        elif self.offered is not None:
            arrivals = {"poisson": "at random times (Poisson)"}.get(
                options.get("arrivals", ""), "evenly spaced"
            )
            text += f", in an open loop at {format_rate(self.offered)}, {arrivals}"
        elif mode == "echo":
            depth = plural(int(options.get("depth", 1)), "message")
            text += f", in a closed loop with {depth} in flight on each"
        text += f", measured for {format_duration(self.duration)}"
        if options.get("warmup"):
            text += f" after a warm-up of {format_duration(options['warmup'])}"
        return f"{text}."

    def figures(self) -> list[tuple[str, str, str]]:
        """Key figures: title, value, remark."""
        rate = f"of {format_rate(self.offered)}" if self.offered is not None else ""
        bytes_per_s = float(self.document.get("bytes_per_s") or 0)
        throughput = f"{format_size(bytes_per_s)}/s"
        if self.latency is not None:
            rate = rate or throughput
        found = [("rate", format_rate(self.rate), rate)]
        if self.latency is not None:
            found += [
                (name_of(percent), duration(self.percentile(percent)), "")
                for percent in (50.0, 99.0, 99.9)
            ]
            found.append(("max", duration(self.max), ""))
        else:
            found.append(("throughput", throughput, format_bits(bytes_per_s * 8)))
        of = plural(int(self.options.get("connections", 1)), "connection")
        found.append(("errors", count(self.failed), f"of {of}"))
        return found

    def cells(self) -> list[str]:
        """The figures of a row in a table of runs: rate, p50, p99, p99.9, errors, valid."""
        valid = {"Valid": "yes", "Not valid": "NO"}.get(self.verdict, "unknown")
        return [
            format_rate(self.rate),
            *(duration(self.percentile(percent)) for percent in (50.0, 99.0, 99.9)),
            count(self.failed),
            valid,
        ]


def _row(row: Mapping[str, Any]) -> Row:
    latencies = (None if row[key] is None else float(row[key]) for key in ("p50", "p99", "max"))
    return Row(
        float(row["start_s"]),
        float(row["end_s"]),
        int(row["messages"]),
        int(row["errors"]),
        int(row["outstanding"]),
        *latencies,
    )


def _joined(rows: Sequence[Row]) -> Row:
    """Neighbours as one: the largest of their p99 and max, and of their p50 the middle one."""
    middle = sorted(row.p50 for row in rows if row.p50 is not None)
    return Row(
        rows[0].start,
        rows[-1].end,
        sum(row.messages for row in rows),
        sum(row.errors for row in rows),
        rows[-1].outstanding,
        middle[len(middle) // 2] if middle else None,
        max((row.p99 for row in rows if row.p99 is not None), default=None),
        max((row.max for row in rows if row.max is not None), default=None),
    )


def _stage(stage: Mapping[str, Any]) -> Stage:
    return Stage(
        cut(stage["stage"], 60),
        float(stage["start_s"]),
        float(stage["end_s"]),
        float(stage["rate_from"]),
        float(stage["rate_to"]),
        int(stage["offered"]),
        int(stage["messages"]),
        float(stage["messages_per_s"]),
        stage["latency_us"] or {},
    )


def _target(target: Mapping[str, Any]) -> Target:
    name, text = cut(target["target"]), cut(target["text"])
    return Target(name, text.removeprefix(name).removeprefix(": "), bool(target["met"]))


def cut(value: object, longest: int = _LONGEST_TEXT) -> str:
    """A text from a file, without what cannot be printed, and shortened if it is very long."""
    text = "".join(each if each.isprintable() else " " for each in str(value)[: longest + 1])
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."


def count(number: float) -> str:
    return f"{int(number):,}"


def duration(microseconds: float | None) -> str:
    return "-" if microseconds is None else format_duration(float(microseconds) / 1e6)


def edges(runs: Sequence[Run]) -> list[float]:
    """Equal steps of a logarithmic axis that hold the latencies of all runs, in microseconds."""
    found = [run.latency for run in runs if run.latency is not None]
    low = max(min(each.percentile(0) for each in found), 0.064) * 0.98
    high = max(max(each.percentile(100) for each in found) * 1.02, low * 1.2)
    return [low * (high / low) ** (step / _BINS) for step in range(_BINS + 1)]
