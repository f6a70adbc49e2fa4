"""What a load run measured: frozen records.

Times are seconds and latencies microseconds, both from CLOCK_MONOTONIC.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any

from fastsock.client.evidence import ClientEvidence

if TYPE_CHECKING:  # the twin in pure Python has the same reports, and needs no build
    from fastsock._native.client.histogram import Histogram

#: Every way in which a connection of a load run can fail.
LOAD_ERRORS = ("refused", "reset", "timeout", "closed_early", "mismatch", "other")

#: What is counted of the datagrams of a load run.
DATAGRAM_COUNTS = ("sent", "received", "lost", "duplicated", "reordered", "late")

#: The percentiles that every Latency has.
FIXED = (50.0, 90.0, 99.0, 99.9, 99.99)


class Finding(str):
    """A line about a run for people to read, with a code for programs."""

    __slots__ = ("code",)
    code: str

    def __new__(cls, code: str, text: str) -> Finding:
        self = super().__new__(cls, text)
        self.code = code
        return self

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return self.code, str(self)

    @property
    def text(self) -> str:
        return str(self)


@dataclass(frozen=True, slots=True)
class Latency:
    """Summary of a latency distribution in microseconds.

    Where nothing was recorded, ``count`` is 0 and all else not a number (NaN), with which no
    comparison holds: ``p99 < 500`` is False. ``others`` are the percentiles asked for that have no
    field here, with their values.
    """

    count: int = 0
    min: float = math.nan
    mean: float = math.nan
    p50: float = math.nan
    p90: float = math.nan
    p99: float = math.nan
    p99_9: float = math.nan
    p99_99: float = math.nan
    max: float = math.nan
    others: tuple[tuple[float, float], ...] = field(default=(), kw_only=True)

    @classmethod
    def of(cls, histogram: Histogram, percentiles: Iterable[float] = ()) -> Latency:
        """The summary of a histogram, with these percentiles."""
        others = (each for each in percentiles if each not in FIXED)
        return cls(
            **histogram.summary_us(),
            others=tuple((each, histogram.percentile(each) / 1e3) for each in others),
        )

    def __eq__(self, other: object) -> bool:
        """Two in which nothing was recorded are equal, although NaN is not equal to NaN."""
        if not isinstance(other, Latency):
            return NotImplemented
        return self._recorded() == other._recorded()

    def __hash__(self) -> int:
        return hash(self._recorded())

    def _recorded(self) -> tuple[Any, ...]:
        return astuple(self) if self.count else ()

    def percentiles(self) -> tuple[tuple[float, float], ...]:
        """Those on which a run is judged, with their values."""
        return (50.0, self.p50), (90.0, self.p90), (99.0, self.p99), (99.9, self.p99_9)

    def at(self, percent: float) -> float:
        """A percentile; NaN where it was not asked for."""
        values = (self.p50, self.p90, self.p99, self.p99_9, self.p99_99)
        return {**dict(zip(FIXED, values, strict=True)), **dict(self.others)}.get(percent, math.nan)

    def count_above(self, percent: float) -> int:
        """How many answers rank above a percentile."""
        return self.count - min(max(1, int(percent / 100 * self.count + 0.5)), self.count)


@dataclass(frozen=True, slots=True)
class Interval:
    """What came in a part of the window: `start` to `end`, seconds since it began.

    ``messages`` are those of the latencies: answers by their arrival, in an open loop only answers
    to messages of the window. One way they are those of the report. ``errors`` counts connections
    that failed; the first interval also has what failed before the window. ``outstanding`` messages
    were sent and not answered when it ended. ``after_window`` marks the row of what came later.
    ``histograms`` are the distributions by tag (connect, intended, sent), while the run goes on.
    """

    start: float
    end: float
    messages: int
    errors: int
    outstanding: int
    latency: Latency
    after_window: bool = False
    histograms: Mapping[str, Histogram] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Intervals:
    """The figures of a run over time: rows of `joined` intervals of `interval_s` seconds."""

    interval_s: float
    joined: int
    rows: tuple[Interval, ...]


@dataclass(frozen=True, slots=True)
class StageFigures:
    """What came of a stage: of the messages whose intended send time falls in it.

    One that was cut short ends with the window; those after it are not there.
    """

    stage: str
    start: float
    end: float
    rate_from: float
    rate_to: float
    offered: int
    messages: int
    latency: Latency

    @property
    def messages_per_s(self) -> float:
        return self.messages / (self.end - self.start) if self.end > self.start else 0.0


@dataclass(frozen=True, slots=True)
class TargetResult:
    """A target, and whether the run kept it.

    ``limit`` and ``seen`` are in seconds, in messages per second or counts, and where the target
    has a percent sign shares from 0 to 1. ``seen`` is None where nothing was measured, and for a
    percentile with fewer than ten answers above it. ``text`` says what was seen.
    """

    target: str
    metric: str
    operator: str
    limit: float
    seen: float | None
    met: bool
    text: str

    def __str__(self) -> str:
        seen = self.text.removeprefix(f"{self.target}: ")
        return f"{self.target}: {'met' if self.met else 'MISSED'}, {seen}"


@dataclass(frozen=True, slots=True)
class TcpStory:
    """TCP's own figures, read from the kernel at the end of each connection (TCP_INFO, tcp(7)).

    ``retransmits`` is of all ``connections``. ``rtt_us`` is the mean of the smoothed round-trip
    times of the connections, ``max_rtt_us`` the largest, ``min_rtt_us`` the smallest that any saw.
    """

    connections: int
    retransmits: int
    rtt_us: float
    max_rtt_us: float
    min_rtt_us: float | None


@dataclass(frozen=True, slots=True)
class Outages:
    """How often connections failed and were opened again, and for how long they were not there.

    ``messages`` were outstanding when an outage began, and have no answer.
    """

    count: int
    seconds: float
    longest_s: float
    messages: int


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What one load run saw.

    In an open loop ``messages`` and ``bytes`` count complete, verified answers to the messages that
    were to be sent in the window of ``duration`` seconds, whenever they came; ``offered`` is how
    many such messages there were. In a closed loop they count the answers that came inside the
    window. ``answered_in_window`` counts those in both. ``messages_per_s`` is ``messages`` over the
    window; where there was no steady state, ``answered_in_window``.

    ``latency`` is measured from the intended send time and ``latency_from_send`` from the actual
    one; in a closed loop a message is intended when it is sent, so the two are equal, and also hold
    the answers outstanding when the window ended, so that a stall at the end is not hidden.
    ``latency_without_away`` is ``latency`` without the time in which the client itself was away.
    ``connect_latency`` is that of every connection opened, also before the window. ``send_delay``
    is how late messages were sent: the client's own pacing error, and the wait for room in a socket
    that the server does not empty; of an open loop only. ``histograms`` has the whole distributions
    (fastsock.client.hdr), of those in which anything was recorded.

    ``valid`` is False, with ``reasons``, when the figures should not be trusted; ``notes`` say what
    to know of a valid run. ``targets`` are those that were given, each with what was seen; None
    without any. ``client`` is the evidence on which the client judged itself.
    ``server_cpu`` is the CPU time in seconds that the process asked for as ``server_pid``, and
    those that descend from it, used in the window. ``tcp`` is None where there is no TCP.
    ``outages`` is None if connections were not to be opened again. ``no_eof`` counts connections
    that the server did not close after our half-close. ``intervals`` is None without
    `interval`, and ``stages`` without `stages`.

    ``errors`` counts failed connections by kind, and has every kind of ``LOAD_ERRORS``.
    ``datagrams`` counts, over the whole run, what became of the datagrams that were "sent":
    "received" in time or "lost"; and of the answers, how many were "duplicated", "reordered", or
    "late", after their datagram was given up as lost. It is None for streams.

    ``merged`` has a row for each run that was merged into this one (fastsock.client.merge), whose
    rates are added up; it is empty for a run of one machine.

    One way, ``messages`` and ``bytes`` count in mode "send" what the sockets took, a message when
    its last byte was taken, and in mode "receive" complete, verified messages that came. There are
    no answers, and so no latencies.
    """

    endpoint: str
    options: Mapping[str, Any]
    duration: float
    messages: int
    bytes: int
    latency: Latency
    latency_from_send: Latency
    latency_without_away: Latency = Latency()
    connect_latency: Latency = Latency()
    send_delay: Latency = Latency()
    histograms: Mapping[str, str] = field(default_factory=dict)
    started_at: str = ""
    address: str = ""
    offered_per_s: float | None = None
    offered: int | None = None
    answered_in_window: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)  # every kind is filled in
    lost_bytes: int = 0
    corrupt_bytes: int = 0
    no_eof: int = 0
    datagrams: Mapping[str, int] | None = None
    outages: Outages | None = None
    tcp: TcpStory | None = None
    reasons: tuple[Finding, ...] = ()
    notes: tuple[Finding, ...] = ()
    client: ClientEvidence = field(default_factory=ClientEvidence)
    server_cpu: float | None = None
    intervals: Intervals | None = None
    stages: tuple[StageFigures, ...] | None = None
    host: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[TargetResult, ...] | None = None
    merged: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "errors", {**dict.fromkeys(LOAD_ERRORS, 0), **self.errors})

    @property
    def messages_per_s(self) -> float:
        if self.merged:
            return float(sum(each["messages_per_s"] for each in self.merged))
        steady = not {"overload", "not_steady"} & {reason.code for reason in self.reasons}
        messages = self.messages if steady else self.answered_in_window
        return messages / self.duration if self.duration > 0 else 0.0

    @property
    def bytes_per_s(self) -> float:
        size: int = self.options.get("size", 0)
        return self.messages_per_s * size

    @property
    def unanswered(self) -> int:
        """Messages of an open loop's window without an answer."""
        return 0 if self.offered is None else self.offered - self.messages

    @property
    def label(self) -> str | None:
        """The text that was given to find the run again."""
        label: str | None = self.options.get("label")
        return label

    @property
    def failed(self) -> bool:
        """True when any connection failed or any byte was lost or corrupted.

        That of the three for which a target was given does not count.
        """
        counts = {
            "errors": sum(self.errors.values()),
            "lost": self.lost_bytes,
            "corrupt": self.corrupt_bytes,
        }
        decided = {each.metric for each in self.targets or ()}
        return any(count for metric, count in counts.items() if metric not in decided)

    @property
    def missed(self) -> tuple[TargetResult, ...]:
        """The targets that the run did not keep."""
        return tuple(each for each in self.targets or () if not each.met)

    @property
    def valid(self) -> bool:
        return not self.reasons

    def as_dict(self) -> dict[str, Any]:
        """The run as a ``fastsock.load/2`` document, for JSON (docs/results.md)."""
        from fastsock.client import document  # not at the top: it imports this module

        return document.of(self)

    def __str__(self) -> str:
        """The text that ``fastsock load`` prints."""
        from fastsock.client import text  # not at the top: it imports this module

        return text.of(self)

    def __repr__(self) -> str:
        from fastsock.client import text

        return text.in_short(self)
