"""Locust (locust.io) with fastsock as its engine: docs/many-machines.md.

Locust starts and stops users, also on many machines; native threads make their load. Each worker
process has one run for each class of users. It is ended, and another begun, when their number
changes. The figures of its intervals are added to Locust's statistics, and its reports travel to
the master with them.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
import time
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import gevent
import gevent.threadpool
import locust
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner
from locust.stats import StatsEntry, StatsError

from fastsock._native.client.histogram import Histogram
from fastsock._version import __version__
from fastsock.client.document import of as document_of
from fastsock.client.document_reader import report_of
from fastsock.client.fleet import Progress, cut_off, differences, joined, report_of_fleet
from fastsock.client.hdr import step_of
from fastsock.client.load import Ending, load_until_ended
from fastsock.client.merge import NotMergeableError, Part
from fastsock.client.options import LoadOptions
from fastsock.client.report import DATAGRAM_COUNTS, Interval, LoadReport
from fastsock.endpoint import Endpoint
from fastsock.options import declared, from_given
from fastsock.units import format_rate, format_size, parse_rate, plural

__all__ = ["EchoUser"]

logger = logging.getLogger("fastsock.locust")

_INTERVAL = 0.5  # seconds between two additions to Locust's statistics
_TICK = 0.1  # seconds between two looks at the number of users
_SHORTEST = 0.5  # seconds that a run lasts at least: a ramp would end each before it had begun
_RETRY = 1.0  # seconds before the next run, after one that ended by itself: no connection was left
_PATIENCE = 5.0  # seconds for outstanding answers, when a run is ended
_HELLO = 5.0  # seconds in which a worker has told its version; it reports every 3 s
_TARGET_MISSED, _NOT_VALID, _USAGE = 3, 4, 2  # exit codes, as those of ``fastsock load``
_VANISHED = "the worker vanished; what it had reported counts"
_MASTER, _WORKER = "fastsock-master", "fastsock-worker"  # names of messages to them

_OPTIONS = [each.name for each in declared(LoadOptions)]
#: Options that the load of a user cannot have, and what has their place.
_NOT_OF_A_USER = {
    "duration": "Locust's --run-time ends the load",
    "messages": "Locust's --run-time ends the load",
    "stages": "write a LoadTestShape, or rate",
    "warmup": "the load is measured from its first message",
    "ramp_up": "Locust's --spawn-rate ramps",
    "interval": "Locust has figures over time itself",
    "targets": "give --fastsock-target",
    "label": "the report names the workers",
}


class EchoUser(locust.User):
    """A user with connections to an echo server; subclass it, with `endpoint` at least.

    Every option of `fastsock.load()` that a user can have is a class attribute. `connections` and
    `rate` are of one user. `threads` are those of a worker process at most, one for each CPU if it
    is not given.
    """

    abstract = True

    endpoint: ClassVar[str] = ""
    connections: ClassVar[int] = 1
    wait: ClassVar[str] = "block"  # Locust's method of that name is not used

    # A user has nothing to do. While it waits, Locust can stop it at once.
    wait_time = locust.constant(3600)

    @locust.task
    def _stay(self) -> None:
        pass


# --- the options of a class of users ------------------------------------------------------------


class _Kind:
    """A class of users, checked; ValueError says what is wrong with it."""

    def __init__(self, users: type[EchoUser], environment: Environment) -> None:
        self.name = users.__name__
        self._environment = environment
        try:
            self._given = _given(users)
            self.threads = self._given.pop("threads", None)
            self.endpoint = Endpoint.parse(users.endpoint or _missing_endpoint())
            self.options(1, 1, 0).check_target(self.endpoint)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.name}: {error}") from None

    def keywords(self, users: int, threads: int, worker: int) -> dict[str, Any]:
        """Of a run of so many users in a worker, by its number."""
        given = dict(self._given)
        given["connections"] *= users
        if given.get("rate") is not None:
            given["rate"] = users * parse_rate(str(given["rate"]), "rate")
        # The random times of two workers must differ.
        given["seed"] = given.get("seed", 1) + worker
        return {
            **given,
            "threads": min(threads, self.threads or threads, given["connections"]),
            # Those of the master, which come with the first users.
            "targets": _targets(self._environment),
            "warmup": 0.0,
            "duration": 30 * 86400.0,  # until it is ended
            "interval": _INTERVAL,
        }

    @property
    def load(self) -> dict[str, Any]:
        """What the loads of one report have in common, for `differences()`."""
        return {**self.options(1, 1, 0).as_dict(), "kind of endpoint": self.endpoint.scheme}

    def options(self, users: int, threads: int, worker: int) -> LoadOptions:
        return from_given(LoadOptions, self.keywords(users, threads, worker))


def _given(users: type[EchoUser]) -> dict[str, Any]:
    """The options that a class has as attributes."""
    for each in users.__mro__[: users.__mro__.index(EchoUser)]:
        for name, value in vars(each).items():
            if name in _NOT_OF_A_USER:
                raise ValueError(f"{name} goes not with a user; {_NOT_OF_A_USER[name]}")
            if name.startswith("_") or hasattr(EchoUser, name) or callable(value):
                continue
            meant = difflib.get_close_matches(name, [*_OPTIONS, "endpoint"], 1, 0.8)
            if name not in _OPTIONS and meant:
                raise ValueError(f"there is no option {name}; did you mean {meant[0]}?")
    given = {each.name: each for each in declared(LoadOptions) if hasattr(users, each.name)}
    for name, option in given.items():
        if (value := getattr(users, name)) is not None or option.default is not None:
            option.kind.check(name, value)
    return {name: getattr(users, name) for name in given}


def _missing_endpoint() -> str:
    raise ValueError('endpoint is missing; write endpoint = "tcp://HOST:PORT"')


def _targets(environment: Environment) -> list[str]:
    return list(getattr(environment.parsed_options, "fastsock_target", None) or ())


def _kinds(environment: Environment) -> list[_Kind]:
    """All classes of users in a locustfile."""
    classes = [each for each in environment.user_classes if issubclass(each, EchoUser)]
    return [_Kind(each, environment) for each in classes]


# --- a run --------------------------------------------------------------------------------------


class _Run:
    """One native run, in a thread of a pool: its start, its figures so far and its end."""

    def __init__(
        self, kind: _Kind, keywords: dict[str, Any], users: int, pool: gevent.threadpool.ThreadPool
    ) -> None:
        self.kind, self.users = kind, users
        self.options = from_given(LoadOptions, keywords)
        self.began = time.monotonic()
        self.ended_at = math.inf  # when it was told to end
        self._ending = Ending()
        self._rows: deque[Interval] = deque()
        self._errors: Counter[str] = Counter()
        self._datagrams: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()  # those that were logged
        started_at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._progress = Progress(str(kind.endpoint), self.options, started_at)
        self._result = pool.spawn(
            load_until_ended, kind.endpoint, keywords, self._rows.append, self._ending
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
        datagrams = None if self.kind.endpoint.is_stream else counts
        return self._progress.report(self._errors, datagrams)

    def log(self, environment: Environment) -> None:
        """Add what came since the last call to Locust's statistics."""
        rows = [self._rows.popleft() for _ in range(len(self._rows))]
        for row in rows:
            self._progress.add(row)
            _log_interval(environment, self.kind, self.options, row)
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
            _log_failures(environment, self.kind, self.options, error, count)
        self._failures += +new
        self._errors |= Counter(errors)
        self._datagrams |= Counter(datagrams)


# --- Locust's statistics ------------------------------------------------------------------------


def _entry_key(kind: _Kind, options: LoadOptions) -> tuple[str, str]:
    """Name and method (Locust's column Type)."""
    unit = " (us)" if options.mode == "echo" else ""
    name = f"{kind.name} {options.mode} {format_size(options.size)}{unit}"
    return name, kind.endpoint.scheme


def _log_interval(
    environment: Environment, kind: _Kind, options: LoadOptions, row: Interval
) -> None:
    stats = environment.stats
    name, method = _entry_key(kind, options)
    histogram = row.histograms.get("intended", row.histograms.get("sent"))
    entry = StatsEntry(stats, name, method)
    # Answers that came after the window count, as do those of the server.
    _count(entry, row.messages if histogram is None else len(histogram), row)
    entry.total_content_length = entry.num_requests * options.size
    if histogram is None:
        entry.num_none_requests = entry.num_requests
    else:
        _fill(entry, histogram)
    if entry.num_requests:
        stats.entries[name, method].extend(entry)
        stats.total.extend(entry)
    if connects := row.histograms.get("connect"):
        entry = StatsEntry(stats, f"{kind.name} connect (us)", method)
        _count(entry, len(connects), row)
        _fill(entry, connects)
        stats.entries[entry.name, method].extend(entry)  # not in the total: it is no message


def _count(entry: StatsEntry, count: int, row: Interval) -> None:
    """So many requests, shared out over the seconds of an interval that has just ended."""
    now, length = time.time(), max(row.end - row.start, 1e-3)
    entry.num_requests = count
    entry.last_request_timestamp = now
    begin, before = now - length, 0
    for second in range(int(begin), int(now) + 1):
        upto = round(count * min(1.0, (second + 1 - begin) / length))
        entry.num_reqs_per_sec[second] += upto - before
        before = upto


def _fill(entry: StatsEntry, histogram: Histogram) -> None:
    """The response times in microseconds, in the histogram's own steps: 0.1 %, or 1 us.

    Locust's steps, which round to two digits, are for entries of milliseconds.
    """
    summary = histogram.summary_us()
    if not summary["count"]:
        return
    entry.min_response_time = round(summary["min"])
    entry.max_response_time = round(summary["max"])
    entry.total_response_time = round(summary["mean"] * summary["count"])
    for index, count in histogram.counts():
        highest = min(step_of(index)[0] / 1e3, summary["max"])
        entry.response_times[round(highest)] += count


def _log_failures(
    environment: Environment, kind: _Kind, options: LoadOptions, error: str, count: int
) -> None:
    stats = environment.stats
    name, method = _entry_key(kind, options)
    for entry in (stats.entries[name, method], stats.total):
        entry.num_failures += count
        entry.num_fail_per_sec[int(time.time())] += count
    key = StatsError.create_key(method, name, error)
    failure = stats.errors.setdefault(key, StatsError(method, name, error))
    failure.occurrences += count - 1
    failure.occurred()


# --- a process that makes load ------------------------------------------------------------------


class _Load:
    """The runs of a worker, or of Locust without workers."""

    def __init__(self, environment: Environment, kinds: list[_Kind], problem: str = "") -> None:
        self._environment, self._kinds, self._problem = environment, kinds, problem
        self._runs: dict[str, _Run] = {}
        # The hub's own pool has ten threads, and resolves names for other users.
        self._pool = gevent.threadpool.ThreadPool(max(len(kinds), 1))
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

    def take(self) -> dict[str, Any]:
        """What the master gets: what has ended since the last call, and what goes on."""
        ended, self._documents = self._documents, {}
        return {
            "version": __version__,
            "problem": self._problem,
            "is_over": self._is_over and not self._runs,
            "ended": ended,
            "going_on": {name: document_of(run.so_far()) for name, run in self._runs.items()},
        }

    def _follow(self) -> None:
        runner = self._environment.runner
        users = {} if self._is_over or runner is None else runner.user_classes_count
        active = sum(users.get(kind.name, 0) > 0 for kind in self._kinds)
        for kind in self._kinds:
            wanted = users.get(kind.name, 0)
            run = self._runs.get(kind.name)
            if run is not None:
                run.log(self._environment)
                if run.has_ended:
                    self._finish(kind, run)
                elif run.users != wanted and (
                    not wanted or time.monotonic() > run.began + _SHORTEST
                ):
                    run.end()
            if kind.name not in self._runs and wanted:
                self._begin(kind, wanted, active)

    def _begin(self, kind: _Kind, users: int, active: int) -> None:
        if time.monotonic() < self._not_before.get(kind.name, 0.0):
            return
        runner = self._environment.runner
        threads = max(len(os.sched_getaffinity(0)) // active, 1)
        try:
            index = max(getattr(runner, "worker_index", 0), 0)
            keywords = kind.keywords(users, threads, index)
            self._runs[kind.name] = _Run(kind, keywords, users, self._pool)
        except (ValueError, OSError) as error:
            self._failed(kind, error)

    def _finish(self, kind: _Kind, run: _Run) -> None:
        del self._runs[kind.name]
        if run.ended_at == math.inf:
            self._not_before[kind.name] = time.monotonic() + _RETRY
        try:
            report = run.report()
        except (ValueError, OSError, RuntimeError) as error:
            self._failed(kind, error)
            return
        run.log_end(self._environment, report)
        self._count += 1
        self._documents[f"{kind.name}/{self._count}"] = document_of(report)

    def _failed(self, kind: _Kind, error: Exception) -> None:
        """Said here, and among the failures of the master."""
        self._not_before[kind.name] = time.monotonic() + _RETRY
        logger.error("%s: %s", kind.name, error)
        _log_failures(self._environment, kind, kind.options(1, 1, 0), str(error), 1)


# --- the report ---------------------------------------------------------------------------------


class _Reports:
    """What all workers have sent: on the master, or of the one process without workers."""

    def __init__(self, environment: Environment, kinds: list[_Kind]) -> None:
        self._environment = environment
        self._file = environment.parsed_options.fastsock_json
        self._folder = environment.parsed_options.fastsock_workers
        if self._file:
            options = [(each.name, each.load) for each in kinds]
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
            parts = list(self._parts())
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
            kinds: dict[str, list[Part]] = {}
            for part in parts:
                kinds.setdefault(part.name.rpartition("-")[2], []).append(part)
            reports = [report_of_fleet(each) for each in kinds.values()]
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


# --- the events of Locust -----------------------------------------------------------------------


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
        kinds = _kinds(environment)
        if not kinds:
            return
        if isinstance(runner, WorkerRunner):
            _init_worker(environment, runner, kinds)
            return
        reports = _Reports(environment, kinds)
        if isinstance(runner, LocalRunner):
            for kind in kinds:
                kind.endpoint.resolve_all()
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        raise SystemExit(_USAGE) from None
    if isinstance(runner, LocalRunner):
        _init_local(environment, runner, kinds, reports)
    elif isinstance(runner, MasterRunner):
        _Master(environment, runner, reports)


def _init_local(
    environment: Environment, runner: LocalRunner, kinds: list[_Kind], reports: _Reports
) -> None:
    load = _Load(environment, kinds)
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


def _init_worker(environment: Environment, runner: WorkerRunner, kinds: list[_Kind]) -> None:
    problem = ""
    for kind in kinds:
        try:
            kind.endpoint.resolve_all()
        except OSError as error:
            problem = problem or f"{kind.name}: {error}"
    load = _Load(environment, kinds, problem)
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
    runner.register_message(_WORKER, lambda **_: gevent.spawn(end))
    runner.send_message(_MASTER, {"version": __version__, "problem": problem})
    runner.greenlet.spawn(load.watch)


class _Master:
    """The master: it checks the workers, collects their reports, and awaits the last ones."""

    def __init__(self, environment: Environment, runner: MasterRunner, reports: _Reports) -> None:
        self._environment, self._runner, self._reports = environment, runner, reports
        self._said: dict[str, str] = {}  # the problem of each worker, perhaps none
        events = environment.events
        events.worker_report.add_listener(self._on_report)
        events.test_start.add_listener(self._on_start)
        events.test_stopping.add_listener(self._on_stopping)
        events.test_stop.add_listener(reports.write)
        runner.register_message(_MASTER, self._on_hello)

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
        self._reports.decide(_USAGE)
        if self._environment.web_ui is None:
            self._runner.quit()
        raise gevent.GreenletExit  # the greenlet that would start the test

    def _on_stopping(self, **_: Any) -> None:
        """Have the workers end their runs, and await their last reports."""
        waiting = set(self._alive())
        for client_id in waiting:
            self._runner.send_message(_WORKER, None, client_id)
        until = time.monotonic() + 2 * _PATIENCE
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
