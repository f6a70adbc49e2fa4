"""What runs over streams and over datagrams share: plan, schedule, window, results.

One thread, `selectors`.
"""

from __future__ import annotations

import math
import selectors
from collections import Counter
from dataclasses import dataclass
from time import monotonic

from .latency import Recorder

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

SEND_BATCH = 256  # messages of the schedule sent before the next answers are received
#: Seconds before a message is due at which the loop stops sleeping: epoll_wait() counts in ms.
SPIN = 0.0015
#: Unsent messages whose latencies are counted one by one; of more, every n-th counts n times.
SAMPLES = 1_000_000


@dataclass(frozen=True)
class Plan:
    """What a run does; see load() for the meaning and the units."""

    connections: int
    size: int
    depth: int
    duration: float | None
    messages: int | None
    warmup: float
    rate: float | None
    verify: bool
    timeout: float
    loss_timeout: float


class LoadRun:
    """Run a Plan once. Its results are the attributes without an underscore.

    Message n of the schedule is due at n / rate and belongs to connection n % connections, so the
    schedule needs no memory.
    """

    #: Datagrams by what happened to them; None for streams.
    datagrams: dict[str, int] | None = None

    def __init__(self, plan: Plan, check_interval: float) -> None:
        self.messages = 0
        self.errors: Counter[str] = Counter()
        self.lost_bytes = 0
        self.corrupt_bytes = 0
        self.from_send = Recorder()
        self.from_intended = Recorder() if plan.rate else self.from_send

        self._plan = plan
        self._selector = selectors.DefaultSelector()
        self._first = self._begin = self._last = 0.0
        self._end = math.inf
        self._idle = 0.0  # seconds of the window spent waiting
        self._scheduled = 0  # messages of the schedule handed to their connections
        self._schedule_size = 0  # messages in the schedule
        self._check_interval = check_interval

    @property
    def duration(self) -> float:
        """Return the seconds of the window in which there was something to measure."""
        return max(0.0, min(self._end, self._last) - self._begin)

    @property
    def busy(self) -> float:
        """Return the share of the window in which the client did not wait."""
        return max(0.0, 1 - self._idle / self.duration) if self.duration else 0.0

    def run(self) -> None:
        raise NotImplementedError

    def _budget(self, index: int) -> float:
        """Return how many messages a connection may send."""
        if self._plan.messages is None:
            return math.inf
        each, remainder = divmod(self._plan.messages, self._plan.connections)
        return each + (index < remainder)

    def _start_clock(self) -> float:
        plan = self._plan
        now = self._first = self._last = monotonic()
        self._begin = now + plan.warmup
        if plan.duration is not None:
            self._end = self._begin + plan.duration
        if plan.rate:
            limit = math.inf if plan.messages is None else plan.messages
            self._schedule_size = int(min(limit, (self._end - now) * plan.rate))
        return now

    def _now_due(self, now: float) -> range:
        """Return the numbers of the messages that are due, at most SEND_BATCH."""
        assert self._plan.rate
        due = min(self._schedule_size, int((now - self._first) * self._plan.rate) + 1)
        return range(self._scheduled, min(due, self._scheduled + SEND_BATCH))

    def _due(self, index: int, number: int) -> float:
        """Return when message `number` of a connection is due in the open loop."""
        assert self._plan.rate
        return self._first + (number * self._plan.connections + index) / self._plan.rate

    def _drop_unscheduled(self) -> None:
        """At the end of the window, count as late the messages not handed to a connection."""
        late = self._schedule_size - self._scheduled
        if self._plan.rate and late > 0:
            stride = max(1, late // SAMPLES)
            for number in range(self._scheduled, self._schedule_size, stride):
                self.from_intended.add(self._end - self._first - number / self._plan.rate, stride)
            self._scheduled = self._schedule_size

    def _equal(self, received: bytearray, expected: memoryview) -> bool:
        # A bytearray compares with memcmp(), a memoryview on the left byte by byte.
        if received == expected:
            return True
        self.corrupt_bytes += sum(a != b for a, b in zip(received, expected, strict=True))
        return False

    def _wait(self) -> list[tuple[selectors.SelectorKey, int]]:
        before = monotonic()
        ready = self._selector.select(self._sleep())
        now = monotonic()
        if self._begin <= before and now <= self._end:
            self._idle += now - before
        return ready

    def _sleep(self) -> float:
        rate = self._plan.rate
        if not rate or self._scheduled >= self._schedule_size:
            return self._check_interval
        wait = self._first + self._scheduled / rate - monotonic() - SPIN
        return min(max(wait, 0.0), self._check_interval)


def kind_of(error: OSError) -> str:
    """Return which of LOAD_ERRORS an OSError is."""
    # FileNotFoundError: no socket at the Unix path.
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return "refused"
    if isinstance(error, ConnectionError):
        return "reset"
    return "timeout" if isinstance(error, TimeoutError) else "other"
