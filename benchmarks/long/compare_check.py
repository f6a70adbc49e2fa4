"""How often ``fastsock compare`` is right: ``python -m benchmarks.long.compare_check [TRIALS]``.

Two sets of ten runs of one server, in turns: how often a difference is claimed. Then one set is of
a server that needs a tenth more time for an echo: how often it is found slower.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fastsock
from benchmarks.long.verdict import Verdict, say
from benchmarks.run import RESULTS
from fastsock.client import compare
from fastsock.client.compare import Comparison, Side

RUNS = 10  # a side
SECONDS = 0.2  # a run
SLOWER = 0.1


def serve(listener: socket.socket, delay_ns: int) -> None:
    """Echo for one client at a time; each echo computes for so long."""
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            while message := connection.recv(4096):
                until = time.perf_counter_ns() + delay_ns
                while time.perf_counter_ns() < until:
                    pass
                connection.sendall(message)


@contextmanager
def server(delay_ns: int = 0) -> Iterator[str]:
    """Such a server in a process of its own; its endpoint."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        context = multiprocessing.get_context("fork")
        process = context.Process(target=serve, args=(listener, delay_ns), daemon=True)
        process.start()
        try:
            yield "tcp://{}:{}".format(*listener.getsockname())
        finally:
            process.terminate()
            process.join()


def load(endpoint: str) -> fastsock.LoadReport:
    return fastsock.load(endpoint, duration=SECONDS)


def trial(before: str, after: str) -> Comparison:
    """Compare two sides whose runs have taken turns; each side is first as often as second."""
    sides: dict[str, list[fastsock.LoadReport]] = {"before": [], "after": []}
    places = {"before": before, "after": after}
    for number in range(RUNS):
        for name in sorted(places, reverse=number % 2 == 0):
            sides[name].append(load(places[name]))
    return compare.compare(*(Side(name, tuple(runs)) for name, runs in sides.items()))


def verdicts(trials: int, before: str, after: str, title: str) -> list[set[str | None]]:
    """Of each trial, what was said of the figures."""
    found = []
    for number in range(trials):
        comparison = trial(before, after)
        found.append({figure.verdict for figure in comparison.figures})
        say(f"{title} {number + 1} of {trials}: {found[-1]}\n{comparison}")
    return found


def main(trials: int, results: Path) -> int:
    verdict = Verdict("compare", results, trials=trials, runs=RUNS, seconds=SECONDS)
    with server() as endpoint:
        each = statistics.median(1 / load(endpoint).messages_per_s for _ in range(RUNS))
        equal = verdicts(trials, endpoint, endpoint, "equal")
        with server(round(each * SLOWER * 1e9)) as slower:
            unequal = verdicts(trials, endpoint, slower, "slower")
    claimed = sum(bool(each & {"faster", "slower"}) for each in equal)
    found = sum("slower" in each and "faster" not in each for each in unequal)
    verdict.note(claimed_of_equal=claimed, found_of_slower=found)
    verdict.require(claimed <= trials * 0.1, "claimed of equal sets: at most 10 %", claimed)
    verdict.require(found >= trials * 0.9, "found of slower sets: at least 90 %", found)
    return verdict.finish()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("trials", type=int, nargs="?", default=40)
    arguments.add_argument("--results", type=Path, default=RESULTS, help="directory of the JSON")
    given = arguments.parse_args()
    sys.exit(main(given.trials, given.results))
