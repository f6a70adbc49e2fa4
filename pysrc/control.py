"""How a running engine is told to finish."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable

from .bell import Bell


class Phase(enum.IntEnum):
    RUNNING = 0
    #: Accept what waits in the queue, nothing after that, and serve until every client has closed.
    DRAINING = 1
    #: Serve nothing more, close everything.
    STOPPED = 2


class Control(Bell):
    """The phase, and a bell that is rung when it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = Phase.RUNNING
        # Reentrant, because a signal handler may call stop() while its thread is in here.
        self._lock = threading.RLock()
        self._on_stop: Callable[[], None] | None = None

    def advance(self, phase: Phase) -> None:
        """Enters `phase`, from any thread; a phase never goes back."""
        with self._lock:
            if phase > self.phase:
                self.phase = phase
                self.ring()
                if phase is Phase.STOPPED and self._on_stop:
                    self._on_stop()

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Has `callback` called by the thread that stops: a thread blocked in recv() or send()
        does not hear the bell."""
        with self._lock:
            self._on_stop = callback
            if self.phase is Phase.STOPPED:
                callback()
