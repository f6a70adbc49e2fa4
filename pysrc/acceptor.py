"""Accept connections, and pause accepting when descriptors or memory run out."""

from __future__ import annotations

import logging
import socket
import time

from .. import line_writer
from .counters import Counters
from .transient import NETWORK, SHORTAGE

log = logging.getLogger("fastsock.pure")

PAUSE = 0.1  # seconds
LOG_INTERVAL = 1.0  # seconds
FAILURES_MAX = 64  # in a row, before a pause


class Acceptor:
    """Accept connections from a non-blocking listener.

    When descriptors or memory run out (EMFILE, ENFILE, ENOBUFS, ENOMEM), accept() fails, but the
    connection stays in the queue and the listener stays readable. A loop that tries again at once
    takes a whole CPU and fills the disk with its log. So the caller does not watch the listener for
    `pause` seconds. No connection is lost by waiting.
    """

    def __init__(self, listener: socket.socket, counters: Counters) -> None:
        self._listener = listener
        self._counters = counters
        self._next_log = 0.0
        self.pause = 0.0

    def accept(self) -> socket.socket | None:
        """Return the next waiting connection, or None.

        After None, try again in `pause` seconds, or, if that is 0, when the listener is readable.

        Raises OSError for an error that cannot pass: the listener is gone, or accept() is
        forbidden.
        """
        self.pause = 0.0
        failures = 0
        while True:
            try:
                return self._listener.accept()[0]
            except BlockingIOError:
                return None
            except OSError as error:
                self._counters.count_error(error)
                failures += 1
                if error.errno in SHORTAGE or failures == FAILURES_MAX:
                    self._pause_after(error)
                    return None
                if error.errno not in NETWORK:
                    raise OSError(error.errno, f"accept: {error.strerror}") from None

    def _pause_after(self, error: OSError) -> None:
        self.pause = PAUSE
        self._counters.accept_pauses += 1
        now = time.monotonic()
        if now >= self._next_log:
            self._next_log = now + LOG_INTERVAL
            # Soon, and not here: a log that is not read would stop this thread.
            line_writer.log(
                log,
                logging.WARNING,
                f"accept: {error.strerror}; trying again every {PAUSE * 1000:.0f} ms",
            )
