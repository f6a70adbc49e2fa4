"""The machine and the software that a result comes from."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from fastsock._version import __version__


def host_facts() -> dict[str, Any]:
    """As JSON values."""
    return {
        "fastsock": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown"
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
