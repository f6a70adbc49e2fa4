"""The machine and the software that a result comes from."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from fastsock._version import __version__
from fastsock.cgroup import cpu_quota


def host_facts() -> dict[str, Any]:
    """As JSON values; null where the kernel does not tell."""
    return {
        "fastsock": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_quota": cpu_quota(),
        "load_average": _load_average(),
        "governor": _governor(),
    }


def _load_average() -> float | None:
    """Of the last minute (getloadavg(3))."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _governor() -> str | None:
    """How the frequency of the first CPU is chosen."""
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown"
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
