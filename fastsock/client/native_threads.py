"""Threads of the kernel, also where gevent has made greenlets of Python's.

After ``gevent.monkey.patch_all()`` a threading.Thread is a greenlet of the thread that starts it. A
native loop does not switch between greenlets: several would run one after the other.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any


class Thread:
    """A daemon thread with the part of threading.Thread that a load run needs."""

    def __init__(
        self, *, target: Callable[..., object], args: tuple[Any, ...] = (), daemon: bool = True
    ) -> None:
        self._target, self._args = target, args
        self._ended = Event()

    def start(self) -> None:
        """Raise RuntimeError if no thread can be started."""
        _original("start_new_thread")(self._run, ())

    def join(self) -> None:
        while not self._ended.wait(1):
            pass

    def _run(self) -> None:
        try:
            self._target(*self._args)
        finally:
            self._ended.set()


class Event:
    """An event that one thread awaits at a time."""

    def __init__(self) -> None:
        self._lock = _original("allocate_lock")()
        self._lock.acquire()

    def set(self) -> None:
        """Call it once."""
        self._lock.release()

    def wait(self, timeout: float) -> bool:
        if not self._lock.acquire(timeout=timeout):
            return False
        self._lock.release()
        return True


AnyThread = Thread | threading.Thread


def classes() -> tuple[type[AnyThread], type[Event | threading.Event]]:
    """The classes of threads and events to use in this process."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        return Thread, Event
    return threading.Thread, threading.Event


def _original(name: str) -> Any:
    """What the module _thread had before it was patched."""
    return sys.modules["gevent.monkey"].get_original("_thread", name)
