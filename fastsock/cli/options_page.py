"""docs/options.md from the declared options: ``python -m fastsock.cli.options_page > FILE``."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fastsock.cli.parameters import flags, long_flag
from fastsock.cli.watched import ServeOptions
from fastsock.client.options import LoadOptions
from fastsock.options import Choice, Flag, Option, declared
from fastsock.server.options import ServerOptions

_HEAD = """\
# Options

<!-- Generated: python -m fastsock.cli.options_page > docs/options.md -->

Every option has the same name in Python and on the command line, and can be set by an environment
variable. A size may have a binary unit (`64k` is 65536 bytes), a duration `us`, `ms`, `s`, `min`
(or `m`) or `h`, a rate `k/s` or `M/s`, and a number of messages `k` or `M` (thousands and
millions); `.1s`, `1e3` and `1_000` are numbers too. A bare number is bytes, seconds or a count.
Python takes numbers and such text. Numbers of connections, threads and workers have no unit.
Under each name stand its flag and its variable, and then its default and its range.
"""

_PARTS = (
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
    return "\n".join([_HEAD, *(line for part in _PARTS for line in _part(*part))])


def _part(title: str, command: str, options: type, text: str) -> Iterator[str]:
    yield f"## {title}\n\n{text}\n"
    for option in declared(options):
        if option.group:
            yield f"### {title}: {option.group.lower()}\n"
        yield from _entry(option, command)


def _entry(option: Option, command: str) -> Iterator[str]:
    """An option under a heading of its own: a row of a table would be wider than most screens."""
    variable = long_flag(option).removeprefix("--").replace("-", "_").upper()
    spelling = ", ".join(flags(option))
    if isinstance(option.kind, Choice):
        values = ", ".join(f"`{name}`" for name in option.kind.names)
    else:
        values = option.kind.limits
        if not isinstance(option.kind, Flag):
            spelling += f" {option.kind.metavar}"
    repeatable = ", repeatable" if option.kind.repeatable else ""
    yield f"#### `{option.name}`\n"
    yield f"`{spelling}`{repeatable} · `FASTSOCK_{command.upper()}_{variable}`\\"
    yield f"Default: {option.shown_default or 'none'} · {values}\n"
    text = f"{option.help} {option.more}".rstrip()
    yield re.sub(r"docs/(\w+\.md)", r"[\1](\1)", text) + "\n"


if __name__ == "__main__":
    print(page(), end="")
