"""``fastsock load``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from fastsock.cli.command import Command, usage_errors
from fastsock.cli.exits import FAILED, NOT_VALID, OK
from fastsock.cli.output import complain, progress_bar, warn, write_json, write_result
from fastsock.cli.parameters import json_option, options_of, quiet_option
from fastsock.client import load as client
from fastsock.client.options import LoadOptions
from fastsock.client.report import LoadReport
from fastsock.client.verdict import too_many_spinning
from fastsock.endpoint import Endpoint
from fastsock.options import from_given


@click.command(cls=Command, example="fastsock load 127.0.0.1:7007 -c 64 -d 10s")
@click.argument("endpoint")
@options_of(LoadOptions)
@json_option
@quiet_option
def load(endpoint: str, json_path: str | None, quiet: bool, **options: Any) -> int:
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
        with usage_errors(), progress_of(checked, quiet) as progress:
            report = client.load(endpoint, progress=progress, **options)
    except client.LoadInterrupted as interrupted:
        return show(interrupted.report, json_path) or 128 + interrupted.signal
    code = show(report, json_path)
    if code:
        return code
    if report.failed:
        return FAILED
    return OK if report.valid else NOT_VALID


def show(report: LoadReport, json_path: str | None) -> int:
    """Write the report, or one line that says why there is none; return an exit code."""
    code = write_json(report.as_dict(), json_path) if json_path else OK
    if (
        (report.messages or report.answered_in_window) and json_path != "-" and code == OK
    ):  # else JSON is on stdout
        write_result(str(report))
    elif report.reasons and code == OK:
        reasons = [
            str(reason)
            for reason in report.reasons
            if reason.code != "no_messages" or not report.failed
        ]
        if {kind for kind, count in report.errors.items() if count} == {"refused"}:
            reasons.append(f"nothing listens there{how_to_start(report)}")
        complain(f"{report.endpoint}: {'; '.join(reasons)}")
    return code


def how_to_start(report: LoadReport) -> str:
    """The command that starts the missing server, if it belongs on this machine."""
    endpoint = Endpoint.parse(report.endpoint)
    if not (endpoint.is_unix or endpoint.host in ("127.0.0.1", "::1", "localhost")):
        return ""
    service = {"send": " --service discard", "receive": " --service chargen"}
    return f"; start a server: fastsock serve {endpoint}{service.get(report.options['mode'], '')}"


@contextmanager
def progress_of(options: LoadOptions, quiet: bool) -> Iterator[Callable[[float], object] | None]:
    """What draws a bar on stderr while the run lasts, on a terminal only."""
    if options.duration is None:
        yield None
        return
    with progress_bar("loading", options.duration + options.warmup, quiet=quiet) as bar:
        if bar is None:
            yield None
            return

        def update(seconds: float) -> None:
            bar.update(bar.task_ids[0], completed=seconds, refresh=True)

        yield update
