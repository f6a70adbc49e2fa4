"""``fastsock load``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import click

from fastsock.cli.command import Command, usage_errors
from fastsock.cli.exits import FAILED, NOT_VALID, OK, TARGET_MISSED, USAGE
from fastsock.cli.output import complain, progress_bar, warn, write_json, write_result
from fastsock.cli.parameters import file_option, json_option, options_of, quiet_option
from fastsock.cli.timeline import LineFile, line_file
from fastsock.client import load as client
from fastsock.client.options import LoadOptions
from fastsock.client.report import Interval, LoadReport
from fastsock.client.verdict import too_many_spinning
from fastsock.endpoint import Endpoint
from fastsock.options import from_given
from fastsock.units import format_duration, format_rate

INTERVAL = 1.0  # seconds, where none was asked for


@click.command(cls=Command, example="fastsock load 127.0.0.1:7007 -c 64 -d 10s")
@click.argument("endpoint")
@options_of(LoadOptions)
@file_option("--timeline", help="Write a line of JSON for each interval while the run lasts.")
@json_option
@quiet_option
def load(
    endpoint: str, timeline: str | None, json_path: str | None, quiet: bool, **options: Any
) -> int:
    """Load the server at ENDPOINT and report rate, latency and errors.

    Every byte that comes back is compared with what was sent. --mode send and receive measure
    throughput one way, with a server that runs --service discard or chargen.
    """
    try:
        with usage_errors():
            checked = from_given(LoadOptions, options)
        warning = too_many_spinning(checked, len(os.sched_getaffinity(0)))
        if warning and not quiet:
            warn(warning)
        with usage_errors(), observed(checked, timeline, quiet) as observer:
            asked, options["interval"] = checked.interval, observer.interval
            report = client.load(
                endpoint, progress=observer.progress, on_interval=observer.on_interval, **options
            )
    except client.LoadInterrupted as interrupted:
        report = without_unasked(interrupted.report, asked or timeline)
        return show(report, json_path) or observer.code or 128 + interrupted.signal
    report = without_unasked(report, asked or timeline)
    return show(report, json_path) or observer.code or code_of(report)


def code_of(report: LoadReport) -> int:
    """The exit code of a run."""
    if report.failed:
        return FAILED
    if not report.valid:
        return NOT_VALID
    return TARGET_MISSED if report.missed else OK


def show(report: LoadReport, json_path: str | None) -> int:
    """Write the report, or one line that says why there is none; return an exit code."""
    code = write_json(report.as_dict(), json_path) if json_path else OK
    if (
        (report.messages or report.answered_in_window) and json_path != "-" and code == OK
    ):  # else JSON is on stdout
        write_result(str(report))
    elif (report.reasons or report.missed) and code == OK:
        reasons = [
            str(reason)
            for reason in report.reasons
            if reason.code != "no_messages" or not report.failed
        ]
        if {kind for kind, count in report.errors.items() if count} == {"refused"}:
            reasons.append(f"nothing listens there{how_to_start(report)}")
        reasons += [f"target {each}" for each in report.missed]
        complain(f"{report.endpoint}: {'; '.join(reasons)}")
    return code


def how_to_start(report: LoadReport) -> str:
    """The command that starts the missing server, if it belongs on this machine."""
    endpoint = Endpoint.parse(report.endpoint)
    if not (endpoint.is_unix or endpoint.host in ("127.0.0.1", "::1", "localhost")):
        return ""
    service = {"send": " --service discard", "receive": " --service chargen"}
    return f"; start a server: fastsock serve {endpoint}{service.get(report.options['mode'], '')}"


def without_unasked(report: LoadReport, asked: object) -> LoadReport:
    """The report without the intervals that were for the terminal only."""
    return report if asked else replace(report, intervals=None)


@dataclass
class Observer:
    """What is shown and written while a run lasts."""

    interval: float | None
    progress: Callable[[float], object] | None = None
    show_interval: Callable[[Interval], object] | None = None
    files: list[LineFile] = field(default_factory=list)

    def on_interval(self, row: Interval) -> None:
        for file in self.files:
            file.write_interval(row)
        if self.show_interval:
            self.show_interval(row)

    @property
    def code(self) -> int:
        return USAGE if any(file.failed for file in self.files) else OK


@contextmanager
def observed(options: LoadOptions, timeline: str | None, quiet: bool) -> Iterator[Observer]:
    """Draw a bar on stderr, on a terminal only, and write the files of lines."""
    observer = Observer(options.interval)
    total = (options.duration or 0.0) + options.warmup
    with ExitStack() as stack:
        if timeline:
            observer.interval = options.interval or INTERVAL
            observer.files.append(stack.enter_context(line_file(timeline)))
        bar = stack.enter_context(progress_bar("loading", total or None, quiet=quiet))
        if bar is not None:
            task = bar.task_ids[0]
            observer.interval = observer.interval or INTERVAL
            observer.progress = lambda seconds: bar.update(task, completed=seconds, refresh=True)
            observer.show_interval = lambda row: bar.update(task, description=in_short(row))
        yield observer


def in_short(row: Interval) -> str:
    """An interval in a few words."""
    seconds = row.end - row.start
    words = [format_rate(row.messages / seconds)] if seconds else []
    if row.latency.count:
        words.append(f"p99 {format_duration(row.latency.p99 / 1e6)}")
    if row.errors:
        words.append(f"errors {row.errors}")
    return ", ".join(words)
