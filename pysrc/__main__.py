"""python -m fastsock.pure: the standard-library server and load client from the command line."""

from __future__ import annotations

import argparse
import json
import signal
import sys

from .. import line_writer
from ..signals import ignore_signals
from . import ENGINES, Server, load


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if done, 1 failed, 2 usage, 4 the load run is not valid, 130 Ctrl-C."""
    options = parse(arguments)
    try:
        if options.command == "serve":
            return run_server(options)
        return run_load(options)
    except (OSError, ValueError, NotImplementedError) as error:
        line_writer.say(f"fastsock.pure: {getattr(error, 'strerror', None) or error}")
        return 2 if isinstance(error, ValueError | NotImplementedError) else 1
    except KeyboardInterrupt:
        return 130
    finally:
        line_writer.flush(0.05)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fastsock.pure", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    server = commands.add_parser("serve", help="serve until Ctrl-C or SIGTERM")
    server.add_argument("endpoint", nargs="?", default="tcp://127.0.0.1:7007")
    server.add_argument("--unix-mode", type=octal, default=0o600, help="rights of a Unix socket")
    server.add_argument("--engine", choices=ENGINES, default="threads")
    server.add_argument(
        "--drain-timeout", type=float, default=0.0, help="seconds to finish after the first signal"
    )

    client = commands.add_parser("load", help="load an echo server and report")
    client.add_argument("endpoint")
    client.add_argument("--connections", type=int, default=1)
    client.add_argument("--size", type=int, default=64, help="bytes a message")
    client.add_argument("--depth", type=int, default=1, help="messages outstanding a connection")
    client.add_argument("--duration", type=float, default=5.0, help="seconds")
    client.add_argument("--json", action="store_true", help="print the whole report as JSON")
    return parser.parse_args(arguments)


def octal(text: str) -> int:
    return int(text, 8)


def run_server(options: argparse.Namespace) -> int:
    def announce(server: Server) -> None:
        line_writer.say(f"listening on {server.endpoint} ({options.engine})")

    server = Server(
        options.endpoint,
        engine=options.engine,
        unix_mode=options.unix_mode,
        drain_timeout=options.drain_timeout,
    )
    server.serve_forever(ready=announce)
    ignore_signals()  # the exit code is decided
    return 130 if server.stopped_by is signal.SIGINT else 0


def run_load(options: argparse.Namespace) -> int:
    report = load(
        options.endpoint,
        connections=options.connections,
        size=options.size,
        depth=options.depth,
        duration=options.duration,
    )
    print(json.dumps(report.as_dict(), indent=2) if options.json else report)
    if report.failed:
        return 1
    return 0 if report.valid else 4


if __name__ == "__main__":
    sys.exit(main())
