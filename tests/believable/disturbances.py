"""Disturbances of a process, each of a given size, that end with the body of their ``with``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from clients import wait_until
from runs import pinned

PERIOD = 100_000  # microseconds; the kernel's own period of a CPU quota

#: Takes its CPU for argv[1] seconds, then sleeps for argv[2] seconds, again and again.
SPINNING = """
import sys, time
busy, idle = map(float, sys.argv[1:])
print("spinning", flush=True)
while True:
    end = time.monotonic() + busy
    while time.monotonic() < end:
        pass
    time.sleep(idle)
"""


def stop_for(process: subprocess.Popen[str], seconds: float) -> float:
    """Stop a process once (SIGSTOP); return for how long it really was stopped."""
    process.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: _state(process.pid) == "T", "stopped")
        since = time.monotonic()
        time.sleep(seconds)
    finally:
        process.send_signal(signal.SIGCONT)
    return time.monotonic() - since


@contextmanager
def neighbour(cpu: int, *, busy: float = 1.0, idle: float = 0.0) -> Iterator[None]:
    """Another program on a CPU: `busy` seconds of work, then `idle` seconds of sleep, in turns."""
    command = [sys.executable, "-c", SPINNING, str(busy), str(idle)]
    with pinned({cpu}):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "spinning\n"
        yield
    finally:
        process.kill()
        process.communicate(timeout=30)


# --- a CPU quota --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CpuQuota:
    """A cgroup, v1 or v2, whose processes get a share of one CPU."""

    folder: Path

    def add(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def throttled(self) -> float:
        """Seconds for which it was throttled, by the kernel's own count."""
        lines = (self.folder / "cpu.stat").read_text().splitlines()
        counts = dict(line.split() for line in lines)
        if "throttled_usec" in counts:  # v2
            return int(counts["throttled_usec"]) / 1e6
        return int(counts["throttled_time"]) / 1e9


@contextmanager
def cpu_quota(share: float) -> Iterator[CpuQuota]:
    """A cgroup whose processes get `share` of one CPU; its processes must have ended at the end."""
    folder = _new_cgroup(int(share * PERIOD))
    try:
        yield CpuQuota(folder)
    finally:
        wait_until(lambda: not (folder / "cgroup.procs").read_text(), "cgroup without processes")
        folder.rmdir()


def _new_cgroup(quota: int) -> Path:
    why = "no cgroup file system with the cpu controller is mounted"
    for root in _cgroup_roots():
        folder = root / f"fastsock-test-{os.getpid()}"
        try:
            folder.mkdir()
            _set_quota(folder, quota)
        except OSError as error:
            why = f"{error.filename}: {error.strerror}"
            if folder.is_dir():
                folder.rmdir()
        else:
            return folder
    pytest.skip(f"a cgroup with a CPU quota cannot be made: {why}")


def _cgroup_roots() -> Iterator[Path]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            yield Path(where)


def _set_quota(folder: Path, quota: int) -> None:
    """In microseconds per PERIOD; FileNotFoundError without the cpu controller."""
    if (folder / "cpu.cfs_quota_us").exists():  # v1
        write_existing(folder / "cpu.cfs_period_us", str(PERIOD))
        write_existing(folder / "cpu.cfs_quota_us", str(quota))
    else:
        write_existing(folder / "cpu.max", f"{quota} {PERIOD}")


def write_existing(path: Path, text: str) -> None:
    with path.open("r+") as file:
        file.write(text)


def _state(pid: int) -> str:
    """R, S, D, T ...: proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
