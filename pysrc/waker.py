"""A way to wake a thread that sleeps in poll()."""

from __future__ import annotations

import select
import socket
from contextlib import suppress

WAKE = 0  # the byte that wake() sends; signal numbers begin at 1


class Waker:
    """A pair of sockets: `reader` becomes readable when wake() is called.

    A thread that sleeps in poll() on its own sockets cannot see a flag, but it can watch one more
    socket. So no thread has to look at a flag every few milliseconds.
    """

    def __init__(self) -> None:
        self.reader, self.writer = socket.socketpair()
        self.reader.setblocking(False)
        self.writer.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self.reader, select.POLLIN)

    def wake(self) -> None:
        with suppress(BlockingIOError):  # full, so it is readable already
            self.writer.send(bytes((WAKE,)))

    def wait(self, seconds: float | None) -> bytes:
        """Sleep until wake() is called; return the bytes received, none after `seconds`."""
        # poll() takes whole milliseconds in an int.
        limit = None if seconds is None else min(seconds * 1000, 2**31 - 1)
        return self.clear() if self._poll.poll(limit) else b""

    def clear(self) -> bytes:
        """Receive all waiting bytes, so that `reader` is readable only after the next wake()."""
        try:
            return self.reader.recv(4096)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self.reader.close()
        self.writer.close()
