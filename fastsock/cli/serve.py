"""``fastsock serve``."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click

from fastsock.cli.exits import INTERRUPTED, OK, usage_errors
from fastsock.cli.output import check_writable, json_option, write_json
from fastsock.cli.units import DURATION, FILE_MODE, SIZE, format_size, numbers, parse_duration
from fastsock.cli.user import USER, User, become, check_root
from fastsock.endpoint import Endpoint
from fastsock.server import engines, inherited
from fastsock.server.options import SERVICES
from fastsock.server.server import Server
from fastsock.server.stats import ServerStats
from fastsock.server.unix_file import give_away


def busy_poll(context: click.Context, parameter: click.Parameter, value: str) -> int | str:
    """``50us`` to 50."""
    if value == "auto":
        return value
    try:
        return round(parse_duration(value) * 1e6)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("endpoints", metavar="[ENDPOINT]...", nargs=-1)
@click.option("--engine", default="auto", help=f"One of {', '.join(engines.NAMES)}.")
@click.option("--backlog", type=int, default=4096, help="Connections that may wait for accept.")
@click.option("--unix-mode", type=FILE_MODE, default="600", help="Rights of a Unix socket, octal.")
@click.option("--reuse-port", is_flag=True, help="Share the port with other sockets of this user.")
@click.option("--dual-stack", is_flag=True, help="Take IPv4 on IPv6 endpoints too.")
@click.option("--nodelay/--no-nodelay", default=True, help="TCP_NODELAY.")
@click.option("--rcvbuf", type=SIZE, default=0, help="SO_RCVBUF; 0 is the kernel's choice.")
@click.option("--sndbuf", type=SIZE, default=0, help="SO_SNDBUF; 0 is the kernel's choice.")
@click.option(
    "--fd", multiple=True, type=int, metavar="N", help="Serve on an inherited descriptor besides."
)
@click.option("--workers", type=int, default=1, help="Threads per tcp endpoint.")
@click.option("--cpus", callback=numbers, metavar="LIST", help="CPUs for the workers, as 0,1.")
@click.option("--buffer-size", type=SIZE, default="64k", help="Bytes per receive.")
@click.option(
    "--busy-poll",
    default="0us",
    callback=busy_poll,
    metavar="DURATION|auto",
    help="Ask so long before blocking.",
)
@click.option("--max-connections", type=int, default=0, help="More wait; 0 is no limit.")
@click.option("--idle-timeout", type=DURATION, default="0s", help="0 is never.")
@click.option("--allow", multiple=True, metavar="RANGE", help="As 10.0.0.0/8; others are closed.")
@click.option("--service", default="echo", help=f"One of {', '.join(SERVICES)}.")
@click.option("--close-on", type=os.fsencode, default="", help="Line that ends a conversation.")
@click.option(
    "--loop-guard/--no-loop-guard",
    default=True,
    help="Leave datagrams unanswered that may be a server's answers.",
)
@click.option(
    "--drain-timeout",
    type=DURATION,
    default="0s",
    help="Time that the first signal leaves to clients; the second stops at once.",
)
@click.option(
    "--user",
    type=USER,
    metavar="NAME[:GROUP]",
    help="What root becomes, for good, once all is bound.",
)
@json_option
def serve(
    endpoints: tuple[str, ...],
    fd: tuple[int, ...],
    user: User | None,
    json_path: str | None,
    **options: object,
) -> int:
    """Echo whatever comes in at each ENDPOINT, until Ctrl-C or SIGTERM.

    ENDPOINT is like tcp://127.0.0.1:7007 (the default), udp://0.0.0.0:7007, unix:///run/echo.sock
    or unixgram:///run/echo.dgram; port 0 picks a free one. Sockets that systemd passes (LISTEN_FDS)
    are served on too, and without an ENDPOINT they alone.
    """
    if user:
        check_root(user)
    with usage_errors():
        passed = {**dict.fromkeys(fd, ""), **inherited.listen_fds()}
        server = Server(*endpoints, fds=passed, **options)  # type: ignore[arg-type]
    stats = server.serve_forever(
        bound=partial(step_down, user=user, borrowed=len(passed), json_path=json_path),
        ready=partial(announce, passed=passed),
    )
    click.echo(summary(stats), err=True)
    code = write_json(stats.as_dict(), json_path) if json_path else OK
    return INTERRUPTED if server.stopped_by is signal.SIGINT else code


def step_down(server: Server, user: User | None, borrowed: int, json_path: str | None) -> None:
    """Give up the rights of root, now that all is bound, and say what that leaves undone."""
    if user is None:
        return
    made = server.endpoints[: len(server.endpoints) - borrowed]
    paths = [each.path for each in made if each.is_unix and not each.path.startswith("@")]
    for path in paths:
        give_away(path, user.uid, user.gid)
    become(user)
    try:
        check_writable(json_path)
    except click.BadParameter as error:
        # Not click's own, which imports more to be shown: the user may not read that.
        raise OSError(errno.EACCES, f"{error.message}, as {user.name}") from None
    for path in paths:
        directory = Path(path).parent
        if not os.access(directory, os.W_OK | os.X_OK):
            click.echo(
                f"{path} stays behind at the end, for the next server to replace: "
                f"{user.name} may not write to {directory}",
                err=True,
            )


def announce(server: Server, passed: Mapping[int, str]) -> None:
    made = len(server.endpoints) - len(passed)
    for endpoint in server.endpoints[:made]:
        count = server.workers if endpoint.scheme == "tcp" else 1
        workers = "1 worker" if count == 1 else f"{count} workers"
        click.echo(f"listening on {endpoint} ({engine_of(server, endpoint)}, {workers})", err=True)
    for endpoint, (fd, name) in zip(server.endpoints[made:], passed.items(), strict=True):
        origin = f"descriptor {fd} {name}".rstrip()
        click.echo(
            f"listening on {endpoint} ({engine_of(server, endpoint)}, 1 worker, {origin})", err=True
        )


def engine_of(server: Server, endpoint: Endpoint) -> str:
    return server.engine if endpoint.is_stream else "datagrams"


def summary(stats: ServerStats) -> str:
    errors = ", ".join(f"{name} {times}" for name, times in stats.errors.items()) or "none"
    served = f"{stats.accepted} connections"
    if stats.datagrams_in:
        dropped = sum(stats.dropped.values())
        served += f", {stats.datagrams_out} datagrams ({dropped} more dropped)"
    return (
        f"served {served}: {format_size(stats.bytes_in)} in, "
        f"{format_size(stats.bytes_out)} out; errors: {errors}"
    )
