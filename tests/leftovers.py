"""What a process holds: descriptors, threads and child processes, from /proc (proc(5))."""

from __future__ import annotations

from pathlib import Path


def everything() -> set[tuple[str, str]]:
    """Each descriptor with what it is, each thread, native ones too, and each child process."""
    return descriptors() | threads() | {("process", str(pid)) for pid in children()}


def descriptors() -> set[tuple[str, str]]:
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        try:
            found.add((path.name, str(path.readlink())))
        except FileNotFoundError:  # the one that iterdir() itself had open
            continue
    return found


def threads() -> set[tuple[str, str]]:
    return {("thread", path.name) for path in Path("/proc/self/task").iterdir()}


def children() -> list[int]:
    """Every child process of any thread, also those that wait() leaves alone."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += [int(pid) for pid in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):  # a thread that ended just now
            continue
    return sorted(found)
