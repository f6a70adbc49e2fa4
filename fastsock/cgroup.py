"""The CPU limits that this process's control group sets, of cgroup v1 and v2 (cgroups(7))."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


def cpu_quota() -> float | None:
    """CPUs that the cgroup may use at most (cpu.max, or cpu.cfs_quota_us); None: no limit."""
    for folder in _folders():
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            return None if quota == "max" else int(quota) / int(period)
        with suppress(OSError, ValueError):
            quota_us = int((folder / "cpu.cfs_quota_us").read_text())
            return (
                None if quota_us < 0 else quota_us / int((folder / "cpu.cfs_period_us").read_text())
            )
    return None


def throttled() -> float | None:
    """Seconds for which the quota has stopped the cgroup so far; None: not known."""
    for folder in _folders():
        with suppress(OSError, ValueError):
            lines = (folder / "cpu.stat").read_text().splitlines()
            values = dict(line.split() for line in lines)
            if "throttled_usec" in values:
                return int(values["throttled_usec"]) / 1e6
            if "throttled_time" in values:
                return int(values["throttled_time"]) / 1e9
    return None


def _folders() -> Iterator[Path]:
    """The folders of this process's cgroup that may hold the files of the CPU controller."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            name = path.lstrip("/")
            if "cpu" in controllers.split(","):
                # In a container its own cgroup is often mounted as the root.
                yield from (_ROOT / "cpu" / name, _ROOT / "cpu")
            elif not controllers:
                yield from (_ROOT / name, _ROOT)
