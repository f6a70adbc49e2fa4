"""What a service manager such as systemd is told: sd_notify(3), ``Type=notify``.

There is no WATCHDOG=1: a thread that sends it would be no evidence that the native loops answer.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import MutableMapping

_TIMEOUT = struct.pack("ll", 0, 500_000)  # struct timeval: 0.5 s


class ServiceManager:
    """The socket that NOTIFY_SOCKET names: a path, or ``@name`` for an abstract one.

    The variable is removed, or a child could speak for this process.
    """

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        name = (os.environ if environ is None else environ).pop("NOTIFY_SOCKET", "")
        self._name = f"\0{name[1:]}" if name.startswith("@") else name

    def ready(self, status: str) -> OSError | None:
        """Tell that the endpoints can be connected to; return why that failed, if it did."""
        return self._send(f"READY=1\nSTATUS={status}", 0)

    def stopping(self) -> None:
        self._send("STOPPING=1\nSTATUS=stopping", socket.MSG_DONTWAIT)

    def status(self, text: str) -> None:
        """Tell a line for `systemctl status`."""
        self._send(f"STATUS={text}", socket.MSG_DONTWAIT)

    def _send(self, text: str, flags: int) -> OSError | None:
        if not self._name:
            return None
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                # Not settimeout(): poll(2) of a socket that is not connected does not wait for
                # the queue of the other one.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEOUT)
                sock.sendto(text.encode(errors="surrogateescape"), flags, self._name)
        except OSError as error:
            return error
        return None
