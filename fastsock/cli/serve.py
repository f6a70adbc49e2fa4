"""``fastsock serve``."""

from __future__ import annotations

import errno
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from fastsock.cli.command import Command, GroupedOption, usage_errors
from fastsock.cli.exits import FAILED, INTERRUPTED, OK
from fastsock.cli.log import Log
from fastsock.cli.output import check_writable, write_json
from fastsock.cli.parameters import json_option, options_of
from fastsock.cli.user import USER, User, become, check_root
from fastsock.cli.watched import ServeOptions, Watched
from fastsock.line_writer import say
from fastsock.options import declared
from fastsock.server import inherited
from fastsock.server.faults import Fault
from fastsock.server.options import ServerOptions
from fastsock.server.server import Server
from fastsock.server.unix_file import give_away
from fastsock.signals import Ended


@click.command(
    cls=Command,
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
@options_of(ServeOptions)
@json_option
def serve(
    endpoints: tuple[str, ...],
    fds: tuple[int, ...],
    faults: tuple[Fault, ...],
    user: User | None,
    json_path: str | None,
    **options: Any,
) -> int:
    """Echo what arrives at each ENDPOINT until Ctrl-C, SIGTERM or SIGHUP.

    ENDPOINT is like 127.0.0.1:7007 (the default), localhost:7007, :7007 (loopback), [::1]:7007,
    udp://0.0.0.0:7007, unix:/run/echo.sock or unixgram:/run/echo.dgram; port 0 picks a free one.
    Sockets that systemd passes (LISTEN_FDS) are served too; if there are any, the default endpoint
    is not.
    """
    if user:
        check_root(user)
    watching = {each.name: options.pop(each.name) for each in declared(ServeOptions)}
    with usage_errors():
        passed = {**dict.fromkeys(fds, ""), **inherited.listen_fds()}
        # Of an option that can be repeated click makes () where none is given.
        server = Server(*endpoints, fds=passed, faults=faults or None, **options)
    with Log(watching["log_level"], watching["log_format"]) as log:
        try:
            with (
                Watched(server, log, ServeOptions(**watching), options, passed) as watched,
                usage_errors(),  # a host name may have more addresses than max_connections
            ):
                drop = partial(
                    step_down,
                    user=user,
                    borrowed=len(passed),
                    json_path=json_path,
                    watched=watched,
                )
                server.serve_forever(bound=drop, ready=watched.ready, stopping=watched.stopping)
            code = write(server, json_path, log)
        except (Ended, KeyboardInterrupt):
            if server.stopped_by is None:
                raise
            # One more signal, while the counters were written: they are not lost by it.
            code = write(server, json_path, log)
        except OSError as error:
            log.error(error.strerror or str(error))
            return FAILED
    return code or (INTERRUPTED if server.stopped_by is signal.SIGINT else OK)


def write(server: Server, json_path: str | None, log: Log) -> int:
    stats = server.stats()
    code = write_json(stats.as_dict(), json_path) if json_path else OK
    if server.stopped_by is signal.SIGINT and sys.stderr is not None and sys.stderr.isatty():
        say("")  # after the ^C that the terminal has shown
    log.info(str(stats), wrap=True)
    return code


def step_down(
    server: Server,
    user: User | None,
    borrowed: int,
    json_path: str | None,
    watched: Watched,
) -> None:
    """Drop the privileges of root, and say which files the user cannot remove at the end."""
    if user is None:
        return
    made = (*server.endpoints[: len(server.endpoints) - borrowed], *watched.endpoints)
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
            watched.log.info(
                f"{path} stays behind at the end, for the next server to replace: "
                f"{user.name} may not write to {directory}"
            )
