"""What a server counts, and the connections it has open."""

from __future__ import annotations

import errno
import socket
import threading
from collections import Counter
from contextlib import suppress

from ..server.stats import DROPPED, ServerStats


class Connection:
    """One client. Its counters are written by one thread only, so they need no lock."""

    __slots__ = ("bytes_in", "bytes_out", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.bytes_in = 0
        self.bytes_out = 0


class Tally:
    """Counters of a server. The lock is taken once when a connection begins and once when it ends;
    in between its bytes are counted in the Connection, and added up when somebody asks."""

    def __init__(self) -> None:
        # Reentrant, because a signal handler may call stop() while its thread is in here.
        self._lock = threading.RLock()
        self._open: set[Connection] = set()
        self._accepted = 0
        self._closed = Counter({"eof": 0, "reset": 0, "error": 0, "stopped": 0})
        self._bytes_in = 0
        self._bytes_out = 0
        self._errors: Counter[str] = Counter()
        self.accept_pauses = 0
        # Of datagrams; one thread writes these.
        self.datagrams_in = 0
        self.datagrams_out = 0
        self.datagram_bytes_in = 0
        self.datagram_bytes_out = 0
        self.dropped = dict.fromkeys(DROPPED, 0)

    def opened(self, sock: socket.socket) -> Connection:
        connection = Connection(sock)
        self.add(connection)
        return connection

    def add(self, connection: Connection) -> None:
        with self._lock:
            self._accepted += 1
            self._open.add(connection)

    def closed(self, connection: Connection, reason: str) -> None:
        """Counts the end of a connection and closes it."""
        with self._lock:
            self._open.remove(connection)
            self._closed[reason] += 1
            self._bytes_in += connection.bytes_in
            self._bytes_out += connection.bytes_out
        connection.sock.close()

    def count_error(self, error: OSError) -> str:
        """Counts a failed call; returns the reason for which the connection ends."""
        reset = isinstance(error, ConnectionResetError | BrokenPipeError)
        number = error.errno or (errno.ECONNRESET if reset else errno.EIO)
        with self._lock:
            self._errors[errno.errorcode.get(number, str(number))] += 1
        return "reset" if reset else "error"

    def shut_down(self) -> None:
        """Ends every open connection, which wakes the threads that are blocked in its calls.

        Only shutdown() does that: close() leaves them asleep, and gives the descriptor's number
        to the next connection while they still use it. Each thread closes its own socket, after
        taking it off the list, so none of these descriptors belongs to somebody else by now.
        """
        with self._lock:
            for connection in self._open:
                with suppress(OSError):  # ENOTCONN: the client was faster, and its thread is awake
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def stats(self, engine: str, endpoint: str) -> ServerStats:
        with self._lock:
            return ServerStats(
                engine=engine,
                endpoints=(endpoint,),
                accepted=self._accepted,
                open=len(self._open),
                closed=dict(self._closed),
                bytes_in=self._bytes_in
                + sum(each.bytes_in for each in self._open)
                + self.datagram_bytes_in,
                bytes_out=self._bytes_out
                + sum(each.bytes_out for each in self._open)
                + self.datagram_bytes_out,
                errors=dict(self._errors),
                accept_pauses=self.accept_pauses,
                datagrams_in=self.datagrams_in,
                datagrams_out=self.datagrams_out,
                dropped=dict(self.dropped),
            )
