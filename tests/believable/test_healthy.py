"""200 healthy runs of several kinds, in one unbroken series: none is flagged.

Only what the driver read of the machine beside a run, steal or CPU time of other processes, excuses
a run that was flagged. All are in build/believable/healthy.json, with that reading.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from typing import Any

import pytest
from records import record
from runs import BLOCK, CPUS, SERVER_CPU, Run, echo_server, load
from servers import paced_echo

pytestmark = [pytest.mark.believable, pytest.mark.slow, pytest.mark.timeout(1800)]

RUNS = 200
CAPACITY = 993  # messages a second, of the server that is paced
POISSON = ("--arrivals", "poisson")

#: Each kind: the server, and the words of the command. A share is of the server's capacity.
KINDS: dict[str, tuple[str, tuple[object, ...]]] = {
    "closed loop, 1 connection": ("tcp", ()),
    "closed loop, 8 blocking": ("tcp", ("-c", 8, *BLOCK)),
    "closed loop, 64 connections": ("tcp", ("-c", 64)),
    "closed loop, depth 16": ("tcp", ("-c", 4, "--depth", 16)),
    "closed loop, --wait auto": ("tcp", ("-c", 2, "--wait", "auto")),
    "closed loop, 256 KiB messages": ("tcp", ("-s", "256k", *BLOCK)),
    "closed loop, half-close": ("tcp", ("-c", 8, *BLOCK, "--finish", "half-close")),
    "uniform, 100/s": ("tcp", ("--rate", 100)),
    "uniform, 1000/s": ("tcp", ("-c", 4, "--rate", 1000)),
    "uniform, 10k/s blocking": ("tcp", ("-c", 16, "--rate", "10k", *BLOCK)),
    "uniform, 80 % of 993/s": ("paced", ("--rate", 0.8 * CAPACITY)),
    "Poisson, 100/s blocking": ("tcp", ("--rate", 100, *POISSON, *BLOCK)),
    "Poisson, 1000/s": ("tcp", ("-c", 4, "--rate", 1000, *POISSON)),
    "Poisson, 80 % of 993/s": ("paced", ("--rate", 0.8 * CAPACITY, *POISSON)),
    "Poisson, 80 % of the server's": ("tcp", ("-c", 8, "--rate", "80 %", *POISSON)),
    "2 threads, blocking": ("tcp", ("-c", 8, "--threads", 2, "--rate", "5k", *BLOCK)),
    "reconnect after each": ("tcp", ("-c", 4, "--reconnect-every", 1, *BLOCK)),
    "reconnect, 1000/s": ("tcp", ("-c", 4, "--reconnect-every", 10, "--rate", 1000)),
    "upload": ("discard", ("--mode", "send", "-c", 2, *BLOCK)),
    "download": ("chargen", ("--mode", "receive", "-c", 2, *BLOCK)),
    "datagrams": ("udp", ("-c", 4, "--size", 64)),
    "datagrams, Poisson, 1000/s": ("udp", ("-c", 4, "--rate", 1000, *POISSON)),
    "Unix stream": ("unix", ("-c", 4)),
    "Unix datagrams, 1000/s": ("unixgram", ("-c", 4, "--rate", 1000)),
}


def test_no_healthy_run_is_flagged() -> None:
    with all_servers() as endpoints:
        rate = measured_rate(endpoints["tcp"])
        runs = []
        for number, kind in enumerate(islice(cycle(KINDS), RUNS)):
            server, words = KINDS[kind]
            chosen = [0.8 * rate if word == "80 %" else word for word in words]
            seed = ("--seed", number) if "poisson" in words else ()
            cpus = CPUS if "--threads" in words else CPUS[:1]
            runs.append((kind, load(endpoints[server], "-d", "1s", *chosen, *seed, cpus=cpus)))
    flagged = [(kind, run) for kind, run in runs if not run.valid]
    record(
        "healthy",
        disturbance=f"nothing: {RUNS} healthy runs of {len(KINDS)} kinds, one after the other",
        expected="0 flagged, but for runs beside which the machine was busy",
        measured_per_s=rate,
        flagged=len(flagged),
        excused=sum(run.excused for _, run in flagged),
        quiet=sum(run.beside.quiet for _, run in runs),
        runs=[{"kind": kind, **run.seen()} for kind, run in runs],
    )
    unexcused = [(kind, run.codes, run.beside) for kind, run in flagged if not run.excused]
    assert not unexcused, f"{len(unexcused)} of {RUNS} flagged for nothing"
    if sum(run.beside.quiet for _, run in runs) < RUNS / 2:
        pytest.skip("a machine that is not busy is missing")


@contextmanager
def all_servers() -> Iterator[dict[str, Any]]:
    """Running servers; one that has no client uses no CPU."""
    name = f"@fastsock-test-healthy-{os.getpid()}"
    with ExitStack() as stack:

        def started(endpoint: str, **options: Any) -> Any:
            return stack.enter_context(echo_server(endpoint, **options)).endpoint

        yield {
            "tcp": started("tcp://127.0.0.1:0"),
            "discard": started("tcp://127.0.0.1:0", service="discard"),
            "chargen": started("tcp://127.0.0.1:0", service="chargen"),
            "udp": started("udp://127.0.0.1:0"),
            "unix": started(f"unix://{name}"),
            "unixgram": started(f"unixgram://{name}-datagrams"),
            "paced": stack.enter_context(paced_echo(CAPACITY, cpu=SERVER_CPU)).endpoint,
        }


def measured_rate(endpoint: Any) -> float:
    """What the client and the server reach together in a closed loop."""
    run: Run = load(endpoint, "-c", 8, "-d", "2s")
    return float(run.report["messages_per_s"])
