"""Several runs of one load, one after the other: ``fastsock.series/1`` (docs/results.md)."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastsock.client import document, student_t
from fastsock.client.load import LoadInterrupted
from fastsock.client.report import LoadReport
from fastsock.client.saved import SERIES_SCHEMA
from fastsock.client.student_t import FEWEST, Interval
from fastsock.client.text import filled, head_of
from fastsock.client.verdict import SIGNIFICANT
from fastsock.signals import Ended
from fastsock.units import format_duration, format_rate, plural

METRICS = ("rate", "p50", "p90", "p99", "p99.9")
_SHOWN = ("rate", "p50", "p99")
_LEVEL = 0.95  # where none was asked for
_MOST_REASONS = 3  # in the text; the table has the codes of all

Run = Callable[[], LoadReport]


def figure_of(report: LoadReport, metric: str) -> float | None:
    """Messages per second, or microseconds; None if it is a matter of chance or not finite."""
    if metric == "rate":
        return report.messages_per_s if math.isfinite(report.messages_per_s) else None
    latency = report.latency
    percent, value = next(each for each in latency.percentiles() if f"p{each[0]:g}" == metric)
    return value if latency.count_above(percent) >= SIGNIFICANT else None


@dataclass(frozen=True, slots=True)
class Confidence:
    """How well rate and p99 are to be known: the half-width of their intervals at a level."""

    level_percent: float
    within_percent: float

    @classmethod
    def parse(cls, text: str, name: str = "confidence") -> Confidence:
        """``95,5``: within 5 % at a level of 95 %; ValueError if it is none."""
        try:
            level, within = map(float, text.replace("%", "").split(","))
        except ValueError:
            raise ValueError(
                f"{name} {text!r} is not LEVEL,PERCENT; write 95,5 to know rate and p99 within 5 % "
                "at 95 %"
            ) from None
        if not 50 <= level <= 99.99:
            raise ValueError(f"{name} level {level:g} is out of range; expected 50 to 99.99")
        if not 0.1 <= within <= 100:
            raise ValueError(f"{name} width {within:g} is out of range; expected 0.1 to 100")
        return cls(level, within)


@dataclass(frozen=True, slots=True)
class Series:
    """The runs of a series, and how well their figures are known.

    ``most`` is how many runs were allowed. ``ended_by`` is the signal that ended the series, and
    ``failure`` why a run could not be made.
    """

    runs: tuple[LoadReport, ...]
    most: int
    confidence: Confidence | None = None
    ended_by: signal.Signals | None = None
    failure: str = ""

    @property
    def failed(self) -> bool:
        """True when a run failed or could not be made."""
        return bool(self.failure) or any(run.failed for run in self.runs)

    @property
    def valid(self) -> bool:
        """Whether the figures can be trusted: each run's, and together as well as asked for."""
        return all(run.valid for run in self.runs) and self.converged is not False

    @property
    def converged(self) -> bool | None:
        """Whether rate and p99 are known as well as was asked for; None if nothing was."""
        return None if self.confidence is None else is_known(self.runs, self.confidence)

    def interval(self, metric: str) -> Interval | None:
        level = self.confidence.level_percent / 100 if self.confidence else _LEVEL
        return interval_of(self.runs, metric, level)

    def as_dict(self) -> dict[str, Any]:
        """As a ``fastsock.series/1`` document."""
        kind = "repeat" if self.confidence is None else "confidence"
        known = None if self.confidence is None else _known(self, self.confidence)
        return as_document(self.runs, kind, confidence=known)

    def __str__(self) -> str:
        return "\n".join(_lines_of(self))


def as_document(
    runs: Sequence[LoadReport],
    kind: str,
    *,
    confidence: dict[str, Any] | None = None,
    find_max: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The ``fastsock.series/1`` document of these runs."""
    first = runs[0]
    return {
        "schema": SERIES_SCHEMA,
        "label": first.label,
        "kind": kind,
        "started_at": first.started_at,
        "endpoint": first.endpoint,
        "runs": [document.of(run) for run in runs],
        "confidence": confidence,
        "find_max": find_max,
    }


def repeat(run: Run, most: int, confidence: Confidence | None = None) -> Series:
    """Run at most `most` times; with `confidence` until rate and p99 are known so well.

    A run that failed and has measured nothing ends the series too. See `make_runs`.
    """

    def following(runs: Sequence[LoadReport]) -> Run | None:
        if len(runs) == most or (runs and _nothing_came(runs[-1])):
            return None
        return None if confidence and is_known(runs, confidence) else run

    runs, ended_by, failure = make_runs(following)
    return Series(runs, most, confidence, ended_by, failure)


def make_runs(
    following: Callable[[Sequence[LoadReport]], Run | None],
) -> tuple[tuple[LoadReport, ...], signal.Signals | None, str]:
    """Make runs, the next being what `following` says to those so far, until it says None.

    Returns them, the signal that ended the series early, and why a run could not be made, if one
    could not. Before the first run has ended such an error, or a signal, is raised.
    """
    runs: list[LoadReport] = []
    ended_by, failure = None, ""
    try:
        while run := following(runs):
            runs.append(run())
    except LoadInterrupted as interrupted:
        ended_by = interrupted.signal
        if interrupted.report.messages or not runs:
            runs.append(interrupted.report)
    except (KeyboardInterrupt, Ended) as between:
        if not runs:
            raise
        ended_by = between.signal if isinstance(between, Ended) else signal.SIGINT
    except OSError as error:
        if not runs:
            raise
        failure = f"run {len(runs) + 1} could not be made: {error.strerror or error}"
    return tuple(runs), ended_by, failure


def _nothing_came(run: LoadReport) -> bool:
    return run.failed and not run.messages and not run.answered_in_window


def interval_of(runs: Sequence[LoadReport], metric: str, level: float) -> Interval | None:
    """The t interval of a figure; None with fewer than three runs, or if one does not have it.

    A run that was interrupted is left out: its window is shorter.
    """
    whole = [run for run in runs if all(each.code != "interrupted" for each in run.reasons)]
    figures = [figure for run in whole if (figure := figure_of(run, metric))]
    if len(figures) < len(whole) or len(figures) < FEWEST:
        return None
    return student_t.of_mean(figures, level)


def is_known(runs: Sequence[LoadReport], confidence: Confidence) -> bool:
    """Whether rate and p99, where there are latencies, are known as well as is asked for."""
    for metric in _judged(runs):
        interval = interval_of(runs, metric, confidence.level_percent / 100)
        if interval is None or interval.half_width * 100 > confidence.within_percent:
            return False
    return True


def _judged(runs: Sequence[LoadReport]) -> tuple[str, ...]:
    return ("rate", "p99") if any(run.latency.count for run in runs) else ("rate",)


def _known(series: Series, confidence: Confidence) -> dict[str, Any]:
    def known(metric: str) -> dict[str, float] | None:
        interval = series.interval(metric)
        if interval is None:
            return None
        return {
            "estimate": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "half_width_percent": interval.half_width * 100,
        }

    return {
        "level_percent": confidence.level_percent,
        "within_percent": confidence.within_percent,
        "most": series.most,
        "converged": series.converged,
        "rate": known("rate"),
        "p99": known("p99"),
    }


# --- as text ------------------------------------------------------------------------------------


def _lines_of(series: Series) -> Iterator[str]:
    yield from head_of(series.runs[0])
    yield f"{'run':>9}" + "".join(f"{metric:>11}" for metric in _SHOWN) + "  valid"
    for number, run in enumerate(series.runs, 1):
        cells = "".join(f"{shown(metric, figure_of(run, metric)):>11}" for metric in _SHOWN)
        codes = ", ".join(dict.fromkeys(each.code for each in run.reasons))
        valid = "yes" if run.valid else f"NO: {codes}"
        line = f"{number:>9}{cells}  {valid}"
        yield line if len(line) <= 80 else f"{line[:76]} ..."
    level = series.confidence.level_percent if series.confidence else _LEVEL * 100
    for metric in _SHOWN:
        if interval := series.interval(metric):
            low, estimate, high = (
                shown(metric, each) for each in (interval.low, interval.estimate, interval.high)
            )
            within = f"within {interval.half_width * 100:.3g}%"
            yield f"{metric:9} {estimate}, {level:g}% interval {low} to {high}, {within}"
    yield from _targets(series)
    if len(series.runs) < FEWEST:
        yield from filled("note", f"fewer than {FEWEST} runs have no interval")
    yield from filled("valid", "yes" if series.valid else "NO")
    for reason in _reasons(series):
        yield from filled("", reason)


def _targets(series: Series) -> Iterator[str]:
    for target in [each.target for each in series.runs[0].targets or ()]:
        missed = sum(target in [each.target for each in run.missed] for run in series.runs)
        of = plural(len(series.runs), "run")
        yield from filled(
            "target", f"{target}: {f'MISSED in {missed} of' if missed else 'met in'} {of}"
        )


def _reasons(series: Series) -> Iterator[str]:
    if series.ended_by:
        yield f"interrupted after {len(series.runs)} of at most {series.most} runs"
    if series.failure:
        yield series.failure
    bad = [(number, run) for number, run in enumerate(series.runs, 1) if not run.valid]
    for number, run in bad[:_MOST_REASONS]:
        yield f"run {number}: {run.reasons[0]}"
    if len(bad) > _MOST_REASONS:
        yield f"and {plural(len(bad) - _MOST_REASONS, 'more run')}"
    if series.confidence and not series.converged:
        yield "; ".join(_unknown(series, series.confidence))


def _unknown(series: Series, confidence: Confidence) -> Iterator[str]:
    asked = f"{confidence.within_percent:g}% at {confidence.level_percent:g}%"
    yield f"not known within {asked} after {len(series.runs)} runs"
    for metric in _judged(series.runs):
        interval = series.interval(metric)
        if interval is not None:
            yield f"{metric} within {interval.half_width * 100:.3g}%"
        elif metric == "rate":
            yield "rate not known"
        elif len(series.runs) >= FEWEST:
            yield f"{metric} of a run has fewer than {SIGNIFICANT} answers above it"


def shown(metric: str, value: float | None) -> str:
    """A figure as text, from messages per second or microseconds."""
    if value is None:
        return "-"
    return format_rate(value) if metric == "rate" else format_duration(value / 1e6)
