"""The reports of all workers: one document, its verdict, and the exit code."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from locust.env import Environment

from fastsock.client.document import of as document_of
from fastsock.client.document_reader import report_of
from fastsock.client.fleet import cut_off, differences, joined, report_of_fleet
from fastsock.client.merge import NotMergeableError, Part
from fastsock.client.report import LoadReport
from fastsock.locust.user_class import UserClass
from fastsock.units import format_rate, plural

logger = logging.getLogger("fastsock.locust")

USAGE, _TARGET_MISSED, _NOT_VALID = 2, 3, 4  # exit codes, as those of ``fastsock load``
_VANISHED = "the worker vanished; what it had reported counts"


class Reports:
    """What all workers have sent: on the master, or of the one process without workers."""

    def __init__(self, environment: Environment, classes: list[UserClass]) -> None:
        self._environment = environment
        self._file = environment.parsed_options.fastsock_json
        self._folder = environment.parsed_options.fastsock_workers
        if self._file:
            options = [(each.name, each.load) for each in classes]
            if options and (why := differences(options)):
                raise ValueError(f"--fastsock-json has one report, of one load: {why}")
            _check_writable(self._file)
        if self._folder:
            Path(self._folder).mkdir(parents=True, exist_ok=True)
        self.workers: dict[str, dict[str, Any]] = {}  # what each said last
        self._ended: dict[str, dict[str, dict[str, Any]]] = {}
        self._has_decided = False
        self.is_going_on = False  # whether a test is

    def start(self, clients: Collection[str]) -> None:
        """A test begins, with these workers."""
        if self._has_decided:
            self._environment.process_exit_code = None  # that of the test before
        self.is_going_on, self._has_decided = True, False
        self.workers = {each: {"is_over": False, "going_on": {}} for each in clients}
        self._ended = {}

    def add(self, client_id: str, data: dict[str, Any]) -> None:
        self.workers[client_id] = data
        self._ended.setdefault(client_id, {}).update(data["ended"])

    def write(self, **_: Any) -> None:
        """A test has ended: write the report, and decide on Locust's exit code.

        Locust tells the end also where no test was begun, and twice where the last worker vanishes
        while a test is being stopped.
        """
        if not self.is_going_on:
            return
        self.is_going_on = False
        try:
            # In the order in which ``fastsock merge`` reads files.
            parts = sorted(self._parts(), key=lambda part: part.report.started_at)
            reports = self._merged(parts)
        except (ValueError, NotMergeableError) as error:
            logger.error("no report of the workers: %s", error)
            self.decide(_NOT_VALID)
            return
        files = {self._file: reports[0]} if self._file else {}
        if self._folder:
            files |= {f"{self._folder}/{part.name}.json": part.report for part in parts}
        written = [_write(Path(name), report) for name, report in files.items()]
        for report in reports:
            _say(report)
        if not all(written) or any(report.failed for report in reports):
            self.decide(self._environment.parsed_options.exit_code_on_error)
        elif not all(report.valid for report in reports):
            self.decide(_NOT_VALID)
        elif any(report.missed for report in reports):
            self.decide(_TARGET_MISSED)

    def decide(self, code: int) -> None:
        """Have Locust exit with this code, if no other test comes."""
        self._environment.process_exit_code = code
        self._has_decided = True

    def _merged(self, parts: Sequence[Part]) -> list[LoadReport]:
        """One report; without a file one for each class of users, if these are different loads."""
        if not parts:
            raise ValueError("none has reported a run")
        try:
            reports = [report_of_fleet(parts)]
        except NotMergeableError:
            if self._file:
                raise
            classes: dict[str, list[Part]] = {}
            for part in parts:
                classes.setdefault(part.name.rpartition("-")[2], []).append(part)
            reports = [report_of_fleet(each) for each in classes.values()]
        for name in self._vanished():
            if not any(part.name.startswith(f"{name}-") for part in parts):
                reports[0] = cut_off(reports[0], f"{name}: {_VANISHED}")
        return reports

    def _parts(self) -> Iterator[Part]:
        """The runs of each worker and class of users as one."""
        for client_id, last in self.workers.items():
            runs: dict[str, list[LoadReport]] = {}
            for key, document in self._ended.get(client_id, {}).items():
                runs.setdefault(key.partition("/")[0], []).append(report_of(document))
            for kind, document in last["going_on"].items():
                runs.setdefault(kind, []).append(report_of(document))
            for kind, reports in runs.items():
                name = f"{self._name(client_id)}-{kind}"
                report = joined(reports, name)
                yield Part(name, report if last["is_over"] else cut_off(report, _VANISHED))

    def _vanished(self) -> list[str]:
        """Workers without a last report."""
        return [self._name(each) for each, last in self.workers.items() if not last["is_over"]]

    def _name(self, client_id: str) -> str:
        index = getattr(self._environment.runner, "get_worker_index", lambda _: 0)(client_id)
        return f"worker-{index}-{client_id.rpartition('_')[0]}"


def _say(report: LoadReport) -> None:
    """Log what is wrong, the targets and the most important figures."""
    for reason in report.reasons:
        logger.warning("not valid: %s", reason)
    for result in report.targets or ():
        logger.log(logging.INFO if result.met else logging.ERROR, "target %s", result)
    logger.info(
        "%s messages, %s, p99 %.0f us%s, of %s",
        report.messages,
        format_rate(report.messages_per_s),
        report.latency.p99,
        "" if report.valid else ", not valid",
        plural(len(report.merged) or 1, "worker"),
    )


def _check_writable(path: str) -> None:
    """Raise ValueError if the file cannot be written; it is not touched."""
    folder = Path(path).parent
    if Path(path).is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"--fastsock-json {path}: cannot write there")


def _write(path: Path, report: LoadReport) -> bool:
    try:
        path.write_text(json.dumps(document_of(report), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        logger.error("cannot write %s: %s", path, error.strerror)
        return False
    return True
