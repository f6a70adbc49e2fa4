"""``fastsock load``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from fastsock.cli.exits import FAILED, INTERRUPTED, NOT_VALID, OK, usage_errors
from fastsock.cli.output import json_option, write_json
from fastsock.cli.units import (
    DURATION,
    RATE,
    SIZE,
    format_bits,
    format_duration,
    format_rate,
    format_size,
)
from fastsock.client import load as client
from fastsock.client.options import WAITS
from fastsock.client.report import Latency, LoadReport

COUNTED = {"echo": "messages", "send": "sent", "receive": "received"}
TITLES = ("min", "mean", "p50", "p90", "p99", "p99.9", "max")


@click.command()
@click.argument("endpoint")
@click.option(
    "--mode",
    type=click.Choice(["echo", "send", "receive"]),
    default="echo",
    help="send: upload to a discard service; receive: download from a chargen service.",
)
@click.option("-c", "--connections", type=int, default=1)
@click.option(
    "-s", "--size", type=SIZE, help="Bytes per message.  [default: 64; to send or receive 128k]"
)
@click.option("--depth", type=int, default=1, help="Messages in flight per connection.")
@click.option("-d", "--duration", type=DURATION, help="The measured window.  [default: 5s]")
@click.option("-n", "--messages", type=int, help="Stop after so many, instead of --duration.")
@click.option("--warmup", type=DURATION, help="Before the window.  [default: duration / 10]")
@click.option("--rate", type=RATE, help="Open loop: messages per second over all connections.")
@click.option("--verify/--no-verify", default=True, help="Compare every byte that comes.")
@click.option(
    "--wait",
    type=click.Choice(WAITS),
    default="spin",
    help="Poll without pause, sleep, or poll before sleeping while that pays.",
)
@click.option("--threads", type=int, default=1)
@click.option("--nodelay/--no-nodelay", default=True, help="TCP_NODELAY.")
@click.option("--reconnect-every", type=int, help="Messages per connection; 1: connect-echo-close.")
@click.option("--timeout", type=DURATION, default="5s", help="Longest time without progress.")
@click.option(
    "--loss-timeout", type=DURATION, default="200ms", help="When a datagram is given up as lost."
)
@click.option("--gso", is_flag=True, help="Send datagrams together that are due together.")
@click.option(
    "--server-pid", type=int, help="Report the CPU time of this local process and its children too."
)
@json_option
def load(endpoint: str, json_path: str | None, **options: Any) -> int:
    """Load the server at ENDPOINT and report rate, latency and errors.

    Every byte that comes back is compared with what was sent. --mode send and receive measure the
    throughput one way, of a server that runs with --service discard or chargen.
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
    yield (
        f"{report.endpoint}: {options['connections']} connections, "
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
        yield " " * 9 + "".join(f" {title:>9}" for title in TITLES)
    for name, latency in latencies:
        yield latency_line(name, latency)
    if report.datagrams is not None:
        counts = ", ".join(f"{kind} {count}" for kind, count in report.datagrams.items())
        yield f"datagrams {counts}"
    if report.server_cpu is not None and report.messages:
        yield f"server    {report.server_cpu / report.messages * 1e6:.2f} us of CPU per message"
    yield f"client    busy {report.client_busy:.0%}"
    yield f"valid     {'yes' if report.valid else 'NO: ' + '; '.join(report.reasons)}"


def load_of(options: Mapping[str, Any]) -> Iterator[str]:
    """What was done, in a few words."""
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
    if report.options["reconnect_every"] is not None:
        yield "connect", report.connect_latency


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
