"""Accept, receive and send with calls that block: what serial.py and threads.py share."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

from .acceptor import Acceptor
from .control import Control, Phase
from .counters import Connection, Counters


def accept_connections(
    listener: socket.socket, control: Control, counters: Counters
) -> Iterator[Connection]:
    """Yield connections in the order of the queue, and wait for the next, until there are no more.

    It ends at a stop, or when a drain finds the queue empty.
    """
    acceptor = Acceptor(listener, counters)
    # Not select(): it cannot watch a descriptor above 1023.
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(control.reader, select.POLLIN)
    # Read before accept(): a drain ends only if the queue was empty after it began.
    while (phase := control.phase) is not Phase.STOPPED:
        sock = acceptor.accept()
        if sock is not None:
            connection = Connection(sock)
            counters.add(connection)
            yield connection
        elif acceptor.pause:
            control.wait(acceptor.pause)
        elif phase is Phase.DRAINING:
            break
        else:
            poll.poll()
            control.clear()


def serve_client(
    connection: Connection, control: Control, counters: Counters, buffer: bytearray
) -> None:
    """Serve one client to its end and close the connection."""
    reason = "error"
    try:
        # shut_down() does not reach a connection that was counted after the stop.
        if control.phase is not Phase.STOPPED:
            echo(connection, buffer)
        reason = "eof"
    except OSError as error:
        if control.phase is not Phase.STOPPED:
            reason = counters.count_error(error)
    finally:
        counters.close(connection, "stopped" if control.phase is Phase.STOPPED else reason)


def echo(connection: Connection, buffer: bytearray) -> None:
    """Send back what is received, until the client ends its stream (recv() returns 0).

    A client that does not read blocks send(). Then nothing more is received from it, and TCP's
    flow control stops it.
    """
    receive, send = connection.sock.recv_into, connection.sock.send
    view = memoryview(buffer)
    while received := receive(buffer):
        connection.bytes_in += received
        sent = send(view[:received])
        connection.bytes_out += sent
        # Even a blocking send() may send a part only, when a signal interrupts it.
        while sent < received:
            more = send(view[sent:received])
            connection.bytes_out += more
            sent += more
