"""``fastsock serve``."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click

from fastsock.cli.command import Command, GroupedOption, usage_errors
from fastsock.cli.exits import INTERRUPTED, OK
from fastsock.cli.output import check_writable, tell, write_json
from fastsock.cli.parameters import json_option, options_of
from fastsock.cli.user import USER, User, become, check_root
from fastsock.line_writer import say
from fastsock.server import inherited
from fastsock.server.faults import Fault
from fastsock.server.options import ServerOptions
from fastsock.server.server import Server, listening
from fastsock.server.stats import ServerStats
from fastsock.server.unix_file import give_away
from fastsock.signals import Ended


@click.command(
    cls=Command,
    short_help="Echo what arrives at each ENDPOINT until stopped.",
    example="fastsock serve 127.0.0.1:7007\n"
    "fastsock serve localhost:7007 udp://127.0.0.1:7007 unix:/run/echo.sock",
)
@click.argument("endpoints", metavar="[ENDPOINT]...", nargs=-1)
@options_of(ServerOptions)
@click.option(
    "--user",
    cls=GroupedOption,
    group="Process",
    type=USER,
    metavar="NAME[:GROUP]",
    help="Drop root privileges to this user after binding.",
)
@json_option
def serve(
    endpoints: tuple[str, ...],
    fds: tuple[int, ...],
    faults: tuple[Fault, ...],
    user: User | None,
    json_path: str | None,
    **options: object,
) -> int:
    """Echo what arrives at each ENDPOINT until Ctrl-C, SIGTERM or SIGHUP.

    ENDPOINT is like 127.0.0.1:7007 (the default), localhost:7007, :7007 (loopback), [::1]:7007,
    udp://0.0.0.0:7007, unix:/run/echo.sock or unixgram:/run/echo.dgram; port 0 picks a free one.
    Sockets that systemd passes (LISTEN_FDS) are served too; if there are any, the default endpoint
    is not.
    """
    if user:
        check_root(user)
    with usage_errors():
        passed = {**dict.fromkeys(fds, ""), **inherited.listen_fds()}
        # Of an option that can be repeated click makes () where none is given.
        server = Server(*endpoints, fds=passed, faults=faults or None, **options)  # type: ignore[arg-type]
    try:
        with usage_errors():  # a host name may have more addresses than max_connections
            server.serve_forever(
                bound=partial(step_down, user=user, borrowed=len(passed), json_path=json_path),
                ready=partial(announce, passed=passed),
            )
        code = write(server.stats(), json_path, server.stopped_by is signal.SIGINT)
    except (Ended, KeyboardInterrupt):
        if server.stopped_by is None:
            raise
        # One more signal, while the counters were written: they are not lost by it.
        code = write(server.stats(), json_path, server.stopped_by is signal.SIGINT)
    return code or (INTERRUPTED if server.stopped_by is signal.SIGINT else OK)


def write(stats: ServerStats, json_path: str | None, interrupted: bool) -> int:
    code = write_json(stats.as_dict(), json_path) if json_path else OK
    if interrupted and sys.stderr is not None and sys.stderr.isatty():
        say("")  # after the ^C that the terminal has shown
    tell(str(stats))
    return code


def step_down(server: Server, user: User | None, borrowed: int, json_path: str | None) -> None:
    """Drop the privileges of root, and say which files the user cannot remove at the end."""
    if user is None:
        return
    made = server.endpoints[: len(server.endpoints) - borrowed]
    paths = [each.path for each in made if each.is_unix and not each.path.startswith("@")]
    for path in paths:
        give_away(path, user.uid, user.gid)
    become(user)
    try:
        check_writable(json_path)
    except click.UsageError as error:
        # Not click's error: to show it click imports more, which the user may not be able to read.
        raise OSError(errno.EACCES, f"{error.message}, as {user.name}") from None
    for path in paths:
        directory = Path(path).parent
        if not os.access(directory, os.W_OK | os.X_OK):
            say(
                f"{path} stays behind at the end, for the next server to replace: "
                f"{user.name} may not write to {directory}"
            )


def announce(server: Server, passed: Mapping[int, str]) -> None:
    for line in listening(server, passed):
        say(line)
