"""accept(), and what to do when it fails."""

from __future__ import annotations

import errno
import logging
import socket
import time

from .tally import Tally

log = logging.getLogger("fastsock.pure")

#: Errors of one waiting connection, not of the listener: accept(2) says to take the next one.
NEXT_ONE = frozenset(
    (
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENONET,
        errno.EOPNOTSUPP,
        errno.ETIMEDOUT,
        errno.EPERM,
    )
)

PAUSE = 0.1  # seconds
LOG_INTERVAL = 1.0  # seconds


class Acceptor:
    """Accepts connections from a non-blocking listener.

    When descriptors or memory run out (EMFILE, ENFILE, ENOBUFS, ENOMEM), accept() fails, but the
    connection stays in the queue and the listener stays readable: a loop that tries again at once
    takes a whole CPU and fills the disk with its log. So the listener is left alone for `pause`
    seconds. No connection is lost by waiting.
    """

    def __init__(self, listener: socket.socket, tally: Tally) -> None:
        self._listener = listener
        self._tally = tally
        self._quiet_until = 0.0
        self.pause = 0.0

    def accept(self) -> socket.socket | None:
        """The next waiting connection, or None: try again in `pause` seconds, or, when that is 0,
        once the listener is readable."""
        self.pause = 0.0
        while True:
            try:
                return self._listener.accept()[0]
            except BlockingIOError:
                return None
            except OSError as error:
                self._tally.count_error(error)
                if error.errno not in NEXT_ONE:
                    self._starved(error)
                    return None

    def _starved(self, error: OSError) -> None:
        self.pause = PAUSE
        self._tally.accept_pauses += 1
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + LOG_INTERVAL
            log.warning("accept: %s; trying again every %.0f ms", error.strerror, PAUSE * 1000)
