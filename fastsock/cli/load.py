"""``fastsock load``."""

from __future__ import annotations

import os
from typing import Any

import click

from fastsock.cli.command import Command, GroupedOption, usage_errors
from fastsock.cli.exits import OK, code_of
from fastsock.cli.files import Files, html_option
from fastsock.cli.observer import observed
from fastsock.cli.output import (
    complain,
    warn,
    write_file,
    write_result,
)
from fastsock.cli.parameters import KindType, file_option, json_option, options_of, quiet_option
from fastsock.cli.series import options_of_search, run_search, run_series, series_options
from fastsock.cli.start_at import StartAt
from fastsock.client import load as client
from fastsock.client.exports import latency_by_percentile
from fastsock.client.options import LoadOptions
from fastsock.client.report import LoadReport
from fastsock.client.series import Confidence
from fastsock.client.verdict import too_many_spinning
from fastsock.endpoint import Endpoint
from fastsock.options import from_given
from fastsock.signals import deferred


@click.command(cls=Command, example="fastsock load 127.0.0.1:7007 -c 64 -d 10s")
@click.argument("endpoint")
@options_of(LoadOptions)
@series_options
@click.option(
    "--start-at",
    cls=GroupedOption,
    group="Many machines",
    type=KindType(StartAt(), "--start-at"),
    help="Begin at this time, in UTC (14:30:00 is today), or +5s from now. Connections are opened "
    "shortly before. For runs of several machines, which `fastsock merge` joins.",
)
@json_option
@html_option
@file_option("--timeline", "Write a line of JSON for each interval while the run lasts.")
@file_option("--hlog", "Write a histogram of each interval to this file (HdrHistogram's log).")
@file_option("--hgrm", "Write the latencies by percentile to this file (HdrHistogram's text).")
@quiet_option
def load(
    endpoint: str,
    repeat: int | None,
    confidence: Confidence | None,
    find_max: bool,
    start_at: float | None,
    json_path: str | None,
    html_path: str | None,
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
    files = Files(json_path, html_path, hgrm_path, hlog_path, timeline_path)
    is_series = repeat is not None or confidence is not None
    start = options["rate"]
    if start_at is not None and (is_series or find_max):
        raise click.UsageError("--start-at goes with one run, not with a series")
    if find_max:
        options = options_of_search(options, repeat=repeat, confidence=confidence)
    with usage_errors():
        checked = from_given(LoadOptions, options)
        checked.check_target(Endpoint.parse(endpoint))
        files.check(checked.mode, is_series=is_series or find_max)
    warning = too_many_spinning(checked, len(os.sched_getaffinity(0)))
    if warning and not quiet:
        warn(warning)

    def run(**changed: Any) -> LoadReport:
        given = {**options, **changed}
        with (
            usage_errors(),
            observed(from_given(LoadOptions, given), files, quiet) as observer,
        ):
            observer.start_at = start_at
            return observer.load(endpoint, given)

    if find_max:
        return run_search(run, checked, start, files, show, quiet=quiet)
    if is_series:
        return run_series(run, repeat, confidence, files, show)
    try:
        report = run()
    except client.LoadInterrupted as interrupted:
        return write(interrupted.report, files) or files.code or 128 + interrupted.signal
    return write(report, files) or files.code or code_of(report)


def write(report: LoadReport, files: Files) -> int:
    """Write the files, then the report to stdout; return an exit code."""
    with deferred():  # a signal loses no result
        code = files.write_document(report.as_dict())
        if files.hgrm:
            code = write_file(latency_by_percentile(report), files.hgrm) or code
        if code == OK or not files.is_stdout_taken:
            show(report, with_figures=not files.is_stdout_taken)
    return code


def show(report: LoadReport, *, with_figures: bool) -> None:
    """Write the report to stdout, or what is wrong with it to stderr."""
    if (report.messages or report.answered_in_window) and with_figures:
        write_result(str(report))
        return
    reasons = [
        str(reason)
        for reason in report.reasons
        if reason.code != "no_messages" or not report.failed
    ]
    if {kind for kind, count in report.errors.items() if count} == {"refused"}:
        reasons.append(f"nothing listens there{how_to_start(report)}")
    reasons += [f"target {each}" for each in report.missed]
    if reasons:
        complain(f"{report.endpoint}: {'; '.join(reasons)}")


def how_to_start(report: LoadReport) -> str:
    """The command that starts the missing server, if it belongs on this machine."""
    endpoint = Endpoint.parse(report.endpoint)
    if not (endpoint.is_unix or endpoint.host in ("127.0.0.1", "::1", "localhost")):
        return ""
    service = {"send": " --service discard", "receive": " --service chargen"}
    return f"; start a server: fastsock serve {endpoint}{service.get(report.options['mode'], '')}"
