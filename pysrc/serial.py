"""One client at a time: accept, echo until it has finished, close, accept the next.

The tutorial's loop. The next client waits in the accept queue until this one is done.
"""

from __future__ import annotations

import socket
from collections.abc import Generator

from .blocking import accept_connections, serve_client
from .control import Control
from .counters import Counters


def run(
    listener: socket.socket, control: Control, counters: Counters, buffer_size: int
) -> Generator[None, None, None]:
    buffer = bytearray(buffer_size)
    yield
    control.on_stop(counters.shut_down)
    for connection in accept_connections(listener, control, counters):
        serve_client(connection, control, counters, buffer)
    listener.close()
