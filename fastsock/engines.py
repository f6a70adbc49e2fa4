"""The engines by name: which there are, which can be used here, and what "auto" picks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsock._native.epoll import EpollWorker
from fastsock._native.fork import ForkWorker
from fastsock._native.poll import PollWorker
from fastsock._native.serial import SerialWorker
from fastsock._native.threads import ThreadsWorker
from fastsock.options import check_choice

if TYPE_CHECKING:
    from fastsock._native.worker import Worker

#: Engines that can be used, and the worker that runs each.
WORKERS: dict[str, type[Worker]] = {
    "epoll": EpollWorker,
    "poll": PollWorker,
    "threads": ThreadsWorker,
    "fork": ForkWorker,
    "serial": SerialWorker,
}

#: Engines that are planned, so that asking for one says more than "unknown".
MISSING = {
    "io_uring": "not built yet",
}

NAMES = ("auto", *WORKERS, *MISSING)


def choose(name: str) -> str:
    """Return the engine that `name` stands for.

    An engine asked for by name is that one or an error; only "auto" chooses.

    Raises:
        TypeError: not a str.
        ValueError: no such engine, or one that cannot be used here; the message says why.

    """
    check_choice("engine", name, NAMES)
    if name == "auto":
        return "epoll"
    if name in MISSING:
        usable = ", ".join(("auto", *WORKERS))
        raise ValueError(f"engine {name!r} is {MISSING[name]}; usable here: {usable}")
    return name
