"""Ctrl-C, SIGTERM and SIGHUP wake a waker."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..server.signals import answered
from ..signals import STOP_SIGNALS, handled, in_main_thread
from .waker import WAKE, Waker


@contextmanager
def signals_to(waker: Waker, on_signal: Callable[[signal.Signals], object]) -> Iterator[None]:
    """Make STOP_SIGNALS wake `waker` and call `on_signal`, if this is the main thread.

    A Python signal handler alone cannot end a sleep: it runs in the main thread, between bytecodes.
    If the signal comes just before the main thread falls asleep, or if the kernel gives it to
    another thread, the main thread stays asleep with its handler pending. The wake-up descriptor is
    written at once, in the thread that the signal interrupts.
    """
    if not in_main_thread():
        yield
        return
    descriptor = signal.set_wakeup_fd(waker.writer.fileno(), warn_on_full_buffer=False)
    try:
        call = dict.fromkeys(answered(), lambda number, frame: on_signal(signal.Signals(number)))
        with handled(call):
            yield
    finally:
        signal.set_wakeup_fd(descriptor)


def wait_for_end(waker: Waker, seconds: float | None) -> None:
    """Wait for wake() or one of STOP_SIGNALS, but at most `seconds`.

    Every other signal that the program handles writes to the waker as well.
    """
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        received = waker.wait(None if end is None else max(0.0, end - time.monotonic()))
        if not {WAKE, *STOP_SIGNALS}.isdisjoint(received):
            return
