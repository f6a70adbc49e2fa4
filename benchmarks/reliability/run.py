"""Probe every server and keep the results: ``python -m benchmarks.reliability.run``.

Writes ``benchmarks/results/reliability.json``. Some figures are times: nothing else should run on
the machine meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.reliability import datagrams, probes
from benchmarks.reliability.datagrams import NOT_PROMISED
from benchmarks.reliability.server_process import NotStartedError, ServerProcess
from benchmarks.reliability.subjects import (
    NATIVE,
    Subject,
    datagram_servers,
    plain_datagram_server,
    stream_servers,
)
from benchmarks.run import RESULTS, commit
from fastsock.host import host_facts

RELIABILITY = RESULTS / "reliability.json"


def probe_streams(subject: Subject, only: str, effort: probes.Effort) -> dict[str, Any]:
    def start(*, draining: bool = False) -> ServerProcess:
        return ServerProcess(subject.command + (subject.draining if draining else ()))

    return {
        name: outcome(partial(probe, start, effort), f"{subject.name}: {name}")
        for name, probe in probes.PROBES.items()
        if only in name
    }


def probe_datagrams(subject: Subject, only: str) -> dict[str, Any]:
    def serve(host: str, *, plain: bool = False) -> ServerProcess:
        command = plain_datagram_server().command if plain else subject.command
        where = (f"udp://{host}:0",) if "-m" in command else (host, "0")
        return ServerProcess(command + where, datagrams=True)

    return {
        name: outcome(
            partial(datagrams.in_own_network, partial(probe, serve)), f"{subject.name}: {name}"
        )
        for name, probe in datagrams.PROBES.items()
        if only in name
    }


def outcome(probe: Callable[[], dict[str, Any]], what: str) -> dict[str, Any]:
    """The figures of one probe; a server that is not there when it is needed is a result too."""
    begin = time.monotonic()
    try:
        figures = probe()
    except (OSError, NotStartedError) as error:
        figures = {"verdict": "failed", "error": str(error)}
    figures["took_s"] = round(time.monotonic() - begin, 2)
    print(f"  {what}: {figures['verdict']} ({figures['took_s']:g} s)", file=sys.stderr, flush=True)
    return figures


def probe_all(
    subjects: list[Subject], probe: Callable[[Subject], dict[str, Any]]
) -> list[dict[str, Any]]:
    rows = []
    for subject in subjects:
        row: dict[str, Any] = {
            "name": subject.name,
            "group": subject.group,
            "version": subject.version,
            "command": subject.shown_command(),
            "draining": " ".join(subject.draining),
            "missing": subject.missing,
            "results": {} if subject.missing else probe(subject),
        }
        if subject.missing:
            print(f"  {subject.name}: not installed ({subject.missing})", file=sys.stderr)
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

    def chosen(subjects: list[Subject]) -> list[Subject]:
        return [each for each in subjects if options.only in each.name]

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server is left behind
    measured, begin = commit(), time.monotonic()
    streams = probe_all(
        chosen(stream_servers()), partial(probe_streams, only=options.probe, effort=effort)
    )
    udp = probe_all(chosen(datagram_servers()), partial(probe_datagrams, only=options.probe))
    document = {
        "commit": measured,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": host_facts(),
        "method": dataclasses.asdict(effort),
        "took_s": round(time.monotonic() - begin),
        "streams": streams,
        "datagrams": udp,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    print(options.output)
    sys.exit(any_fault(streams + udp))


def any_fault(rows: list[dict[str, Any]]) -> bool:
    """Whether one of our own engines did anything but what is promised."""
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
