"""Echo server with a coroutine per connection, on gevent or on trio.

Usage: ``python coroutine_echo.py HOST PORT --library gevent|trio``
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from importlib.metadata import version
from typing import Any

CHUNK = 65536  # bytes per receive


def announce(address: tuple[str, int], library: str) -> None:
    name = f"{library} {version(library)}"
    print(f"listening on tcp://{address[0]}:{address[1]} ({name})", file=sys.stderr, flush=True)


def serve_gevent(host: str, port: int) -> None:
    import gevent
    from gevent.server import StreamServer

    def echo(sock: Any, address: tuple[str, int]) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while data := sock.recv(CHUNK):
                sock.sendall(data)
        except ConnectionError:
            pass  # the client has reset

    server = StreamServer((host, port), echo, backlog=4096)
    server.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, server.close)
    announce(server.address, "gevent")
    server.serve_forever()


def serve_trio(host: str, port: int) -> None:
    import trio

    async def echo(stream: Any) -> None:
        try:
            while data := await stream.receive_some(CHUNK):
                await stream.send_all(data)
        except trio.BrokenResourceError:
            pass  # the client has reset

    async def serve() -> None:
        # Its streams set TCP_NODELAY by themselves.
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=4096)
        announce(listeners[0].socket.getsockname(), "trio")
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, echo, listeners)
                async for _ in signals:
                    nursery.cancel_scope.cancel()

    trio.run(serve)


LIBRARIES = {"gevent": serve_gevent, "trio": serve_trio}


def main() -> None:
    parser = argparse.ArgumentParser(description="Echo server with a coroutine per connection.")
    parser.add_argument("host", help="numeric IPv4 address")
    parser.add_argument("port", type=int, help="0 picks a free one")
    parser.add_argument("--library", choices=LIBRARIES, required=True)
    arguments = parser.parse_args()
    LIBRARIES[arguments.library](arguments.host, arguments.port)


if __name__ == "__main__":
    main()
