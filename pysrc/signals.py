"""Ctrl-C and SIGTERM, made to ring a bell."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .bell import RUNG, Bell

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_to(bell: Bell) -> Iterator[None]:
    """Has SIGINT and SIGTERM ring `bell`, if this is the main thread; else does nothing.

    A Python signal handler alone cannot end a sleep: it runs in the main thread, between bytecodes.
    A signal that comes just before the main thread falls asleep, or that the kernel gives to
    another thread, leaves it asleep with its handler pending. The wake-up descriptor is written at
    once, by whichever thread the signal interrupts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    descriptor = signal.set_wakeup_fd(bell.writer.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: set by C code, and unknown to Python; the default is the nearest there is.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(descriptor)


def wait_for_end(bell: Bell, seconds: float | None) -> None:
    """Waits until `bell` was rung by hand or by one of STOP_SIGNALS, or `seconds` are over.

    Every other signal that the program handles writes to the bell as well.
    """
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        heard = bell.wait(None if end is None else max(0.0, end - time.monotonic()))
        if not {RUNG, *STOP_SIGNALS}.isdisjoint(heard):
            return
