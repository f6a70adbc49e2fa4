"""The command ``fastsock``: one file per subcommand; results on stdout, all else on stderr."""

from __future__ import annotations

import gc
import io
import signal
import sys
from typing import Any

import click

from fastsock import __version__
from fastsock.cli.bench import bench
from fastsock.cli.exits import FAILED
from fastsock.cli.info import info
from fastsock.cli.load import load
from fastsock.cli.output import finish_lines
from fastsock.cli.serve import serve
from fastsock.client.load import LoadInterrupted
from fastsock.line_writer import say
from fastsock.signals import Ended, end_by_signals, ignore_signals


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LoadInterrupted as interrupted:  # of a bench
            raise Ended(interrupted.signal) from None
        except KeyboardInterrupt:  # click would write a line to stderr itself, and wait for it
            raise Ended(signal.SIGINT) from None


@click.group(
    cls=_Commands,
    context_settings={
        "auto_envvar_prefix": "FASTSOCK",
        "help_option_names": ["-h", "--help"],
        "show_default": True,
    },
    epilog="Every option can be set by environment: FASTSOCK_LOAD_SIZE=4k is load --size 4k.",
)
@click.version_option(__version__, prog_name="fastsock")
def cli() -> None:
    """Echo server and load client for raw sockets.

    Exit codes: 0 ok, 1 run failed, 2 usage or an output that cannot be written, 3 target missed,
    4 run not valid; 130, 129, 143 ended by Ctrl-C, SIGHUP, SIGTERM.
    """


for command in (serve, load, bench, info):
    cli.add_command(command)


def run(arguments: list[str]) -> int:
    """Run the command line; return the exit code. Errors are one line on stderr."""
    try:
        return int(cli.main(arguments, prog_name="fastsock", standalone_mode=False) or 0)
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)
        say(text.getvalue().rstrip("\n"))
        return error.exit_code
    except Ended as ended:
        return 128 + ended.signal
    except OSError as error:
        say(f"Error: {error.strerror or error}")
        return FAILED


def main() -> None:
    end_by_signals()
    code = run(sys.argv[1:])
    ignore_signals()
    finish_lines()
    # Or Python visits every imported object once more at the end: 12 of the 17 ms of a SIGTERM.
    gc.freeze()
    sys.exit(code)
