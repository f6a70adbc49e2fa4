"""The signals that stop a server, for a main thread that waits in poll(2)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastsock.signals import STOP_SIGNALS, end_program, handled, in_main_thread


@contextmanager
def stop_signals(on_signal: Callable[[signal.Signals], object]) -> Iterator[int | None]:
    """Have each of `answered()` call `on_signal` in the main thread; elsewhere change nothing.

    Yields a descriptor that becomes readable with every signal, or None outside the main thread.
    A wait must include it. Python runs a handler between two bytecodes, so a signal just before the
    wait would not be handled until the wait ends; the descriptor is written to at once.
    """
    if not in_main_thread():
        yield None
        return
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    wakeup_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        call = dict.fromkeys(answered(), lambda number, frame: on_signal(signal.Signals(number)))
        with handled(call):
            yield reader
    finally:
        signal.set_wakeup_fd(wakeup_fd)
        os.close(reader)
        os.close(writer)


def answered() -> tuple[signal.Signals, ...]:
    """SIGINT, SIGTERM and, unless it is ignored (nohup) or the program's own, SIGHUP."""
    if signal.getsignal(signal.SIGHUP) in (signal.SIG_DFL, end_program):
        return STOP_SIGNALS
    return (signal.SIGINT, signal.SIGTERM)
