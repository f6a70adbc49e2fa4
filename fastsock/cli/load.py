"""``fastsock load``."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from fastsock.cli.command import Command, usage_errors
from fastsock.cli.exits import FAILED, NOT_VALID, OK
from fastsock.cli.output import complain, progress_bar, warn, write_json, write_result
from fastsock.cli.parameters import json_option, options_of, quiet_option
from fastsock.client import load as client
from fastsock.client.options import LoadOptions
from fastsock.client.report import Latency, LoadReport, Outages
from fastsock.client.verdict import SIGNIFICANT, too_many_spinning
from fastsock.options import from_given
from fastsock.units import format_bits, format_duration, format_rate, format_size, plural

COUNTED = {"echo": "messages", "send": "sent", "receive": "received"}
COLUMNS = 80
TITLES = ("min", "mean", "p50", "p90", "p99", "p99.9", "max")


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
        write_result("\n".join(lines_of(report)))
    elif report.reasons and code == OK:
        reasons = [
            str(reason)
            for reason in report.reasons
            if reason.code != "no_messages" or not report.failed
        ]
        if {kind for kind, count in report.errors.items() if count} == {"refused"}:
            start = f"fastsock serve {report.endpoint}"
            reasons.append(f"nothing listens there; start a server: {start}")
        complain(f"{report.endpoint}: {'; '.join(reasons)}")
    return code


def lines_of(report: LoadReport) -> Iterator[str]:
    """The lines of the report, as aligned text."""
    options = report.options
    yield (
        f"{report.endpoint}: {plural(options['connections'], 'connection')}, "
        f"{format_size(options['size'])} messages, {', '.join(load_of(options))}, "
        f"window {format_duration(report.duration)}"
    )
    throughput = "" if options["mode"] == "echo" else f"   {format_bits(report.bytes_per_s * 8)}"
    yield (
        f"{COUNTED[options['mode']]:9} {report.messages}   {format_rate(report.messages_per_s)}   "
        f"{format_size(int(report.bytes_per_s))}/s{throughput}"
    )
    latencies = list(latencies_of(report))
    if latencies:
        yield " " * 9 + "".join(f" {title:>8}" for title in TITLES)
    for name, latency in latencies:
        yield latency_line(name, latency)
    if report.datagrams is not None:
        counts = ", ".join(f"{kind} {count}" for kind, count in report.datagrams.items())
        yield f"datagrams {counts}"
    if report.server_cpu is not None and report.messages:
        yield f"server    {report.server_cpu / report.messages * 1e6:.2f} us of CPU per message"
    if report.tcp is not None and report.tcp.retransmits:
        yield (
            f"tcp       {plural(report.tcp.retransmits, 'retransmit')}, round trip "
            f"{format_duration(report.tcp.rtt_us / 1e6)}"
        )
    if report.outages is not None:
        yield outage_line(report.outages)
    yield f"client    busy {report.client.busy:.0%}"
    for note in report.notes:
        yield from wrapped("note", note)
    yield from wrapped("valid", "yes" if report.valid else "NO")
    for reason in report.reasons:
        yield from wrapped("", reason)


def outage_line(outages: Outages) -> str:
    if not outages.count:
        return "outages   none"
    return (
        f"outages   {outages.count}, {format_duration(outages.seconds)} in all, longest "
        f"{format_duration(outages.longest_s)}, {outages.messages} messages without an answer"
    )


def wrapped(title: str, text: str) -> Iterator[str]:
    """A titled text over as many lines as it takes."""
    lines = textwrap.wrap(text, COLUMNS - 10, break_long_words=False, break_on_hyphens=False)
    for number, line in enumerate(lines):
        yield f"{title if number == 0 else '':9} {line}"


def load_of(options: Mapping[str, Any]) -> Iterator[str]:
    """The load in a few words."""
    if options["mode"] != "echo":
        yield options["mode"]
    if options["rate"] is not None:
        yield f"open loop, {format_rate(options['rate'])}"
    elif options["mode"] == "echo":
        yield f"depth {options['depth']}"


def latencies_of(report: LoadReport) -> Iterator[tuple[str, Latency]]:
    """The distributions that this run has."""
    if report.options["mode"] == "echo":
        if report.options["rate"] is None:
            yield "latency", report.latency
        else:
            yield "intended", report.latency
            yield "sent", report.latency_from_send
    if report.options["rate"] is not None:
        yield "delay", report.send_delay
    if report.connect_latency.count:
        yield "connect", report.connect_latency


def latency_line(name: str, latency: Latency) -> str:
    """The columns of `TITLES`; a percentile that is a matter of chance is ``-``."""
    values = [
        *map(microseconds, (latency.min, latency.mean)),
        *(
            microseconds(value) if latency.count_above(percent) >= SIGNIFICANT else f"{'-':>8}"
            for percent, value in latency.percentiles()
        ),
        microseconds(latency.max),
    ]
    return f"{name:9} {' '.join(values)} us"


def microseconds(value: float) -> str:
    return f"{value:8.1f}" if value < 1e6 else f"{value:8.0f}"


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
