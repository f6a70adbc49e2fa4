"""What a server counts, and the connections it has open."""

from __future__ import annotations

import errno
import socket
import threading
from collections import Counter
from contextlib import suppress

from ..server.stats import DROPPED, ServerStats


class Connection:
    """One connection. One thread alone writes its counters, so they need no lock."""

    __slots__ = ("bytes_in", "bytes_out", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.bytes_in = 0
        self.bytes_out = 0


class Counters:
    """Counters of a server, and its open connections.

    The lock is taken once when a connection begins and once when it ends. In between its bytes are
    counted in the Connection, and stats() adds them up.
    """

    def __init__(self) -> None:
        # Reentrant: a signal handler may call stop() while its thread holds the lock.
        self._lock = threading.RLock()
        self._open: set[Connection] = set()
        self._accepted = 0
        self._closed = Counter({"eof": 0, "reset": 0, "error": 0, "stopped": 0})
        self._bytes_in = 0
        self._bytes_out = 0
        self._errors: Counter[str] = Counter()
        self.accept_pauses = 0
        # Of datagrams; one thread alone writes them.
        self.datagrams_in = 0
        self.datagrams_out = 0
        self.datagram_bytes_in = 0
        self.datagram_bytes_out = 0
        self.dropped = dict.fromkeys(DROPPED, 0)

    def add(self, connection: Connection) -> None:
        with self._lock:
            self._accepted += 1
            self._open.add(connection)

    def close(self, connection: Connection, reason: str) -> None:
        """Close a connection and count its end."""
        with self._lock:
            self._open.remove(connection)
            self._closed[reason] += 1
            self._bytes_in += connection.bytes_in
            self._bytes_out += connection.bytes_out
        connection.sock.close()

    def count_error(self, error: OSError) -> str:
        """Count a failed call; return the reason for which its connection ends."""
        reset = isinstance(error, ConnectionResetError | BrokenPipeError)
        number = error.errno or (errno.ECONNRESET if reset else errno.EIO)
        with self._lock:
            self._errors[errno.errorcode.get(number, str(number))] += 1
        return "reset" if reset else "error"

    def shut_down(self) -> None:
        """Shut down every open connection, which wakes the threads blocked in its calls.

        Only shutdown() does that: close() leaves them asleep, and the kernel gives the descriptor's
        number to the next connection while they still use it. Each thread closes its socket after
        it has removed the connection here, so every descriptor still belongs to its connection.
        """
        with self._lock:
            for connection in self._open:
                with suppress(
                    OSError
                ):  # ENOTCONN: the client ended it first, and its thread is awake
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
