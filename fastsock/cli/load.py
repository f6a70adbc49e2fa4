"""``fastsock load``."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import click

from fastsock.cli.command import Command, usage_errors
from fastsock.cli.exits import FAILED, NOT_VALID, OK, TARGET_MISSED
from fastsock.cli.observer import observed
from fastsock.cli.output import (
    check_distinct,
    complain,
    warn,
    write_file,
    write_json,
    write_result,
)
from fastsock.cli.parameters import file_option, json_option, options_of, quiet_option
from fastsock.client import load as client
from fastsock.client.exports import latency_by_percentile
from fastsock.client.options import LoadOptions
from fastsock.client.report import LoadReport
from fastsock.client.verdict import too_many_spinning
from fastsock.endpoint import Endpoint
from fastsock.options import from_given


@dataclass(frozen=True)
class Files:
    """Paths of what is to be written; None for what is not."""

    json: str | None
    hgrm: str | None
    hlog: str | None
    timeline: str | None

    def __post_init__(self) -> None:
        check_distinct(*vars(self).values())


@click.command(cls=Command, example="fastsock load 127.0.0.1:7007 -c 64 -d 10s")
@click.argument("endpoint")
@options_of(LoadOptions)
@json_option
@file_option("--timeline", "Write a line of JSON for each interval while the run lasts.")
@file_option("--hlog", "Write a histogram of each interval to this file (HdrHistogram's log).")
@file_option("--hgrm", "Write the latencies by percentile to this file (HdrHistogram's text).")
@quiet_option
def load(
    endpoint: str,
    json_path: str | None,
    timeline_path: str | None,
    hlog_path: str | None,
    hgrm_path: str | None,
    quiet: bool,
    **options: Any,
) -> int:
    """Load the server at ENDPOINT and report rate, latency and errors.

    Every byte that comes back is compared with what was sent. --mode send and receive measure
    throughput one way, with a server that runs --service discard or chargen.
    """
    files = Files(json_path, hgrm_path, hlog_path, timeline_path)
    try:
        with usage_errors():
            checked = from_given(LoadOptions, options)
            if files.hgrm and checked.mode != "echo":
                raise ValueError(
                    f"hgrm does not go with mode {checked.mode!r}, in which nothing is answered"
                )
        warning = too_many_spinning(checked, len(os.sched_getaffinity(0)))
        if warning and not quiet:
            warn(warning)
        with usage_errors(), observed(checked, files.timeline, files.hlog, quiet) as observer:
            options["interval"] = observer.interval
            report = client.load(
                endpoint, progress=observer.progress, on_interval=observer.on_interval, **options
            )
    except client.LoadInterrupted as interrupted:
        code = write(interrupted.report, files, observer.is_shown_only)
        return code or observer.code or 128 + interrupted.signal
    return write(report, files, observer.is_shown_only) or observer.code or code_of(report)


def write(report: LoadReport, files: Files, without_intervals: bool) -> int:
    """Write the files, then the report; return an exit code."""
    if without_intervals:
        report = replace(report, intervals=None)
    code = write_file(latency_by_percentile(report), files.hgrm) if files.hgrm else OK
    return show(report, files.json) or code


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
