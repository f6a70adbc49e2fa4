"""What the connections of a load run share: the plan, and what each of them counts."""

from __future__ import annotations

import errno
import math
import random
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from time import monotonic

from ..client.report import Latency
from ..endpoint import SocketAddress

PIECE = 65536  # bytes sent, received and compared at a time; no datagram is longer
MESSAGES = 65_521  # different ones
STRIDE = 7_919  # from the first message of a connection to that of the next connection


@dataclass
class Plan:
    """What a run does; see load() for the meaning and the units."""

    address: SocketAddress
    connections: int
    size: int
    depth: int
    messages: int | None
    timeout: float
    loss_timeout: float
    end: float  # time from which on no message is begun

    def __post_init__(self) -> None:
        self._block = random.Random(20_250_101).randbytes(MESSAGES + self.size)

    def share(self, index: int) -> float:
        """Return how many messages a connection may send."""
        if self.messages is None:
            return math.inf
        each, remainder = divmod(self.messages, self.connections)
        return each + (index < remainder)

    def piece(self, index: int, number: int, start: int = 0) -> bytes:
        """Return bytes of message `number` of a connection, from `start` on.

        Messages that are near each other differ, so that an answer which belongs to another message
        or to another connection is noticed.
        """
        at = (index * STRIDE + number) % MESSAGES
        return self._block[at + start : at + min(start + PIECE, self.size)]


@dataclass
class Tally:
    """What one connection has counted. Its own thread alone writes here, so there is no lock."""

    messages: int = 0  # answered before the end of the run
    outstanding: int = 0  # bytes of a stream
    lost_bytes: int = 0
    corrupt_bytes: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    datagrams: Counter[str] = field(default_factory=Counter)
    latencies: Counter[int] = field(default_factory=Counter)  # microseconds to number of answers

    def add_answer(self, sent_at: float, end: float) -> None:
        now = monotonic()
        self.messages += now < end
        self.latencies[round((now - sent_at) * 1e6)] += 1

    def verify(self, received: bytes, expected: bytes) -> bool:
        """Return whether it is the beginning of `expected`; count the bytes that are not."""
        if expected.startswith(received):
            return True
        self.corrupt_bytes += max(0, len(received) - len(expected))
        self.corrupt_bytes += sum(a != b for a, b in zip(received, expected, strict=False))
        return False

    def fail(self, kind: str) -> None:
        """Count what has ended the connection: one of LOAD_ERRORS."""
        self.errors[kind] += 1
        if kind != "mismatch":
            self.lost_bytes += self.outstanding

    def add(self, other: Tally) -> None:
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)


def kind_of(error: OSError) -> str:
    """Return which of LOAD_ERRORS it is."""
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):  # no socket at the Unix path
        return "refused"
    # ENOTCONN: a reset came before shutdown().
    if isinstance(error, ConnectionError) or error.errno == errno.ENOTCONN:
        return "reset"
    return "timeout" if isinstance(error, TimeoutError) else "other"


def summary(latencies: Counter[int]) -> Latency:
    """Return percentiles by the nearest-rank method: measured values, none interpolated."""
    if not latencies:
        return Latency()
    ordered = sorted(latencies)
    ranks = list(accumulate(latencies[value] for value in ordered))
    total = ranks[-1]
    percents = (50, 90, 99, 99.9, 99.99, 100)
    percentiles = [ordered[bisect_left(ranks, total * each / 100)] for each in percents]
    mean = sum(value * count for value, count in latencies.items()) / total
    return Latency(total, ordered[0], mean, *percentiles)
