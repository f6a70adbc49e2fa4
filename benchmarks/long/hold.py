"""Many idle connections, and what they cost: ``python -m benchmarks.long.hold [10000]``.

First 64 active connections are measured with and without the idle ones, in turns of one run. Then
as many idle ones are opened as the machine allows, up to --most. With --stuck they are clients that
have sent until nothing more was taken, and never read.
"""

from __future__ import annotations

import re
import statistics
import sys
from pathlib import Path

import fastsock
from benchmarks.long.idle import SPARE, IdleClients, raise_limit
from benchmarks.long.server import FastsockServer
from benchmarks.long.verdict import Verdict, parser, say

ACTIVE = 64
RATE = 5000  # messages a second, over all active ones: far from what the server can do
TURNS = 5  # each with and without
BUFFER = 65536  # bytes of --buffer-size
MAX_RATIO = {"idle": 1.1, "stuck": 1.2}  # of the p99
MAX_BYTES = {"idle": 256, "stuck": BUFFER + 1024}  # of the server's own memory for a connection
SMALL_BUFFERS = ("--rcvbuf", "16k", "--sndbuf", "16k")  # or the kernel has megabytes for stuck ones
STEP = 10_000  # connections between two looks at the memory
MEMORY_SHARE = 0.5  # of what is available may be taken by idle connections
BOTH_ENDS = 16 * 1024  # bytes for a guess of how many there can be


def p99(server: FastsockServer, seconds: float) -> float:
    """Microseconds, of the active connections."""
    report = fastsock.load(
        server.endpoint, connections=ACTIVE, rate=RATE, duration=seconds, wait="block"
    )
    if report.failed or not report.messages:
        errors = dict(report.errors)
        raise RuntimeError(f"the active connections: {report.messages} answers, {errors}")
    return report.latency.p99


def kernel_bytes() -> int:
    """What the kernel has allocated for its objects, sockets among them."""
    text = Path("/proc/meminfo").read_text()
    return sum(int(size) * 1024 for size in re.findall(r"^(?:Slab|Percpu):\s+(\d+) kB", text, re.M))


def available_bytes() -> int:
    match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    assert match is not None
    return int(match[1]) * 1024


def sockets() -> str:
    """The line of TCP in /proc/net/sockstat."""
    match = re.search(r"^TCP: (.*)", Path("/proc/net/sockstat").read_text(), re.M)
    return match[1] if match else ""


def compare(server: FastsockServer, idle: int, kind: str, seconds: float, verdict: Verdict) -> None:
    """The p99 of the active connections without and with the others, in turns."""
    without, beside = [], []
    host, port = server.address
    quiet = server.descriptors()
    p99(server, seconds)  # the first window is slower than all others
    for turn in range(TURNS):
        server.settle(quiet)
        without.append(p99(server, seconds))
        with IdleClients(host, port, kind) as clients:
            error = clients.add(idle)
            if error:
                raise RuntimeError(f"{clients.held} of {idle} {kind} connections: {error}")
            beside.append(p99(server, seconds))
        say(f"turn {turn + 1}: p99 {without[-1]:.0f} us alone, {beside[-1]:.0f} us beside {idle}")
    ratio = statistics.median(b / w for w, b in zip(without, beside, strict=True))
    verdict.note(p99_alone_us=without, p99_beside_us=beside)
    most = MAX_RATIO[kind]
    verdict.require(ratio <= most, f"p99 of {ACTIVE} active at most x{most}", round(ratio, 3))
    server.settle(quiet)


def fill(
    server: FastsockServer, idle: int, most: int, kind: str, engine: str, verdict: Verdict
) -> None:
    """Open connections, in steps; what each costs, at `idle` of them and at the most."""
    host, port = server.address
    p99(server, 0.5)  # so that what serving itself takes is counted before
    own, kernel, available = server.anonymous_memory(), kernel_bytes(), available_bytes()
    quiet, steps = server.descriptors(), []
    with IdleClients(host, port, kind) as clients:
        error = ""
        while clients.held < most and not error:
            error = clients.add(min(STEP if clients.held else idle, most - clients.held))
            held = max(clients.held, 1)
            steps.append(
                {
                    "held": held,
                    "server_bytes_each": (server.anonymous_memory() - own) / held,
                    "kernel_bytes_each_pair": (kernel_bytes() - kernel) / held,
                    "available_bytes_each_pair": (available - available_bytes()) / held,
                    "sockstat": sockets(),
                }
            )
            say(f"{held}: {steps[-1]}")
        last_p99 = p99(server, 2.0)
        server.settle(quiet + clients.held)  # until the active ones are closed
        accepted = server.descriptors() - quiet
    first = steps[0]
    verdict.note(
        steps=steps,
        held=clients.held,
        ended_by=error or "the number asked for",
        server_bytes_each=steps[-1]["server_bytes_each"],
        kernel_bytes_each_pair=steps[-1]["kernel_bytes_each_pair"],
        available_bytes_each_pair=steps[-1]["available_bytes_each_pair"],
        p99_at_most_us=last_p99,
    )
    verdict.require(first["held"] == idle, f"{idle} {kind} connections are held", first["held"])
    verdict.require(accepted == clients.held, "none of them waits in the backlog", accepted)
    if engine in ("epoll", "poll"):
        verdict.require(
            first["server_bytes_each"] <= MAX_BYTES[kind],
            f"the server's own memory for each: at most {MAX_BYTES[kind]} bytes",
            round(first["server_bytes_each"], 1),
        )


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("idle", type=int, nargs="?", default=10_000)
    arguments.add_argument(
        "--most", type=int, default=1_000_000, help="idle connections at the end"
    )
    arguments.add_argument("--stuck", action="store_true", help="not idle, but never reading")
    arguments.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    options = arguments.parse_args()
    descriptors = raise_limit()  # the server inherits it
    room = min(descriptors - ACTIVE - SPARE, int(available_bytes() * MEMORY_SHARE) // BOTH_ENDS)
    if room < options.idle:
        # Beyond it connections would wait in the backlog, and look as if they were held.
        arguments.error(f"there is room for {room} connections; raise ulimit -n or ask for fewer")
    most = max(min(options.most, room), options.idle)
    kind = "stuck" if options.stuck else "idle"
    small = SMALL_BUFFERS if options.stuck else ()
    verdict = Verdict(
        f"hold-{kind}",
        options.results,
        idle=options.idle,
        most=most,
        kind=kind,
        engine=options.engine,
        descriptors=descriptors,
    )
    try:
        with FastsockServer("tcp://127.0.0.1:0", engine=options.engine, options=small) as server:
            compare(server, options.idle, kind, options.seconds, verdict)
        # A fresh one: a server keeps the memory of connections that it has had.
        with FastsockServer("tcp://127.0.0.1:0", engine=options.engine, options=small) as server:
            fill(server, options.idle, most, kind, options.engine, verdict)
    except RuntimeError as error:
        verdict.require(False, "every connection is held and served", str(error))
    return verdict.finish()


if __name__ == "__main__":
    sys.exit(main())
