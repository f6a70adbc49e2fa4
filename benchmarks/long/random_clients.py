"""Random clients that behave well, behave badly, or are killed: months of a server in minutes.

Each is a plain blocking socket in a thread of its own. A client that behaves well compares all the
bytes that come back; only one that resets or is killed may lose some.
"""

from __future__ import annotations

import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

from fastsock import Endpoint
from fastsock.bench.comparison import dial

TIMEOUT = 30.0  # seconds; only something that hangs takes so long
LARGEST = 1 << 18  # bytes in one piece
STALL = (0.05, 0.5)  # seconds that a client reads nothing
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 s


class RandomClients:
    """Threads of random clients; a context manager, which ends when the last has finished."""

    def __init__(self, endpoints: list[Endpoint], seed: int, threads: int) -> None:
        self.counts: Counter[str] = Counter()  # of clients by kind
        self.failures: list[str] = []  # of clients that did nothing wrong
        self.verified = 0  # bytes
        self._endpoints = endpoints
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(seed * 1000 + number),))
            for number in range(threads)
        ]

    def __enter__(self) -> RandomClients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, rng: random.Random) -> None:
        while not self._over.is_set():
            endpoint = rng.choice(self._endpoints)
            kind = rng.choice(STREAM_KINDS if endpoint.is_stream else DATAGRAM_KINDS)
            verified, failure = 0, ""
            try:
                with dial(endpoint, TIMEOUT) as sock:
                    verified = kind(sock, rng)
            except (OSError, AssertionError) as error:
                failure = f"{endpoint.scheme} {kind.__name__}: {error!r}"
            with self._lock:
                self.counts[f"{endpoint.scheme} {kind.__name__}"] += 1
                self.verified += verified
                if failure:
                    self.failures.append(failure)


def some_bytes(rng: random.Random) -> bytes:
    """Many short pieces, a few long ones."""
    return rng.randbytes(int(2 ** rng.uniform(0, LARGEST.bit_length() - 1)))


def receive(sock: socket.socket, expected: bytes) -> None:
    view, place = memoryview(expected), 0
    while place < len(expected):
        part = sock.recv(min(len(expected) - place, 1 << 16))
        assert part, f"the end after {place} of {len(expected)} bytes"
        assert part == view[place : place + len(part)], f"wrong bytes after {place}"
        place += len(part)


def exchange(sock: socket.socket, rng: random.Random, pause: float = 0.0) -> int:
    """Send a piece while receiving it; with a pause nothing is received at first."""
    data = some_bytes(rng)
    failures: list[OSError] = []

    def send() -> None:
        try:
            sock.sendall(data)
        except OSError as error:
            failures.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        time.sleep(pause)
        receive(sock, data)
    finally:
        sender.join()
    if failures:
        raise failures[0]
    return len(data)


# --- streams ------------------------------------------------------------------------------------


def converses(sock: socket.socket, rng: random.Random) -> int:
    """Several pieces, half-close, and then the end."""
    done = sum(exchange(sock, rng) for _ in range(rng.randrange(1, 6)))
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(1) == b"", "bytes after the end"
    return done


def stalls(sock: socket.socket, rng: random.Random) -> int:
    """Read nothing for a while; it is all there afterwards."""
    done = exchange(sock, rng, rng.uniform(*STALL))
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(1) == b"", "bytes after the end"
    return done


def closes_early(sock: socket.socket, rng: random.Random) -> int:
    """Close without reading, after part of an exchange."""
    done = exchange(sock, rng)
    sock.send(some_bytes(rng)[: 1 << 14])
    return done


def resets(sock: socket.socket, rng: random.Random) -> int:
    """Close with a RST while bytes are on their way; on a Unix socket, just close."""
    sock.send(some_bytes(rng)[: 1 << 14])
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    return 0


def is_silent(sock: socket.socket, rng: random.Random) -> int:
    """Connect, wait, close."""
    time.sleep(rng.uniform(*STALL))
    return 0


# --- datagrams ----------------------------------------------------------------------------------


def sends(sock: socket.socket, rng: random.Random) -> int:
    """A few datagrams one after the other; each must come back, if it comes back at all."""
    done = 0
    sock.settimeout(0.5)
    for _ in range(rng.randrange(1, 20)):
        data = rng.randbytes(rng.choice((0, 1, 64, 1472, 1473, 9000, 65507)))
        sock.send(data)
        try:
            answer = sock.recv(65535)
        except TimeoutError:  # a queue was full: the kernel may drop datagrams
            return done
        assert answer == data, "another datagram than was sent"
        done += len(data)
    return done


def closes_unread(sock: socket.socket, rng: random.Random) -> int:
    """Send and close: the answers meet a closed port, and the server gets ICMP errors."""
    for _ in range(rng.randrange(1, 20)):
        sock.send(rng.randbytes(64))
    return 0


Kind = Callable[[socket.socket, random.Random], int]
STREAM_KINDS: tuple[Kind, ...] = (converses, converses, stalls, closes_early, resets, is_silent)
DATAGRAM_KINDS: tuple[Kind, ...] = (sends, sends, closes_unread)


# --- clients that are killed --------------------------------------------------------------------


def kill_a_client(endpoint: Endpoint, after: float) -> None:
    """Run a load client in a process of its own, and kill it in the middle."""
    command = [sys.executable, "-m", "fastsock", "load", str(endpoint), "--duration", "60s"]
    options = ["--connections", "16", "--size", "4k", "--wait", "block"]
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
