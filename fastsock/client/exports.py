"""Histograms in the formats of other tools: HdrHistogram's log, and its percentile text.

https://github.com/HdrHistogram/HdrHistogram is the reference: `HistogramLogWriter` of version 1.2,
and `outputPercentileDistribution` with five ticks per half distance. Values are in milliseconds, as
its plotters read them. The percentile text has six decimals of them instead of three, which would
not tell the microseconds of a loopback apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime

from fastsock._native.client.histogram import Histogram
from fastsock.client import hdr
from fastsock.client.report import LoadReport

_LEGEND = '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"'
_TICKS = 5  # lines of the percentile text for each halving of the distance to 100 %
_LAST = 100 - 1e-11  # percent; nearer to 100 a float has too few digits for the next level
_MS = 1e6  # ns
_BUCKETS = 24  # of the layout (histogram.pxd)


# --- the log ------------------------------------------------------------------------------------


def log_header(start_epoch_s: float) -> str:
    """The lines before those of the intervals, whose times count from `start_epoch_s`.

    The second is for people. A base time makes the times of the intervals relative to it, for
    readers that would have to guess whether they are.
    """
    when = datetime.fromtimestamp(start_epoch_s, UTC).strftime("%a %b %d %H:%M:%S UTC %Y")
    return (
        "#[Histogram log format version 1.2]\n"
        f"#[StartTime: {start_epoch_s:.3f} (seconds since epoch), {when}]\n"
        f"#[BaseTime: {start_epoch_s:.3f} (seconds since epoch)]\n"
        f"{_LEGEND}\n"
    )


def log_line(tag: str, start_s: float, length_s: float, histogram: Histogram) -> str:
    """The line of one interval.

    Args:
        tag: tells the lines of several distributions apart; empty for none.
        start_s: when the interval began, in seconds since that of the header.
        length_s: how long it was, in seconds.
        histogram: what was recorded in it; values are nanoseconds.

    Raises:
        ValueError: the tag has a comma or white space, which the format cannot hold.

    """
    if re.search(r"[,\s]", tag):
        raise ValueError(f"tag {tag!r} has a comma or white space")
    tagged = f"Tag={tag}," if tag else ""
    longest = histogram.percentile(100) / _MS
    return f"{tagged}{start_s:.3f},{length_s:.3f},{longest:.3f},{hdr.encode(histogram)}\n"


# --- the percentile text ------------------------------------------------------------------------


def latency_by_percentile(report: LoadReport) -> str:
    """The percentile text of the latencies from the intended send."""
    text = report.histograms.get("latency")
    return percentile_text(hdr.decode(text) if text else Histogram())


def percentile_text(histogram: Histogram) -> str:
    """The distribution by percentile, in ms; mean and deviation are those of the steps."""
    total = len(histogram)
    steps = [(*hdr.step_of(index), count) for index, count in histogram.counts()]
    mean = sum(middle * count for _, middle, count in steps) / total if total else 0.0
    variance = sum((middle - mean) ** 2 * count for _, middle, count in steps) / max(total, 1)
    longest = steps[-1][0] if steps else 0
    return "\n".join(
        (
            f"{'Value':>12} {'Percentile':>14} {'TotalCount':>10} {'1/(1-Percentile)':>14}\n",
            *_lines([(value, count) for value, _, count in steps], total),
            f"#[Mean    = {mean / _MS:12.6f}, StdDeviation   = {math.sqrt(variance) / _MS:12.6f}]",
            f"#[Max     = {longest / _MS:12.6f}, Total count    = {total:12d}]",
            f"#[Buckets = {_BUCKETS:12d}, SubBuckets     = {2 << hdr.HALF_BITS:12d}]\n",
        )
    )


def _lines(steps: list[tuple[int, int]], total: int) -> Iterator[str]:
    """One for each level of `_next_level` that a step reaches, and one for 100 %."""
    so_far, level = 0, 0.0
    for value, count in steps:
        so_far += count
        while level < _LAST and 100 * so_far / total >= level:
            yield _line(value, level, so_far) + f" {1 / (1 - level / 100):14.2f}"
            level = _next_level(level)
            if so_far == total:
                break
    if steps:
        yield _line(steps[-1][0], 100.0, total)


def _line(value: int, level: float, count: int) -> str:
    return f"{value / _MS:12.6f} {level / 100:2.12f} {count:10d}"


def _next_level(level: float) -> float:
    halvings = int(math.log2(100 / (100 - level))) + 1
    return level + 100 / (_TICKS * 2.0**halvings)
