"""Connect, echo, close, a million times: ``python -m benchmarks.long.churn [CONNECTIONS]``."""

from __future__ import annotations

import sys
from pathlib import Path

import fastsock
from benchmarks.long.server import FastsockServer
from benchmarks.long.verdict import Verdict, parser, say, slope

PARTS = 10  # the memory is looked at after each
CONNECTIONS = 16  # at a time
MAY_GROW = 1 << 20  # bytes


def churn(server: FastsockServer, connections: int) -> fastsock.LoadReport:
    return fastsock.load(
        server.endpoints[0],
        connections=CONNECTIONS,
        messages=connections,
        reconnect_every=1,
        wait="block",
    )


def run(connections: int, engine: str, results: Path) -> int:
    verdict = Verdict("churn", results, connections=connections, engine=engine)
    part = max(connections // PARTS, 1)
    with FastsockServer("tcp://127.0.0.1:0", engine=engine) as server:
        descriptors = server.descriptors()
        churn(server, min(part, 10_000))  # the first connections bring memory that stays
        server.settle(descriptors)
        memory = [server.anonymous_memory()]
        reports = []
        for number in range(PARTS):
            reports.append(churn(server, part))
            server.settle(descriptors)
            memory.append(server.anonymous_memory())
            say(f"{(number + 1) * part} connections, {memory[-1] - memory[0]:+d} bytes")
        left = server.descriptors() - descriptors
    done = sum(report.messages for report in reports)
    failed = sum(sum(report.errors.values()) for report in reports)
    wrong = sum(report.lost_bytes + report.corrupt_bytes for report in reports)
    grown = memory[-1] - memory[0]
    verdict.note(
        connections_per_s=done / sum(report.duration for report in reports),
        memory_bytes=memory,
        memory_slope_bytes_per_connection=slope(range(0, part * len(memory), part), memory),
        server=server.stats,
    )
    verdict.require(done == part * PARTS, f"{part * PARTS} connections echoed", done)
    verdict.require(failed == 0, "no connection failed", failed)
    verdict.require(wrong == 0, "no byte lost or corrupt", wrong)
    verdict.require(grown < MAY_GROW, f"memory grows by less than {MAY_GROW} bytes", grown)
    verdict.require(left == 0, "no descriptor left open", left)
    verdict.require(server.stats["errors"] == {}, "no error counted", server.stats["errors"])
    return verdict.finish()


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("connections", type=int, nargs="?", default=1_000_000)
    options = arguments.parse_args()
    return run(options.connections, options.engine, options.results)


if __name__ == "__main__":
    sys.exit(main())
