"""Several runs of ``fastsock load``: --repeat and --confidence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from fastsock.cli.command import GroupedOption
from fastsock.cli.exits import FAILED, NOT_VALID, OK, TARGET_MISSED
from fastsock.cli.files import Files
from fastsock.cli.output import complain, write_result
from fastsock.cli.parameters import KindType
from fastsock.client import series
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
    with deferred():  # a signal loses no result
        code = files.write_document(made.as_dict())
    if not any(each.messages or each.answered_in_window for each in made.runs):
        show(made.runs[0], with_figures=False)
    elif not files.is_stdout_taken:
        write_result(str(made))
    return code or _code_of(made)


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
