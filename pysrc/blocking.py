"""Accept, receive and send with calls that block: what serial.py and threads.py share."""

from __future__ import annotations

import select
import socket

from .accepting import Acceptor
from .control import Control, Phase
from .tally import Connection, Tally


class Clients:
    """The clients of a listener, in the order in which they came: an iterator that waits for the
    next, and ends when no more are to be served."""

    def __init__(self, listener: socket.socket, control: Control, tally: Tally) -> None:
        self._acceptor = Acceptor(listener, tally)
        self._control = control
        self._tally = tally
        # Not select(): it cannot watch a descriptor above 1023.
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._poll.register(control.waker, select.POLLIN)

    def __iter__(self) -> Clients:
        return self

    def __next__(self) -> Connection:
        control = self._control
        # Read before accept(): only a queue found empty after the drain began is done with.
        while (phase := control.phase) is not Phase.STOPPED:
            sock = self._acceptor.accept()
            if sock is not None:
                return self._tally.opened(sock)
            if self._acceptor.pause:
                control.wait(self._acceptor.pause)
            elif phase is Phase.DRAINING:
                break
            else:
                self._poll.poll()
                control.clear()
        raise StopIteration


def serve_client(connection: Connection, control: Control, tally: Tally, buffer: bytearray) -> None:
    """Serves one client to its end and closes the connection."""
    reason = "error"
    try:
        # A server that stopped before this connection was on its list could not shut it down.
        if control.phase is not Phase.STOPPED:
            echo(connection, buffer)
        reason = "eof"
    except OSError as error:
        if control.phase is not Phase.STOPPED:
            reason = tally.count_error(error)
    finally:
        tally.closed(connection, "stopped" if control.phase is Phase.STOPPED else reason)


def echo(connection: Connection, buffer: bytearray) -> None:
    """Sends back what comes in, until the client has sent all it wants (recv() returns 0).

    A client that does not read what it is sent blocks send(), so nothing more is read from it,
    and TCP's flow control tells it so.
    """
    receive, send = connection.sock.recv_into, connection.sock.send
    view = memoryview(buffer)
    while received := receive(buffer):
        connection.bytes_in += received
        sent = send(view[:received])
        connection.bytes_out += sent
        # Even a send() that blocks may send a part only, when a signal interrupts it.
        while sent < received:
            more = send(view[sent:received])
            connection.bytes_out += more
            sent += more
