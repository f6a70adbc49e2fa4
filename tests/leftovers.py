"""What a process holds: descriptors, threads and child processes, from /proc (proc(5))."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Process = int | Literal["self"]


def everything(process: Process = "self") -> set[tuple[str, str]]:
    """Each descriptor with what it is, each thread, native ones too, and each child process."""
    processes = {("process", str(pid)) for pid in children(process)}
    return descriptors(process) | threads(process) | processes


def descriptors(process: Process = "self") -> set[tuple[str, str]]:
    found = set()
    for path in Path(f"/proc/{process}/fd").iterdir():
        try:
            found.add((path.name, str(path.readlink())))
        except FileNotFoundError:  # the one that iterdir() itself had open
            continue
    return found


def threads(process: Process = "self") -> set[tuple[str, str]]:
    return {("thread", path.name) for path in Path(f"/proc/{process}/task").iterdir()}


def children(process: Process = "self") -> list[int]:
    """Every child process of any thread, also those that wait() leaves alone."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        try:
            found += [int(pid) for pid in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):  # a thread that ended just now
            continue
    return sorted(found)
