"""The load client: options in, LoadReport out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..client.evidence import ClientEvidence
from ..client.report import Finding, LoadReport
from ..endpoint import Endpoint
from ..host import host_facts
from .load_datagrams import HEADER_SIZE, LONGEST, DatagramRun
from .load_run import LoadRun, Plan
from .load_streams import StreamRun
from .options import check_int, check_number

DEFAULT_DURATION = 5.0  # seconds
WARMUP_SHARE = 0.1  # of the duration


def load(
    endpoint: Endpoint | str | tuple[Any, ...],
    *,
    connections: int = 1,
    size: int = 64,
    depth: int = 1,
    duration: float | None = None,
    messages: int | None = None,
    warmup: float | None = None,
    rate: float | None = None,
    verify: bool = True,
    timeout: float = 5.0,
    loss_timeout: float = 0.2,
) -> LoadReport:
    """Load an echo server and return a report.

    Args:
        endpoint: the server: tcp, unix, udp or unixgram.
        connections: opened before the clock starts, and kept until the end.
        size: bytes a message; of a datagram 8 to 65507.
        depth: messages in flight on each connection, in a closed run.
        duration: seconds measured; 5 unless `messages` is given.
        messages: stop after this many, over all connections, instead of after `duration`.
        warmup: seconds of load before the measured ones; a tenth of `duration`, 0 with `messages`.
        rate: messages a second over all connections, sent on schedule whether or not answers
            arrive (open loop).
        verify: compare every byte; otherwise only count them.
        timeout: seconds without progress after which a connection is given up; streams only.
        loss_timeout: seconds after which a datagram without an answer counts as lost.

    A connection that fails is counted in `errors` and not opened again. At the end each connection
    is half-closed, and every byte sent must come back; datagrams in flight are awaited for the loss
    timeout. Raises TypeError or ValueError for a bad option, OSError if the host has no address.
    """
    endpoint = Endpoint.parse(endpoint)
    if not endpoint.is_unix and endpoint.port == 0:
        raise ValueError(f"{endpoint}: port 0 cannot be connected to")
    if messages is None and duration is None:
        duration = DEFAULT_DURATION
    if warmup is None and duration is not None:
        warmup = WARMUP_SHARE * check_number("duration", duration, zero=False)
    plan = Plan(
        connections=connections,
        size=size,
        depth=depth,
        duration=duration,
        messages=messages,
        warmup=warmup or 0.0,
        rate=rate,
        verify=verify,
        timeout=timeout,
        loss_timeout=loss_timeout,
    )
    check(plan)
    if not endpoint.is_stream and not HEADER_SIZE <= size <= LONGEST:
        raise ValueError(
            f"size of a datagram {size} is out of range; expected {HEADER_SIZE} to {LONGEST}"
        )
    return report(endpoint, plan)


def report(endpoint: Endpoint, plan: Plan) -> LoadReport:
    make = StreamRun if endpoint.is_stream else DatagramRun
    run: LoadRun = make(endpoint.resolve(), plan)
    run.run()
    return LoadReport(
        endpoint=str(endpoint),
        options=asdict(plan),
        duration=run.duration,
        messages=run.messages,
        answered_in_window=run.messages,
        bytes=run.messages * plan.size,
        latency=run.from_intended.summary(),
        latency_from_send=run.from_send.summary(),
        offered_per_s=plan.rate,
        errors=dict(run.errors),
        lost_bytes=run.lost_bytes,
        corrupt_bytes=run.corrupt_bytes,
        datagrams=run.datagrams,
        reasons=reasons(run, plan),
        client=ClientEvidence(busy=run.busy),
        host=host_facts(),
    )


def check(plan: Plan) -> None:
    for name in ("connections", "size", "depth", "messages"):
        value = getattr(plan, name)
        if value is not None:
            check_int(name, value)
    for name in ("duration", "warmup", "rate", "timeout", "loss_timeout"):
        value = getattr(plan, name)
        if value is not None:
            check_number(name, value, zero=name == "warmup")
    if not isinstance(plan.verify, bool):
        raise TypeError(f"verify {plan.verify!r} is {type(plan.verify).__name__}; expected a bool")
    if plan.messages is not None and (plan.duration is not None or plan.warmup):
        raise ValueError("messages does not go with duration or warmup; give one or the other")
    if plan.rate is not None and plan.depth != 1:
        raise ValueError("depth does not go with rate, which sends whether or not answers came")


def reasons(run: LoadRun, plan: Plan) -> tuple[Finding, ...]:
    """Return why the figures of a run should not be trusted."""
    found = [
        Finding("errors", f"connections failed ({kind}): {count}")
        for kind, count in run.errors.items()
    ]
    if run.lost_bytes:
        found.append(Finding("lost", f"{run.lost_bytes} bytes lost"))
    if run.corrupt_bytes:
        found.append(Finding("corrupt", f"{run.corrupt_bytes} bytes corrupt"))
    if run.datagrams:
        sent, lost, doubled = (run.datagrams[name] for name in ("sent", "lost", "duplicated"))
        if lost > max(sent / 100, 2):
            found.append(Finding("lost", f"{lost} of {sent} datagrams lost"))
        if doubled:
            found.append(Finding("duplicated", f"{doubled} datagrams answered more than once"))
    if not run.messages:
        found.append(Finding("no_messages", "no message was answered in the window"))
    elif plan.rate and plan.messages is None:
        offered = plan.rate * run.duration
        # About as many messages are outstanding at the start of the window as at its end.
        if offered - run.messages > max(offered / 100, 2):
            achieved = run.messages / run.duration
            text = f"offered {plan.rate:g} messages/s, achieved {achieved:g}"
            found.append(Finding("not_steady", text))
    return tuple(found)
