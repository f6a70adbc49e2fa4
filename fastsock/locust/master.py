"""The master: it checks the workers, collects their reports, and awaits the last ones."""

from __future__ import annotations

import logging
import time
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import MasterRunner

from fastsock._version import __version__
from fastsock.locust.reports import USAGE, Reports

logger = logging.getLogger("fastsock.locust")

MASTER, WORKER = "fastsock-master", "fastsock-worker"  # names of messages to them
_HELLO = 5.0  # seconds in which a worker has told its version; it reports every 3 s
_PATIENCE = 10.0  # seconds for the last reports, when a test ends


class Master:
    """The master: it checks the workers, collects their reports, and awaits the last ones."""

    def __init__(self, environment: Environment, runner: MasterRunner, reports: Reports) -> None:
        self._environment, self._runner, self._reports = environment, runner, reports
        self._said: dict[str, str] = {}  # the problem of each worker, perhaps none
        events = environment.events
        events.worker_report.add_listener(self._on_report)
        events.test_start.add_listener(self._on_start)
        events.test_stopping.add_listener(self._on_stopping)
        events.test_stop.add_listener(reports.write)
        runner.register_message(MASTER, self._on_hello)

    def _on_hello(self, msg: Any, **_: Any) -> None:
        self._note(msg.node_id, msg.data)

    def _on_report(self, client_id: str, data: dict[str, Any], **_: Any) -> None:
        if "fastsock" in data:
            self._note(client_id, data["fastsock"])
            if data["fastsock"]["version"] == __version__:
                self._reports.add(client_id, data["fastsock"])

    def _note(self, client_id: str, data: dict[str, Any]) -> None:
        problem = data["problem"]
        if data["version"] != __version__:
            problem = f"it has fastsock {data['version']}, the master {__version__}"
        if problem and self._reports.is_going_on and client_id not in self._said:
            logger.error("%s: %s; it is sent away", self._name(client_id), problem)
            self._runner.send_message("quit", None, client_id)  # the others get its users
        self._said[client_id] = problem

    def _on_start(self, **_: Any) -> None:
        """Wait for what each worker says of itself; without a good word no test begins."""
        until = time.monotonic() + _HELLO
        while (silent := set(self._alive()) - set(self._said)) and time.monotonic() < until:
            gevent.sleep(0.05)
        problems: dict[str, str] = dict.fromkeys(silent, "its locustfile has no EchoUser")
        problems |= {each: self._said[each] for each in self._alive() if self._said.get(each)}
        if not problems:
            self._reports.start(self._alive())
            return
        for client_id, problem in problems.items():
            logger.error("%s: %s", self._name(client_id), problem)
        self._reports.decide(USAGE)
        if self._environment.web_ui is None:
            self._runner.quit()
        raise gevent.GreenletExit  # the greenlet that would start the test

    def _on_stopping(self, **_: Any) -> None:
        """Have the workers end their runs, and await their last reports."""
        waiting = set(self._alive())
        for client_id in waiting:
            self._runner.send_message(WORKER, None, client_id)
        until = time.monotonic() + _PATIENCE
        while waiting and time.monotonic() < until:
            gevent.sleep(0.02)
            over = {each for each in waiting if self._reports.workers.get(each, {}).get("is_over")}
            waiting = (waiting - over) & set(self._alive())
        for client_id in waiting:
            logger.error("%s: its load did not end", self._name(client_id))

    def _alive(self) -> list[str]:
        clients = self._runner.clients
        return [each.id for each in clients.ready + clients.spawning + clients.running]

    def _name(self, client_id: str) -> str:
        index = self._runner.get_worker_index(client_id)
        return f"worker {index} ({client_id.rpartition('_')[0]})"
