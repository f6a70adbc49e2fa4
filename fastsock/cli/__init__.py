"""The command ``fastsock``: one file per subcommand; results on stdout, all else on stderr."""

from __future__ import annotations

import gc
import signal
import sys
from importlib import import_module
from typing import Any

import click

from fastsock import __version__, suggestions
from fastsock.cli.exits import FAILED
from fastsock.cli.output import complain, finish_lines
from fastsock.signals import Ended, end_by_signals, ignore_signals

#: Each command with its line in the help of all, in the order in which people need them. Its module
#: here has its name, and is imported when the command is used.
_COMMANDS = {
    "serve": "Echo what arrives at each ENDPOINT until stopped.",
    "load": "Load the server at ENDPOINT and report rate, latency and errors.",
    "report": "Show saved load runs as text, or write a page of them.",
    "compare": "Compare load runs: by how much the rate and the latency differ.",
    "merge": "Merge load runs of several machines into one.",
    "bench": "Compare echo servers on this machine.",
    "info": "Show the version, the machine, and which engines can be used.",
}
#: Words of other tools, and the command that does it here.
_MEANT = {
    **dict.fromkeys(("server", "listen", "start", "run", "echo", "daemon"), "serve"),
    **dict.fromkeys(("client", "connect", "test", "ping", "attack"), "load"),
    "diff": "compare",
    **dict.fromkeys(("benchmark", "compete", "demo"), "bench"),
    **dict.fromkeys(("engines", "env", "doctor"), "info"),
    "help": "--help",
    "version": "--version",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"{__name__}.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        command.short_help = _COMMANDS[cmd_name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            raise click.UsageError(self._unknown(args[0])) from None

    def _unknown(self, word: str) -> str:
        if ":" in word or "/" in word:
            return f"say what to do with it: fastsock serve {word}, or fastsock load {word}"
        meant = _MEANT.get(word.lower()) or suggestions.near(word, _COMMANDS)
        if meant:
            return f"{word!r} is not a command; did you mean fastsock {meant}?"
        return f"{word!r} is not a command; they are {', '.join(_COMMANDS)}"

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        # click would write a line to stderr itself, and wait for it. A bench's LoadInterrupted says
        # which signal it was.
        except KeyboardInterrupt as interrupted:
            raise Ended(getattr(interrupted, "signal", signal.SIGINT)) from None


@click.group(
    cls=_Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "show_default": True,
    },
    epilog="fastsock COMMAND --help shows the options of a command, with an example.",
)
@click.version_option(__version__, "-V", "--version", prog_name="fastsock")
def cli() -> None:
    """Echo server and load client for raw sockets.

    Exit codes: 0 ok, 1 run failed, 2 usage or an output that cannot be written, 3 target missed,
    4 run not valid; 130, 129, 143 ended by Ctrl-C, SIGHUP, SIGTERM.

    \b
    fastsock serve                     # in one terminal
    fastsock load 127.0.0.1:7007       # in another
    """


def run(arguments: list[str]) -> int:
    """Run the command line; return the exit code. Errors are one line on stderr."""
    try:
        return int(
            cli.main(arguments or ["--help"], prog_name="fastsock", standalone_mode=False) or 0
        )
    except click.NoSuchOption as error:
        complain(f"{error.option_name} is not an option; name a command first: fastsock serve -h")
        return error.exit_code
    except click.ClickException as error:
        complain(error.message)
        return error.exit_code
    except Ended as ended:
        return 128 + ended.signal
    except OSError as error:
        complain(error.strerror or str(error))
        return FAILED


def main() -> None:
    end_by_signals()
    code = run(sys.argv[1:])
    ignore_signals()
    finish_lines()
    # Or Python visits every imported object once more at the end: 12 of the 17 ms of a SIGTERM.
    gc.freeze()
    sys.exit(code)
