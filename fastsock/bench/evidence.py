"""What disturbed a window: the client's own evidence, and CPU time that other programs took.

Linux counts the idle and the busy time of each CPU (/proc/stat, proc_stat(5)). Time of the
server's CPU that was busy and not the server's was taken by other programs or by the hypervisor.
Both counts are needed. Where a CPU falls idle ten thousand times a second, a fifth of the time
goes into falling asleep and waking up, and is not idle time; and busy time is a sample at the
ticks. The time that the server's threads waited for a CPU does not tell that: with many threads on
one CPU they wait for each other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsock.bench.running_server import AnyServer, RunningServer
from fastsock.client.report import LoadReport
from fastsock.units import format_duration

#: Codes of a load report's reasons that say that the client was disturbed, and not the server.
CLIENT_CODES = frozenset({"client_away", "client_delayed", "throttled", "stolen", "sent_late"})

#: Those that say nothing where client and server share CPUs: each waits for the other.
_WAITING = frozenset({"client_away", "client_delayed", "sent_late"})

#: Of the window: as much as may be missing from a figure of a load run before it is not valid.
_MOST_TAKEN = 0.1
_TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds; the resolution of /proc/stat


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds, at a moment, of some CPUs: how long they were idle, and what we used of them.

    `idle` is None where /proc/stat does not tell it, as in some containers. If `shared`, they are
    the client's CPUs too.
    """

    at: float
    cpus: int
    idle: float | None
    busy: float
    own: float
    shared: bool = False

    @classmethod
    def now(cls, server: AnyServer, cpus: Collection[int], *, shared: bool) -> Usage:
        """If `shared`, this process uses the CPUs too, and its time is ours.

        Nothing is known of the CPUs of a server that may use any.
        """
        if isinstance(server, RunningServer):
            return cls(time.monotonic(), len(cpus), None, 0.0, 0.0, shared)
        own = server.cpu_seconds() + (time.process_time() if shared else 0.0)
        idle, busy = idle_and_busy(cpus)
        return cls(time.monotonic(), len(cpus), idle, busy, own, shared)

    def taken_since(self, before: Usage) -> float | None:
        """Seconds of the CPUs that others took since `before`; None if it is not known."""
        if self.idle is None or before.idle is None:
            return None
        awake = (self.at - before.at) * self.cpus - (self.idle - before.idle)
        return max(min(awake, self.busy - before.busy) - (self.own - before.own), 0.0)


def idle_and_busy(
    cpus: Collection[int], stat: Path = Path("/proc/stat")
) -> tuple[float | None, float]:
    """Seconds for which the CPUs were idle, waiting for a disk too, and busy, with what was stolen.

    The first is None if it is not known.
    """
    names = {f"cpu{cpu}" for cpu in cpus}
    try:
        rows = [line.split() for line in stat.read_text().splitlines()]
    except OSError:
        return None, 0.0
    found = [list(map(int, row[1:9])) for row in rows if row[0] in names]
    idle = sum(row[3] + row[4] for row in found)
    if len(found) < len(names) or not idle:
        return None, 0.0
    # A guest's time is in that of users.
    return idle * _TICK, sum(sum(row[:3]) + sum(row[5:]) for row in found) * _TICK


@dataclass(frozen=True, slots=True)
class Evidence:
    """Of one window: why it should be measured again, if it should.

    `taken` is seconds of the server's CPU, from before the clients connected until all their
    connections were closed: all of it may have fallen into the window. `client` has the codes and
    texts of the reasons that concern the client. `run_delay` is how many seconds the server's
    threads, all together, waited for a CPU in the window. Both may be unknown.
    """

    taken: float | None
    client: Mapping[str, str]
    disturbances: tuple[str, ...]
    run_delay: float | None = None

    @classmethod
    def of(cls, report: LoadReport, window: float, before: Usage, after: Usage) -> Evidence:
        taken = after.taken_since(before)
        reasons = {each.code: str(each) for each in report.reasons}
        client = {code: text for code, text in reasons.items() if code in CLIENT_CODES}
        waiting = _WAITING if after.shared else ()
        disturbances = [text for code, text in client.items() if code not in waiting]
        # A quiet machine had -6 to 14 ms in 108 windows, as the counters have this resolution.
        if taken is not None and taken > (_MOST_TAKEN * window + _TICK) * after.cpus:
            turn = format_duration(after.at - before.at)
            disturbances.append(
                f"other programs took {format_duration(taken)} of the server's CPU in {turn}"
            )
        waited = getattr(getattr(report, "server", None), "run_delay_s", None)
        return cls(taken, client, tuple(disturbances), waited)

    @property
    def disturbed(self) -> bool:
        return bool(self.disturbances)

    def as_dict(self) -> dict[str, Any]:
        return {
            "server_cpu_taken_s": self.taken,
            "server_run_delay_s": self.run_delay,
            "client": list(self.client),
            "disturbed": self.disturbed,
        }
