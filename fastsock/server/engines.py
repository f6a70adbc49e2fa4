"""The engines by name: which of them can be used here, and which one "auto" picks."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from fastsock._native.server.epoll import EpollWorker
from fastsock._native.server.fork import ForkWorker
from fastsock._native.server.poll import PollWorker
from fastsock._native.server.serial import SerialWorker
from fastsock._native.server.threads import ThreadsWorker
from fastsock.server.options import ENGINES, FAULTS_ENGINE, Purpose

if TYPE_CHECKING:
    from fastsock._native.server.worker import Worker

#: Engines that can be used, and the worker that runs each.
WORKERS: dict[str, type[Worker]] = {
    "epoll": EpollWorker,
    "poll": PollWorker,
    "threads": ThreadsWorker,
    "fork": ForkWorker,
    "serial": SerialWorker,
}

#: Engines that cannot be used, and why.
MISSING: dict[str, str] = {}

try:
    from fastsock._native.server.uring.uring import UringWorker
except ModuleNotFoundError:
    MISSING["io_uring"] = (
        "not in this build, which found no liburing "
        "(apt-get install liburing-dev pkg-config, then install fastsock again)"
    )
except ImportError as error:  # linked with a shared liburing that is missing here
    MISSING["io_uring"] = f"not to be loaded: {error}"
else:
    WORKERS["io_uring"] = UringWorker

NAMES = ENGINES

_URING_SINCE = (6, 1)  # Linux with IORING_SETUP_DEFER_TASKRUN
_URING_FORBIDDEN = {
    "1": "kernel.io_uring_disabled is 1: only for CAP_SYS_ADMIN and kernel.io_uring_group",
    "2": "kernel.io_uring_disabled is 2",
}


#: What "auto" picks, and why. The rule has no condition: none that is known at the start would do
#: better. docs/engines.md has the figures.
AUTO = "epoll"
AUTO_REASON = (
    "within 10 % of the best engine at 1 to 1000 busy connections, and idle ones cost nothing"
)

_REASONS: dict[Purpose, str] = {
    "faults": "the one with faults: a stalled connection costs the others nothing",
    "record": "the one that records",
    "": AUTO_REASON,
}


def choose(name: str, purpose: Purpose = "") -> str:
    """Return the engine that `name`, one of `NAMES`, stands for; only "auto" chooses.

    Raises:
        ValueError: an engine that is not in this build; the message says why.

    """
    if name == "auto":
        return FAULTS_ENGINE if purpose else AUTO
    if name in MISSING:
        usable = ", ".join(("auto", *WORKERS))
        raise ValueError(f"engine {name!r} is {MISSING[name]}; usable here: {usable}")
    return name


def reason(name: str, purpose: Purpose = "") -> str:
    """Why `choose()` picked that engine."""
    return _REASONS[purpose] if name == "auto" else "asked for"


def doubt(name: str) -> str:
    """Why an engine that was built may not work here, or "".

    It reads files only: where a seccomp filter kills for io_uring, a system call to ask the kernel
    would end the process.
    """
    if name != "io_uring":
        return ""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release and (int(release[1]), int(release[2])) < _URING_SINCE:
        return "it needs Linux {}.{}".format(*_URING_SINCE)
    disabled = _first_match("/proc/sys/kernel/io_uring_disabled", r"([12])")
    if disabled:
        return _URING_FORBIDDEN[disabled]
    if _first_match("/proc/self/status", r"^Seccomp:\s+([12])"):
        return "a seccomp filter is on, and many forbid it"
    return ""


def states() -> dict[str, str]:
    """The state of every engine: available, perhaps not, or not, and why."""
    found = {"auto": f"picks {AUTO}: {AUTO_REASON}"}
    for name in WORKERS:
        why = doubt(name)
        found[name] = f"perhaps not available: {why}" if why else "available"
    return found | MISSING


def _first_match(path: str, pattern: str) -> str:
    try:
        text = Path(path).read_text()
    except OSError:  # not in this kernel, or hidden
        return ""
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else ""
