"""Ctrl-C and SIGTERM for a main thread that waits in poll(2)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_signals(on_signal: Callable[[signal.Signals], object]) -> Iterator[int | None]:
    """Have SIGINT and SIGTERM call `on_signal` in the main thread; elsewhere leave them alone.

    Yields a descriptor that becomes readable with every signal, or None outside the main thread.
    A wait must include it. Python runs a handler between two bytecodes, so a signal just before the
    wait would not be handled until the wait ends; the descriptor is written to at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    wakeup_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {
        number: signal.signal(number, lambda number, frame: on_signal(signal.Signals(number)))
        for number in STOP_SIGNALS
    }
    try:
        yield reader
    finally:
        for number, handler in before.items():
            # None: the handler was not set from Python, which cannot set it again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(wakeup_fd)
        os.close(reader)
        os.close(writer)
