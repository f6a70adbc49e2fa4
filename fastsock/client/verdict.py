"""The verdict on a run: are its figures those of the server and the path?

A run is not valid when, without what the evidence covers, a judged figure would differ by more than
a tenth, and by more than chance explains. Judged are the percentiles p50, p90, p99 and p99.9 that
have at least ten answers above them, and in a closed loop the rate.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fastsock._native.client.histogram import Histogram
from fastsock.client.evidence import ClientEvidence
from fastsock.client.report import Finding
from fastsock.client.stages import Stage
from fastsock.client.targets import Target, metrics_of
from fastsock.units import format_duration, format_rate, plural

JUDGED = (50.0, 90.0, 99.0, 99.9)
#: So many answers above it a percentile must have; with fewer it is a matter of chance.
SIGNIFICANT = 10
_TOLERANCE = 0.1

#: A trend is a growth that chance does not explain: under a random walk of the outstanding messages
#: its t statistic, of the changes from part to part of the window, exceeds 5 in less than one of a
#: thousand runs. It also is one that matters: so much latency per time is the share of the offered
#: messages that the server does not keep up with.
_TREND_T = 5.0
_TREND_SLOPE = 0.0005
_FIRST_PART = 4  # of 16: a run starts with empty queues

_CAUSES = ("client_away", "client_delayed", "sent_late")
#: Of the client or of its machine: they say nothing about the server.
CLIENT_CODES = (*_CAUSES, "throttled", "stolen", "too_many_spinning")
_BUSY = 0.97  # of the window: the client has no idle time

_MISMATCH = {
    "echo": "answered with other bytes than were sent",
    "send": "answered, which a discard service does not",
    "receive": "brought other bytes than the lines of a chargen service",
}


class Load(Protocol):
    """The options by which a run is judged."""

    @property
    def mode(self) -> str: ...
    @property
    def open_loop(self) -> bool: ...
    @property
    def stages(self) -> Sequence[Stage] | None: ...
    @property
    def sources(self) -> Sequence[str]: ...
    @property
    def targets(self) -> Sequence[Target]: ...
    @property
    def threads(self) -> int: ...
    @property
    def wait(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """What a run has seen, over all threads. Times are in seconds."""

    options: Load
    where: str  # the addresses that were tried
    duration: float
    messages: int
    offered: int
    in_window: int
    errors: Mapping[str, int]
    other_errno: int
    silent: bool  # connections were opened, and no byte ever came
    given_up: int
    no_eof: int
    cut_off: int
    lost: int
    corrupt: int
    datagrams: Mapping[str, int] | None
    latency: Histogram
    latency_without_away: Histogram
    #: Of each stage: messages and the sum of their latencies in ns, by sixteenth of the stage.
    trends: Sequence[Sequence[tuple[int, float]]]
    client: ClientEvidence
    interrupted_by: signal.Signals | None


def reasons_of(seen: Seen) -> tuple[Finding, ...]:
    """Why the run is not valid; empty if it is."""
    return (
        *_interrupted(seen),
        *(each for each in _failures(seen) if each.code not in metrics_of(seen.options.targets)),
        *_nothing(seen),
        *_spinning(seen),
        *_client(seen),
        *_overload(seen),
    )


def reasons_of_merged(seen: Seen) -> tuple[Finding, ...]:
    """The same of valid runs of several machines together.

    Together they have enough answers for a percentile that none of them was judged by.
    """
    decided = metrics_of(seen.options.targets)
    lost = (each for each in _datagrams(seen) if each.code not in decided)
    return (*lost, *_nothing(seen), *_client(seen))


def notes_of(seen: Seen) -> tuple[Finding, ...]:
    """What to know about a run, valid or not."""
    decided = metrics_of(seen.options.targets)
    notes = [each for each in _failures(seen) if each.code in decided]
    if seen.no_eof:
        text = f"connections that the server did not close after our half-close: {seen.no_eof}"
        notes.append(Finding("no_eof", text))
    if seen.client.busy > _BUSY and seen.messages:
        text = "the client had no idle time: the rate may be its own limit"
        notes.append(Finding("client_limited", text))
    if not seen.client.schedstat:
        text = "the kernel does not tell how long the client waited for a CPU"
        notes.append(Finding("no_schedstat", text))
    return tuple(notes)


def _interrupted(seen: Seen) -> Iterator[Finding]:
    number = seen.interrupted_by
    if number is not None:
        by = "Ctrl-C" if number is signal.SIGINT else number.name
        yield Finding("interrupted", f"interrupted by {by}")


def _failures(seen: Seen) -> Iterator[Finding]:
    """Reasons, but for those on which a target was given, which decides."""
    yield from _errors(seen)
    yield from _damage(seen)
    yield from _datagrams(seen)


def _errors(seen: Seen) -> Iterator[Finding]:
    words = {
        "refused": f"refused by {seen.where}",
        "reset": "reset by the server",
        "timeout": "without progress for too long",
        "closed_early": "closed by the server with bytes outstanding or before the client was done",
        "mismatch": _MISMATCH[seen.options.mode],
        "other": f"failed: {_failure(seen)}",
    }
    for kind, count in seen.errors.items():
        if count:
            yield Finding("errors", f"connections {words[kind]}: {count}")
    if seen.cut_off:
        yield Finding(
            "errors",
            f"answers stopped after our half-close: {seen.cut_off}; perhaps a proxy on the path "
            "takes it for the end of both directions (nginx: proxy_half_close on)",
        )
    if seen.silent and not seen.cut_off:
        yield from _silence(seen)


def _failure(seen: Seen) -> str:
    """The last errno that counted as "other", in words."""
    text = os.strerror(seen.other_errno)
    if seen.other_errno in (errno.EADDRNOTAVAIL, errno.EAGAIN):
        where = f" at {' and '.join(seen.options.sources)}" if seen.options.sources else ""
        text += f": no local port is free{where} (net.ipv4.ip_local_port_range)"
    return f"{text} ({seen.where})"


def _silence(seen: Seen) -> Iterator[Finding]:
    """What it may mean that connections were opened and no byte ever came."""
    if seen.options.mode == "receive":
        yield Finding("errors", "the server sent nothing: perhaps it is not a chargen service")
    if seen.options.mode == "echo" and (seen.errors["timeout"] or seen.errors["closed_early"]):
        text = "nothing of what was sent came back: perhaps it is not an echo service"
        yield Finding("errors", text)


def _damage(seen: Seen) -> Iterator[Finding]:
    if seen.lost:
        yield Finding("lost", f"{seen.lost} bytes lost")
    if seen.corrupt:
        yield Finding("corrupt", f"{seen.corrupt} bytes corrupt")


def _datagrams(seen: Seen) -> Iterator[Finding]:
    if seen.datagrams is None:
        return
    sent, lost, duplicated = (seen.datagrams[kind] for kind in ("sent", "lost", "duplicated"))
    if lost > max(sent / 100, 2):
        yield Finding("lost", f"{lost} of {sent} datagrams lost")
    if duplicated:
        yield Finding("duplicated", f"{duplicated} datagrams answered more than once")


def _nothing(seen: Seen) -> Iterator[Finding]:
    if seen.messages == 0 and not seen.in_window:
        what = {"echo": "answered", "send": "sent", "receive": "received"}[seen.options.mode]
        yield Finding("no_messages", f"no message was {what} in the window")


def _spinning(seen: Seen) -> Iterator[Finding]:
    if text := too_many_spinning(seen.options, seen.client.cpus):
        yield Finding("too_many_spinning", text)


def too_many_spinning(options: Load, cpus: int) -> str:
    """What is wrong with so many threads that never block; empty if nothing is."""
    if options.wait != "spin" or options.threads <= cpus:
        return ""
    return (
        f"{options.threads} threads spin on {plural(cpus, 'CPU')}: they wait for each other; "
        "use fewer threads, or wait block"
    )


# --- the client ---------------------------------------------------------------------------------


def _client(seen: Seen) -> Iterator[Finding]:
    """Whether a judged figure would differ without the time in which the client was away."""
    differences = list(_differences(seen))
    if not differences:
        return
    client = seen.client
    times = (client.away_s, client.delayed_s, client.late_s)
    code = _CAUSES[times.index(max(times))]
    not_running = client.away_s + client.delayed_s
    if code != "sent_late":
        if (client.throttled_s or 0.0) > not_running / 2:
            code = "throttled"
        elif (client.stolen_s or 0.0) > not_running / 2:
            code = "stolen"
    what = {
        "client_away": f"the client was away for {_time(not_running)}"
        if not_running
        else "the client was away while answers were awaited",
        "client_delayed": f"the client waited for a CPU for {_time(not_running)}",
        "throttled": f"the client's CPU quota stopped it for {_time(not_running)}",
        "stolen": f"the hypervisor took the client's CPU for {_time(not_running)}",
        "sent_late": f"the client was late by more than 1ms for {_time(client.late_s)}",
    }
    yield Finding(code, f"{what[code]}: without it {', '.join(differences[:2])}")


def _differences(seen: Seen) -> Iterator[str]:
    """Such as ``p99 would be 70us, not 900ms``."""
    for percent in JUDGED:
        if seen.latency.count_above(percent) < SIGNIFICANT:
            break
        measured = seen.latency.percentile(percent) / 1e9
        without = seen.latency_without_away.percentile(percent) / 1e9
        if _by_chance(seen.latency, percent) > without * (1 + _TOLERANCE):
            yield f"p{percent:g} would be {_time(without)}, not {_time(measured)}"
    if not seen.options.open_loop and seen.messages and seen.duration > 0:
        client = seen.client
        away = (client.away_s + client.delayed_s) / seen.options.threads
        present = max(seen.duration - away, 0.0)
        if seen.duration > present * (1 + _TOLERANCE):
            would = f"{format_rate(seen.messages / present)}" if present else "unknown"
            yield f"the rate would be {would}, not {format_rate(seen.messages / seen.duration)}"


def _by_chance(latency: Histogram, percent: float) -> float:
    """How low the percentile may come out by chance alone, in seconds.

    The number of answers above a percentile varies from run to run with the square root of itself
    (it is binomial); three such deviations are not exceeded by chance in a thousand runs.
    """
    above = len(latency) * (1 - percent / 100)
    lower = percent - 300 * math.sqrt(above * percent / 100) / len(latency)
    return latency.percentile(max(lower, 0.0)) / 1e9


def _time(seconds: float) -> str:
    return format_duration(float(f"{seconds:.3g}"))


# --- the offered rate ---------------------------------------------------------------------------


def _overload(seen: Seen) -> Iterator[Finding]:
    if seen.given_up:
        if not seen.options.open_loop or not seen.duration:
            yield Finding(
                "overload", f"connections given up while answers still came: {seen.given_up}"
            )
            return
        offered, answered = seen.offered / seen.duration, seen.in_window / seen.duration
        yield Finding(
            "overload",
            f"offered {format_rate(offered)}, above what was answered, {format_rate(answered)}: "
            f"{seen.offered - seen.messages} of {seen.offered} messages without an answer",
        )
        return
    if not seen.options.open_loop or seen.interrupted_by:
        return
    stages = seen.options.stages
    for number, trend in enumerate(seen.trends):
        if stages and not stages[number].is_constant:
            continue  # the latency may well grow with the rate
        growth = growth_of(trend, stages[number].duration if stages else seen.duration)
        if growth:
            where = f"stage {number + 1}, {stages[number]}" if stages else "the window"
            yield Finding(
                "not_steady",
                f"no steady state: the latency grew by {_time(growth)} in {where}; the server does "
                "not keep up with the offered rate",
            )


def growth_of(trend: Sequence[tuple[int, float]], duration: float) -> float:
    """By how many seconds the latency grew over the window; 0 if it did not, or by chance."""
    parts = trend[_FIRST_PART:]
    if any(count < 2 for count, _ in parts):
        return 0.0
    means = [total / count / 1e9 for count, total in parts]
    changes = [after - before for before, after in itertools.pairwise(means)]
    count = len(changes)
    mean = sum(changes) / count
    deviation = math.sqrt(sum((each - mean) ** 2 for each in changes) / (count - 1))
    part = duration / len(trend)
    if mean <= _TREND_SLOPE * part or mean * math.sqrt(count) <= _TREND_T * deviation:
        return 0.0
    growth = mean * count
    return growth if growth > _TOLERANCE * sorted(means)[len(means) // 2] else 0.0
