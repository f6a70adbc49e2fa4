"""The client of all probes: plain sockets, and nothing of fastsock."""

from __future__ import annotations

import random
import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

PATIENCE = 3.0  # seconds without progress, after which a server is taken to hang
TAKES_NO_MORE = 0.3  # seconds without room to send, after which a client is taken to be stuck
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 s
EOF, RESET, STALL = "eof", "reset", "stall"

Address = tuple[str, int]


def connect(
    address: Address, *, rcvbuf: int = 0, sndbuf: int = 0, timeout: float = PATIENCE
) -> socket.socket:
    """Connect; sizes (bytes) are set first, because they decide the window."""
    sock = socket.socket()
    try:
        sock.settimeout(timeout)
        for option, size in ((socket.SO_RCVBUF, rcvbuf), (socket.SO_SNDBUF, sndbuf)):
            if size:
                sock.setsockopt(socket.SOL_SOCKET, option, size)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


def payload(size: int, seed: int = 1) -> bytes:
    """Random bytes, so that a lost, doubled or moved piece shows."""
    return random.Random(seed).randbytes(size)


def echoes(address: Address, timeout: float = PATIENCE) -> bool:
    """Whether a new client gets its echo."""
    try:
        with connect(address, timeout=timeout) as sock:
            sock.sendall(b"are you there?")
            return sock.recv(64) == b"are you there?"
    except OSError:
        return False


def seconds_until(condition: Callable[[], bool], limit: float) -> float | None:
    """Seconds until it holds; None if it does not within `limit` seconds."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > limit:
            return None
        time.sleep(0.005)
    return time.monotonic() - begin


@dataclass(slots=True)
class Transfer:
    """The echo of `sent` bytes: how much came, whether it was `exact`, and how it ended."""

    sent: int
    received: int = 0
    exact: bool = True
    end: str = STALL

    @property
    def complete(self) -> bool:
        return self.exact and self.received == self.sent and self.end == EOF


def transfer(sock: socket.socket, data: bytes, *, hold: bool = False) -> Transfer:
    """Send all and half-close, receiving all the while; ends with the server's end of the stream.

    With `hold`, nothing is received until the server takes no more.
    """
    result = Transfer(len(data))
    sent, poll = 0, select.poll()
    sock.setblocking(False)
    while True:
        wanted = (0 if hold else select.POLLIN) | (select.POLLOUT if sent < len(data) else 0)
        poll.register(sock, wanted)
        events = poll.poll((TAKES_NO_MORE if hold else PATIENCE) * 1000)
        if not events and not hold:
            return result
        hold = hold and bool(events) and sent < len(data)
        try:
            if events and events[0][1] & select.POLLOUT:
                sent += sock.send(data[sent : sent + 65536])
                if sent == len(data):
                    sock.shutdown(socket.SHUT_WR)
            if events and events[0][1] & ~select.POLLOUT:
                part = sock.recv(65536)
                if not part:
                    result.end = EOF
                    return result
                result.exact &= part == data[result.received : result.received + len(part)]
                result.received += len(part)
        except BlockingIOError:
            continue
        except OSError:
            result.end = RESET
            return result


def receive(sock: socket.socket, data: bytes) -> Transfer:
    """Receive the echo of `data` up to the end of the stream."""
    result = Transfer(len(data))
    sock.settimeout(PATIENCE)
    try:
        while part := sock.recv(65536):
            result.exact &= part == data[result.received : result.received + len(part)]
            result.received += len(part)
        result.end = EOF
    except TimeoutError:
        pass
    except OSError:
        result.end = RESET
    return result


def wait_readable(socks: list[socket.socket], patience: float) -> None:
    """Wait until all are, or for `patience` seconds without another one."""
    poll = select.poll()
    for sock in socks:
        poll.register(sock, select.POLLIN)
    left = len(socks)
    while left and (ready := poll.poll(patience * 1000)):
        left -= len(ready)
        for fd, _ in ready:
            poll.unregister(fd)


def fill(sock: socket.socket, most: int) -> int:
    """Send until the server takes no more, `most` bytes at the most; return how many it took."""
    chunk, sent, poll = bytes(65536), 0, select.poll()
    poll.register(sock, select.POLLOUT)
    sock.setblocking(False)
    while sent < most and poll.poll(TAKES_NO_MORE * 1000):
        try:
            sent += sock.send(chunk)
        except BlockingIOError:
            continue
        except OSError:
            break
    return sent


class Clients:
    """Many clients at once: each sends one byte and waits for it. A context manager."""

    def __init__(self, address: Address, count: int) -> None:
        self._poll = select.poll()
        self._waiting: dict[int, socket.socket] = {}
        self._answered: list[socket.socket] = []
        self.closed = 0  # by the server, before an answer
        for _ in range(count):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(address)
            self._waiting[sock.fileno()] = sock
            self._poll.register(sock, select.POLLOUT)

    @property
    def answered(self) -> int:
        return len(self._answered)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let them send and receive for so long, or until something holds."""
        deadline = time.monotonic() + seconds
        while not until() and (left := deadline - time.monotonic()) > 0:
            for fd, events in self._poll.poll(left * 1000):
                self._serve(fd, events)

    def _serve(self, fd: int, events: int) -> None:
        sock = self._waiting[fd]
        try:
            if events == select.POLLOUT:
                sock.send(b"x")
                self._poll.modify(fd, select.POLLIN)
                return
            closed = sock.recv(1) != b"x"
        except OSError:
            closed = True
        self._poll.unregister(fd)
        del self._waiting[fd]
        if closed:
            self.closed += 1
            sock.close()
        else:
            self._answered.append(sock)

    def close_answered(self) -> None:
        while self._answered:
            self._answered.pop().close()

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_answered()
        for sock in self._waiting.values():
            with suppress(OSError):
                sock.close()
