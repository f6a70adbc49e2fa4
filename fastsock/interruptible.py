"""Calls that may block for long, made in a thread, so that this one still answers signals.

getaddrinfo(3) returns when the name server answers, whatever signals come meanwhile. Python runs
signal handlers in the main thread only, between two bytecodes, and therefore after such a call.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TypeVar

_TICK = 0.02  # seconds; a signal just before a wait does not end that wait

T = TypeVar("T")


class CancelledError(RuntimeError):
    """What the call was made for is no longer wanted."""


def call(function: Callable[[], T], cancelled: Callable[[], bool] | None = None) -> T:
    """Return what `function` returns, or raise what it raises.

    The handlers of signals run while it runs; if one raises, or if `cancelled` returns true, the
    thread is left behind. It is a daemon: the end of the program does not wait for it.

    Raises:
        CancelledError: `cancelled` returned true.

    """
    results: list[T] = []
    errors: list[BaseException] = []
    ended = threading.Event()

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    try:
        start_thread(run, "fastsock-call")
    except RuntimeError:  # no more threads: better blocked than not done
        return function()
    while not ended.wait(_TICK):
        if cancelled is not None and cancelled():
            raise CancelledError
    try:
        if errors:
            raise errors[0]
        return results[0]
    finally:
        errors.clear()  # the traceback refers to this frame


def start_thread(function: Callable[[], object], name: str) -> None:
    """Start a daemon thread to which the kernel gives no signal.

    Raises:
        RuntimeError: no thread can be started.

    """
    thread = threading.Thread(target=function, name=name, daemon=True)
    # The thread inherits the mask. A signal given to it would not end a wait of the main thread.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
