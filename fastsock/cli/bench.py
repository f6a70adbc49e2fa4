"""``fastsock bench``."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from fastsock.bench import comparison as compare
from fastsock.bench import contenders, picture
from fastsock.bench.contenders import Contender
from fastsock.bench.running_server import check_process
from fastsock.bench.text import lines_of
from fastsock.cli.command import Command, GroupedOption, usage_errors
from fastsock.cli.exits import FAILED, NOT_VALID, OK, USAGE
from fastsock.cli.output import (
    WIDTH,
    check_writable,
    complain,
    progress_bar,
    tell,
    warn,
    write_json,
    write_result,
)
from fastsock.cli.parameters import KindType, json_option, quiet_option
from fastsock.client.options import LoadOptions, check_datagram_size
from fastsock.endpoint import Endpoint
from fastsock.options import Choice, Count, Kind, Seconds, Size, declared
from fastsock.server import engines
from fastsock.suggestions import near
from fastsock.units import format_duration, parse_numbers

ONE_CASE = (64,)
CURVE = (1, 10, 100, 1000)


_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*://|(tcp|udp|unix|unixgram):", re.IGNORECASE)
_HOST_AND_PORT = re.compile(r"[^\s/]*:[0-9]+")
_PID_KIND = next(each.kind for each in declared(LoadOptions) if each.name == "server_pid")
_PID = re.compile(r"(.*?)\s*,\s*pid=(.*)", re.DOTALL)


class Rival(Kind):
    """``NAME=COMMAND`` or ``NAME=ENDPOINT[,pid=N]``: a contender."""

    metavar = "NAME=COMMAND|ENDPOINT"
    repeatable = True
    separator = "\n"  # a command has spaces

    def parse(self, name: str, text: str) -> Contender:
        title, _, server = text.partition("=")
        try:
            if title and (running := self._running(title, server.strip())):
                return running
            words = shlex.split(server)
        except ValueError as error:  # a quotation mark that is not closed, for example
            raise ValueError(f"{name} {text!r}: {error}") from None
        if not title or not words:
            raise ValueError(f"{name} {text!r} has no name; write {name} 'mine=./server'")
        return Contender(title, tuple(words))

    def _running(self, title: str, server: str) -> Contender | None:
        """The server at an endpoint; None if it is a command."""
        with_pid = _PID.fullmatch(server)
        address = with_pid[1] if with_pid else server
        if not (_SCHEME.match(address) or _HOST_AND_PORT.fullmatch(address)):
            return None
        endpoint = Endpoint.parse(address)
        LoadOptions().check_target(endpoint)
        pid = _PID_KIND.parse("pid", with_pid[2]) if with_pid else None
        if pid is not None:
            check_process(pid)
        return Contender(title, (), endpoint=endpoint, pid=pid)


class EngineNames(Kind):
    """Names of engines, checked later, when it is known on which kind of endpoints."""

    metavar = "all|NAME,..."

    def parse(self, name: str, text: str) -> str:
        return text


class Counts(Kind):
    """Numbers of connections."""

    metavar = "N,..."

    def parse(self, name: str, text: str) -> list[int]:
        return parse_numbers(text, name, example="1,10,100")


def drawable(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse before a long run a picture that could not be drawn after it."""
    if value is not None:
        try:
            picture.check(value)
        except (ValueError, ModuleNotFoundError) as error:
            raise click.UsageError(str(error)) from None
    return check_writable(value)


def option(
    *flags: str, kind: Kind, default: str | None = None, group: str = "", help: str
) -> Callable[[Any], Any]:
    """An option of this command only."""
    return click.option(
        *flags,
        cls=GroupedOption,
        group=group,
        type=KindType(kind, flags[-1]),
        default=default,
        multiple=kind.repeatable,
        show_default=True,
        help=help,
    )


_HELP = {each.name: each.help for each in declared(LoadOptions)}


@click.command(
    cls=Command,
    example="fastsock bench\nfastsock bench --engines epoll,stdlib-threads -c 1,100 -s 1k",
)
@option(
    "--engines",
    "engine_names",
    kind=EngineNames(),
    group="Servers",
    help="Compare these engines over a range of connections: all, or names such as "
    "epoll,fork,stdlib-threads.",
)
@option(
    "--rival",
    "rivals",
    kind=Rival(),
    help="Compare this server too. A command prints 'listening on tcp://HOST:PORT' to stdout or "
    "stderr, or listens on one IPv4 address, or on 127.0.0.1 at {port}, which becomes a free port. "
    "A server at an ENDPOINT runs already and is not stopped; ENDPOINT,pid=N has its CPU time too "
    "(repeatable; in FASTSOCK_BENCH_RIVAL one a line).",
)
@option(
    "--kind",
    kind=Choice(contenders.EndpointKind),
    default="tcp",
    help="Compare on endpoints of this kind.",
)
@option(
    "-c",
    "--connections",
    kind=Counts(),
    group="Load",
    help="Compare with each of these numbers of connections.  [default: 64; with --engines "
    "1,10,100,1000]",
)
@option("-s", "--size", kind=Size(1, 1 << 30), default="64", help=_HELP["size"])
@option("--depth", kind=Count(1, 65536), default="1", help=_HELP["depth"])
@option(
    "--windows",
    kind=Count(1, 1000),
    default="9",
    group="Length",
    help="Give each server this many turns.",
)
@option(
    "--window",
    kind=Seconds(0.001, 3600),
    default="250ms",
    help="Measure for this long in each turn.",
)
@option(
    "--warmup",
    kind=Seconds(0, 3600),
    default="100ms",
    help="Load for this long before each window; at least 1ms per connection.",
)
@json_option
@click.option(
    "--picture",
    "picture_path",
    metavar="FILE.svg|FILE.png",
    callback=drawable,
    help="Draw rate, p99, CPU and memory over the connections; needs matplotlib.",
)
@quiet_option
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
    quiet: bool,
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
        servers = [*chosen(engine_names, kind), *(each.on(kind) for each in rivals)]
        check(servers, cases, method)
    if engine_names == "all" and kind in ("tcp", "unix") and not quiet:
        tell_unusable()
    try:
        comparisons = compare_all(servers, cases, method, quiet)
    except RuntimeError as error:
        complain(str(error))
        return FAILED
    document = compare.document(comparisons, method)
    code = write_json(document, json_path) if json_path else OK
    drawn = draw(document, picture_path) if picture_path else OK
    for name, comparison in comparisons.items():
        if json_path != "-" and code == OK:  # else JSON is on stdout
            show(name, comparison, {each.name: each.group for each in servers})
        tell_problems(name, comparison)
    everything = [result for each in comparisons.values() for result in each.results]
    return code or drawn or (NOT_VALID if any(each.all_problems() for each in everything) else OK)


def draw(document: dict[str, Any], path: str) -> int:
    """Draw the picture; return an exit code."""
    try:
        picture.draw_engines(document, path)
    except OSError as error:
        complain(f"cannot write {path}: {error.strerror}")
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
            twin = f"stdlib-{name}"
            meant = twin if twin in known else near(name, known)
            expected = f"expected all, or some of {', '.join(known)}"
            helps = f"did you mean {meant}?" if meant else expected
            raise ValueError(f"engine {name!r} is unknown; {helps}")
    return [known[name] for name in dict.fromkeys(engine_names.split(","))]


def option_name(contender: Contender) -> str:
    """``epoll`` and ``stdlib-threads``, whatever the kind."""
    name = contender.name.partition(",")[0]
    return name.removeprefix("fastsock ").replace(" ", "-")


def tell_unusable() -> None:
    for name in engines.NAMES[1:]:  # without "auto"
        why = engines.MISSING.get(name) or engines.doubt(name)
        if why:
            warn(f"without {name}: {why}")


def check(
    servers: Sequence[Contender], cases: Sequence[compare.Case], method: compare.Method
) -> None:
    """Refuse before any server is started what `load()` would refuse."""
    names = [each.name for each in servers]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two servers are called {name!r}; give each its own name")
    for case in cases:
        if case.kind in ("udp", "unixgram"):
            check_datagram_size(case.size)
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
    servers: Sequence[Contender],
    cases: Sequence[compare.Case],
    method: compare.Method,
    quiet: bool,
) -> dict[str, compare.Comparison]:
    """Compare in each case, the cases one after the other, and say beforehand how long it takes."""
    seconds = sum(method.seconds(servers, case) for case in cases)
    turns = sum(method.windows * len(compare.taking_part(servers, case)) for case in cases)
    about = format_duration(round(seconds) or 1)
    if not quiet:
        tell(f"{turns} turns, which take about {about}, or up to twice that on a busy machine")
    with progress_of(turns, quiet) as progress:
        return {
            case.title: compare.compare(servers, case, method, progress=progress) for case in cases
        }


@contextmanager
def progress_of(turns: int, quiet: bool) -> Iterator[compare.Progress]:
    """What draws a bar on stderr, on a terminal only."""
    with progress_bar("starting", turns, quiet=quiet) as bar:
        if bar is None:
            yield lambda text: None
            return
        started = 0

        def update(text: str) -> None:
            nonlocal started
            bar.update(bar.task_ids[0], completed=started, description=text, refresh=True)
            started += 1

        yield update


def show(name: str, comparison: compare.Comparison, groups: Mapping[str, str]) -> None:
    terminal = sys.stdout is not None and sys.stdout.isatty()
    width = max(shutil.get_terminal_size((WIDTH, 0)).columns, WIDTH) if terminal else WIDTH
    write_result("\n".join(lines_of(name, comparison, groups, width)))


def tell_problems(name: str, comparison: compare.Comparison) -> None:
    problems = {result.name: result.all_problems() for result in comparison.results}
    if any(problems.values()):
        complain(f"{name}: these figures are not valid:")
    for server, reasons in problems.items():
        if reasons:
            tell(f"{server}: {'; '.join(reasons)}")
