"""Probe every server and keep the results: ``python -m benchmarks.reliability.run``.

Writes ``benchmarks/results/reliability.json``. Some figures are times: nothing else should run on
the machine meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contenders import compiled, on_host, probed, probed_datagrams
from benchmarks.reliability import datagrams, probes
from benchmarks.reliability.datagrams import NOT_PROMISED
from benchmarks.run import RESULTS, commit, write
from fastsock.bench.contenders import NATIVE, Contender
from fastsock.bench.server_process import NotStartedError, ServerProcess
from fastsock.host import host_facts

RELIABILITY = RESULTS / "reliability.json"


def probe_streams(server: Contender, only: str, effort: probes.Effort) -> dict[str, Any]:
    def start(*, draining: bool = False) -> ServerProcess:
        return ServerProcess(server.command + (server.draining if draining else ()))

    return {
        name: outcome(partial(probe, start, effort), f"{server.name}: {name}")
        for name, probe in probes.PROBES.items()
        if only in name
    }


def probe_datagrams(server: Contender, only: str) -> dict[str, Any]:
    def start(host: str, *, plain: bool = False) -> ServerProcess:
        return ServerProcess(on_host(compiled("C recvfrom") if plain else server, host).command)

    return {
        name: outcome(
            partial(datagrams.in_own_network, partial(probe, start)), f"{server.name}: {name}"
        )
        for name, probe in datagrams.PROBES.items()
        if only in name
    }


def outcome(probe: Callable[[], dict[str, Any]], title: str) -> dict[str, Any]:
    """The figures of one probe; a server that cannot be connected to is a result too."""
    begin = time.monotonic()
    try:
        figures = probe()
    except (OSError, NotStartedError) as error:
        figures = {"verdict": "failed", "error": str(error)}
    figures["took_s"] = round(time.monotonic() - begin, 2)
    print(f"  {title}: {figures['verdict']} ({figures['took_s']:g} s)", file=sys.stderr, flush=True)
    return figures


def probe_all(
    servers: list[Contender], probe: Callable[[Contender], dict[str, Any]]
) -> list[dict[str, Any]]:
    rows = []
    for server in servers:
        if server.unusable:
            print(f"  {server.name} {server.unusable}", file=sys.stderr)
        program, *arguments = server.command
        row = {
            "name": server.name,
            "group": server.group,
            "version": server.version,
            "command": " ".join((Path(program).name, *arguments)),
            "draining": " ".join(server.draining),
            "unusable": server.unusable,
            "results": {} if server.unusable else probe(server),
        }
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only the servers whose name contains this")
    parser.add_argument("--probe", default="", help="only the probes whose name contains this")
    parser.add_argument("--quick", action="store_true", help="one run of each: for a look")
    parser.add_argument("--output", type=Path, default=RELIABILITY)
    options = parser.parse_args()
    effort = probes.QUICK if options.quick else probes.THOROUGH

    def chosen(servers: list[Contender]) -> list[Contender]:
        return [each for each in servers if options.only in each.name]

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server is left behind
    measured, begin = commit(), time.monotonic()
    streams = probe_all(chosen(probed()), partial(probe_streams, only=options.probe, effort=effort))
    udp = probe_all(chosen(probed_datagrams()), partial(probe_datagrams, only=options.probe))
    document = {
        "commit": measured,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": host_facts(),
        "method": dataclasses.asdict(effort),
        "took_s": round(time.monotonic() - begin),
        "streams": streams,
        "datagrams": udp,
    }
    write(document, options.output)
    sys.exit(any_fault(streams + udp))


def any_fault(rows: list[dict[str, Any]]) -> bool:
    """Whether one of our own engines broke a promise."""
    faults = [
        f"{row['name']}: {name}: {figures}"
        for row in rows
        if row["group"] == NATIVE
        for name, figures in row["results"].items()
        if figures["verdict"] not in ("ok", "one at a time") and name not in NOT_PROMISED
    ]
    print("\n".join(faults), end="\n" if faults else "", file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    main()
