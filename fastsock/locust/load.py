"""The load of a process: it follows the number of users."""

from __future__ import annotations

import logging
import math
import os
import time
from typing import Any

import gevent
from gevent.threadpool import ThreadPool
from locust.env import Environment

from fastsock._version import __version__
from fastsock.client.document import of as document_of
from fastsock.locust import statistics
from fastsock.locust.run import Run
from fastsock.locust.user_class import UserClass

logger = logging.getLogger("fastsock.locust")

_TICK = 0.1  # seconds between two looks at the number of users
_SHORTEST = 0.5  # seconds that a run lasts at least: a ramp would end each before it had begun
_RETRY = 1.0  # seconds before the next run, after one that ended by itself: no connection was left


class Load:
    """The runs of a worker, or of Locust without workers."""

    def __init__(
        self, environment: Environment, classes: list[UserClass], problem: str = ""
    ) -> None:
        self._environment, self._classes, self._problem = environment, classes, problem
        self._runs: dict[str, Run] = {}
        # The hub's own pool has ten threads, and resolves names for other users.
        self._pool = ThreadPool(max(len(classes), 1))
        self._not_before: dict[str, float] = {}
        self._count = 0
        self._is_over = problem != ""
        #: Documents of runs that have ended and were not sent, by class and number.
        self._documents: dict[str, dict[str, Any]] = {}

    def watch(self) -> None:
        """Follow the number of users; a greenlet."""
        while True:
            self._follow()
            ending = any(run.ended_at < math.inf for run in self._runs.values())
            gevent.sleep(_TICK / 10 if ending else _TICK)  # without load in between

    def start(self, **_: Any) -> None:
        """A test begins."""
        self._is_over = self._problem != ""

    def end(self, **_: Any) -> None:
        """A test ends: return when every run has ended and is counted."""
        self._is_over = True
        while self._runs:
            self._follow()
            gevent.sleep(0.01)

    @property
    def hello(self) -> dict[str, str]:
        """What the master must know of this worker before a test."""
        return {"version": __version__, "problem": self._problem}

    def take(self) -> dict[str, Any]:
        """What the master gets: what has ended since the last call, and what goes on."""
        ended, self._documents = self._documents, {}
        return {
            **self.hello,
            "is_over": self._is_over and not self._runs,
            "ended": ended,
            "going_on": {name: document_of(run.so_far()) for name, run in self._runs.items()},
        }

    def _follow(self) -> None:
        runner = self._environment.runner
        users = {} if self._is_over or runner is None else runner.user_classes_count
        active = sum(users.get(user_class.name, 0) > 0 for user_class in self._classes)
        for user_class in self._classes:
            wanted = users.get(user_class.name, 0)
            run = self._runs.get(user_class.name)
            if run is not None:
                run.log(self._environment)
                if run.has_ended:
                    self._finish(user_class, run)
                elif run.users != wanted and (
                    not wanted or time.monotonic() > run.began + _SHORTEST
                ):
                    run.end()
            if user_class.name not in self._runs and wanted:
                self._begin(user_class, wanted, active)

    def _begin(self, user_class: UserClass, users: int, active: int) -> None:
        if time.monotonic() < self._not_before.get(user_class.name, 0.0):
            return
        runner = self._environment.runner
        threads = max(len(os.sched_getaffinity(0)) // active, 1)
        try:
            index = max(getattr(runner, "worker_index", 0), 0)
            keywords = user_class.keywords(users, threads, index)
            self._runs[user_class.name] = Run(user_class, keywords, users, self._pool)
        except (ValueError, OSError) as error:
            self._failed(user_class, error)

    def _finish(self, user_class: UserClass, run: Run) -> None:
        del self._runs[user_class.name]
        if run.ended_at == math.inf:
            self._not_before[user_class.name] = time.monotonic() + _RETRY
        try:
            report = run.report()
        except (ValueError, OSError, RuntimeError) as error:
            self._failed(user_class, error)
            return
        run.log_end(self._environment, report)
        self._count += 1
        self._documents[f"{user_class.name}/{self._count}"] = document_of(report)

    def _failed(self, user_class: UserClass, error: Exception) -> None:
        """Said here, and among the failures of the master."""
        self._not_before[user_class.name] = time.monotonic() + _RETRY
        logger.error("%s: %s", user_class.name, error)
        statistics.log_failures(
            self._environment, user_class, user_class.options(1, 1, 0), str(error), 1
        )
