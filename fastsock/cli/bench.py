"""``fastsock bench``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click

from fastsock import compare
from fastsock.cli.exits import FAILED, NOT_VALID, usage_errors
from fastsock.cli.output import json_option, write_json
from fastsock.cli.units import DURATION, SIZE, format_rate, format_size
from fastsock.options import check_int


class RivalType(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``NAME=COMMAND`` to a contender."""

    name = "NAME=COMMAND"

    def convert(
        self, value: object, param: click.Parameter | None, context: click.Context | None
    ) -> compare.Contender:
        name, _, command = str(value).partition("=")
        words = shlex.split(command)
        if not name or not words:
            self.fail(f"{value!r} is not NAME=COMMAND", param, context)
        return compare.Contender(name, tuple(words))


@click.command()
@click.option("--kind", type=click.Choice(compare.KINDS), default="tcp", help="Of the endpoints.")
@click.option("-c", "--connections", type=int, default=64)
@click.option("-s", "--size", type=SIZE, default="64", help="Bytes per message.")
@click.option("--depth", type=int, default=1, help="Messages in flight per connection.")
@click.option("--windows", type=click.IntRange(1, 1000), default=5, help="Turns of each server.")
@click.option("--window", type=DURATION, default="500ms", help="Measured time of a turn.")
@click.option("--warmup", type=DURATION, default="200ms", help="Dropped before each window.")
@click.option(
    "--rival",
    "rivals",
    type=RivalType(),
    multiple=True,
    help="Another server: a command that prints 'listening on ENDPOINT' to stderr.",
)
@json_option
def bench(
    kind: str,
    connections: int,
    size: int,
    depth: int,
    windows: int,
    window: float,
    warmup: float,
    rivals: tuple[compare.Contender, ...],
    json_path: str | None,
) -> int:
    """Compare the native server with its standard-library twin on this machine.

    The servers take turns, window by window, while the others are stopped; ratios are taken
    within a round, and their median is given with its quartiles.
    """
    case = compare.Case(connections, size, depth, kind=kind)
    with usage_errors():
        check_load(case, window, warmup)
    try:
        comparison = compare.compare(
            [*contenders(case), *rivals],
            case,
            windows=windows,
            window=window,
            warmup=warmup,
            progress=lambda text: click.echo(text, err=True),
        )
    except RuntimeError as error:
        click.echo(f"Error: {error}", err=True)
        return FAILED
    if json_path != "-":
        show(comparison)
    code = write_json(comparison.as_dict(), json_path) if json_path else 0
    return code or (NOT_VALID if any(r.problems for r in comparison.results) else 0)


def check_load(case: compare.Case, window: float, warmup: float) -> None:
    """Refuse before any server is started what `load()` would refuse."""
    from fastsock.client import DATAGRAM_SIZES, check_options

    if case.kind in ("udp", "unixgram"):
        check_int("size of a datagram", case.size, *DATAGRAM_SIZES)
    check_options(
        connections=case.connections,
        size=case.size,
        depth=case.depth,
        duration=window,
        warmup=warmup,
    )


def contenders(case: compare.Case) -> Iterator[compare.Contender]:
    if case.kind in ("udp", "unixgram"):
        yield from compare.datagrams(case.kind)
        return
    for make, names in (
        (compare.native, compare.NATIVE_ENGINES),
        (compare.pure, compare.PURE_SHAPES),
    ):
        for name in names:
            if name != "serial" or case.connections == 1:  # serial serves one client at a time
                yield make(name, case.kind)


def show(comparison: compare.Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    case, first = comparison.case, comparison.results[0].name
    table = Table(
        title=f"{case.kind}: {case.connections} connections, {format_size(case.size)} messages, "
        f"depth {case.depth}: medians of {len(comparison.results[0].rates)} windows",
        caption=f"ratio: {first} over the row, median (quartiles) of the rounds; "
        f"floor {comparison.floor_us.median:.2f} us an echo, both ends",
    )
    table.add_column("server")
    for title in ("rate", "p50 us", "p99 us", "CPU us/echo", "ratio", "CPU ratio"):
        table.add_column(title, justify="right", no_wrap=True)
    for result in comparison.results:
        table.add_row(
            result.name,
            format_rate(compare.Spread.of(result.rates).median),
            f"{compare.Spread.of(result.p50s).median:.1f}",
            f"{compare.Spread.of(result.p99s).median:.1f}",
            f"{compare.Spread.of(result.cpu_per_echo).median:.2f}",
            spread_text(comparison.rate_ratio(result)),
            spread_text(comparison.cpu_ratio(result)),
        )
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a pipe has no width; do not fold what goes to a file
    console.print(table)
    for result in comparison.results:
        for problem in sorted(set(result.problems)):
            click.echo(f"not valid: {result.name}: {problem}", err=True)


def spread_text(spread: compare.Spread) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"
