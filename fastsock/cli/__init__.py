"""The command ``fastsock``: one file per subcommand; results on stdout, all else on stderr."""

from __future__ import annotations

import gc
import logging
import sys

import click

from fastsock import __version__
from fastsock.cli.bench import bench
from fastsock.cli.exits import FAILED, INTERRUPTED
from fastsock.cli.info import info
from fastsock.cli.load import load
from fastsock.cli.serve import serve


@click.group(
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

    Exit codes: 0 ok, 1 run failed, 2 usage, 3 target missed, 4 run not valid, 130 Ctrl-C.
    """
    logging.basicConfig(format="%(name)s: %(message)s", stream=sys.stderr)


for command in (serve, load, bench, info):
    cli.add_command(command)


def run(arguments: list[str]) -> int:
    """Run the command line; return the exit code. Errors are one line on stderr."""
    try:
        return int(cli.main(arguments, prog_name="fastsock", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except OSError as error:
        click.echo(f"Error: {error.strerror or error}", err=True)
        return FAILED


def main() -> None:
    code = run(sys.argv[1:])
    # Or Python visits every imported object once more at the end: 12 of the 17 ms of a SIGTERM.
    gc.freeze()
    sys.exit(code)
