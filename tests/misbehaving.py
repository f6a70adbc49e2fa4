"""Servers that do what an echo server must not: each a few threads around one behaviour.

A behaviour is a function of the server and one accepted socket, run in a thread of its own; the
socket is closed when it returns. `server.stopping` is set when the test is over, so that a stall
is a wait for that event, and nothing outlives the ``with`` block.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

HOST = "127.0.0.1"
CHUNK = 65536  # bytes per receive
JOIN_TIMEOUT = 10.0  # seconds; far more than any behaviour needs to notice the end

Behaviour = Callable[["MisbehavingServer", socket.socket], None]


class MisbehavingServer:
    """A TCP server on a free loopback port; used as a context manager."""

    def __init__(self, behave: Behaviour) -> None:
        self.stopping = threading.Event()
        self.received = threading.Event()  # a byte has come in, on any connection
        self.ended = threading.Event()  # an end-of-file has come in, on any connection
        self.arrival = threading.Condition()
        self.sockets: list[socket.socket] = []  # in the order in which they were accepted
        self._behave = behave
        self._listener = socket.create_server((HOST, 0), backlog=128)
        self._threads = [threading.Thread(target=self._accept)]

    @property
    def address(self) -> tuple[str, int]:
        return (HOST, self._listener.getsockname()[1])

    def recv(self, connection: socket.socket) -> bytes:
        """Receive what is there; note in `received` or `ended` what it was."""
        data = connection.recv(CHUNK)
        (self.received if data else self.ended).set()
        return data

    def __enter__(self) -> MisbehavingServer:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.stop_listening()
        self._threads[0].join(JOIN_TIMEOUT)
        with self.arrival:
            for connection in self.sockets:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)  # ends recv() and send()
            self.arrival.notify_all()
        for thread in self._threads[1:]:
            thread.join(JOIN_TIMEOUT)
        self._listener.close()
        alive = [thread.name for thread in self._threads if thread.is_alive()]
        assert not alive, f"threads of the server did not end: {alive}"

    def stop_listening(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends accept()

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.arrival:
                self.sockets.append(connection)
                self.arrival.notify_all()
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self._behave(self, connection)


# --- behaviours ---------------------------------------------------------------------------------


def echoes(server: MisbehavingServer, connection: socket.socket) -> None:
    """Do nothing wrong."""
    while data := server.recv(connection):
        connection.sendall(data)


def closes_at_once(server: MisbehavingServer, connection: socket.socket) -> None:
    """Accept and close."""


def half_closes_first(server: MisbehavingServer, connection: socket.socket) -> None:
    """Send an end-of-file before anything else, and go on reading."""
    connection.shutdown(socket.SHUT_WR)
    while server.recv(connection):
        pass


def swallows(server: MisbehavingServer, connection: socket.socket) -> None:
    """Read everything, answer nothing, and never close."""
    while server.recv(connection):
        pass
    server.stopping.wait()


def never_closes(server: MisbehavingServer, connection: socket.socket) -> None:
    """Echo every byte, but do not answer the end-of-file."""
    echoes(server, connection)
    server.stopping.wait()


def closes_late(seconds: float) -> Behaviour:
    """Echo every byte, and answer the end-of-file so much later."""

    def behave(server: MisbehavingServer, connection: socket.socket) -> None:
        echoes(server, connection)
        server.stopping.wait(seconds)

    return behave


def answers_garbage(server: MisbehavingServer, connection: socket.socket) -> None:
    """Answer as many bytes as came, but others."""
    while data := server.recv(connection):
        connection.sendall(bytes(len(data)))


def echoes_bytewise(server: MisbehavingServer, connection: socket.socket) -> None:
    """Echo correctly, with one send() per byte."""
    while data := server.recv(connection):
        for byte in data:
            connection.sendall(bytes([byte]))


def swaps_connections(server: MisbehavingServer, connection: socket.socket) -> None:
    """Send to the first connection what the second one sent, and the other way round."""
    with server.arrival:
        server.arrival.wait_for(lambda: len(server.sockets) >= 2 or server.stopping.is_set())
        if server.stopping.is_set():
            return
        other = server.sockets[0] if connection is server.sockets[1] else server.sockets[1]
    while data := server.recv(connection):
        other.sendall(data)


def resets_after(size: int) -> Behaviour:
    """Echo until `size` bytes were received, then reset."""

    def behave(server: MisbehavingServer, connection: socket.socket) -> None:
        left = size
        while left > 0 and (data := server.recv(connection)):
            connection.sendall(data[:left])
            left -= len(data)
        reset(connection)

    return behave


def closes_after(size: int) -> Behaviour:
    """Echo `size` bytes, then send an end-of-file before the client's own."""

    def behave(server: MisbehavingServer, connection: socket.socket) -> None:
        left = size
        while left > 0 and (data := server.recv(connection)):
            connection.sendall(data[:left])
            left -= len(data)
        half_closes_first(server, connection)

    return behave


def resets_at_eof(server: MisbehavingServer, connection: socket.socket) -> None:
    """Echo every byte, and reset where an orderly close belongs."""
    echoes(server, connection)
    reset(connection)


def stalls_after(size: int) -> Behaviour:
    """Echo `size` bytes, then neither read nor write nor close."""

    def behave(server: MisbehavingServer, connection: socket.socket) -> None:
        left = size
        while left > 0 and (data := server.recv(connection)):
            connection.sendall(data[:left])
            left -= len(data)
        server.stopping.wait()

    return behave


def edits(at: int, edit: Callable[[bytes], bytes]) -> Behaviour:
    """Echo, but for the byte number `at` of each connection send what `edit` makes of it."""

    def behave(server: MisbehavingServer, connection: socket.socket) -> None:
        seen = 0
        while data := server.recv(connection):
            place = at - seen
            seen += len(data)
            if 0 <= place < len(data):
                data = data[:place] + edit(data[place : place + 1]) + data[place + 1 :]
            connection.sendall(data)

    return behave


def drops_byte(at: int) -> Behaviour:
    return edits(at, lambda byte: b"")


def doubles_byte(at: int) -> Behaviour:
    return edits(at, lambda byte: byte * 2)


def flips_byte(at: int) -> Behaviour:
    return edits(at, lambda byte: bytes([byte[0] ^ 0xFF]))


def sends_surplus(size: int) -> Behaviour:
    """Send `size` bytes before any was received, then echo."""

    def behave(server: MisbehavingServer, connection: socket.socket) -> None:
        connection.sendall(bytes(size))
        echoes(server, connection)

    return behave


def loses_tail(size: int) -> Behaviour:
    """Hold the last `size` bytes back until more come, and drop them at end-of-file."""

    def behave(server: MisbehavingServer, connection: socket.socket) -> None:
        held = b""
        while data := server.recv(connection):
            held += data
            connection.sendall(held[:-size])
            held = held[-size:]

    return behave


def pauses_once(after: float, duration: float) -> Behaviour:
    """Echo, but `after` seconds from the first byte on stop reading for `duration` seconds."""

    def behave(server: MisbehavingServer, connection: socket.socket) -> None:
        pause_at = None
        while data := server.recv(connection):
            now = time.monotonic()
            if pause_at is None:
                pause_at = now + after
            elif now >= pause_at:
                pause_at = float("inf")
                server.stopping.wait(duration)
            connection.sendall(data)

    return behave


def serves_slowly(size: int, pause: float) -> Behaviour:
    """Echo at most `size` bytes per `pause` seconds."""

    def behave(server: MisbehavingServer, connection: socket.socket) -> None:
        while data := connection.recv(size):
            connection.sendall(data)
            server.stopping.wait(pause)

    return behave


def serves_at(rate: float, size: int) -> Behaviour:
    """Echo messages of `size` bytes one after the other, each of which takes 1 / `rate` seconds.

    The times are kept, not slept: a thread that wakes up late answers all that is due, so that the
    capacity is exact however busy the machine is.
    """

    def behave(server: MisbehavingServer, connection: socket.socket) -> None:
        waiting, due, ready = bytearray(), deque[float](), 0.0
        connection.setblocking(False)
        is_open = True
        while is_open or due:
            timeout = max(due[0] - time.monotonic(), 0.0) if due else 1.0
            if not is_open:
                time.sleep(timeout)
            elif select.select([connection], [], [], timeout)[0]:
                data = connection.recv(CHUNK)
                is_open = bool(data)
                before = len(waiting) // size
                waiting += data
                for _ in range(len(waiting) // size - before):
                    ready = max(ready, time.monotonic()) + 1 / rate
                    due.append(ready)
            now, answered = time.monotonic(), 0
            while due and due[0] <= now:
                due.popleft()
                answered += size
            connection.setblocking(True)
            connection.sendall(waiting[:answered])
            connection.setblocking(False)
            del waiting[:answered]
            if server.stopping.is_set():
                return

    return behave


def reset(connection: socket.socket) -> None:
    """Close with RST in place of FIN: SO_LINGER with a time of 0, socket(7)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


# --- datagrams ----------------------------------------------------------------------------------

DatagramBehaviour = Callable[[int, bytes], list[bytes]]


@contextmanager
def datagram_server(behave: DatagramBehaviour, path: str = "") -> Iterator[str]:
    """A server on UDP, or at a path, that answers with what `behave(number, payload)` returns."""
    family = socket.AF_UNIX if path else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(path or (HOST, 0))
        address = sock.getsockname()

        def serve() -> None:
            number = 0
            while True:
                payload, client = sock.recvfrom(CHUNK)
                if client == address:  # sent by this test: the end
                    return
                for answer in behave(number, payload):
                    sock.sendto(answer, client)
                number += 1

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"unixgram://{path}" if path else f"udp://{HOST}:{address[1]}"
        finally:
            sock.sendto(b"", address)
            thread.join()


# --- addresses that do not accept ---------------------------------------------------------------


@contextmanager
def refusing_address() -> Iterator[tuple[str, int]]:
    """An address that is bound but not listened on: connections to it are refused."""
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        yield bound.getsockname()


@contextmanager
def full_address() -> Iterator[tuple[str, int]]:
    """An address whose accept queue is full and stays so: connecting to it gets no answer."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen(0)
        # A backlog of 0 leaves room for one connection on Linux; a second one would wait.
        with socket.create_connection(listener.getsockname(), timeout=JOIN_TIMEOUT):
            yield listener.getsockname()
