"""Several runs of ``fastsock load``: --repeat, --confidence and --find-max."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from fastsock.cli.command import GroupedOption
from fastsock.cli.exits import FAILED, NOT_VALID, OK, TARGET_MISSED
from fastsock.cli.files import Files
from fastsock.cli.output import complain, tell, write_result
from fastsock.cli.parameters import KindType
from fastsock.client import find_max, series
from fastsock.client.find_max import Found
from fastsock.client.options import LoadOptions
from fastsock.client.series import Confidence, Run, Series
from fastsock.client.student_t import FEWEST
from fastsock.options import Count, Kind
from fastsock.signals import deferred

_MOST = 10  # runs, where --repeat says nothing, as with -I of netperf


class ConfidenceKind(Kind):
    """``95,5``: within 5 % at 95 %."""

    metavar = "LEVEL,PERCENT"
    separator = "\n"  # the value has a comma

    def parse(self, name: str, text: str) -> Confidence:
        return Confidence.parse(text, name)


def series_options(command: Any) -> Any:
    """Add the options of a series."""
    for option in (
        click.option(
            "--find-max",
            cls=GroupedOption,
            is_flag=True,
            help="Search the highest rate that keeps the targets with valid runs, from --rate or "
            f"that of a closed loop on, within {find_max.PRECISION:.0%}; each step is a run.",
        ),
        click.option(
            "--confidence",
            cls=GroupedOption,
            type=KindType(ConfidenceKind(), "--confidence"),
            help="Repeat until rate and p99 are known within PERCENT at LEVEL %, as in 95,5: at "
            f"least {FEWEST} times, and at most --repeat times or, without it, {_MOST}.",
        ),
        click.option(
            "--repeat",
            cls=GroupedOption,
            group="Series",
            type=KindType(Count(1, 1000), "--repeat"),
            help="Run this many times, one after the other, and show how well rate, p50 and p99 "
            "are known. --json writes all runs.",
        ),
    ):
        command = option(command)
    return command


def run_series(
    run: Run,
    repeat: int | None,
    confidence: Confidence | None,
    files: Files,
    show: Callable[..., None],
) -> int:
    """Make the runs and show them; return an exit code. `show` says that nothing was measured."""
    most = _MOST if repeat is None else repeat
    if confidence and most < FEWEST:
        raise click.UsageError(
            f"--confidence takes at least {FEWEST} runs; give --repeat {FEWEST} or more"
        )
    made = series.repeat(run, most, confidence)
    return _write(made, files, show) or _code_of(made)


def options_of_search(
    options: Mapping[str, Any], *, repeat: int | None, confidence: Confidence | None
) -> dict[str, Any]:
    """Return the options with a rate, as those of each step have; UsageError for what has none."""
    others = {name: options[name] for name in ("stages", "messages")}
    others |= {"repeat": repeat, "confidence": confidence}
    others |= {"depth": options["depth"] > 1, "mode receive": options["mode"] == "receive"}
    for name, given in others.items():
        if given:
            raise click.UsageError(
                f"--find-max does not go with --{name}: each step is one run at a rate"
            )
    return {**options, "rate": options["rate"] or 1.0}


def run_search(
    run: find_max.Load,
    options: LoadOptions,
    start: float | None,
    files: Files,
    show: Callable[..., None],
    *,
    quiet: bool,
) -> int:
    """Search and show what was found; return an exit code. `show` says that nothing came."""
    found = find_max.search(run, options, start, (lambda text: None) if quiet else tell)
    return _write(found, files, show) or _code_of_search(found)


def _write(made: Series | Found, files: Files, show: Callable[..., None]) -> int:
    with deferred():  # a signal loses no result
        code = files.write_document(made.as_dict())
    if not any(each.messages or each.answered_in_window for each in made.runs):
        show(made.runs[0], with_figures=False)
    elif not files.is_stdout_taken:
        write_result(str(made))
    return code


def _code_of_search(found: Found) -> int:
    if found.ended_by:
        return 128 + found.ended_by
    if found.stopped == "failed":
        if found.failure:
            complain(found.failure)
        return FAILED
    if found.stopped == "lowest":
        last = found.runs[-1]
        return TARGET_MISSED if last.valid and last.missed else NOT_VALID
    return NOT_VALID if found.stopped in ("client", "most_steps") else OK


def _code_of(made: Series) -> int:
    if made.ended_by:
        return 128 + made.ended_by
    if made.failed:
        if made.failure:
            complain(made.failure)
        return FAILED
    if not made.valid:
        return NOT_VALID
    return TARGET_MISSED if any(run.missed for run in made.runs) else OK
