"""Calls that may block for long, made in a thread, so that this one still answers signals.

getaddrinfo(3) returns when the name server answers, whatever signals come meanwhile. Python runs
signal handlers in the main thread only, between two bytecodes, and therefore after such a call.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
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


async def in_thread(
    function: Callable[[Callable[[], bool]], T], cancel: Callable[[], object], elsewhere: str
) -> T:
    """Return what `function` returns, or raise what it raises, beside an asyncio event loop.

    It has a thread of its own: the loop's executor has few, and 20 servers may drain at a time.
    When the task is cancelled, `cancel` is called, which must end `function` soon, and the task
    waits for that end. The argument of `function` returns whether the loop was closed, without
    the end of the task: then no task will ever call `cancel`.

    Raises:
        RuntimeError: this is not a task of asyncio; the text is `elsewhere`.

    """
    import asyncio  # not at the top: it would double the time of `import fastsock`

    with suppress(RuntimeError):  # no event loop
        if asyncio.current_task():  # None under trio that is a guest of asyncio's loop
            elsewhere = ""
    if elsewhere:
        raise RuntimeError(elsewhere)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    results: list[T] = []
    errors: list[BaseException] = []
    cancelled: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function(loop.is_closed))
        except BaseException as error:
            errors.append(error)
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(ended.set)

    thread = None
    try:
        thread = start_thread(run, "fastsock-async")
    except RuntimeError:  # no more threads: better blocked than not done
        run()
    while not ended.is_set():
        try:
            await ended.wait()
        except asyncio.CancelledError as error:
            cancelled.append(error)
            cancel()
        except GeneratorExit:  # the loop has ended without this task
            cancel()
            raise
    if thread is not None:
        thread.join()  # it does nothing more
    try:
        if cancelled:
            raise cancelled[-1]
        if errors:
            raise errors[0]
        return results[0]
    finally:
        cancelled.clear()  # the tracebacks refer to this frame
        errors.clear()


def start_thread(function: Callable[[], object], name: str) -> threading.Thread:
    """Start a daemon thread to which the kernel gives no signal, and return it.

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
    return thread
