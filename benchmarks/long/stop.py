"""How long it takes to stop: ``python -m benchmarks.long.stop [STOPS]``, some 0.1 s each.

stop() in this process, and SIGTERM to ``fastsock serve`` until its process has ended; idle, and
with 64 clients that load it, at any moment. All engines, datagrams and ways take turns.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from signal import SIGTERM

import fastsock
from benchmarks.long.verdict import Verdict, parser, say
from benchmarks.reliability.client import PATIENCE, echoes, seconds_until
from fastsock import Server
from fastsock.bench.server_process import ServerProcess
from fastsock.server import engines

ALL = "all"
DATAGRAM = "datagram"  # in the place of an engine
CLIENTS = 64
STATES = ("idle", "loaded")
LOADED_AFTER = 20_000  # bytes sent back, or
CPU_SECONDS = 0.02
AT_ANY_MOMENT = 0.02  # seconds, longer than a turn of a loop
HANGS = 5.0  # seconds
MAX_P99_MS = 20.0


def endpoint(kind: str, port: int = 0) -> str:
    return f"{'udp' if kind == DATAGRAM else 'tcp'}://127.0.0.1:{port}"


@contextmanager
def loaded(kind: str, port: int, is_busy: Callable[[], bool]) -> Iterator[None]:
    """All clients are served, by a thread that holds no GIL, until the server has ended."""
    thread = threading.Thread(
        target=fastsock.load,
        args=(endpoint(kind, port),),
        kwargs={
            "connections": CLIENTS,
            "duration": HANGS + PATIENCE,
            "timeout": 1.0,
            "wait": "block",
        },
    )
    thread.start()
    try:
        if seconds_until(is_busy, PATIENCE) is None:
            raise RuntimeError("the load has not begun")
        # A later client is served after them; where one is served at a time, it would wait on.
        if kind not in (DATAGRAM, "serial") and not echoes(("127.0.0.1", port)):
            raise RuntimeError("not all clients are served")
        yield
    finally:
        thread.join()


def stop_by_call(kind: str, state: str, moment: float) -> float:
    """Seconds."""
    engine = "auto" if kind == DATAGRAM else kind
    with ExitStack() as stack:
        server = Server(endpoint(kind), engine=engine)
        stack.callback(server.stop)
        server.start()
        if state == "loaded":
            stack.enter_context(
                loaded(kind, server.endpoint.port, lambda: server.stats().bytes_out >= LOADED_AFTER)
            )
        time.sleep(moment)
        begin = time.monotonic()
        server.stop()
        return time.monotonic() - begin


def stop_by_signal(kind: str, state: str, moment: float) -> float:
    """Seconds until the process has ended."""
    engine = () if kind == DATAGRAM else ("--engine", kind)
    command = (sys.executable, "-m", "fastsock", "serve", endpoint(kind), *engine)
    with ServerProcess(command) as server, ExitStack() as stack:
        if state == "loaded":
            until = server.cpu_seconds() + CPU_SECONDS
            stack.enter_context(
                loaded(kind, server.address[1], lambda: server.cpu_seconds() >= until)
            )
        time.sleep(moment)
        begin = time.monotonic()
        server.signal(SIGTERM)
        code = server.wait(HANGS)
        took = time.monotonic() - begin
        if code:
            raise RuntimeError(f"{kind}, {state}: the server ended with {code}")
        return took if code == 0 else HANGS


WAYS = {"stop()": stop_by_call, "SIGTERM": stop_by_signal}


def p99(samples: list[float]) -> float:
    return statistics.quantiles(samples, n=100, method="inclusive")[98]


def in_words(samples: list[float]) -> str:
    """Of milliseconds."""
    median = statistics.median(samples)
    return f"p50 {median:.2f}, p99 {p99(samples):.2f}, max {max(samples):.2f} ms"


def main() -> int:
    arguments = parser(__doc__, engine=ALL)
    arguments.add_argument("stops", type=int, nargs="?", default=1400)
    options = arguments.parse_args()
    kinds = [*engines.WORKERS, DATAGRAM] if options.engine == ALL else [options.engine]
    cells = list(itertools.product(WAYS, STATES, kinds))
    verdict = Verdict("stop", options.results, stops=options.stops, engine=options.engine)
    took: dict[tuple[str, str, str], list[float]] = {cell: [] for cell in cells}
    moments = random.Random(8)
    for number in range(max(options.stops, 2 * len(cells))):
        way, state, kind = cell = cells[number % len(cells)]
        seconds = WAYS[way](kind, state, moments.uniform(0, AT_ANY_MOMENT))
        took[cell].append(seconds * 1e3)
        if cell == cells[-1]:
            say(f"{number + 1} stops")
    verdict.note(took_ms={", ".join(cell): samples for cell, samples in took.items()})
    for cell, samples in took.items():
        verdict.note(**{", ".join(cell): in_words(samples)})
    for way, state in itertools.product(WAYS, STATES):
        samples = [ms for kind in kinds for ms in took[way, state, kind]]
        target = f"{way}, {state}: p99 at most {MAX_P99_MS:.0f} ms"
        verdict.require(p99(samples) <= MAX_P99_MS, target, in_words(samples))
    hung = sum(ms >= HANGS * 1e3 for samples in took.values() for ms in samples)
    verdict.require(hung == 0, "nothing hangs", hung)
    return verdict.finish()


if __name__ == "__main__":
    sys.exit(main())
