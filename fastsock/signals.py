"""The signals that end a program: Ctrl-C, SIGTERM and SIGHUP, whatever state was inherited."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Handler = Callable[[int, FrameType | None], object]


class Ended(SystemExit):
    """A signal ends the program, with the exit code that shells give for it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


def end_program(number: int, frame: FrameType | None) -> None:
    """Raise `Ended`: the handler of a command."""
    raise Ended(number)


def end_by_signals() -> None:
    """Have SIGTERM and SIGHUP raise `Ended`, as SIGINT raises KeyboardInterrupt.

    One that was inherited as ignored stays so (nohup). One that was inherited as blocked counts.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end_program)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def ignore_signals() -> None:
    """Ignore them from here on: the exit code is decided."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def in_main_thread() -> bool:
    """Whether this is the thread that handles signals: on Linux it has the number of the process.

    Not by current_thread(): eventlet and gevent give each of their coroutines a thread's object.
    """
    return threading.get_native_id() == os.getpid()


@contextmanager
def deferred() -> Iterator[None]:
    """Have the handlers of signals run after the body, not within it, in the main thread.

    For a body that must not be left half done, such as making a process and noting its number.
    """
    came: list[int] = []
    before = {}
    if in_main_thread():
        for stop in STOP_SIGNALS:
            if callable(signal.getsignal(stop)):
                before[stop] = signal.signal(stop, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)


@contextmanager
def handled(handlers: dict[signal.Signals, Handler]) -> Iterator[None]:
    """Have signals call these handlers in the main thread, also if they were inherited as blocked.

    Afterwards all is as it was.
    """
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            # None: the handler was not set from Python, which cannot set it again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
