"""Two sides of load runs compared: by how much the rate and the percentiles differ.

The run is the unit. The figures of one run depend on each other, so that an interval made from
within one run would find differences between equal servers. The interval is Welch's t interval on
the logarithms of the runs' figures. Its level is 99 %, because several figures are looked at.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastsock.client import series, student_t
from fastsock.client.document_reader import reports_of
from fastsock.client.report import LoadReport
from fastsock.client.saved import Saved
from fastsock.client.text import filled
from fastsock.client.verdict import SIGNIFICANT
from fastsock.suggestions import near
from fastsock.units import format_rate, plural

COMPARE_SCHEMA = "fastsock.compare/1"
LEVEL = 0.99

METRICS = series.METRICS

#: Options that make another load: runs that differ in one are not compared.
_LOAD = (
    "mode",
    "size",
    "connections",
    "depth",
    "rate",
    "stages",
    "arrivals",
    "threads",
    "reconnect_every",
)
#: Other options and facts that a difference may come from: they are told.
_TOLD = ("wait", "duration", "messages", "warmup", "verify", "nodelay", "gso", "finish")
_HOST = {"cpu": "CPU", "cpus": "number of CPUs", "kernel": "kernel", "fastsock": "fastsock"}

#: The resolution of a percentile: a step of the histogram, in microseconds or as a share.
_STEP_US, _STEP = 0.064, 0.001

_FEW = f"fewer than {student_t.FEWEST} runs a side"
VERDICTS = {
    "faster": "AFTER is faster",
    "slower": "AFTER is slower",
    "no_difference": "no difference shown",
    None: "no claim",
}

#: What stands over the table, and how wide the columns are: 80 in all.
TITLES = ("", "before", "after", "change", "99% interval", "")
_WIDTHS = (-6, 8, 8, 11, 22, -19)

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_TARGET = re.compile(r"([\w.]+)\s*([<>=!]{1,2})\s*([+-]?)\s*(\d+\.?\d*|\.\d+)\s*(%?)")


# --- the two sides ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Side:
    """The runs before, or those after."""

    path: str
    reports: tuple[LoadReport, ...]

    @classmethod
    def of(cls, saved: Saved) -> Side:
        """The side that is in a file or a directory; ValueError if a run is damaged."""
        return cls(saved.path, tuple(report for _, report in reports_of(saved)))

    def __str__(self) -> str:
        return f"{self.path}: {plural(len(self.reports), 'run')} of {self.reports[0].endpoint}"

    @property
    def not_valid(self) -> list[dict[str, Any]]:
        """Each run that is not valid: its number, when it started, and why."""
        return [
            {
                "run": number,
                "started_at": report.started_at,
                "reasons": [{"code": each.code, "text": each.text} for each in report.reasons],
            }
            for number, report in enumerate(self.reports, 1)
            if not report.valid
        ]

    def values(self, read: Callable[[LoadReport], Any]) -> list[Any]:
        """The different values of the runs, in the order in which they come."""
        found: list[Any] = []
        for report in self.reports:
            if (value := read(report)) not in found:
                found.append(value)
        return found

    def figures(self, metric: str) -> list[float]:
        """The figure of each run; empty if a run does not have it."""
        found = [series.figure_of(report, metric) for report in self.reports]
        return [each for each in found if each is not None] if None not in found else []


def why_not(before: Side, after: Side) -> list[str]:
    """Why the two cannot be compared, a line each; empty if they can be."""
    lines = (line for name, read in _loads() for line in _other_load(name, read, before, after))
    return list(dict.fromkeys(lines))  # once where both sides are one


def _loads() -> Iterator[tuple[str, Callable[[LoadReport], Any]]]:
    yield "kind of endpoint", lambda report: report.endpoint.partition("://")[0]
    for name in _LOAD:
        yield name, _option(name)


def _option(name: str) -> Callable[[LoadReport], Any]:
    return lambda report: report.options.get(name)


def _other_load(
    name: str, read: Callable[[LoadReport], Any], before: Side, after: Side
) -> Iterator[str]:
    first, second = before.values(read), after.values(read)
    for side, values in ((before, first), (after, second)):
        if len(values) > 1:
            yield f"the runs of {side.path} differ in {name}: {_listed(values)}"
    if len(first) == len(second) == 1 and first != second:
        yield f"{name} differs: {_listed(first)} before, {_listed(second)} after"


def _remarks(before: Side, after: Side) -> Iterator[str]:
    """What differs, and may be the cause of a difference."""
    reads = {title: _host(name) for name, title in _HOST.items()}
    for title, read in {**reads, **{name: _option(name) for name in _TOLD}}.items():
        first, second = before.values(read), after.values(read)
        if first != second:
            yield f"{title} differs: {_listed(first)} before, {_listed(second)} after"
    for side in (before, after):
        if side.values(_merged_of) != [0]:
            yield f"{side.path} has merged runs, of several machines"


def _host(name: str) -> Callable[[LoadReport], Any]:
    return lambda report: report.host.get(name)


def _merged_of(report: LoadReport) -> int:
    return len(report.merged)


def _listed(values: Sequence[Any]) -> str:
    shown = ["none" if each is None else f"{each}" for each in values[:4]]
    return ", ".join(shown + ["..."] * (len(values) > 4))


# --- figures ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of both sides: geometric means, and the change from before to after in per cent.

    The unit is messages per second or microseconds. There is no change where a figure is 0, and no
    interval and no verdict with fewer than three runs a side.
    """

    metric: str
    before: float
    after: float
    change_percent: float | None
    interval_percent: tuple[float, float] | None
    verdict: str | None

    @property
    def shown_percent(self) -> float | None:
        """The change that the runs show: 0 where they show no difference."""
        if self.verdict is None:
            return None
        return 0.0 if self.verdict == "no_difference" else self.change_percent


def figure_of(metric: str, before: Sequence[float], after: Sequence[float]) -> Figure:
    if min(*before, *after) <= 0:
        return Figure(metric, _mean(before), _mean(after), None, None, None)
    first, second = _mean(before), _mean(after)
    if min(len(before), len(after)) < student_t.FEWEST:
        return Figure(metric, first, second, (second / first - 1) * 100, None, None)
    step = 0.0 if metric == "rate" else max(_STEP, _STEP_US / min(first, second))
    ratio = student_t.of_ratio(before, after, LEVEL, step)
    verdict = "no_difference"
    if ratio.low > 1 or ratio.high < 1:
        higher_is_better = metric == "rate"
        verdict = "faster" if (ratio.low > 1) is higher_is_better else "slower"
    low, change, high = ((each - 1) * 100 for each in (ratio.low, ratio.estimate, ratio.high))
    return Figure(metric, first, second, change, (low, high), verdict)


def _mean(figures: Sequence[float]) -> float:
    """The geometric mean; 0 if one is 0."""
    if min(figures) <= 0:
        return 0.0
    return math.exp(math.fsum(map(math.log, figures)) / len(figures))


# --- targets ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """What a change must keep, such as ``p99<+5%``."""

    text: str
    metric: str
    operator: str
    limit_percent: float

    @classmethod
    def parse(cls, text: str, name: str = "target") -> Target:
        """Return the target; ValueError if it is none."""
        found = _TARGET.fullmatch(text.strip())
        example = "write METRIC<+N%, as in 'p99<+5%'"
        if found is None:
            raise ValueError(f"{name} {text!r} is not a target of a change; {example}")
        metric, sign, limit = found[1], found[3], f"{found[4]}%"
        if metric not in METRICS:
            meant = near(metric, METRICS)
            hint = f"did you mean {meant}?" if meant else f"expected one of {', '.join(METRICS)}"
            raise ValueError(f"{name} {text!r} has an unknown metric {metric!r}; {hint}")
        if found[2] not in _OPERATORS:
            raise ValueError(f"{name} {text!r} has no operator of a target; write <, <=, > or >=")
        if not sign or not found[5]:
            raise ValueError(
                f"{name} {text!r} has no change in per cent; did you mean "
                f"'{metric}{found[2]}{sign or '+'}{limit}'?"
            )
        return cls(text.strip(), metric, found[2], float(f"{sign}{found[4]}"))


@dataclass(frozen=True, slots=True)
class Judged:
    """A target with the change that the runs show, and whether it is met."""

    target: str
    metric: str
    operator: str
    limit_percent: float
    seen_percent: float | None
    met: bool
    text: str


def _judge(target: Target, figures: Sequence[Figure], runs: int) -> Judged:
    """Missed also where nothing can be said: a target that was not looked at has not been met."""
    figure = next((each for each in figures if each.metric == target.metric), None)
    seen = None if figure is None else figure.shown_percent
    met = seen is not None and _OPERATORS[target.operator](seen, target.limit_percent)
    if figure is None and target.metric == "rate":
        text = "not known: the rate of a run is no number"
    elif figure is None:
        text = f"not known: a run has fewer than {SIGNIFICANT} answers above it"
    elif seen is None:
        text = f"not known: {_FEW if runs < student_t.FEWEST else 'a run has no rate'}"
    elif figure.verdict == "no_difference" and figure.interval_percent is not None:
        text = f"no difference shown ({_interval(figure.interval_percent)})"
    else:
        text = _change(seen)
    fields = (target.text, target.metric, target.operator, target.limit_percent)
    return Judged(*fields, seen, met, f"{target.text}: {text}")


# --- the comparison -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two comparable sides and how they differ."""

    before: Side
    after: Side
    figures: tuple[Figure, ...]
    remarks: tuple[str, ...]
    targets: tuple[Judged, ...]

    @property
    def valid(self) -> bool:
        return not self.before.not_valid and not self.after.not_valid

    @property
    def met(self) -> bool:
        return all(target.met for target in self.targets)

    @property
    def sides(self) -> dict[str, Side]:
        return {"before": self.before, "after": self.after}

    @property
    def rows(self) -> Iterator[tuple[str, ...]]:
        """A row of text for each figure, under `TITLES`."""
        for each in self.figures:
            first, second = (
                series.shown(each.metric, value) for value in (each.before, each.after)
            )
            interval = "-" if each.interval_percent is None else _interval(each.interval_percent)
            change = "-" if each.change_percent is None else _change(each.change_percent)
            yield each.metric, first, second, change, interval, VERDICTS[each.verdict]

    @property
    def notes(self) -> Iterator[str]:
        if min(len(side.reports) for side in self.sides.values()) < student_t.FEWEST:
            yield f"{_FEW}: these are figures, and nothing is claimed"
        yield from self.remarks

    @property
    def not_valid(self) -> Iterator[str]:
        """Each run that is not valid, and why."""
        for title, side in self.sides.items():
            for run in side.not_valid:
                why = run["reasons"][0]["text"]
                yield f"{title}, run {run['run']}, started {run['started_at']}: {why}"

    def as_dict(self) -> dict[str, Any]:
        """As a ``fastsock.compare/1`` document."""
        return {
            "schema": COMPARE_SCHEMA,
            "before": _side(self.before),
            "after": _side(self.after),
            "level": LEVEL,
            "figures": [asdict(each) for each in self.figures],
            "remarks": list(self.remarks),
            "valid": self.valid,
            "targets": [asdict(each) for each in self.targets] or None,
        }

    def __str__(self) -> str:
        return "\n".join(_lines_of(self))


def compare(before: Side, after: Side, targets: Sequence[Target] = ()) -> Comparison:
    """Compare two sides that are comparable (`why_not`)."""
    figures = []
    for metric in METRICS:
        first, second = before.figures(metric), after.figures(metric)
        if first and second:
            figures.append(figure_of(metric, first, second))
    runs = min(len(before.reports), len(after.reports))
    return Comparison(
        before,
        after,
        tuple(figures),
        tuple(_remarks(before, after)),
        tuple(_judge(target, figures, runs) for target in targets),
    )


def _side(side: Side) -> dict[str, Any]:
    return {
        "path": side.path,
        "runs": len(side.reports),
        "endpoints": side.values(lambda report: report.endpoint),
        "labels": side.values(lambda report: report.label),
        "not_valid": side.not_valid,
    }


# --- as text ------------------------------------------------------------------------------------


def _lines_of(comparison: Comparison) -> Iterator[str]:
    for title, side in comparison.sides.items():
        yield from filled(title, str(side), (side.path,))
    yield _line(TITLES)
    yield from map(_line, comparison.rows)
    for note in comparison.notes:
        yield from filled("note", note)
    for target in comparison.targets:
        yield from filled("target", f"{target.text}: {'met' if target.met else 'MISSED'}")
    for text in comparison.not_valid:
        yield from filled("valid", f"NO: {text}")


def _line(cells: Sequence[str]) -> str:
    """The cells with a space between two of them, also where one is wider than its column."""
    padded = (
        cell.ljust(-width) if width < 0 else cell.rjust(width)
        for cell, width in zip(cells, _WIDTHS, strict=True)
    )
    *figures, words = padded
    return f"{' '.join(figures)}  {words}".rstrip()


def _interval(interval_percent: tuple[float, float]) -> str:
    low, high = map(_change, interval_percent)
    times = " times"
    return f"{low.removesuffix(times) if high.endswith(times) else low} to {high}"


def _change(percent: float) -> str:
    """``+5.2%``, or from 10 times as much on ``55 times``."""
    ratio = 1 + percent / 100
    if ratio < 9.9995:  # above, one decimal would print +900.0%, which is 10 times
        return f"{percent:+.1f}%"
    if ratio < 1e9:
        return f"{format_rate(float(f'{ratio:.2g}')).removesuffix('/s')} times"
    return f"{ratio:.0e} times"
