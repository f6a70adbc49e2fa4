"""Every kind of load at once, for long: ``python -m benchmarks.long.soak [10m]``.

One server of tcp, unix and udp, in rounds. First random clients and native load on every endpoint.
Then no clients, and memory, descriptors and threads are counted: with clients the counts do not
show leaks. Then a steady load, to measure the p99.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import fastsock
from benchmarks.long.random_clients import RandomClients, kill_a_client
from benchmarks.long.server import FastsockServer
from benchmarks.long.verdict import Verdict, parser, say, slope
from fastsock import Endpoint
from fastsock.options import Seconds

ROUND = 10.0  # seconds, at most; there are at least MIN_ROUNDS
MIN_ROUNDS = 6
WARMUP = 1 / 3  # of the rounds: the heap finds its size
MAX_SLOPE = 1024 / 60  # bytes per second: 1 KiB a minute
NOISE = 128 * 1024  # bytes over a run: two more slow readers at a time than ever before
MAX_DRIFT = 1.10  # of the p99, last third against first
DRIFT_ROUNDS = 12  # fewer say nothing about a drift
RANDOM_CLIENTS = 8
CONNECTIONS_MAX = 64
BUFFER = 65536  # bytes of a connection that may be on their way when it is reset
EXPECTED_ERRORS = {"ECONNRESET", "EPIPE"}  # of clients that reset, close or are killed


@dataclass
class Found:
    """What the rounds found."""

    times: list[float] = field(default_factory=list)  # seconds since the start
    memory: list[int] = field(default_factory=list)  # bytes
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    verified: int = 0  # bytes, back and right
    messages: int = 0
    clients: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def soak(seconds: float, engine: str, seed: int) -> tuple[Found, FastsockServer]:
    found = Found()
    start = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="fastsock-") as directory,
        FastsockServer(
            "tcp://127.0.0.1:0",
            f"unix://{Path(directory, 'echo.sock')}",
            "udp://127.0.0.1:0",
            engine=engine,
        ) as server,
    ):
        quiet = server.descriptors()
        length = min(ROUND, seconds / MIN_ROUNDS)
        number = 0
        while time.monotonic() - start < seconds:
            load_all(server, found, length * 0.7, seed + number)
            server.settle(quiet)
            found.times.append(time.monotonic() - start)
            found.memory.append(server.anonymous_memory())
            found.descriptors.append(server.descriptors())
            found.threads.append(server.threads())
            p99 = steady_p99(server, found, length * 0.2)
            found.p99_us += [] if math.isnan(p99) else [p99]
            number += 1
            say(
                f"{found.times[-1]:6.0f} s, {found.memory[-1] >> 10} KiB, "
                f"{found.descriptors[-1]} descriptors, p99 {p99:.0f} us, "
                f"{found.verified / 1e9:.2f} GB, {len(found.failures)} failures"
            )
    return found, server


def load_all(server: FastsockServer, found: Found, seconds: float, seed: int) -> None:
    """Native load on every endpoint, random clients, and one load client that is killed."""
    rng = random.Random(seed)
    reports: list[fastsock.LoadReport] = []
    threads = [
        threading.Thread(target=load_one, args=(endpoint, load_of(endpoint, rng), seconds, reports))
        for endpoint in server.endpoints
    ]
    victim = rng.choice(server.endpoints[:2])
    with RandomClients(server.endpoints, seed, RANDOM_CLIENTS) as clients:
        for thread in threads:
            thread.start()
        kill_a_client(victim, rng.uniform(0.3, 0.9) * seconds)
        for thread in threads:
            thread.join()
    found.clients += clients.counts
    found.clients["killed"] += 1
    found.verified += clients.verified
    found.failures += clients.failures
    if len(reports) < len(threads):
        found.failures.append("a load run did not end")
    for report in reports:
        take(report, found)


def load_of(endpoint: Endpoint, rng: random.Random) -> dict[str, Any]:
    """The options of a load run, at random."""
    if not endpoint.is_stream:
        return {"connections": rng.randrange(1, 17), "size": rng.choice((8, 64, 1472, 9000))}
    return {
        "connections": rng.randrange(1, CONNECTIONS_MAX + 1),
        "size": rng.choice((1, 64, 1500, 65536)),
        "depth": rng.choice((1, 1, 4)),
        "reconnect_every": rng.choice((None, 1, 100)),
    }


def load_one(
    endpoint: Endpoint, options: dict[str, Any], seconds: float, reports: list[fastsock.LoadReport]
) -> None:
    reports.append(
        fastsock.load(endpoint, duration=seconds, warmup=0, wait="block", timeout=30.0, **options)
    )


def take(report: fastsock.LoadReport, found: Found) -> None:
    found.verified += report.bytes
    found.messages += report.messages
    if report.failed or not report.messages:
        found.failures.append(
            f"load {report.endpoint}: {report.messages} messages, {dict(report.errors)}, "
            f"{report.lost_bytes} bytes lost, {report.corrupt_bytes} corrupt"
        )


def steady_p99(server: FastsockServer, found: Found, seconds: float) -> float:
    """The p99 of a load that is the same in every round, in microseconds; NaN without answers."""
    report = fastsock.load(
        server.endpoint, connections=16, rate=2000, duration=seconds, wait="block"
    )
    take(report, found)
    return report.latency.p99


def judge(found: Found, server: FastsockServer, verdict: Verdict) -> None:
    first = int(len(found.times) * WARMUP)
    times = found.times[first:]
    growth = slope(times, found.memory[first:])
    grown = growth * (times[-1] - times[0])
    verdict.require(
        growth <= MAX_SLOPE or grown <= NOISE,
        f"memory grows by at most 1 KiB a minute, or {NOISE >> 10} KiB in all (bytes per s, bytes)",
        (round(growth, 2), round(grown)),
    )
    for name, values in (("descriptors", found.descriptors), ("threads", found.threads)):
        verdict.require(
            len(set(values)) == 1, f"{name} stay the same without clients", sorted(set(values))
        )
    verdict.require(not found.failures, "no well-behaved client fails", found.failures[:5])
    errors = server.stats["errors"]
    verdict.require(set(errors) <= EXPECTED_ERRORS, "errors only of resets and deaths", errors)
    closed = server.stats["closed"]
    cut = (closed["reset"] + closed["error"] + closed["stopped"]) * BUFFER
    missing = server.stats["bytes_in"] - server.stats["bytes_out"]
    unanswered = server.stats["datagrams_in"] - server.stats["datagrams_out"]
    verdict.require(
        0 <= missing <= cut + unanswered * BUFFER,
        "bytes in == bytes out, but for what connections that were cut had in flight",
        (server.stats["bytes_in"], server.stats["bytes_out"], closed),
    )
    messages = [each for each in server.messages if "runs as root" not in each]
    verdict.require(not messages, "no other line on stderr", messages[:5])
    drift = drift_of(found.p99_us) if found.p99_us else 1.0  # a failure, which is told above
    enough = len(found.p99_us) >= DRIFT_ROUNDS
    verdict.require(
        drift <= MAX_DRIFT or not enough,
        f"p99 drifts by at most 10 % ({DRIFT_ROUNDS} rounds or more)",
        round(drift, 3),
    )


def drift_of(values: Sequence[float]) -> float:
    third = max(len(values) // 3, 1)
    return statistics.median(values[-third:]) / statistics.median(values[:third])


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("duration", nargs="?", default="10min", help="such as 30s, 10min or 1h")
    arguments.add_argument("--seed", type=int, default=random.randrange(1 << 20))
    options = arguments.parse_args()
    seconds = Seconds(1, 1e7).parse("duration", options.duration)
    verdict = Verdict(
        "soak", options.results, duration_s=seconds, engine=options.engine, seed=options.seed
    )
    found, server = soak(seconds, options.engine, options.seed)
    verdict.note(
        rounds=len(found.times),
        verified_gb=found.verified / 1e9,
        messages=found.messages,
        random_clients=sum(found.clients.values()),
        clients=dict(found.clients),
        samples=[asdict(found)[name] for name in ("times", "memory", "descriptors", "p99_us")],
        server=server.stats,
    )
    judge(found, server, verdict)
    return verdict.finish()


if __name__ == "__main__":
    sys.exit(main())
