"""Echo servers as tutorials and documentation write them, with nothing added.

Usage: ``python -m benchmarks.reliability.textbook HOST PORT --kind KIND``.
"""

from __future__ import annotations

import asyncio
import socket
import socketserver
import sys

CHUNK = 65536  # bytes per receive


async def echo_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def serve_streams(host: str, port: int) -> None:
    server = await asyncio.start_server(echo_stream, host, port)
    async with server:
        await server.serve_forever()


class EchoProtocol(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]


async def serve_protocol(host: str, port: int) -> None:
    server = await asyncio.get_running_loop().create_server(EchoProtocol, host, port)
    async with server:
        await server.serve_forever()


class EchoHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(CHUNK):
            self.request.sendall(data)


def serve_socketserver(host: str, port: int) -> None:
    with socketserver.ThreadingTCPServer((host, port), EchoHandler) as server:
        server.serve_forever()


def serve_gevent(host: str, port: int) -> None:
    from gevent.server import StreamServer

    def echo(sock: socket.socket, address: tuple[str, int]) -> None:
        while data := sock.recv(CHUNK):
            sock.sendall(data)

    StreamServer((host, port), echo).serve_forever()


KINDS = {
    "streams": lambda *address: asyncio.run(serve_streams(*address)),
    "protocol": lambda *address: asyncio.run(serve_protocol(*address)),
    "socketserver": serve_socketserver,
    "gevent": serve_gevent,
}


if __name__ == "__main__":
    host, port, _, kind = sys.argv[1:]
    KINDS[kind](host, int(port))
