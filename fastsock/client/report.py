"""What a load run measured: frozen records, and their JSON form.

Times are seconds and latencies microseconds, both from CLOCK_MONOTONIC. The JSON form of a
LoadReport is the public format ``fastsock.load/1``, described in docs/results.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LOAD_SCHEMA = "fastsock.load/1"

#: Every way in which a connection of a load run can fail.
LOAD_ERRORS = ("refused", "reset", "timeout", "closed_early", "mismatch", "other")


#: What is counted of the datagrams of a load run.
DATAGRAM_COUNTS = ("sent", "received", "lost", "duplicated", "reordered", "late")


@dataclass(frozen=True, slots=True)
class Latency:
    """Summary of a latency distribution in microseconds; all zero when nothing was recorded."""

    count: int = 0
    min: float = 0.0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    p99_9: float = 0.0
    p99_99: float = 0.0
    max: float = 0.0

    def as_dict(self) -> dict[str, float | int]:
        return {
            "count": self.count,
            "min": self.min,
            "mean": self.mean,
            "p50": self.p50,
            "p90": self.p90,
            "p99": self.p99,
            "p99.9": self.p99_9,
            "p99.99": self.p99_99,
            "max": self.max,
        }


#: Of a run in which nothing is answered. No comparison with it holds, and JSON has null for it.
NO_LATENCY = Latency(0, *[math.nan] * 8)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What one load run saw.

    ``messages`` and ``bytes`` count complete, verified answers that arrived inside the measured
    window of ``duration`` seconds. ``latency`` is measured from the intended send time and
    ``latency_from_send`` from the actual one; in a closed loop a message is intended when it is
    sent, so the two are equal. ``connect_latency`` is that of every connection opened, also before
    the window. ``send_delay`` is how late messages were sent, of all sent since the window began:
    the client's own pacing error, and the wait for room in a socket that the server does not empty;
    ``NO_LATENCY`` in a closed loop. The first two also hold the answers outstanding when the window
    ended, so that a stall at the end is not hidden. ``valid`` is False, with ``reasons``, when the
    figures should not be trusted. ``client_busy`` is the share of the window in which the client
    had something to do, over its threads; close to 1 the rate may be the client's own limit.
    ``server_cpu`` is the CPU time in seconds that the process asked for as ``server_pid``, and
    those that descend from it, used in the window. ``datagrams`` counts, over the whole run, what
    became of the datagrams that were "sent": "received" in time or "lost"; and of the answers, how
    many were "duplicated", "reordered", or "late", after their datagram was given up as lost. It is
    None for streams.

    One way, ``messages`` and ``bytes`` count in mode "send" what the sockets took, a message when
    its last byte was taken, and in mode "receive" complete, verified messages that came. There are
    no answers, so both latencies are ``NO_LATENCY``: count 0 and not a number (NaN) elsewhere.
    """

    endpoint: str
    options: Mapping[str, Any]
    duration: float
    messages: int
    bytes: int
    latency: Latency
    latency_from_send: Latency
    connect_latency: Latency = Latency()
    send_delay: Latency = NO_LATENCY
    offered_per_s: float | None = None
    errors: Mapping[str, int] = field(default_factory=dict)
    lost_bytes: int = 0
    corrupt_bytes: int = 0
    datagrams: Mapping[str, int] | None = None
    reasons: tuple[str, ...] = ()
    client_busy: float = 0.0
    server_cpu: float | None = None
    host: Mapping[str, Any] = field(default_factory=dict)

    @property
    def messages_per_s(self) -> float:
        return self.messages / self.duration if self.duration > 0 else 0.0

    @property
    def bytes_per_s(self) -> float:
        return self.bytes / self.duration if self.duration > 0 else 0.0

    @property
    def failed(self) -> bool:
        """True when any connection failed or any byte was lost or corrupted."""
        return bool(sum(self.errors.values()) or self.lost_bytes or self.corrupt_bytes)

    @property
    def valid(self) -> bool:
        return not self.reasons

    def as_dict(self) -> dict[str, Any]:
        """The run as a ``fastsock.load/1`` document."""
        return {
            "schema": LOAD_SCHEMA,
            "endpoint": self.endpoint,
            "options": dict(self.options),
            "duration_s": self.duration,
            "messages": self.messages,
            "bytes": self.bytes,
            "messages_per_s": self.messages_per_s,
            "bytes_per_s": self.bytes_per_s,
            "offered_per_s": self.offered_per_s,
            "latency_us": {
                "from_intended_send": _distribution(self.latency),
                "from_actual_send": _distribution(self.latency_from_send),
                "connect": self.connect_latency.as_dict(),
                "send_delay": _distribution(self.send_delay),
            },
            "errors": {kind: self.errors.get(kind, 0) for kind in LOAD_ERRORS},
            "lost_bytes": self.lost_bytes,
            "corrupt_bytes": self.corrupt_bytes,
            "datagrams": None if self.datagrams is None else dict(self.datagrams),
            "valid": self.valid,
            "reasons": list(self.reasons),
            "client_busy": self.client_busy,
            "server_cpu_s": self.server_cpu,
            "host": dict(self.host),
        }


def _distribution(latency: Latency) -> dict[str, float | int] | None:
    return None if latency is NO_LATENCY else latency.as_dict()
