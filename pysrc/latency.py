"""Latencies, counted in tenths of a microsecond, so that memory does not grow with time."""

from __future__ import annotations

import math
from collections import defaultdict

from ..client.report import Latency

TICKS_PER_SECOND = 10_000_000


class Recorder:
    """Count durations. The hot loop adds to `ticks` itself, which saves a call per message."""

    __slots__ = ("ticks",)

    def __init__(self) -> None:
        #: Whole ticks to the number of messages that took so long.
        self.ticks: defaultdict[int, int] = defaultdict(int)

    def add(self, seconds: float, count: int = 1) -> None:
        self.ticks[int(seconds * TICKS_PER_SECOND)] += count

    def summary(self) -> Latency:
        """Return percentiles by the nearest-rank method: measured values, none interpolated."""
        total = sum(self.ticks.values())
        if not total:
            return Latency()
        ordered = sorted(self.ticks.items())
        ranks = [max(1, math.ceil(total * share)) for share in (0.5, 0.9, 0.99, 0.999, 0.9999)]
        p50, p90, p99, p99_9, p99_99 = _at_ranks(ordered, ranks)
        return Latency(
            count=total,
            min=_microseconds(ordered[0][0]),
            mean=_microseconds(sum(tick * count for tick, count in ordered) / total),
            p50=p50,
            p90=p90,
            p99=p99,
            p99_9=p99_9,
            p99_99=p99_99,
            max=_microseconds(ordered[-1][0]),
        )


def _at_ranks(ordered: list[tuple[int, int]], ranks: list[int]) -> list[float]:
    """Return the values, in microseconds, at ascending ranks counted from 1."""
    values = []
    seen = 0
    counts = iter(ordered)
    tick = 0
    for rank in ranks:
        while seen < rank:
            tick, count = next(counts)
            seen += count
        values.append(_microseconds(tick))
    return values


def _microseconds(ticks: float) -> float:
    return ticks * 1e6 / TICKS_PER_SECOND
