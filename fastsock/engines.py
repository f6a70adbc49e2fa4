"""The engines by name: which there are, which can be used here, and what "auto" picks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsock._native.epoll import EpollWorker
from fastsock._native.fork import ForkWorker
from fastsock._native.poll import PollWorker
from fastsock._native.serial import SerialWorker
from fastsock._native.threads import ThreadsWorker
from fastsock.options import check_choice, check_int

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


#: Engines whose connections wait one by one, each in a recv() that blocks.
BLOCKING = ("threads", "fork")

#: What busy_poll="auto" stands for, in microseconds: KVM's cap for the same rule.
AUTO_BUSY_POLL = 200
_BUSY_POLL_MAX = 10_000


def busy_poll_us(value: int | str, engine: str) -> int:
    """Microseconds that `busy_poll` stands for.

    Raises:
        TypeError: neither an int nor "auto".
        ValueError: out of range, or not for this engine.

    """
    if isinstance(value, str):
        check_choice("busy_poll", value, ("auto",))
        return 0 if engine in BLOCKING else AUTO_BUSY_POLL
    check_int("busy_poll", value, 0, _BUSY_POLL_MAX)
    if value and engine in BLOCKING:
        raise ValueError(
            f"busy_poll {value} is not for engine {engine!r}, whose connections wait one by one; "
            "expected 0"
        )
    return value


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
