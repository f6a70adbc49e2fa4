"""What Locust calls: options of its command line, and the start of each kind of process."""

from __future__ import annotations

import logging
from typing import Any

import gevent
import locust
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from fastsock.locust.load import Load
from fastsock.locust.master import MASTER, WORKER, Master
from fastsock.locust.reports import USAGE, Reports
from fastsock.locust.user_class import UserClass, classes_of

logger = logging.getLogger("fastsock.locust")


@locust.events.init_command_line_parser.add_listener
def _add_options(parser: Any, **_: Any) -> None:
    def add(name: str, metavar: str, help: str, **more: Any) -> None:
        parser.add_argument(
            f"--fastsock-{name}", metavar=metavar, help=help, include_in_web_ui=False, **more
        )

    add("json", "FILE", "Write the report of all workers to this file (fastsock.load/2).")
    add("workers", "FOLDER", "Write the report of each worker into this folder.")
    add(
        "target",
        "TARGET",
        "Require this of all workers together, as p99<1ms: exit code 3 if missed.",
        action="append",
    )


@locust.events.init.add_listener
def _init(environment: Environment, **_: Any) -> None:
    runner = environment.runner
    # Timers count from the time that the loop knows, which is that of its last turn: without this
    # --run-time begins before the imports.
    gevent.get_hub().loop.update_now()
    try:
        classes = classes_of(environment)
        if not classes:
            return
        if isinstance(runner, WorkerRunner):
            _init_worker(environment, runner, classes)
            return
        reports = Reports(environment, classes)
        if isinstance(runner, LocalRunner):
            for user_class in classes:
                user_class.endpoint.resolve_all()
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        raise SystemExit(USAGE) from None
    if isinstance(runner, LocalRunner):
        _init_local(environment, runner, classes, reports)
    elif isinstance(runner, MasterRunner):
        Master(environment, runner, reports)


def _init_local(
    environment: Environment, runner: LocalRunner, classes: list[UserClass], reports: Reports
) -> None:
    load = Load(environment, classes)
    events = environment.events

    def end(**_: Any) -> None:
        load.end()
        reports.add(runner.client_id, load.take())

    events.test_start.add_listener(lambda **_: reports.start([runner.client_id]))
    events.test_start.add_listener(load.start)
    events.test_stopping.add_listener(end)
    events.test_stop.add_listener(reports.write)
    # Locust decides on its exit code before it stops its runner.
    events.quitting.add_listener(lambda **_: runner.stop())
    runner.greenlet.spawn(load.watch)


def _init_worker(environment: Environment, runner: WorkerRunner, classes: list[UserClass]) -> None:
    problem = ""
    for user_class in classes:
        try:
            user_class.endpoint.resolve_all()
        except OSError as error:
            problem = problem or f"{user_class.name}: {error}"
    load = Load(environment, classes, problem)
    events = environment.events

    def add_report(data: dict[str, Any], **_: Any) -> None:
        data["fastsock"] = load.take()

    def end(**_: Any) -> None:
        """End the runs, and report them and the last figures at once."""
        load.end()
        runner._send_stats()

    events.report_to_master.add_listener(add_report)
    events.test_start.add_listener(load.start)
    events.test_stopping.add_listener(load.end)
    events.quitting.add_listener(end)
    # Not in the greenlet of the messages: Locust takes a worker without heartbeats for lost.
    runner.register_message(WORKER, lambda **_: gevent.spawn(end))
    runner.send_message(MASTER, load.hello)
    runner.greenlet.spawn(load.watch)
