"""The counters of a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastsock.units import format_size, plural

#: Every way in which a connection of a server can end.
CLOSE_REASONS = ("eof", "reset", "error", "stopped", "idle", "close_on", "fault")

#: Every reason for which a server leaves a datagram unanswered.
DROPPED = ("loop_guard", "truncated", "unnamed", "send_error", "queue_full", "stopped")


@dataclass(frozen=True, slots=True)
class ServerStats:
    """Counters of a server since its start, summed over its workers.

    ``closed`` counts connections by the reason of their end: "eof" (the client half-closed and got
    everything back), "reset" (ECONNRESET or EPIPE), "error" (any other errno), "stopped" (still
    open when the server stopped), "idle" (``idle_timeout``), "close_on" (the client sent that line)
    and "fault" (a fault that was asked for cut it). ``rejected`` counts connections from outside
    ``allow``, which are closed before they count as accepted. ``errors`` counts failed calls by
    errno name. ``accept_pauses`` counts how often accepting was paused because descriptors or
    memory ran out.

    ``datagrams_in`` counts datagrams received and ``datagrams_out`` datagrams answered. The
    difference is in ``dropped``, by reason: "loop_guard" (it may have been a server's answer, or
    went to a group of hosts where several sockets share the port), "truncated" (longer than 65,535
    bytes, which no UDP datagram is), "unnamed" (its sender, a Unix socket, was not bound and has no
    address), "send_error" (its errno is in ``errors``), and with faults "queue_full" and "stopped"
    (it was still delayed at the end). Faults make a difference too: "loss" of ``faults`` counts
    datagrams without an answer, and "duplicate" those with two.
    ``bytes_in`` and ``bytes_out`` hold the bytes of both connections and datagrams. ``engine`` is
    the one of the streams, and ``engine_reason`` says why: "asked for", or the reason for the
    choice of "auto". Datagrams have an engine of their own.

    ``busy_poll`` tells for each worker, with ``busy_poll="auto"``, whether its last verdict was to
    poll ("polling"), how many "trials" came to an end, and the figures of the last one without
    polling ("blocking") and with it ("busy_polling"), each a mapping of "bytes_per_s" received
    (with the service chargen, sent) and "cpu_us_per_kib". Where few events come, the verdict is
    not to poll, without a trial.

    ``faults`` counts what was done wrong on request, by kind: blocks for corrupt, duplicate and
    drop of streams, datagrams on datagram sockets, else connections. A kind that did nothing is
    not in it.

    ``per_worker`` has the counters of each worker, with its "endpoint" and "engine" ("datagrams"
    for the engine of datagrams).
    """

    engine: str
    endpoints: tuple[str, ...]
    accepted: int
    open: int
    closed: Mapping[str, int]
    bytes_in: int
    bytes_out: int
    errors: Mapping[str, int]
    accept_pauses: int
    rejected: int = 0
    accepted_per_worker: tuple[int, ...] = ()
    datagrams_in: int = 0
    datagrams_out: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    engine_reason: str = "asked for"
    busy_poll: tuple[Mapping[str, Any], ...] = ()
    faults: Mapping[str, int] = field(default_factory=dict)
    per_worker: tuple[Mapping[str, Any], ...] = ()

    def __str__(self) -> str:
        """The line with which ``fastsock serve`` ends."""
        errors = ", ".join(f"{name} {times}" for name, times in self.errors.items()) or "none"
        served = []
        if self.accepted or not self.datagrams_in:
            served.append(plural(self.accepted, "connection"))
        if self.datagrams_in:
            dropped = sum(self.dropped.values())
            served.append(f"{plural(self.datagrams_out, 'datagram')} ({dropped} more dropped)")
        if self.rejected:
            served[0] += f" ({self.rejected} more rejected)"
        faults = ", ".join(f"{name} {times}" for name, times in self.faults.items())
        ended = f"errors: {errors}; faults: {faults}" if faults else f"errors: {errors}"
        return (
            f"served {', '.join(served)}: {format_size(self.bytes_in)} in, "
            f"{format_size(self.bytes_out)} out; {ended}"
        )

    def as_dict(self) -> dict[str, Any]:
        return {name: _plain(getattr(self, name)) for name in self.__slots__}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
