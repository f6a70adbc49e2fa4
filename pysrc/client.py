"""The load client: options in, LoadReport out.

It is made to be read. To measure, use fastsock.load(): the threads of this client take turns at the
interpreter's lock, and its report says nothing of the client itself.
"""

from __future__ import annotations

import math
import threading
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from ..client.options import LoadOptions
from ..client.report import DATAGRAM_COUNTS, Finding, LoadReport
from ..endpoint import Endpoint
from ..host import host_facts
from . import load_datagrams, load_streams
from .load_run import Plan, Tally, summary


def load(
    endpoint: Endpoint | str | tuple[Any, ...],
    *,
    connections: int = 1,
    size: int = 64,
    depth: int = 1,
    duration: float = 5.0,
    messages: int | None = None,
    timeout: float = 5.0,
    loss_timeout: float = 0.2,
) -> LoadReport:
    """Load an echo server in a closed loop, compare every byte, and return a report.

    Args:
        endpoint: the server: tcp, unix, udp or unixgram.
        connections: each has a thread of its own.
        size: bytes a message; of a datagram 8 to 65507.
        depth: messages outstanding on each connection.
        duration: seconds.
        messages: stop after this many, over all connections, instead of after `duration`.
        timeout: seconds without progress after which a connection is given up.
        loss_timeout: seconds after which a datagram without an answer counts as lost.

    A connection that fails is counted in `errors` and not opened again. At the end each connection
    is half-closed, and every byte sent must come back; datagrams in flight are awaited for the loss
    timeout. Raises TypeError or ValueError for a bad option, OSError if the host has no address.
    """
    endpoint = Endpoint.parse(endpoint)
    options = LoadOptions(
        connections=connections,
        size=size,
        depth=depth,
        duration=duration if messages is None else None,
        messages=messages,
        warmup=0.0,
        timeout=timeout,
        loss_timeout=loss_timeout,
        wait="block",
    )
    options.check_target(endpoint)
    address = endpoint.resolve()
    started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    begin = monotonic()
    end = begin + duration if messages is None else math.inf
    plan = Plan(address, connections, size, depth, messages, timeout, loss_timeout, end)
    total = run(plan, load_streams.run if endpoint.is_stream else load_datagrams.run)
    latency = summary(total.latencies)
    return LoadReport(
        endpoint=str(endpoint),
        options=options.as_dict(),
        duration=min(end, monotonic()) - begin,
        messages=total.messages,
        answered_in_window=total.messages,
        bytes=total.messages * size,
        latency=latency,
        latency_from_send=latency,  # in a closed loop a message is due when it is sent
        started_at=started_at.replace("+00:00", "Z"),
        address=str(address),
        errors=total.errors,
        lost_bytes=total.lost_bytes,
        corrupt_bytes=total.corrupt_bytes,
        datagrams=None if endpoint.is_stream else {n: total.datagrams[n] for n in DATAGRAM_COUNTS},
        reasons=reasons(total),
        host=host_facts(),
    )


def run(plan: Plan, target: Any) -> Tally:
    """Run `target` in a thread for each connection, and add up what they have counted."""
    tallies = [Tally() for _ in range(plan.connections)]
    threads = [
        # Daemons: Ctrl-C ends a program although a server does not answer.
        threading.Thread(target=target, args=(plan, index, tally), daemon=True)
        for index, tally in enumerate(tallies)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:  # Ctrl-C, or no more threads can be made
        plan.end = -math.inf
        raise
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return total


def reasons(total: Tally) -> tuple[Finding, ...]:
    """Return why the figures of a run should not be trusted."""
    sent, lost, doubled = (total.datagrams[name] for name in ("sent", "lost", "duplicated"))
    failures = ((True, "errors", f"connections failed ({k}): {n}") for k, n in total.errors.items())
    found = (
        *failures,
        (total.lost_bytes, "lost", f"{total.lost_bytes} bytes lost"),
        (total.corrupt_bytes, "corrupt", f"{total.corrupt_bytes} bytes corrupt"),
        (lost > max(sent / 100, 2), "lost", f"{lost} of {sent} datagrams lost"),
        (doubled, "duplicated", f"{doubled} datagrams answered more than once"),
        (not total.messages, "no_messages", "no message was answered in the window"),
    )
    return tuple(Finding(code, text) for is_so, code, text in found if is_so)
