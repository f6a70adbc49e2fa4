"""``fastsock load``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from fastsock import client
from fastsock.cli.exits import FAILED, INTERRUPTED, NOT_VALID, OK, usage_errors
from fastsock.cli.output import json_option, write_json
from fastsock.cli.units import DURATION, RATE, SIZE, format_duration, format_rate, format_size
from fastsock.report import Latency, LoadReport

TITLES = ("min", "mean", "p50", "p90", "p99", "p99.9", "max")


@click.command()
@click.argument("endpoint")
@click.option("-c", "--connections", type=int, default=1)
@click.option("-s", "--size", type=SIZE, default="64", help="Bytes per message.")
@click.option("--depth", type=int, default=1, help="Messages in flight per connection.")
@click.option("-d", "--duration", type=DURATION, help="The measured window.  [default: 5s]")
@click.option("-n", "--messages", type=int, help="Stop after so many, instead of --duration.")
@click.option("--warmup", type=DURATION, help="Before the window.  [default: duration / 10]")
@click.option("--rate", type=RATE, help="Open loop: messages per second over all connections.")
@click.option("--verify/--no-verify", default=True, help="Compare every byte that comes back.")
@click.option("--wait", type=click.Choice(["spin", "block"]), default="spin")
@click.option("--threads", type=int, default=1)
@click.option("--nodelay/--no-nodelay", default=True, help="TCP_NODELAY.")
@click.option("--reconnect-every", type=int, help="Messages per connection; 1: connect-echo-close.")
@click.option("--timeout", type=DURATION, default="5s", help="Longest time without progress.")
@click.option(
    "--loss-timeout", type=DURATION, default="200ms", help="When a datagram is given up as lost."
)
@click.option("--gso", is_flag=True, help="Send datagrams together that are due together.")
@click.option("--server-pid", type=int, help="Report the CPU time of this local process too.")
@json_option
def load(endpoint: str, json_path: str | None, **options: Any) -> int:
    """Load the echo server at ENDPOINT and report rate, latency and errors.

    Every byte that comes back is compared with what was sent.
    """
    try:
        with usage_errors(), progress_bar(options) as progress:
            report = client.load(endpoint, progress=progress, **options)
    except client.LoadInterrupted as interrupted:
        show(interrupted.report, json_path)
        return INTERRUPTED
    code = show(report, json_path)
    if report.failed:
        return FAILED
    return code if report.valid else NOT_VALID


def show(report: LoadReport, json_path: str | None) -> int:
    """Print the report, or in one line why there is nothing to report; return an exit code."""
    if report.messages and json_path != "-":
        click.echo("\n".join(lines_of(report)))
    elif report.reasons:
        click.echo(f"Error: {report.endpoint}: {'; '.join(report.reasons)}", err=True)
    return write_json(report.as_dict(), json_path) if json_path else OK


def lines_of(report: LoadReport) -> Iterator[str]:
    """The report as aligned text that can be pasted."""
    options = report.options
    loop = f"depth {options['depth']}"
    if options["rate"] is not None:
        loop = f"open loop, {format_rate(options['rate'])}"
    yield (
        f"{report.endpoint}: {options['connections']} connections, "
        f"{format_size(options['size'])} messages, {loop}, "
        f"window {format_duration(report.duration)}"
    )
    yield (
        f"messages  {report.messages}   {format_rate(report.messages_per_s)}   "
        f"{format_size(int(report.bytes_per_s))}/s"
    )
    yield " " * 9 + "".join(f" {title:>9}" for title in TITLES)
    if options["rate"] is None:
        yield latency_line("latency", report.latency)
    else:
        yield latency_line("intended", report.latency)
        yield latency_line("sent", report.latency_from_send)
    if options["reconnect_every"] is not None:
        yield latency_line("connect", report.connect_latency)
    if report.datagrams is not None:
        counts = ", ".join(f"{kind} {count}" for kind, count in report.datagrams.items())
        yield f"datagrams {counts}"
    if report.server_cpu is not None and report.messages:
        yield f"server    {report.server_cpu / report.messages * 1e6:.2f} us of CPU per message"
    yield f"client    busy {report.client_busy:.0%}"
    yield f"valid     {'yes' if report.valid else 'NO: ' + '; '.join(report.reasons)}"


def latency_line(name: str, latency: Latency) -> str:
    values = (
        latency.min,
        latency.mean,
        latency.p50,
        latency.p90,
        latency.p99,
        latency.p99_9,
        latency.max,
    )
    return f"{name:9} " + " ".join(f"{value:9.1f}" for value in values) + "  us"


@contextmanager
def progress_bar(options: dict[str, Any]) -> Iterator[Callable[[float], object] | None]:
    """A bar on stderr while the run lasts, on a terminal only."""
    if not sys.stderr.isatty() or options["messages"] is not None:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    duration = options["duration"] or 5.0
    warmup = duration / 10 if options["warmup"] is None else options["warmup"]
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=duration + warmup)

        def update(seconds: float) -> None:
            bar.update(task, completed=seconds)

        yield update
