"""One thread per connection.

Each thread is as simple as the serial server, and a slow client blocks its own thread only. It
costs a thread per client, and all of them take turns to hold the interpreter's lock.
"""

from __future__ import annotations

import socket
import threading
from collections import deque

from .blocking import Clients, serve_client
from .control import Control
from .tally import Connection, Tally


def run(listener: socket.socket, control: Control, tally: Tally, buffer_size: int) -> None:
    control.on_stop(tally.shut_down)
    threads: set[threading.Thread] = set()
    finished: deque[threading.Thread] = deque()

    def serve(connection: Connection) -> None:
        serve_client(connection, control, tally, bytearray(buffer_size))
        finished.append(threading.current_thread())

    for connection in Clients(listener, control, tally):
        # Let go of the threads that are over: a server that runs for months must not keep them.
        while finished:
            over = finished.popleft()
            over.join()
            threads.remove(over)
        # A daemon, so that a program that forgets stop() can still exit.
        thread = threading.Thread(target=serve, args=(connection,), daemon=True)
        threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # no thread to be had (EAGAIN): this client's loss, not everybody's
            threads.remove(thread)
            tally.closed(connection, "error")
    listener.close()
    for thread in threads:
        thread.join()
