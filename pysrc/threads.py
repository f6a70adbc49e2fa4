"""One thread per connection.

Each thread is as simple as the serial server, and a slow client blocks its own thread only. The
price is a thread per client, and all threads take turns to hold the interpreter's lock.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Generator

from .blocking import accept_connections, serve_client
from .control import Control
from .counters import Connection, Counters


def run(
    listener: socket.socket, control: Control, counters: Counters, buffer_size: int
) -> Generator[None, None, None]:
    yield
    control.on_stop(counters.shut_down)
    threads: set[threading.Thread] = set()
    finished: deque[threading.Thread] = deque()

    def serve(connection: Connection) -> None:
        serve_client(connection, control, counters, bytearray(buffer_size))
        finished.append(threading.current_thread())

    def start(connection: Connection) -> None:
        # Join finished threads here: a server that runs for months must not keep them all.
        while finished:
            thread = finished.popleft()
            thread.join()
            threads.remove(thread)
        # A daemon, so that a program that forgets stop() can still exit.
        thread = threading.Thread(target=serve, args=(connection,), daemon=True)
        threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # no thread can be made (EAGAIN): only this client is closed
            threads.remove(thread)
            counters.close(connection, "error")

    try:
        for connection in accept_connections(listener, control, counters):
            start(connection)
    except BaseException:
        counters.shut_down()  # wakes the threads
        raise
    finally:
        listener.close()
        for thread in threads:
            thread.join()
