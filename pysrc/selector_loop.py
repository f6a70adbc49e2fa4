"""One thread and one loop for all connections, over `selectors` (epoll on Linux).

No call here may block: one slow client would stop all others. So unsent bytes are kept, and until
they are sent the connection is watched for writing only, not for reading: a client that does not
read costs one buffer, never more.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Generator

from .acceptor import Acceptor
from .control import Control, Phase
from .counters import Connection, Counters
from .transient import call

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

#: Connections accepted at a time, so that many new clients do not delay the connected ones.
ACCEPT_BATCH = 64

NOTHING = memoryview(b"")


class BufferedConnection(Connection):
    """A connection and its unsent bytes."""

    __slots__ = ("unsent",)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.unsent = NOTHING


def run(
    listener: socket.socket, control: Control, counters: Counters, buffer_size: int
) -> Generator[None, None, None]:
    loop = SelectorLoop(listener, control, counters, buffer_size)
    try:
        yield
        loop.run()
    finally:
        loop.close()


def open_selector() -> selectors.BaseSelector:
    with call("epoll_create1"):
        return selectors.DefaultSelector()


class SelectorLoop:
    def __init__(
        self, listener: socket.socket, control: Control, counters: Counters, buffer_size: int
    ) -> None:
        self._listener = listener
        self._acceptor = Acceptor(listener, counters)
        self._control = control
        self._counters = counters
        self._connections: set[BufferedConnection] = set()
        self._accept_at: float | None = None  # end of the listener's pause, CLOCK_MONOTONIC
        # One buffer for all: only a connection with unsent bytes needs one of its own.
        self._buffer = bytearray(buffer_size)
        self._view = memoryview(self._buffer)
        self._selector = open_selector()
        try:
            with call("epoll_ctl"):
                self._selector.register(listener, READ)
                self._selector.register(control.reader, READ)
        except OSError:
            self._selector.close()
            raise

    def run(self) -> None:
        control, select, echo = self._control, self._selector.select, self._echo
        while control.phase is Phase.RUNNING or self._connections or self._listening():
            for key, events in select(self._timeout()):
                connection = key.data
                if connection is None:
                    control.clear()
                    self._accept()
                elif events & WRITE:
                    self._flush(connection)
                else:
                    echo(connection)
            if control.phase is Phase.STOPPED:
                break
            if self._accept_at is not None and time.monotonic() >= self._accept_at:
                self._resume()

    def _timeout(self) -> float | None:
        return None if self._accept_at is None else max(0.0, self._accept_at - time.monotonic())

    # accept

    def _listening(self) -> bool:
        return self._listener.fileno() >= 0

    def _accept(self) -> None:
        if not self._listening() or self._accept_at is not None:
            return
        for _ in range(ACCEPT_BATCH):
            # Read before accept(): a drain ends only if the queue was empty after it began.
            phase = self._control.phase
            if phase is Phase.STOPPED:
                return
            sock = self._acceptor.accept()
            if sock is None:
                break
            self._add(sock)
        else:
            return
        if self._acceptor.pause:
            # The listener stays readable: if it were still watched, the loop would spin.
            self._selector.unregister(self._listener)
            self._accept_at = time.monotonic() + self._acceptor.pause
        elif phase is Phase.DRAINING:
            self._selector.unregister(self._listener)
            self._listener.close()

    def _resume(self) -> None:
        self._accept_at = None
        self._selector.register(self._listener, READ)
        self._accept()

    def _add(self, sock: socket.socket) -> None:
        connection = BufferedConnection(sock)
        self._counters.add(connection)
        self._connections.add(connection)
        try:
            sock.setblocking(False)
            self._selector.register(sock, READ, connection)
        except OSError as error:
            self._close(connection, self._counters.count_error(error))

    # receive and send

    def _echo(self, connection: BufferedConnection) -> None:
        sock = connection.sock
        try:
            received = sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._close(connection, self._counters.count_error(error))
            return
        if not received:
            self._close(connection, "eof")
            return
        connection.bytes_in += received
        # Sent at once: the socket nearly always has room, and to watch for it costs two more calls.
        try:
            sent = sock.send(self._view[:received])
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._close(connection, self._counters.count_error(error))
            return
        connection.bytes_out += sent
        if sent < received:
            connection.unsent = memoryview(bytes(self._view[sent:received]))
            self._selector.modify(sock, WRITE, connection)

    def _flush(self, connection: BufferedConnection) -> None:
        try:
            sent = connection.sock.send(connection.unsent)
        except BlockingIOError:
            return
        except OSError as error:
            self._close(connection, self._counters.count_error(error))
            return
        connection.bytes_out += sent
        connection.unsent = connection.unsent[sent:]
        if not connection.unsent:
            connection.unsent = NOTHING
            self._selector.modify(connection.sock, READ, connection)

    # close

    def _close(self, connection: BufferedConnection, reason: str) -> None:
        self._connections.remove(connection)
        if connection.sock in self._selector.get_map():
            self._selector.unregister(connection.sock)
        self._counters.close(connection, reason)
        if self._accept_at is not None:
            self._accept_at = 0.0  # a descriptor is free now

    def close(self) -> None:
        self._listener.close()
        for connection in self._connections:
            self._counters.close(connection, "stopped")
        self._selector.close()
