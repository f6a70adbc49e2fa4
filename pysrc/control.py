"""The phases of a server, and how an engine learns of a change."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable

from .waker import Waker


class Phase(enum.IntEnum):
    RUNNING = 0
    #: Accept what waits in the queue, nothing after that, and serve until every client has closed.
    DRAINING = 1
    #: Serve nothing more, close everything.
    STOPPED = 2


class Control(Waker):
    """The phase, and a waker that wakes the engine when the phase changes."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = Phase.RUNNING
        # Reentrant: a signal handler may call stop() while its thread holds the lock.
        self._lock = threading.RLock()
        self._on_stop: Callable[[], None] | None = None

    def advance(self, phase: Phase) -> None:
        """Enter `phase`, from any thread. An earlier phase changes nothing."""
        with self._lock:
            if phase > self.phase:
                self.phase = phase
                self.wake()
                if phase is Phase.STOPPED and self._on_stop:
                    self._on_stop()

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the thread that stops the server.

        The waker does not wake a thread that is blocked in recv() or send().
        """
        with self._lock:
            self._on_stop = callback
            if self.phase is Phase.STOPPED:
                callback()
