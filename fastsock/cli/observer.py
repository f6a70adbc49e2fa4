"""What ``fastsock load`` shows and writes while a run goes on: a bar, and lines by interval."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import click

from fastsock.cli.exits import USAGE
from fastsock.cli.files import Files
from fastsock.cli.output import complain, progress_bar
from fastsock.client import load as client
from fastsock.client.document import row_of
from fastsock.client.exports import log_header, log_line
from fastsock.client.options import LoadOptions
from fastsock.client.report import Interval, LoadReport
from fastsock.units import format_duration, format_rate

INTERVAL = 1.0  # seconds, where none was asked for

_PATIENCE = 0.5  # seconds, for a pipe that is full
#: Threads of a run whose intervals are taken only to be shown: each takes megabytes for them.
_SHOWN_THREADS = 16


class LineFile:
    """A file that gets lines while a run lasts; one that cannot be written does not end the run."""

    def __init__(self, path: str, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        os.set_blocking(descriptor, False)  # a pipe that is not read must not hold the run
        self.failed = False

    def write(self, text: str) -> None:
        data = text.encode()
        try:
            while data and not self.failed:
                data = data[self._write_some(data) :]
        except OSError as error:
            self._fail(error.strerror or str(error))

    def _write_some(self, data: bytes) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            if not poll.poll(_PATIENCE * 1000):
                self._fail("nothing reads it")
            return 0

    def _fail(self, why: str) -> None:
        self.failed = True
        complain(f"cannot write {self._path}: {why}; the run goes on")

    def write_interval(self, row: Interval) -> None:
        raise NotImplementedError


class Timeline(LineFile):
    """A line of JSON for each interval."""

    def write_interval(self, row: Interval) -> None:
        self.write(f"{json.dumps(row_of(row), allow_nan=False)}\n")


class HistogramLog(LineFile):
    """HdrHistogram's log: a line for each distribution of each interval."""

    _has_header = False

    def write_interval(self, row: Interval) -> None:
        if not self._has_header:
            self._has_header = True
            self.write(log_header(time.time() - row.end))  # when the window began
        for tag, histogram in row.histograms.items():
            self.write(log_line(tag, row.start, row.end - row.start, histogram))


@dataclass
class Observer:
    """What is to be done with each interval of a run, and how long they are."""

    interval: float | None
    #: Whether there are intervals only to show them on a terminal.
    is_shown_only: bool = False
    progress: Callable[[float], object] | None = None
    show: Callable[[Interval], object] | None = None
    files: list[LineFile] = field(default_factory=list)
    start_at: float | None = None

    def load(self, endpoint: str, options: dict[str, Any]) -> LoadReport:
        """Run, and return the report with the intervals that were asked for."""
        given = {**options, "interval": self.interval}
        load = client.load if self.start_at is None else partial(client.load_at, self.start_at)
        try:
            report = load(endpoint, progress=self.progress, on_interval=self._on_interval, **given)
        except client.LoadInterrupted as interrupted:
            interrupted.report = self._without_unasked(interrupted.report)
            raise
        return self._without_unasked(report)

    def _on_interval(self, row: Interval) -> None:
        for file in self.files:
            file.write_interval(row)
        if self.show:
            self.show(row)

    def _without_unasked(self, report: LoadReport) -> LoadReport:
        return replace(report, intervals=None) if self.is_shown_only else report


@contextmanager
def observed(options: LoadOptions, files: Files, quiet: bool) -> Iterator[Observer]:
    """Draw a bar on stderr, on a terminal only, and write the files of lines."""
    observer = Observer(options.interval)
    if files.timeline or files.hlog or files.html:  # a page shows the run over time
        observer.interval = options.interval or INTERVAL
    with ExitStack() as stack:
        for path, kind in ((files.timeline, Timeline), (files.hlog, HistogramLog)):
            if path:
                observer.files.append(kind(path, stack.enter_context(_opened(path))))
        total = (options.duration or 0.0) + options.warmup + options.ramp_up
        bar = stack.enter_context(progress_bar("loading", total or None, quiet=quiet))
        if bar is not None:
            task = bar.task_ids[0]
            observer.progress = lambda seconds: bar.update(task, completed=seconds, refresh=True)
            observer.show = lambda row: bar.update(task, description=_in_short(row))
            if observer.interval is None and options.threads <= _SHOWN_THREADS:
                observer.is_shown_only, observer.interval = True, INTERVAL
        try:
            yield observer
        finally:
            if any(file.failed for file in observer.files):
                files.code = USAGE


@contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise click.UsageError(f"cannot write {path}: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _in_short(row: Interval) -> str:
    seconds = row.end - row.start
    words = [format_rate(row.messages / seconds)] if seconds else []
    if row.latency.count:
        words.append(f"p99 {format_duration(row.latency.p99 / 1e6)}")
    if row.errors:
        words.append(f"errors {row.errors}")
    return ", ".join(words)
