"""Whether a run kept its targets."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence

from fastsock._native.client.histogram import Histogram
from fastsock.client.report import Latency, LoadReport, TargetResult
from fastsock.client.targets import Target
from fastsock.client.verdict import SIGNIFICANT
from fastsock.units import format_duration, format_rate

_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
_NOTHING = "nothing was measured"
#: Distributions whose field in the report has another name.
_FIELDS = {"connect": "connect_latency"}


def results_of(
    targets: Sequence[Target], report: LoadReport, histograms: Mapping[str, Histogram]
) -> tuple[TargetResult, ...] | None:
    """Each target and what was seen; None without targets.

    `histograms` are whole, by their names in the report; one in which nothing was recorded may be
    missing.
    """
    return tuple(_result(each, report, histograms) for each in targets) or None


def _result(
    target: Target, report: LoadReport, histograms: Mapping[str, Histogram]
) -> TargetResult:
    seen: float | None
    if target.distribution:
        seen, why = _of_distribution(target, report, histograms)
    else:
        seen, why = _of_report(target, report), _NOTHING
    met = seen is not None and _HOLDS[target.operator](seen, target.limit)
    return TargetResult(
        target=str(target),
        metric=target.metric,
        operator=target.operator,
        limit=target.limit,
        seen=seen,
        met=met,
        text=f"{target}: {why if seen is None else _shown(target, seen, met)}",
    )


def _of_distribution(
    target: Target, report: LoadReport, histograms: Mapping[str, Histogram]
) -> tuple[float | None, str]:
    """Seconds; or None and the reason."""
    place = target.distribution
    latency: Latency = getattr(report, _FIELDS.get(place, place))
    if not latency.count:
        return None, _NOTHING
    if target.percent is None:
        figure: float = getattr(latency, target.metric.rpartition(".")[2])
        return figure / 1e6, ""
    histogram = histograms[place]
    above = histogram.count_above(target.percent)
    if above < SIGNIFICANT:
        return None, f"too few values, {above} above it where {SIGNIFICANT} are needed"
    # A histogram that was read has the steps of its values: the percentile could be above max.
    return min(histogram.percentile(target.percent), round(latency.max * 1e3)) / 1e9, ""


def _of_report(target: Target, report: LoadReport) -> float | None:
    """Messages per second, a count, or a share from 0 to 1."""
    if target.metric == "rate":
        return report.messages_per_s if report.duration > 0 else None
    if target.metric == "retransmits":
        return None if report.tcp is None else report.tcp.retransmits
    if target.metric == "corrupt":
        return report.corrupt_bytes
    if target.metric == "errors":
        count, of = sum(report.errors.values()), report.options["connections"]
    elif report.datagrams is None:
        count, of = report.lost_bytes, 0
    else:
        count, of = report.datagrams["lost"], report.datagrams["sent"]
    if not target.is_share:
        return count
    return count / of if of else None


def _shown(target: Target, seen: float, met: bool) -> str:
    """What was seen; with three digits, or with more where three would tell the opposite."""
    if target.is_share:
        exact = f"{seen * 100:.6f}%"
        short = f"{seen * 100:.3g}%" if seen == 0 or seen >= 1e-4 else exact
        return _first((short, exact), target, met)
    if target.distribution:
        return _first((format_duration(seen), f"{seen * 1e6:.3f}us"), target, met)
    if target.metric == "rate":
        return _first((format_rate(seen), f"{seen:.3f}/s"), target, met)
    return f"{seen:.0f}"


def _first(texts: tuple[str, ...], target: Target, met: bool) -> str:
    """The first text that, read back, keeps or misses the target as what was seen does."""
    for text in texts:
        limit = Target(f"{target.metric}=={text}").limit
        if _HOLDS[target.operator](limit, target.limit) is met:
            break
    return text
