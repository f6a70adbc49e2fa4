"""How a running shape is told to finish."""

from __future__ import annotations

import enum
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress


class Phase(enum.IntEnum):
    RUNNING = 0
    #: Accept what waits in the queue, nothing after that, and serve until every client has closed.
    DRAINING = 1
    #: Serve nothing more, close everything.
    STOPPED = 2


class Control:
    """The phase, and a socket that becomes readable when it changes.

    A thread that sleeps in poll() on its own sockets cannot see a flag. It can see one socket
    more, so nothing has to look at a flag every few milliseconds.
    """

    def __init__(self) -> None:
        self.phase = Phase.RUNNING
        # Reentrant, because a signal handler may call stop() while its thread is in here.
        self._lock = threading.RLock()
        self.waker, self._writer = socket.socketpair()
        self.waker.setblocking(False)
        self._on_stop: Callable[[], None] | None = None
        self._poll_waker = select.poll()
        self._poll_waker.register(self.waker, select.POLLIN)

    def advance(self, phase: Phase) -> None:
        """Enters `phase`, from any thread; a phase never goes back."""
        with self._lock:
            if phase > self.phase:
                self.phase = phase
                self._writer.send(b"\0")
                if phase is Phase.STOPPED and self._on_stop:
                    self._on_stop()

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Has `callback` called by the thread that stops: a thread blocked in recv() or send()
        does not watch the waker."""
        with self._lock:
            self._on_stop = callback
            if self.phase is Phase.STOPPED:
                callback()

    def sleep(self, seconds: float) -> None:
        """Sleeps, but no longer than until the phase changes."""
        if self._poll_waker.poll(seconds * 1000):
            self.clear()

    def clear(self) -> None:
        """Takes the wake-up byte, once the loop has seen it."""
        with suppress(BlockingIOError):
            self.waker.recv(16)

    def close(self) -> None:
        self.waker.close()
        self._writer.close()
