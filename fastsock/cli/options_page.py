"""docs/options.md from the declared options: ``python -m fastsock.cli.options_page > FILE``."""

from __future__ import annotations

from collections.abc import Iterator

from fastsock.cli.parameters import flags, long_flag
from fastsock.cli.watched import ServeOptions
from fastsock.client.options import LoadOptions
from fastsock.options import Flag, Option, declared
from fastsock.server.options import ServerOptions

_HEAD = """\
# Options

<!-- Generated: python -m fastsock.cli.options_page > docs/options.md -->

Every option has the same name in Python and on the command line, and can be set by an environment
variable. A size may have a binary unit (`64k` is 65536 bytes), a duration `us`, `ms`, `s`, `min`
(or `m`) or `h`, a rate `k/s` or `M/s`, and a number of messages `k` or `M` (thousands and
millions); `.1s`, `1e3` and `1_000` are numbers too. A bare number is bytes, seconds or a count.
Python takes numbers and such text. Numbers of connections, threads and workers have no unit.
"""

_COLUMNS = ("option", "command line", "environment", "default", "range and unit", "what it does")

_TABLES = (
    (
        "Server",
        "serve",
        ServerOptions,
        "For `fastsock.Server(...)`, `fastsock.serve(...)` and `fastsock serve`, which also has "
        "`--user NAME[:GROUP]` and `--json FILE`. `FASTSOCK_SERVE_ENDPOINTS` sets the endpoints, "
        "with spaces between them.",
    ),
    (
        "Command serve",
        "serve",
        ServeOptions,
        "For `fastsock serve` alone. [operations.md](operations.md) shows them in use.",
    ),
    (
        "Load client",
        "load",
        LoadOptions,
        "For `fastsock.load(...)` and `fastsock load`, which also has `--repeat N`, "
        "`--confidence LEVEL,PERCENT`, `--find-max`, `--start-at TIME`, the files `--json`, "
        "`--html`, `--timeline`, `--hlog` and `--hgrm`, and `--quiet`. "
        "`FASTSOCK_LOAD_ENDPOINT` sets the endpoint.",
    ),
)


def page() -> str:
    """The text of docs/options.md."""
    return "\n".join([_HEAD, *(line for table in _TABLES for line in _table(*table))])


def _table(title: str, command: str, options: type, text: str) -> Iterator[str]:
    yield f"## {title}\n\n{text}"
    for option in declared(options):
        if option.group:
            yield f"\n### {title}: {option.group.lower()}\n"
            yield f"| {' | '.join(_COLUMNS)} |"
            yield "|---|---|---|---|---|---|"
        cells = (cell.replace("|", r"\|") for cell in _cells(option, command))
        yield f"| {' | '.join(cells)} |"
    yield ""


def _cells(option: Option, command: str) -> Iterator[str]:
    variable = long_flag(option).removeprefix("--").replace("-", "_").upper()
    metavar = "" if isinstance(option.kind, Flag) else f" {option.kind.metavar}"
    yield f"`{option.name}`"
    repeatable = ", repeatable" if option.kind.repeatable else ""
    yield f"`{', '.join(flags(option))}{metavar}`{repeatable}"
    yield f"`FASTSOCK_{command.upper()}_{variable}`"
    yield option.shown_default or "none"
    yield option.kind.limits
    yield f"{option.help} {option.more}".rstrip()


if __name__ == "__main__":
    print(page(), end="")
