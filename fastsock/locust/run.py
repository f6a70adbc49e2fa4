"""One native run: its start, its figures so far and its end."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from gevent.threadpool import ThreadPool
from locust.env import Environment

from fastsock.client.fleet import Progress
from fastsock.client.load import Ending, load_until_ended
from fastsock.client.options import LoadOptions
from fastsock.client.report import DATAGRAM_COUNTS, Interval, LoadReport
from fastsock.locust import statistics
from fastsock.locust.user_class import UserClass
from fastsock.options import from_given

_PATIENCE = 5.0  # seconds for outstanding answers, when a run is ended


class Run:
    """One native run, in a thread of a pool: its start, its figures so far and its end."""

    def __init__(
        self, user_class: UserClass, keywords: dict[str, Any], users: int, pool: ThreadPool
    ) -> None:
        self.user_class, self.users = user_class, users
        self.options = from_given(LoadOptions, keywords)
        self.began = time.monotonic()
        self.ended_at = math.inf  # when it was told to end
        self._ending = Ending()
        self._rows: deque[Interval] = deque()
        self._errors: Counter[str] = Counter()
        self._datagrams: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()  # those that were logged
        started_at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._progress = Progress(str(user_class.endpoint), self.options, started_at)
        self._result = pool.spawn(
            load_until_ended, user_class.endpoint, keywords, self._rows.append, self._ending
        )

    def end(self) -> None:
        """End it; after a while without the outstanding answers."""
        now = time.monotonic()
        if self.ended_at == math.inf:
            self.ended_at = now
            self._ending.end()
        elif self._ending.ends == 1 and now > self.ended_at + _PATIENCE:
            self._ending.end()

    @property
    def has_ended(self) -> bool:
        return bool(self._result.ready())

    def report(self) -> LoadReport:
        """The report of its end, or what it raised."""
        report: LoadReport = self._result.get()
        return replace(report, intervals=None, options={**report.options, "interval": None})

    def so_far(self) -> LoadReport:
        counts = {name: self._datagrams[name] for name in DATAGRAM_COUNTS}
        datagrams = None if self.user_class.endpoint.is_stream else counts
        return self._progress.report(self._errors, datagrams)

    def log(self, environment: Environment) -> None:
        """Add what came since the last call to Locust's statistics."""
        rows = [self._rows.popleft() for _ in range(len(self._rows))]
        for row in rows:
            self._progress.add(row)
            statistics.log_interval(environment, self.user_class, self.options, row)
        if rows:
            self._log_failures(environment, *self._ending.counted())

    def log_end(self, environment: Environment, report: LoadReport) -> None:
        self.log(environment)
        self._log_failures(environment, report.errors, report.datagrams or {})

    def _log_failures(
        self, environment: Environment, errors: Mapping[str, int], datagrams: Mapping[str, int]
    ) -> None:
        """Those that are new; a run that has just ended has no counts until its report is there."""
        new = Counter({f"connection: {kind}": count for kind, count in errors.items()})
        new["datagram: lost"] = datagrams.get("lost", 0)
        new.subtract(self._failures)
        for error, count in (+new).items():
            statistics.log_failures(environment, self.user_class, self.options, error, count)
        self._failures += +new
        self._errors |= Counter(errors)
        self._datagrams |= Counter(datagrams)
