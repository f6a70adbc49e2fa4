"""One thread and one loop for all connections, over `selectors` (epoll on Linux).

No call here may block: one slow client would stop all others. So whatever could not be sent at
once is kept, and until it is gone the connection is watched for writing only, not for reading:
a client that does not read costs one buffer, never more.
"""

from __future__ import annotations

import selectors
import socket
import time

from .accepting import Acceptor
from .control import Control, Phase
from .tally import Connection, Tally

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

#: Connections taken in one go, so that a flood of new clients does not starve the ones that are in.
ACCEPT_BATCH = 64

NOTHING = memoryview(b"")


class Client(Connection):
    """A connection, and what it was not ready to take."""

    __slots__ = ("pending",)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.pending = NOTHING


def run(listener: socket.socket, control: Control, tally: Tally, buffer_size: int) -> None:
    SelectorLoop(listener, control, tally, buffer_size).run()


class SelectorLoop:
    def __init__(
        self, listener: socket.socket, control: Control, tally: Tally, buffer_size: int
    ) -> None:
        self._listener = listener
        self._acceptor = Acceptor(listener, tally)
        self._control = control
        self._tally = tally
        self._clients: set[Client] = set()
        self._accept_at: float | None = None  # end of the listener's pause, CLOCK_MONOTONIC
        # One buffer for all: only a client that is slow to read needs one of its own.
        self._buffer = bytearray(buffer_size)
        self._view = memoryview(self._buffer)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, READ)
        self._selector.register(control.waker, READ)

    def run(self) -> None:
        control, select, echo = self._control, self._selector.select, self._echo
        while control.phase is Phase.RUNNING or self._clients or self._listening():
            for key, events in select(self._timeout()):
                client = key.data
                if client is None:
                    control.clear()
                    self._accept()
                elif events & WRITE:
                    self._flush(client)
                else:
                    echo(client)
            if control.phase is Phase.STOPPED:
                break
            if self._accept_at is not None and time.monotonic() >= self._accept_at:
                self._resume()
        self._close_all()

    def _timeout(self) -> float | None:
        return None if self._accept_at is None else max(0.0, self._accept_at - time.monotonic())

    # accept

    def _listening(self) -> bool:
        return self._listener.fileno() >= 0

    def _accept(self) -> None:
        if not self._listening() or self._accept_at is not None:
            return
        for _ in range(ACCEPT_BATCH):
            # Read before accept(): only a queue found empty after the drain began is done with.
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
            # It stays readable all the while: left registered, the loop would spin.
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
        client = Client(sock)
        self._tally.add(client)
        self._clients.add(client)
        try:
            sock.setblocking(False)
            self._selector.register(sock, READ, client)
        except OSError as error:
            self._forget(client, self._tally.count_error(error))

    # receive and send

    def _echo(self, client: Client) -> None:
        sock = client.sock
        try:
            received = sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._forget(client, self._tally.count_error(error))
            return
        if not received:
            self._forget(client, "eof")
            return
        client.bytes_in += received
        # Tried at once: nearly always there is room, and watching for it would cost two more calls.
        try:
            sent = sock.send(self._view[:received])
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._forget(client, self._tally.count_error(error))
            return
        client.bytes_out += sent
        if sent < received:
            client.pending = memoryview(bytes(self._view[sent:received]))
            self._selector.modify(sock, WRITE, client)

    def _flush(self, client: Client) -> None:
        try:
            sent = client.sock.send(client.pending)
        except BlockingIOError:
            return
        except OSError as error:
            self._forget(client, self._tally.count_error(error))
            return
        client.bytes_out += sent
        client.pending = client.pending[sent:]
        if not client.pending:
            client.pending = NOTHING
            self._selector.modify(client.sock, READ, client)

    # close

    def _forget(self, client: Client, reason: str) -> None:
        self._clients.remove(client)
        if client.sock in self._selector.get_map():
            self._selector.unregister(client.sock)
        self._tally.closed(client, reason)
        if self._accept_at is not None:
            self._accept_at = 0.0  # a descriptor has come free

    def _close_all(self) -> None:
        self._listener.close()
        for client in self._clients:
            self._tally.closed(client, "stopped")
        self._selector.close()
