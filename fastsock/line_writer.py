"""Lines for stderr and for logs, written by a thread of their own.

A write blocks while a pipe is full that is not read, or while a terminal is held (Ctrl-S). A thread
that answers signals must not be inside it. O_NONBLOCK would be no help: the flag belongs to the
open file, which a shell and other programs share.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TextIO

from fastsock.interruptible import start_thread

_MOST_LINES = 256  # that wait to be written

Sink = Callable[[str], object]


class LineWriter:
    """A bounded queue of lines and, while there are any, a daemon thread that writes them.

    An error of writing is ignored: a reader that is gone and a full disk change nothing. Lines that
    find the queue full are dropped; their number is written in their place.
    """

    def __init__(self, most: int = _MOST_LINES) -> None:
        self._most = most
        self._lines: deque[tuple[Sink, str]] = deque()
        self._changed = threading.Condition()
        self._writing = False
        self._dropped = 0
        self._dropped_sink: Sink = _no_sink

    def put(self, sink: Sink, line: str, *, only_if_idle: bool = False) -> None:
        """Have `sink` called with `line` soon; never wait for it."""
        with self._changed:
            if only_if_idle and self._writing:
                return
            if len(self._lines) >= self._most:
                self._dropped += 1
                self._dropped_sink = sink
                return
            self._tell_dropped()
            self._lines.append((sink, line))
            if not self._writing:
                with suppress(RuntimeError):  # no thread now: the line waits for the next one
                    start_thread(self._write, "fastsock-lines")
                    self._writing = True

    def flush(self, seconds: float) -> bool:
        """Wait until all is written, but at most so long; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._writing, seconds)

    def _tell_dropped(self) -> None:
        if self._dropped:
            many = "line was" if self._dropped == 1 else "lines were"
            line = f"{self._dropped} {many} dropped here: what came before was not read in time"
            self._lines.append((self._dropped_sink, line))
            self._dropped = 0

    def _write(self) -> None:
        while True:
            with self._changed:
                if not self._lines:
                    self._tell_dropped()
                if not self._lines:
                    self._writing = False
                    self._changed.notify_all()
                    return
                sink, line = self._lines.popleft()
            with suppress(Exception):
                sink(line)


def say(line: str) -> None:
    """Write a line to stderr, soon."""
    if sys.stderr is sys.__stderr__:
        _writer.put(write_stderr, line)
    else:  # a program put an object of its own there, and expects its calls in this thread
        write_stderr(line)


def log(logger: logging.Logger, level: int, line: str) -> None:
    """Log a line, soon; on stderr where the program configured no logging."""
    if logger.isEnabledFor(level):
        # Made here: its time is that of the event, however late it is written.
        record = logger.makeRecord(logger.name, level, __file__, 0, "%s", (line,), None)
        _writer.put(partial(_log, logger, record), line)


def draw(text: str, *, may_drop: bool) -> None:
    """Write text to stderr as it is, soon, or never if it may be dropped and a line still waits."""
    _writer.put(partial(write_stderr, end=""), text, only_if_idle=may_drop)


def flush(seconds: float) -> bool:
    """Wait until all lines are written, but at most so long; return whether they are."""
    return _writer.flush(seconds)


def write_stderr(line: str, end: str = "\n") -> None:
    """Write to stderr, in this thread; an error is ignored."""
    with suppress(OSError, ValueError):  # the latter: it was closed
        stream = sys.stderr
        if stream is None:  # descriptor 2 was closed at the start, and may be a socket by now
            return
        write_text(stream, line + end)


def write_text(stream: TextIO, text: str) -> None:
    """Write to stdout or stderr, or what a program put there, and leave nothing in a buffer.

    Not through Python's own stream, which would write what has failed again at the end, and change
    the exit code. Its lock, held by a thread that is blocked in a write, would abort the end.

    Raises:
        OSError: as write(2).

    """
    if stream is sys.__stdout__ or stream is sys.__stderr__:
        write_all(stream.fileno(), text.encode(stream.encoding, "backslashreplace"))
    else:
        print(text, end="", file=stream, flush=True)


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything, also to a descriptor that was inherited as non-blocking.

    Raises:
        OSError: as write(2).

    """
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


def _log(logger: logging.Logger, record: logging.LogRecord, line: str) -> None:
    if logger.hasHandlers():
        logger.handle(record)
    elif record.levelno >= logging.WARNING:
        # As logging's last resort, without its lock, for which logging.shutdown() would wait.
        write_stderr(f"{logger.name}: {line}")


def _no_sink(line: str) -> None:
    """Write nothing."""


def _after_fork() -> None:
    global _writer
    _writer = LineWriter()  # its thread is not in the child


_writer = LineWriter()
os.register_at_fork(after_in_child=_after_fork)
