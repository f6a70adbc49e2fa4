"""What every load run has, of streams or datagrams: plan, schedule, window, what it saw.

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

#: Messages of the schedule sent between two looks at the answers.
SEND_BATCH = 256
#: Seconds before a message is due when the loop stops sleeping: epoll_wait() wakes by milliseconds.
SPIN = 0.0015
#: Latencies of unsent messages that are counted one by one; of more, every n-th counts n times.
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
    """Runs a Plan once. What it saw is in the attributes without an underscore.

    Message n of the schedule is due at n / rate and belongs to connection n % connections, so the
    schedule needs no memory.
    """

    #: What became of the datagrams; None for streams.
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
        self._scheduled = 0  # messages of the schedule that were handed to their connection
        self._schedule_size = 0  # messages that the schedule has
        self._check_interval = check_interval

    @property
    def duration(self) -> float:
        """Seconds of the measured window that had anything to measure."""
        return max(0.0, min(self._end, self._last) - self._begin)

    @property
    def busy(self) -> float:
        """Share of the window in which the client had something to do."""
        return max(0.0, 1 - self._idle / self.duration) if self.duration else 0.0

    def run(self) -> None:
        raise NotImplementedError

    def _budget(self, index: int) -> float:
        """How many messages a connection may send."""
        if self._plan.messages is None:
            return math.inf
        each, rest = divmod(self._plan.messages, self._plan.connections)
        return each + (index < rest)

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
        """The numbers of the messages whose time has come, but not too many at once."""
        assert self._plan.rate
        due = min(self._schedule_size, int((now - self._first) * self._plan.rate) + 1)
        return range(self._scheduled, min(due, self._scheduled + SEND_BATCH))

    def _due(self, index: int, number: int) -> float:
        """When message `number` of a connection is meant to be sent, in the open loop."""
        assert self._plan.rate
        return self._first + (number * self._plan.connections + index) / self._plan.rate

    def _drop_unscheduled(self) -> None:
        """At the end of the window: what had no chance to be sent in time counts as late."""
        late = self._schedule_size - self._scheduled
        if self._plan.rate and late > 0:
            stride = max(1, late // SAMPLES)
            for number in range(self._scheduled, self._schedule_size, stride):
                self.from_intended.add(self._end - self._first - number / self._plan.rate, stride)
            self._scheduled = self._schedule_size

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
    """Which of LOAD_ERRORS an OSError is."""
    # FileNotFoundError: of a Unix path where there is no socket.
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return "refused"
    if isinstance(error, ConnectionError):
        return "reset"
    return "timeout" if isinstance(error, TimeoutError) else "other"
