"""The figures of a run over time: what came in each interval.

The threads of a run hand over their figures interval by interval. Where one of them was too late,
its figures are of several intervals, and so is the row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fastsock._native.client.datagram import DatagramLoader
from fastsock._native.client.histogram import Histogram
from fastsock._native.client.stream import Loader
from fastsock.client.report import Interval, Intervals, Latency

#: Rows that a report keeps at most. A run of 24 hours has 86,400 seconds.
MAX_ROWS = 3600

OnInterval = Callable[[Interval], object]


@dataclass(slots=True)
class Chunk:
    """What one thread counted in the intervals `first` to `last`."""

    first: int
    last: int
    messages: int
    errors: int
    outstanding: int
    histograms: dict[str, Histogram] = field(default_factory=dict)
    after_window: bool = False

    def add(self, other: Chunk) -> None:
        self.messages += other.messages
        self.errors += other.errors
        for name, histogram in other.histograms.items():
            self.histograms.setdefault(name, Histogram()).add(histogram)


class _Thread:
    """The chunks of one thread that are not in a row yet."""

    def __init__(self, loader: Loader | DatagramLoader) -> None:
        self.loader = loader
        self.chunks: list[Chunk] = []
        self.outstanding = 0
        self.has_ended = False

    def take(self, *, last: bool) -> None:
        self.chunks += [Chunk(**each) for each in self.loader.take_intervals(last)]
        self.has_ended = self.loader.intervals_taken

    @property
    def reached(self) -> float:
        """The last interval of which everything is known."""
        if self.has_ended:
            return math.inf
        return self.chunks[-1].last if self.chunks else -1


class Collector:
    """Takes the intervals from the threads of a run while it goes on.

    `on_interval` is called with each row when it is known, in the thread that calls `collect()`.
    """

    def __init__(
        self,
        loaders: Sequence[Loader | DatagramLoader],
        interval: float,
        *,
        open_loop: bool,
        has_latency: bool,
        on_interval: OnInterval | None,
    ) -> None:
        self._threads = [_Thread(each) for each in loaders]
        self._interval = interval
        self._latency = ("from_intended" if open_loop else "from_send") if has_latency else ""
        self._on_interval = on_interval
        self._next = 0
        self._window = math.inf  # seconds, once it is known
        self._rows = _Rows(interval)

    def collect(self) -> None:
        """Take what is there; to be called a few times in each interval."""
        for thread in self._threads:
            thread.take(last=False)
        if all(thread.has_ended for thread in self._threads):
            return  # `finish()` knows where the window ended
        while (end := self._complete_to()) is not None:
            self._add_row(end)

    def finish(self, duration: float) -> Intervals:
        """After the run: take what is left. The window was `duration` seconds long."""
        for thread in self._threads:
            thread.take(last=True)
        self._window = duration
        count = max(math.ceil(round(duration / self._interval, 9)), 1)
        while self._next < count and (end := self._complete_to()) is not None:
            self._add_row(end)
        self._add_after()
        return self._rows.done()

    def _complete_to(self) -> int | None:
        """The last interval of the next row; None if a thread has not ended it."""
        end, before = self._next, -1
        while end != before:
            before = end
            for thread in self._threads:
                if thread.reached < end:
                    return None
                for chunk in thread.chunks:
                    if chunk.first <= end < chunk.last and not chunk.after_window:
                        end = chunk.last
        return end

    def _add_row(self, end: int) -> None:
        start, self._next = self._next, end + 1
        seen = self._taken(lambda chunk: chunk.last <= end and not chunk.after_window)
        self._add(seen, start * self._interval, min(self._next * self._interval, self._window))

    def _add_after(self) -> None:
        seen = self._taken(lambda chunk: True)
        seen.after_window = True
        if seen.messages or seen.errors or any(map(len, seen.histograms.values())):
            self._add(seen, self._window, self._window)

    def _taken(self, wanted: Callable[[Chunk], bool]) -> Chunk:
        """The sum of the chunks that are wanted, which are then no longer there."""
        total = Chunk(0, 0, 0, 0, 0)
        for thread in self._threads:
            for chunk in filter(wanted, thread.chunks):
                total.add(chunk)
                thread.outstanding = chunk.outstanding
            thread.chunks = [chunk for chunk in thread.chunks if not wanted(chunk)]
            total.outstanding += thread.outstanding
        return total

    def _add(self, seen: Chunk, start: float, end: float) -> None:
        latency = seen.histograms.get(self._latency, Histogram())
        row = Interval(
            start=start,
            end=end,
            messages=seen.messages,
            errors=seen.errors,
            outstanding=seen.outstanding,
            latency=Latency.of(latency),
            after_window=seen.after_window,
            histograms=_named(seen.histograms),
        )
        self._rows.add(row, latency)
        if self._on_interval:
            self._on_interval(row)


def _named(histograms: Mapping[str, Histogram]) -> dict[str, Histogram]:
    """Those with values, by the tags that a log of histograms has for them."""
    tags = {"from_intended": "intended", "from_send": "sent", "connects": "connect"}
    return {tag: histograms[name] for name, tag in tags.items() if len(histograms.get(name, ()))}


class _Rows:
    """The rows of a report: neighbours are joined when there are too many."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._joined = 1
        #: Without the histograms, and the latencies packed: that is much smaller.
        self._rows: list[tuple[Interval, bytes]] = []
        self._after: list[Interval] = []

    def add(self, row: Interval, latency: Histogram) -> None:
        row = replace(row, histograms={})
        if row.after_window:
            self._after.append(row)
            return
        self._join(row, latency.packed())
        if len(self._rows) >= 2 * MAX_ROWS:
            self._halve()

    def done(self) -> Intervals:
        while len(self._rows) > MAX_ROWS:
            self._halve()
        rows = (*(row for row, _ in self._rows), *self._after)
        return Intervals(self._interval, self._joined, rows)

    def _halve(self) -> None:
        self._joined *= 2
        rows, self._rows = self._rows, []
        for row, latency in rows:
            self._join(row, latency)

    def _join(self, row: Interval, latency: bytes) -> None:
        if not self._rows or self._group(self._rows[-1][0]) != self._group(row):
            self._rows.append((row, latency))
            return
        before, earlier = self._rows.pop()
        both = Histogram()
        both.add_packed(earlier)
        both.add_packed(latency)
        joined = Interval(
            start=before.start,
            end=row.end,
            messages=before.messages + row.messages,
            errors=before.errors + row.errors,
            outstanding=row.outstanding,
            latency=_joined(before.latency, row.latency, both),
        )
        self._rows.append((joined, both.packed()))

    def _group(self, row: Interval) -> int:
        return round(row.start / self._interval) // self._joined


def _joined(one: Latency, other: Latency, both: Histogram) -> Latency:
    """The summary of both, with the exact least, mean and greatest value."""
    if not (one.count and other.count):
        return one if one.count else other
    total = one.mean * one.count + other.mean * other.count
    return replace(
        Latency.of(both),
        min=min(one.min, other.min),
        mean=total / (one.count + other.count),
        max=max(one.max, other.max),
    )
