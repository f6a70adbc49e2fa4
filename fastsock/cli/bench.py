"""``fastsock bench``."""

from __future__ import annotations

import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from fastsock.bench import comparison as compare
from fastsock.bench import contenders, picture
from fastsock.bench.contenders import Contender
from fastsock.cli.exits import FAILED, NOT_VALID, OK, USAGE, usage_errors
from fastsock.cli.output import (
    check_writable,
    json_option,
    progress_bar,
    write_json,
    write_result,
)
from fastsock.cli.parameters import DURATION, SIZE, numbers
from fastsock.client.options import DATAGRAM_SIZES, LoadOptions
from fastsock.line_writer import say
from fastsock.options import check_int
from fastsock.server import engines
from fastsock.units import format_duration, format_rate, format_size, plural

ONE_CASE = (64,)
CURVE = (1, 10, 100, 1000)
TITLES = ("server", "rate", "p50", "p99", "CPU", "memory", "each", "rate ratio")
#: Columns that a table leaves out, the first alone or both, where it is wider than the terminal.
OPTIONAL = ("each", "memory")
WIDTH = 80  # of a pipe, and of a terminal that is narrower

Row = dict[str, str]  # the cell of each title


class RivalType(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``NAME=COMMAND`` to a contender."""

    name = "NAME=COMMAND"

    def convert(
        self, value: object, param: click.Parameter | None, context: click.Context | None
    ) -> Contender:
        name, _, command = str(value).partition("=")
        words = shlex.split(command)
        if not name or not words:
            self.fail(f"{value!r} is not NAME=COMMAND", param, context)
        return Contender(name, tuple(words))


def drawable(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse before a long run a picture that could not be drawn after it."""
    if value is not None:
        try:
            picture.check(value)
        except (ValueError, ModuleNotFoundError) as error:
            raise click.BadParameter(str(error)) from None
    return check_writable(value)


@click.command()
@click.option(
    "--engines",
    "engine_names",
    metavar="all|NAME,...",
    help="Compare these engines over a range of connections: all, or names such as "
    "epoll,fork,stdlib-threads.",
)
@click.option(
    "--kind",
    type=click.Choice(contenders.KINDS),
    default="tcp",
    help="Compare on endpoints of this kind.",
)
@click.option(
    "-c",
    "--connections",
    callback=numbers,
    metavar="N,...",
    help="Compare with each of these numbers of connections.  [default: 64; with --engines "
    "1,10,100,1000]",
)
@click.option("-s", "--size", type=SIZE, default="64", help="Send messages of this many bytes.")
@click.option(
    "--depth", type=int, default=1, help="Keep this many messages in flight per connection."
)
@click.option(
    "--windows", type=click.IntRange(1, 1000), default=9, help="Give each server this many turns."
)
@click.option(
    "--window", type=DURATION, default="250ms", help="Measure for this long in each turn."
)
@click.option(
    "--warmup",
    type=DURATION,
    default="100ms",
    help="Load for this long before each window; at least 1ms per connection.",
)
@click.option(
    "--rival",
    "rivals",
    type=RivalType(),
    multiple=True,
    help="Compare this server too: a command that prints 'listening on ENDPOINT' to stderr "
    "(repeatable).",
)
@json_option
@click.option(
    "--picture",
    "picture_path",
    metavar="FILE.svg|FILE.png",
    callback=drawable,
    help="Draw rate, p99, CPU and memory over the connections; needs fastsock[plot].",
)
def bench(
    engine_names: str | None,
    kind: str,
    connections: list[int] | None,
    size: int,
    depth: int,
    windows: int,
    window: float,
    warmup: float,
    rivals: tuple[Contender, ...],
    json_path: str | None,
    picture_path: str | None,
) -> int:
    """Compare the native server with its standard-library twin on this machine.

    The servers take turns, window by window, while the others are stopped. A window in which other
    programs took CPU time is measured again. The rate ratio is the server's rate relative to the
    first row's, taken within a round: higher is better.
    """
    method = compare.Method(windows, window, warmup)
    counts = connections or (ONE_CASE if engine_names is None else CURVE)
    cases = [compare.Case(count, size, depth, kind=kind) for count in dict.fromkeys(counts)]
    with usage_errors():
        servers = [*chosen(engine_names, kind), *rivals]
        check(servers, cases, method)
    if engine_names == "all" and kind in ("tcp", "unix"):
        tell_unusable()
    try:
        comparisons = compare_all(servers, cases, method)
    except RuntimeError as error:
        say(f"Error: {error}")
        return FAILED
    document = compare.document(comparisons, method)
    code = write_json(document, json_path) if json_path else OK
    drawn = draw(document, picture_path) if picture_path else OK
    if json_path != "-" and code == OK:  # else JSON is on stdout
        for name, comparison in comparisons.items():
            show(name, comparison)
    everything = [result for each in comparisons.values() for result in each.results]
    return code or drawn or (NOT_VALID if any(each.all_problems() for each in everything) else OK)


def draw(document: dict[str, Any], path: str) -> int:
    """Draw the picture; return an exit code."""
    try:
        picture.draw_engines(document, path)
    except OSError as error:
        say(f"Error: cannot write {path}: {error.strerror}")
        return USAGE
    return OK


def chosen(engine_names: str | None, kind: str) -> list[Contender]:
    """None and ``all`` are all that are usable here; else as in ``epoll,stdlib-threads``."""
    usable = contenders.every_engine(kind)
    if engine_names is None or engine_names == "all":
        return usable
    known = {option_name(each): each for each in usable}
    for name in engine_names.split(","):
        if name not in known:
            expected = f"all, or some of {', '.join(known)}"
            raise ValueError(f"engine {name!r} does not take part; expected {expected}")
    return [known[name] for name in dict.fromkeys(engine_names.split(","))]


def option_name(contender: Contender) -> str:
    """``epoll`` and ``stdlib-threads``, whatever the kind."""
    name = contender.name.partition(",")[0]
    return name.removeprefix("fastsock ").replace(" ", "-")


def tell_unusable() -> None:
    for name in engines.NAMES[1:]:  # without "auto"
        why = engines.MISSING.get(name) or engines.doubt(name)
        if why:
            say(f"without {name}: {why}")


def check(
    servers: Sequence[Contender], cases: Sequence[compare.Case], method: compare.Method
) -> None:
    """Refuse before any server is started what `load()` would refuse."""
    for case in cases:
        if case.kind in ("udp", "unixgram"):
            check_int("size of a datagram", case.size, *DATAGRAM_SIZES)
        LoadOptions(
            connections=case.connections,
            size=case.size,
            depth=case.depth,
            duration=method.window,
            warmup=method.warmup,
        )
        if not compare.taking_part(servers, case):
            raise ValueError(f"none of the servers serves {case.connections} clients at a time")


def compare_all(
    servers: Sequence[Contender], cases: Sequence[compare.Case], method: compare.Method
) -> dict[str, compare.Comparison]:
    """Compare in each case, the cases one after the other, and say beforehand how long it takes."""
    seconds = sum(method.seconds(servers, case) for case in cases)
    turns = sum(method.windows * len(compare.taking_part(servers, case)) for case in cases)
    about = format_duration(round(seconds) or 1)
    say(f"{turns} turns, which take about {about}, or up to twice that on a busy machine")
    with progress_of(turns) as progress:
        return {
            case.title: compare.compare(servers, case, method, progress=progress) for case in cases
        }


@contextmanager
def progress_of(turns: int) -> Iterator[compare.Progress]:
    """What draws a bar on stderr, on a terminal only."""
    with progress_bar("starting", turns) as bar:
        if bar is None:
            yield lambda text: None
            return
        started = 0

        def update(text: str) -> None:
            nonlocal started
            bar.update(bar.task_ids[0], completed=started, description=text, refresh=True)
            started += 1

        yield update


def show(name: str, comparison: compare.Comparison) -> None:
    width = max(shutil.get_terminal_size((WIDTH, 0)).columns, WIDTH) if is_terminal() else WIDTH
    rows = [*(row_of(comparison, result) for result in comparison.results)]
    rows += [{"server": left_out, "rate": "n/a"} for left_out in comparison.left_out]
    lines = [f"{name}: medians of {plural(len(comparison.results[0].rates), 'window')}", ""]
    lines += table_lines(rows, width)
    lines.append("")
    for note in notes_of(comparison, titles=lines[2].split()):
        lines += textwrap.wrap(note, width, subsequent_indent="  ")
    write_result("\n".join(lines))
    for result in comparison.results:
        for problem in result.all_problems():
            say(f"not valid: {result.name}: {problem}")


def is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def table_lines(rows: Sequence[Row], width: int) -> Iterator[str]:
    """The rows under a head, with as many columns as fit.

    A server's name that leaves no room for its row has a line of its own.
    """
    head = {title: title for title in TITLES}
    widest = {title: max(len(row.get(title, "")) for row in (head, *rows)) for title in TITLES}
    for without, gap in (((), "  "), ((), " "), (OPTIONAL[:1], " "), (OPTIONAL, " ")):
        titles = [title for title in TITLES[1:] if title not in without]
        figures = sum(widest[title] + len(gap) for title in titles)
        if widest["server"] + figures <= width:
            break
    room = min(width - figures, widest["server"])
    for row in (head, *rows):
        first = row["server"]
        if len(first) > room:
            yield first
            first = ""
        cells = (row.get(title, "").rjust(widest[title]) for title in titles)
        yield gap.join((first.ljust(room), *cells)).rstrip()
        if row is head:
            yield "-" * (room + figures)


def notes_of(comparison: compare.Comparison, titles: Sequence[str] = TITLES) -> Iterator[str]:
    """What the columns mean, and what is to know of this comparison."""
    confidence = compare.Interval.of(comparison.results[0].rates).confidence
    interval = f" of the rounds, and its {confidence:.0%} interval" if confidence else ""
    yield f"rate ratio: relative to {comparison.reference}, higher is better; median{interval}"
    yield (
        f"CPU: of the server per echo; the kernel alone takes "
        f"{comparison.floor_us.median:.2f} us for both ends"
    )
    if "memory" in titles:
        each = "; each: for each of them" if "each" in titles else ""
        yield f"memory: with all connections open{each}"
    if comparison.one_cpu:
        yield "server and client share the only CPU, so the client waits by blocking"
    if repeated := sum(result.repeated for result in comparison.results):
        yield f"{plural(repeated, 'disturbed window')} measured again"
    if any(comparison.rate_ratio(result) is None for result in comparison.results):
        yield "-: in most windows of this server or of the reference nothing was answered"
    for reason in dict.fromkeys(comparison.left_out.values()):
        yield f"n/a: the server {reason}"


def row_of(comparison: compare.Comparison, result: compare.Result) -> Row:
    medians = [
        compare.Interval.of(values).median
        for values in (result.rates, result.p50s, result.p99s, result.cpu_per_echo)
    ]
    rate, *times = medians
    figures = [format_rate(rate), *(format_duration(each / 1e6) for each in times)]
    memory = result.memory
    sizes = (memory.connected, max(memory.per_connection, 0)) if memory else ()
    cells = (
        result.name,
        *(figures if rate else "-" * len(figures)),
        *([format_size(size) for size in sizes] or ("unknown", "unknown")),
        ratio_text(comparison.rate_ratio(result)),
    )
    return dict(zip(TITLES, cells, strict=True))


def ratio_text(ratio: compare.Interval | None) -> str:
    if ratio is None:
        return "-"
    interval = f" ({ratio.low:.2f}-{ratio.high:.2f})" if ratio.confidence else ""
    return f"{ratio.median:.2f}{interval}"
