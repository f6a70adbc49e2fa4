"""Echo servers of a known capacity or delay, each in a process of its own.

    python servers.py paced PER_SECOND
    python servers.py delayed SECONDS

The first line on standard output is the endpoint.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

SIZE = 64  # bytes of a message


@dataclass(frozen=True, slots=True)
class ServerProcess:
    process: subprocess.Popen[str]
    endpoint: str


@contextmanager
def server_process(*command: str, cpu: int) -> Iterator[ServerProcess]:
    """A program on a CPU that prints its endpoint as its first line; killed at the end."""
    from runs import pinned  # which needs pytest; this file is also run as a program

    with pinned({cpu}):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield ServerProcess(process, process.stdout.readline().strip())
    finally:
        process.kill()
        process.communicate(timeout=30)


def paced_echo(per_second: float, *, cpu: int) -> AbstractContextManager[ServerProcess]:
    """Answers exactly so many messages of SIZE bytes a second, of one connection at a time."""
    return server_process(sys.executable, __file__, "paced", str(per_second), cpu=cpu)


def delayed_echo(seconds: float, *, cpu: int) -> AbstractContextManager[ServerProcess]:
    """Answers each message so much later, however many wait."""
    return server_process(sys.executable, __file__, "delayed", str(seconds), cpu=cpu)


def serve_paced(per_second: float) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"tcp://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                pace(connection, 1 / per_second)


def pace(connection: socket.socket, interval: float) -> None:
    """Take `interval` seconds for each message, until the end of the file.

    The times of messages that wait join without a gap, so that a pause of this process is caught up
    with, and the capacity is exact.
    """
    due = 0.0
    while True:
        try:
            connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            connection.recv(1, socket.MSG_PEEK)
            due = time.monotonic()
        message = connection.recv(SIZE, socket.MSG_WAITALL)
        if not message:
            return
        due += interval
        while time.monotonic() < due:
            pass
        connection.sendall(message)


class Delayed(asyncio.Protocol):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(self.seconds, self.transport.write, data)

    def eof_received(self) -> bool:
        # After the last answer: what is called at the same time is called in no certain order.
        asyncio.get_running_loop().call_later(self.seconds + 0.01, self.transport.close)
        return True


async def serve_delayed(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Delayed(seconds), "127.0.0.1", 0)
    print(f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "paced":
        serve_paced(float(sys.argv[2]))
    else:
        asyncio.run(serve_delayed(float(sys.argv[2])))
