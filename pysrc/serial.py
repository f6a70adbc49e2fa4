"""One client at a time: accept, echo until it has finished, close, accept the next.

The tutorial's loop. The next client waits in the accept queue until this one is done.
"""

from __future__ import annotations

import socket

from .blocking import Clients, serve_client
from .control import Control
from .tally import Tally


def run(listener: socket.socket, control: Control, tally: Tally, buffer_size: int) -> None:
    control.on_stop(tally.shut_down)
    buffer = bytearray(buffer_size)
    for connection in Clients(listener, control, tally):
        serve_client(connection, control, tally, buffer)
    listener.close()
