"""A search for the highest rate that a server keeps, one open-loop run after the other."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from fastsock.client.options import HIGHEST_RATE, LOWEST_RATE, LoadOptions
from fastsock.client.report import LoadReport
from fastsock.client.series import Run, as_document, figure_of, make_runs, shown
from fastsock.client.text import COLUMNS, filled
from fastsock.client.verdict import CLIENT_CODES, SIGNIFICANT
from fastsock.units import format_duration, format_rate, format_size, plural

PRECISION = 0.01  # how far the rate that is not kept may be above the one that is found
_CLIENTS_PRECISION = 0.25  # the same of the client's limit, which is not searched for
MOST_STEPS = 50
_SPOILED = 5  # runs that the client spoils make a rate the client's limit
_SPOILED_RATES = 3  # on the way down: then it is the machine, and not the rate
_SURE = 2  # equal outcomes decide about a rate: the best of three
_HALVINGS = 10
_PROBE = 1.0  # seconds of the closed loop that finds a start

#: `Step.kept` of a run that says nothing about the server.
UNKNOWN = None


class Load(Protocol):
    """Makes a run, with these options instead of those given."""

    def __call__(self, **options: Any) -> LoadReport: ...


@dataclass(frozen=True, slots=True)
class Step:
    """A run at a rate: whether the rate was kept, why not, and the index of the run.

    ``kept`` is None where the run says nothing about the server, and ``why`` where it was kept.
    """

    rate: float
    kept: bool | None
    why: str | None
    run: int


def step_of(report: LoadReport, run: int) -> Step:
    """What a run says about its rate. Without targets it is kept if the run is valid."""
    kept: bool | None = False
    why: str | None = None
    spoiled = [each for each in report.reasons if each.code in CLIENT_CODES]
    if spoiled and not report.failed:
        kept, why = UNKNOWN, str(spoiled[0])
    elif report.reasons:
        why = str(report.reasons[0])
    elif report.missed:
        why = ", ".join(each.text for each in report.missed)
    elif report.unanswered and report.datagrams is None:
        why = f"{report.unanswered} of {report.offered} messages without an answer"
    else:
        kept = True
    return Step(report.options["rate"], kept, why, run)


# --- which rate is next -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bracket:
    """The lowest rate that is not kept and the highest below it that is, as far as is known.

    The best of three runs decides about a rate; one that the client spoils five times is the
    client's limit, and counts as not kept.
    """

    low: float | None
    high: float | None
    #: Of each rate: how often it was kept, not kept, and neither.
    outcomes: Mapping[float, Counter[bool | None]]

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Bracket:
        outcomes: dict[float, Counter[bool | None]] = {}
        for step in steps:
            outcomes.setdefault(step.rate, Counter())[step.kept] += 1
        kept = {rate for rate, counts in outcomes.items() if _is_kept(counts)}
        high = min(outcomes.keys() - kept, default=None)
        low = max((rate for rate in kept if high is None or rate < high), default=None)
        return cls(low, high, outcomes)

    def is_sure(self, rate: float) -> bool:
        counts = self.outcomes[rate]
        return max(counts[True], counts[False]) >= _SURE or counts[UNKNOWN] >= _SPOILED

    def is_clients_limit(self, rate: float) -> bool:
        counts = self.outcomes[rate]
        return counts[UNKNOWN] >= _SPOILED and counts[False] < _SURE


def _is_kept(counts: Counter[bool | None]) -> bool:
    if counts[UNKNOWN] >= _SPOILED:
        return counts[True] >= _SURE
    return counts[True] > counts[False]


def following(steps: Sequence[Step], start: float, lowest: float) -> float | str:
    """The next rate; or why there is none, as `Found.stopped` says it."""
    if not steps:
        return start
    if len(steps) >= MOST_STEPS:
        return "most_steps"
    bracket = Bracket.of(steps)
    last, low, high = steps[-1], bracket.low, bracket.high
    if last.kept is UNKNOWN and not bracket.is_sure(last.rate):
        return last.rate
    if low is not None and high is not None:
        if bracket.is_clients_limit(high) and high <= low * (1 + _CLIENTS_PRECISION):
            return "client"
        middle = _rounded((low + high) / 2)
        if high > low * (1 + PRECISION) and low < middle < high:
            return middle
        # The high end first: if that rate failed by chance, the search goes on above it.
        for rate in (high, low):
            if not bracket.is_sure(rate):
                return rate
        return "found"
    if low is not None:
        if low < HIGHEST_RATE:
            return min(_rounded(low * 2), HIGHEST_RATE)
        return "highest" if bracket.is_sure(low) else low
    assert high is not None
    spoiled = sum(map(bracket.is_clients_limit, bracket.outcomes))
    if spoiled >= _SPOILED_RATES or (spoiled and high <= lowest):
        return "client"
    if high > lowest:
        return max(_rounded(high / 2), lowest)
    return "lowest" if bracket.is_sure(high) else high


def _rounded(rate: float) -> float:
    """As rates are shown, so that what is typed again is the rate of the run."""
    return float(f"{rate:.3g}")


def enough(options: LoadOptions) -> float:
    """The rate at which a run has the answers that the percentiles of its targets need."""
    percents = [
        each.percent
        for each in options.targets
        if each.percent is not None and each.distribution != "connect"
    ]
    # A fifth more: how many messages come at random times varies.
    needed = 1.2 * SIGNIFICANT / (1 - max(percents, default=0.0) / 100)
    return min(max(_rounded(needed / (options.duration or 1.0)), LOWEST_RATE), HIGHEST_RATE)


# --- the search ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has found, and why it stopped.

    ``stopped`` is `found`, or `client_limited` if what was found may be the limit of the client
    itself. Else the highest rate is not known: `client` (the client spoils the runs at the next
    higher rate), `lowest` (the lowest rate is not kept), `highest` (the highest is), `most_steps`,
    `failed` or `interrupted`. A run that was interrupted is no step.
    """

    runs: tuple[LoadReport, ...]
    steps: tuple[Step, ...]
    stopped: str
    ended_by: signal.Signals | None = None
    failure: str = ""

    @property
    def bracket(self) -> Bracket:
        return Bracket.of(self.steps)

    @property
    def rate(self) -> float | None:
        """The highest rate that is kept, as far as is known; None if none is."""
        return self.bracket.low

    def as_dict(self) -> dict[str, Any]:
        """As a ``fastsock.series/1`` document."""
        found = {
            "rate": self.rate,
            "precision": PRECISION,
            "stopped": self.stopped,
            "text": text_of(self),
            "steps": [asdict(step) for step in self.steps],
        }
        return as_document(self.runs, "find_max", find_max=found)

    def __str__(self) -> str:
        return "\n".join(_lines_of(self))


def search(
    load: Load, options: LoadOptions, start: float | None, tell: Callable[[str], object]
) -> Found:
    """Search the highest rate that keeps the targets of `options` with valid runs.

    It begins at `start`, or at the rate of a closed loop, doubles or halves the rate, and bisects
    until both ends are within `PRECISION` and each is confirmed. `tell` gets a line for each step.
    A run that failed ends it. See `make_runs` for signals and errors.
    """
    made = _Search(load, options, start, tell)
    runs, ended_by, failure = make_runs(made.following)
    stopped = "interrupted" if ended_by else made.stopped or "failed"
    found = Found(runs, tuple(made.steps), stopped, ended_by, failure)
    if stopped == "found" and _is_client_limited(found):
        found = Found(runs, found.steps, "client_limited")
    return found


class _Search:
    """The steps so far, and the run that follows."""

    def __init__(
        self, load: Load, options: LoadOptions, start: float | None, tell: Callable[[str], object]
    ) -> None:
        self._load, self._options, self._start, self._tell = load, options, start, tell
        self._has_probe = start is None
        self.steps: list[Step] = []
        self.stopped = ""

    def following(self, runs: Sequence[LoadReport]) -> Run | None:
        """The run after these, for `make_runs`."""
        if len(runs) > self._has_probe:
            self._note(runs[-1], len(runs) - 1)
        if runs and runs[-1].failed:
            self.stopped = "failed"
            return None
        if not runs and self._has_probe:
            return self._probe
        needed = enough(self._options)
        if not self.steps:
            self._begin(runs, needed)
        start = self._start or needed
        step = following(self.steps, start, max(start / 2**_HALVINGS, needed))
        if isinstance(step, str):
            self.stopped = step
            return None
        rate = step
        # Runs at different rates have the same random numbers, and those at one rate others.
        number = sum(each.rate == rate for each in self.steps)
        seed = (self._options.seed + number) % (1 << 63)
        return lambda: self._load(rate=rate, seed=seed)

    def _probe(self) -> LoadReport:
        """A short closed loop. It has no schedule, so what needs one is left out."""
        options = self._options
        return self._load(
            rate=None,
            arrivals="uniform",
            targets=(),
            duration=min(options.duration or _PROBE, _PROBE),
            warmup=min(options.warmup, _PROBE / 2),
        )

    def _begin(self, runs: Sequence[LoadReport], needed: float) -> None:
        """Say where the search begins, if not where it was told to."""
        if runs:
            self._start = _rounded(min(runs[0].messages_per_s, HIGHEST_RATE))
            self._tell(f"a closed loop answers {format_rate(self._start)}: the search begins there")
        if (self._start or 0.0) < needed:
            self._start = needed
            self._tell(
                f"the search begins at {format_rate(needed)}: with a lower rate a run has too few "
                "messages"
            )

    def _note(self, report: LoadReport, run: int) -> None:
        """Add the step of a run, and say it."""
        step = step_of(report, run)
        before = Bracket.of(self.steps)
        again = " again" if step.rate in before.outcomes else ""
        self.steps.append(step)
        verdict = {True: "kept", False: "NOT kept", UNKNOWN: "nothing said about the server"}
        words = [f"step {len(self.steps)}: {format_rate(step.rate)}{again}: {verdict[step.kept]}"]
        words.append(_seen(report))
        if report.reasons or not report.missed:
            words.append(step.why or "")
        if again and step.kept is False and step.rate == before.low:
            words.append("the search goes down")
        self._tell("; ".join(filter(None, words)))


def _seen(report: LoadReport) -> str:
    """The figures of the targets; without targets p99."""
    if report.targets:
        return ", ".join(each.text for each in report.targets)
    p99 = figure_of(report, "p99")
    return "" if p99 is None else f"p99 {format_duration(p99 / 1e6)}"


def _is_client_limited(found: Found) -> bool:
    """Whether the client had no idle time at the rate that was kept, or never at the next."""

    def noted(rate: float | None) -> list[bool]:
        runs = [found.runs[step.run] for step in found.steps if step.rate == rate]
        return [any(note.code == "client_limited" for note in run.notes) for run in runs]

    return any(noted(found.bracket.low)) or all(noted(found.bracket.high))


# --- as text ------------------------------------------------------------------------------------


def text_of(found: Found) -> str:
    """What was found, or why nothing was."""
    low, high = found.bracket.low, found.bracket.high
    rate, next_rate = (each and format_rate(each) for each in (low, high))
    so_far = f"; the highest rate kept is {rate}" if low else "; no rate was kept"
    whys = [step.why for step in found.steps if step.rate == high and step.why]
    why = f": {whys[-1]}" if whys else ""
    last = next(iter(found.runs[-1].reasons), "")
    return {
        "found": f"{rate} is the highest rate kept, within {PRECISION:.0%}; {next_rate} is not"
        + why,
        "client_limited": f"{rate} is the client's own limit: it had no idle time; {next_rate} is "
        f"not kept{why}",
        "client": f"not found: the client or the machine is the limit; {_SPOILED} runs at "
        f"{next_rate} say nothing about the server{why}{so_far}",
        "lowest": f"not found: {next_rate}, the lowest rate tried, is not kept{why}",
        "highest": f"{rate} is kept, and is the highest rate that can be asked for",
        "most_steps": f"not found within {PRECISION:.0%} in {MOST_STEPS} steps{so_far}"
        + (f"; {next_rate} is not{why}" if high else ""),
        "failed": f"not found: {found.failure or f'run {len(found.runs)} failed: {last}'}{so_far}",
        "interrupted": f"not found: interrupted after {plural(len(found.steps), 'step')}{so_far}",
    }[found.stopped]


def _lines_of(found: Found) -> Iterator[str]:
    last = found.runs[-1]
    yield last.endpoint
    options = last.options
    how = [
        "search",
        plural(options.get("connections", 1), "connection"),
        f"{format_size(options.get('size', 0))} messages",
        f"open loop, window {format_duration(options.get('duration') or 0.0)}",
    ]
    yield from filled("", ", ".join(how))
    yield f"{'step':>9}{'rate':>11}{'answered':>11}{'p99':>11}  kept"
    for number, step in enumerate(found.steps, 1):
        run = found.runs[step.run]
        p99 = shown("p99", figure_of(run, "p99"))
        line = f"{number:>9}{format_rate(step.rate):>11}{format_rate(run.messages_per_s):>11}"
        line += f"{p99:>11}  {_kept(step, run)}"
        yield line if len(line) <= COLUMNS else f"{line[: COLUMNS - 4]} ..."
    for rate, counts in found.bracket.outcomes.items():
        if counts[True] and counts[False]:
            runs = counts[True] + counts[False]
            text = f"{format_rate(rate)} was kept in {counts[True]} of {runs} runs"
            yield from filled("note", text)
    if last.targets:
        yield from filled("targets", ", ".join(each.target for each in last.targets))
    yield from filled("found", text_of(found))


def _kept(step: Step, run: LoadReport) -> str:
    if step.kept:
        return "yes"
    codes = ", ".join(dict.fromkeys(each.code for each in run.reasons))
    return f"{'unknown' if step.kept is UNKNOWN else 'NO'}: {codes or step.why}"
