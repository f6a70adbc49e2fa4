"""Clients of an echo server, made of plain blocking sockets; nothing of fastsock is used."""

from __future__ import annotations

import hashlib
import math
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import pytest

TIMEOUT = 25.0  # seconds; only something that hangs takes so long
STREAM_SIZE = 1 << 20  # bytes that an EchoClient sends at most
SMALL = 16 * 1024  # bytes that any socket buffer takes without waiting
SO_PASSRIGHTS = 83  # asm-generic/socket.h; Python has no name for it yet
#: RFC 864's lines of 72 of the 95 printable characters, until they repeat.
CHARGEN = b"".join((bytes(range(32, 127)) * 2)[at : at + 72] + b"\r\n" for at in range(95))
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 s


def connect(
    endpoint: Any, *, rcvbuf: int = 0, sndbuf: int = 0, timeout: float = TIMEOUT, source: str = ""
) -> socket.socket:
    """Connect; a small `rcvbuf` (bytes) makes the client a slow reader, set before connect()
    because it decides the window. A Unix stream knows no window and ignores it (unix(7)).
    `sndbuf` (bytes) bounds what the client's own socket holds, else up to 4 MiB.
    `source` is an address of this host to connect from, instead of the one the kernel takes."""
    family, address = socket_address(endpoint)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if rcvbuf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        if sndbuf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
        if source:
            # The port is then picked at connect(), and may be one in use to another address.
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
        if family != socket.AF_UNIX:
            sock.settimeout(timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A Unix socket with a timeout does not wait for a full queue: EAGAIN, connect(2).
        sock.connect(address)
        sock.settimeout(timeout)
    except BaseException:
        sock.close()
        raise
    return sock


def socket_address(endpoint: Any) -> tuple[socket.AddressFamily, Any]:
    """The family and the address that connect() takes; ``@name`` is an abstract one (unix(7))."""
    if endpoint.path:
        name = endpoint.path
        return socket.AF_UNIX, f"\0{name[1:]}" if name.startswith("@") else name
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    return family, (endpoint.host, endpoint.port)


def refuses(endpoint: Any) -> bool:
    """Whether a connection is refused: no socket listens there."""
    try:
        connect(endpoint).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # it came just as the listener was closed: ask again
        return False
    return False


def skip_if_rights_always_pass() -> None:
    """Skip the test where a Unix socket cannot refuse open files (SCM_RIGHTS)."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS)
        except OSError:
            pytest.skip("SO_PASSRIGHTS needs Linux 6.16")


def half_close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


def reset(sock: socket.socket) -> None:
    """Close with a RST. On a Unix stream it takes bytes that were not read; else it is an end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Receive `size` bytes; fewer only if the stream ends before."""
    data = bytearray(size)
    view, filled = memoryview(data), 0
    while filled < size:
        count = sock.recv_into(view[filled:])
        if not count:
            break
        filled += count
    return bytes(view[:filled])


def receive_all(sock: socket.socket) -> bytes:
    """Receive until the end of the stream."""
    parts = []
    while part := sock.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def has_ended(sock: socket.socket) -> bool:
    """Wait for the server to end an idle connection; False if it sends something instead."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


@contextmanager
def sending(
    sock: socket.socket, chunks: Iterable[bytes], *, then_half_close: bool = False
) -> Iterator[None]:
    """Send in a thread while the body receives; what went wrong there is raised at the end."""
    failures: list[OSError] = []

    def send() -> None:
        try:
            for chunk in chunks:
                sock.sendall(chunk)
            if then_half_close:
                half_close(sock)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        with suppress(OSError):  # the server may have been faster
            sock.shutdown(socket.SHUT_RDWR)  # wakes the thread
        raise
    finally:
        thread.join()
    if failures:
        raise failures[0]


@contextmanager
def running(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run `work` in a thread beside the body; it has to end soon after, without an exception."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(TIMEOUT)
    assert not thread.is_alive(), "still not done"
    if failures:
        raise failures[0]


def fill(sock: socket.socket) -> int:
    """Send until the socket takes no more; return how many bytes it took."""
    junk, sent = bytes(64 * 1024), 0
    sock.setblocking(False)
    try:
        while True:
            sent += sock.send(junk)
    except BlockingIOError:
        return sent


def stall(bytes_in: Callable[[], int], *socks: socket.socket) -> list[int]:
    """Send, without reading, until the server receives no more; return what each client sent.

    `bytes_in` reads how many bytes the server has received.
    """
    sent = [fill(sock) for sock in socks]
    while True:
        wait_until_still(bytes_in, quiet=0.1)
        more = [fill(sock) for sock in socks]
        if not any(more):
            return sent
        sent = [before + now for before, now in zip(sent, more, strict=True)]


def idle_cpu_seconds(sock: socket.socket, seconds: float) -> float:
    """CPU time that this process takes while nothing arrives."""
    before = time.process_time()
    nothing_comes(sock, seconds)
    return time.process_time() - before


def nothing_comes(sock: socket.socket, seconds: float) -> None:
    """Be idle for so long: no byte arrives, and no end."""
    assert select.select([sock], [], [], seconds)[0] == []


def assert_same(received: bytes, sent: bytes) -> None:
    """Compare without printing megabytes."""
    assert len(received) == len(sent)
    assert hashlib.sha256(received).digest() == hashlib.sha256(sent).digest()


def echo_exactly(sock: socket.socket, *chunks: bytes) -> None:
    """Send the chunks, receiving all the while, and require the same bytes back."""
    data = b"".join(chunks)
    if len(data) <= SMALL:
        for chunk in chunks:
            sock.sendall(chunk)
        assert_same(receive_exactly(sock, len(data)), data)
        return
    with sending(sock, chunks):
        received = receive_exactly(sock, len(data))
    assert_same(received, data)


def finish_exactly(sock: socket.socket, *chunks: bytes) -> None:
    """Send the chunks and half-close, and require the same bytes back and then the end."""
    with sending(sock, chunks, then_half_close=True):
        received = receive_all(sock)
    assert_same(received, b"".join(chunks))


@contextmanager
def connect_to(server: Any) -> Iterator[tuple[Any, socket.socket]]:
    """The server, started, and one client that has had an echo."""
    with server, connect(server.endpoint) as sock:
        echo_exactly(sock, b"hello")
        yield server, sock


def assert_serves(endpoint: Any) -> None:
    """A new client gets its echo and its end."""
    with connect(endpoint) as sock:
        finish_exactly(sock, b"probe")


def tagged(number: int, size: int) -> bytes:
    """A payload that repeats 16 bytes which no other number has.

    Not the number itself: most bytes of two numbers are the same, which hides a mixed-up one.
    """
    tag = hashlib.blake2b(number.to_bytes(8, "big"), digest_size=16).digest()
    return (tag * (size // 16 + 1))[:size]


@lru_cache(maxsize=4)
def random_bytes(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@cache
def stream(number: int) -> bytes:
    """All that the client of that number sends; no other client sends the same."""
    return random.Random(number).randbytes(STREAM_SIZE)


@dataclass
class EchoClient:
    """A client that counts what it has sent of its stream."""

    sock: socket.socket
    number: int
    sent: int = 0
    half_closed: bool = False
    early: bytearray = field(default_factory=bytearray)  # came while there was no room to send

    def send(self, size: int) -> None:
        """Send, and read only if nothing can be sent: the server need not take all at once."""
        data = memoryview(stream(self.number))[self.sent : self.sent + size]
        self.sent += size
        timeout = self.sock.gettimeout()
        self.sock.setblocking(False)
        while data:
            try:
                data = data[self.sock.send(data) :]
            except BlockingIOError:
                self._take_some()
        self.sock.settimeout(timeout)

    def _take_some(self) -> None:
        readable, writable, _ = select.select([self.sock], [self.sock], [], TIMEOUT)
        if readable and not writable:
            part = self.sock.recv(1 << 16)
            if not part:
                raise EOFError("an end that was not asked for")
            self.early += part
        elif not writable:
            raise TimeoutError("no byte could be sent or received")

    def read(self, size: int) -> bytes:
        first = bytes(self.early[:size])
        del self.early[:size]
        return first + receive_exactly(self.sock, size - len(first))

    def half_close(self) -> None:
        if not self.half_closed:
            half_close(self.sock)
            self.half_closed = True

    def finish(self) -> bytes:
        self.half_close()
        return bytes(self.early) + receive_all(self.sock)


@lru_cache(maxsize=16)  # every implementation gets the same: to make a MiB takes 5 ms
def random_chunks(seed: int, total: int, largest: int) -> tuple[bytes, ...]:
    """Random bytes in chunks of 1 to `largest`, as many short ones as long ones."""
    rng = random.Random(seed)
    chunks = []
    while total:
        size = min(total, int(2 ** rng.uniform(0, math.log2(largest))))
        chunks.append(rng.randbytes(size))
        total -= size
    return tuple(chunks)


def wait_until(
    condition: Callable[[], object], what: str = "condition", longest: float = 0.03
) -> None:
    """Check until it holds: for what comes soon but gives no event to wait for.

    Less and less often, up to every `longest` seconds, as the check itself, a connection say, may
    keep a slow server busy.
    """
    pause, deadline = 0.001, time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {TIMEOUT:g} s"
        time.sleep(pause)
        pause = min(pause * 1.5, longest)


def wait_until_still(read: Callable[[], int], quiet: float = 0.2) -> int:
    """Wait until a counter has not moved for `quiet` seconds; return it."""
    seen, since = read(), time.monotonic()

    def is_still() -> bool:
        nonlocal seen, since
        now = read()
        if now != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() - since >= quiet

    wait_until(is_still, "counter that does not move", longest=quiet / 10)
    return seen


def not_zero(counters: Mapping[str, int]) -> dict[str, int]:
    """The counters that are not 0."""
    return {name: count for name, count in counters.items() if count}
