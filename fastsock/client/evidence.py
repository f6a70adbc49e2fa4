"""What the machine took from the client while it loaded: throttling and stolen time.

Neither is counted as time away, which the loops see themselves: it says why they were away.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fastsock import cgroup

_TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds


@dataclass(frozen=True, slots=True)
class ClientEvidence:
    """What the client knows of itself; seconds, summed over its threads, inside the window.

    ``busy`` is the share of the window in which it had something to do: close to 1, the rate may be
    its own limit. ``away_s`` is the time in which a thread was not running for no reason that the
    kernel gives, ``delayed_s`` that in which it could run and had no CPU, ``late_s`` that in which
    it was behind its schedule by more than 1 ms although the sockets had room. ``longest_s`` is the
    longest time of the first two. ``throttled_s`` is how long the CPU quota of its cgroup stopped
    it and ``stolen_s`` what the hypervisor took from its CPUs, over the whole run; None where the
    kernel does not tell. Without ``schedstat`` delays of less than 1 ms are not seen.

    Without arguments it is that of a client that does not observe itself, such as fastsock.pure.
    """

    busy: float = 0.0
    away_s: float = 0.0
    delayed_s: float = 0.0
    late_s: float = 0.0
    longest_s: float = 0.0
    throttled_s: float | None = None
    stolen_s: float | None = None
    schedstat: bool = True
    spinning_threads: int = 0
    cpus: int = 1

    @property
    def known(self) -> bool:
        """Whether the client observed itself."""
        return self != ClientEvidence()


@dataclass(frozen=True, slots=True)
class Taken:
    """What was taken from this process and from its CPUs since they began, in seconds."""

    throttled: float | None
    stolen: float | None

    @classmethod
    def so_far(cls) -> Taken:
        return cls(cgroup.throttled(), _stolen())

    def since(self, earlier: Taken) -> Taken:
        return Taken(
            _difference(self.throttled, earlier.throttled),
            _difference(self.stolen, earlier.stolen),
        )


def _difference(now: float | None, earlier: float | None) -> float | None:
    return None if now is None or earlier is None else now - earlier


def _stolen() -> float | None:
    """Steal time of the CPUs that this thread may use (proc_stat(5)), in whole ticks."""
    cpus = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    with suppress(OSError, ValueError, IndexError):
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        return sum(int(line[8]) for line in lines if line[0] in cpus) * _TICK
    return None
