"""Echo server as an asyncio ``Protocol``, on asyncio's own event loop or on uvloop's.

Usage: ``python protocol_echo.py HOST PORT --loop asyncio|uvloop``
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import cast

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class Echo(asyncio.Protocol):
    """Writes back what it reads. asyncio's defaults do everything else.

    ``eof_received`` is inherited on purpose: it returns None, which has the transport close
    itself once everything buffered is sent. TCP_NODELAY is set by both loops.
    """

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    # A client that does not read must not fill our memory: while its echo waits, it is not read.
    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


async def serve(host: str, port: int, name: str) -> None:
    """Echo on HOST:PORT until SIGTERM or SIGINT."""
    # asyncio reads into a fresh 256 KiB object. glibc maps and unmaps memory for each, a multiple
    # of the echo's own cost, until the first whole one is freed; in a server, when the first
    # client closes. Free one now, or the rate would depend on whether a client has closed yet.
    bytes(256 * 1024)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = await loop.create_server(Echo, host, port, backlog=4096)
    bound_host, bound_port = server.sockets[0].getsockname()
    print(f"listening on tcp://{bound_host}:{bound_port} ({name})", file=sys.stderr, flush=True)
    await stop.wait()
    # Not wait_closed(): since Python 3.12 it waits for every client to close.
    server.close()


def choose_loop(kind: str) -> tuple[LoopFactory, str]:
    """The event loop's factory, and the name to print. Imports uvloop only if asked for."""
    if kind == "asyncio":
        return asyncio.new_event_loop, "asyncio Protocol"
    try:
        import uvloop
    except ImportError as error:
        raise SystemExit("uvloop is not installed: pip install uvloop") from error
    return uvloop.new_event_loop, f"uvloop Protocol {version('uvloop')}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Echo server as an asyncio Protocol.")
    parser.add_argument("host", help="numeric IPv4 address")
    parser.add_argument("port", type=int, help="0 picks a free one")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    arguments = parser.parse_args()
    factory, name = choose_loop(arguments.loop)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(arguments.host, arguments.port, name))


if __name__ == "__main__":
    main()
