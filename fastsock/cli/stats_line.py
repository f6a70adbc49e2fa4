"""A line with the rates since the last one: at an interval, and whenever it is asked for."""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastsock.interruptible import start_thread
from fastsock.server.server import Server
from fastsock.server.stats import ServerStats
from fastsock.signals import in_main_thread
from fastsock.units import format_duration, format_rate, format_size

_APART = 0.1  # seconds between two lines: rates over less say little
_END = "end"

Say = Callable[[str, dict[str, Any]], object]


class StatsLine:
    """A thread that calls `say` with the line, and with its figures by name."""

    def __init__(self, server: Server, interval: float | None, say: Say) -> None:
        self._server, self._interval, self._say = server, interval, say
        # Its put() may be interrupted by a signal handler that calls it too; that of an Event or a
        # Condition would wait for its own lock.
        self._asked: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._ended = False
        # Of a server that has not started: what comes first counts.
        self._before, self._began = server.stats(), time.monotonic()

    def start(self) -> None:
        start_thread(self._run, "fastsock-stats")

    def stop(self) -> None:
        """Say no more lines; wait for nothing."""
        self._ended = True
        self._asked.put(_END)

    def ask(self) -> None:
        """Have a line said soon; a signal handler may call it. Many calls may be one line."""
        if self._asked.empty():
            self._asked.put("line")

    @contextmanager
    def asked_by_signal(self) -> Iterator[None]:
        """Have SIGUSR1 ask, also if it was inherited as blocked; only in the main thread."""
        if not in_main_thread():
            yield
            return
        signal.signal(signal.SIGUSR1, lambda number, frame: self.ask())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # by default it would end the program

    def _run(self) -> None:
        interval = self._interval
        began, before = self._began, self._before
        due = time.monotonic() + (interval or 0)
        while True:
            try:
                wait = None if interval is None else max(due - time.monotonic(), 0)
                if self._asked.get(timeout=wait) == _END:
                    return
            except queue.Empty:
                pass
            now, stats = time.monotonic(), self._server.stats()
            if self._ended:
                return
            figures = rates(before, stats, now - began)
            self._say(line(stats, figures), figures)
            began, before = now, stats
            if interval is not None and now >= due:
                due = max(due + interval, now)
            time.sleep(_APART)


def rates(before: ServerStats, after: ServerStats, seconds: float) -> dict[str, float]:
    """What happened between two looks at the counters, and what is open now."""
    seconds = max(seconds, 1e-6)

    def rate(name: str) -> float:
        count: int = getattr(after, name) - getattr(before, name)
        return round(max(count, 0) / seconds, 3)

    return {
        "seconds": round(seconds, 3),
        "open": after.open,
        "accepted_per_s": rate("accepted"),
        "bytes_in_per_s": rate("bytes_in"),
        "bytes_out_per_s": rate("bytes_out"),
        "datagrams_in_per_s": rate("datagrams_in"),
        "datagrams_out_per_s": rate("datagrams_out"),
        "dropped": sum(after.dropped.values()) - sum(before.dropped.values()),
        "errors": sum(after.errors.values()) - sum(before.errors.values()),
    }


def line(stats: ServerStats, figures: dict[str, float]) -> str:
    """Such as ``last 10s: open 64, accepted 0/s, in 512MiB/s, out 512MiB/s, errors 0``."""
    parts = []
    if any(each["engine"] != "datagrams" for each in stats.per_worker):
        parts += [f"open {figures['open']}", f"accepted {format_rate(figures['accepted_per_s'])}"]
    parts.append(f"in {format_size(figures['bytes_in_per_s'])}/s")
    parts.append(f"out {format_size(figures['bytes_out_per_s'])}/s")
    if any(each["engine"] == "datagrams" for each in stats.per_worker):
        parts += [
            f"datagrams in {format_rate(figures['datagrams_in_per_s'])}",
            f"out {format_rate(figures['datagrams_out_per_s'])}",
            f"dropped {figures['dropped']}",
        ]
    parts.append(f"errors {figures['errors']}")
    return f"last {format_duration(max(figures['seconds'], 0.001))}: {', '.join(parts)}"
