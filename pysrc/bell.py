"""A way to wake a thread that sleeps in poll()."""

from __future__ import annotations

import select
import socket
from contextlib import suppress

RUNG = 0  # the byte that ring() sends; signal numbers begin at 1


class Bell:
    """A socket that becomes readable when the bell is rung.

    A thread that sleeps in poll() on its own sockets cannot see a flag, but it can watch one socket
    more. So nothing has to look at a flag every few milliseconds.
    """

    def __init__(self) -> None:
        self.waker, self.writer = socket.socketpair()
        self.waker.setblocking(False)
        self.writer.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self.waker, select.POLLIN)

    def ring(self) -> None:
        with suppress(BlockingIOError):  # full, so it is readable anyway
            self.writer.send(bytes((RUNG,)))

    def wait(self, seconds: float | None) -> bytes:
        """Sleeps until the bell is rung; returns what was heard, or nothing after `seconds`."""
        # poll() takes whole milliseconds in an int.
        limit = None if seconds is None else min(seconds * 1000, 2**31 - 1)
        return self.clear() if self._poll.poll(limit) else b""

    def clear(self) -> bytes:
        """Takes what was rung, once a loop has seen that the socket is readable."""
        try:
            return self.waker.recv(4096)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self.waker.close()
        self.writer.close()
