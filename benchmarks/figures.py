"""Figures that pages quote in prose, written from the results they come from.

``python -m benchmarks.figures`` rewrites them in the pages; tests/test_figures.py checks them. An
entry is a text that stands once in its page, with ``#`` for each number, and the numbers. A space
in it also matches a line's end. The words around a number are written by hand: read them again when
the numbers change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from benchmarks.page import ROOT

RESULTS = ROOT / "benchmarks" / "results"

Document = dict[str, Any]


class Figure(NamedTuple):
    page: str
    text: str
    values: Callable[[], tuple[str, ...]]


def pattern_of(figure: Figure) -> re.Pattern[str]:
    literal = re.escape(figure.text).replace(r"\ ", r"\s+")
    return re.compile(literal.replace(r"\#", r"([\d.,]*\d[kM]?)"))


@cache
def results(name: str) -> Document:
    document: Document = json.loads((RESULTS / f"{name}.json").read_text())
    return document


# --- what the comparison measured ---------------------------------------------------------------

ONE, MANY, CROWD = "1 connection, 64 B", "64 connections, 64 B", "1000 connections, 64 B"
TWO, BLOCKS = "2 connections, 64 B", "client that blocks"
SILENT = "256 connections, 8 active, 64 B"
SLOW, FAST = "1 connection, 64 B, 1k/s", "100 connections, 64 B, 100k/s"
BIG, BIGGEST = "16 connections, 64 KiB", "2 connections, 1 MiB"
SHORT = "64 connections, connect, echo, close, 64 B"
UDP = ("UDP, 1 in flight, 64 B", "UDP, 8 x 16 in flight, 64 B")
UNIX = "Unix stream and TCP"
BUSY = f"{MANY}, beside a busy main thread"
TWINS = ("threads", "selectors")


def result(case: str, server: str) -> Document:
    (found,) = (each for each in results("comparison")["cases"] if each["name"] == case)
    (row,) = (row for row in found["results"] if row["name"] == server)
    return dict(row)


def median(case: str, server: str, figure: str) -> float:
    interval = result(case, server)[figure]
    if interval is None:
        raise SystemExit(f"{case}, {server}: no {figure}, as nothing was answered")
    return float(interval["median"])


def cpu_range(case: str, server: str) -> tuple[float, float]:
    """Both ends of the confidence interval, in microseconds of the server's CPU time per echo."""
    interval = result(case, server)["server_cpu_us_per_echo"]
    return float(interval["low"]), float(interval["high"])


def ratio(case: str, server: str) -> float:
    """The server's rate relative to the reference's."""
    return median(case, server, "rate_ratio")


def rate(case: str, server: str) -> float:
    return median(case, server, "messages_per_s")


def cpu(case: str, server: str) -> float:
    return median(case, server, "server_cpu_us_per_echo")


def worst_stop(how: str, load: str, *, fork: bool = False) -> float:
    """Milliseconds: the largest p99 of all engines but fork, or that of fork."""
    figures: dict[str, str] = results("stop")["figures"]
    return max(
        float(text.split("p99 ")[1].split(",")[0])
        for name, text in figures.items()
        if name.startswith(f"{how}, {load}, ") and name.endswith(", fork") == fork
    )


def met(run: str) -> tuple[str, ...]:
    targets = results(run)["targets"]
    return whole(sum(target["met"] for target in targets), len(targets))


def p99_over_alone(run: str) -> float:
    return float(results(run)["targets"][0]["figure"])


def floor(case: str) -> float:
    (found,) = (each for each in results("comparison")["cases"] if each["name"] == case)
    return float(found["floor_us"]["median"])


# --- how numbers are written --------------------------------------------------------------------


def two(*values: float) -> tuple[str, ...]:
    return tuple(f"{value:.2f}" for value in values)


def one(*values: float) -> tuple[str, ...]:
    return tuple(f"{value:.1f}" for value in values)


def whole(*values: float) -> tuple[str, ...]:
    return tuple(f"{value:,.0f}" for value in values)


def thousands(*values: float) -> tuple[str, ...]:
    return tuple(f"{value / 1000:.0f}k" for value in values)


# --- the figures ----------------------------------------------------------------------------------

EPOLL, C_EPOLL, DATAGRAMS = "fastsock epoll", "C epoll", "fastsock datagrams, udp"
LIBRARIES = ("uvloop Protocol", "asyncio Protocol", "stdlib asyncio", "gevent", "trio")

BENCHMARKS, SCALING, README = "docs/benchmarks.md", "docs/scaling.md", "README.md"
ENGINES = "docs/engines.md"


def planned(wanted: str, case: str, per_second: float) -> Figure:
    """A row of docs/scaling.md: CPU per message, cores at 70 %, and twice that for the network."""

    def values() -> tuple[str, ...]:
        # Of big messages a window has one of two levels, and the median is in between by chance.
        each = cpu_range(case, EPOLL)[1] if case == BIG else cpu(case, EPOLL)
        cores = per_second * each / 1e6 / 0.7
        return (*two(each), f"{cores:.2g}", f"{2 * cores:.2g}")

    return Figure(SCALING, f"| {wanted} | # us | # | # |", values)


FIGURES = [
    Figure(
        BENCHMARKS,
        "fastsock does # messages/s and C epoll #: # times the rate. If the client blocks, it is # "
        "times with one connection and # times with two.",
        lambda: (
            *thousands(rate(ONE, EPOLL), rate(ONE, C_EPOLL)),
            *two(*(ratio(case, EPOLL) for case in (ONE, f"{ONE}, {BLOCKS}", f"{TWO}, {BLOCKS}"))),
        ),
    ),
    Figure(
        BENCHMARKS,
        "# of the rate of C epoll with 64 connections and # with 1000. Go has # and #.",
        lambda: two(*(ratio(case, name) for name in (EPOLL, "Go") for case in (MANY, CROWD))),
    ),
    Figure(
        BENCHMARKS,
        "with 8 active connections of 256 it has # of the rate of C epoll. `epoll` has #.",
        lambda: two(*(ratio(SILENT, f"fastsock {name}") for name in ("poll", "epoll"))),
    ),
    Figure(
        BENCHMARKS,
        "At 1,000 messages/s an echo costs fastsock # us of CPU, C epoll # and Go #. At 100,000/s "
        "with 100 connections it costs them #, # and # us.",
        lambda: two(*(cpu(case, name) for case in (SLOW, FAST) for name in (EPOLL, C_EPOLL, "Go"))),
    ),
    Figure(
        BENCHMARKS,
        "With 64 connections an echo costs fastsock # us, a uvloop Protocol #, an asyncio Protocol "
        "#, asyncio streams #, gevent # and trio #.",
        lambda: two(*(cpu(MANY, name) for name in (EPOLL, *LIBRARIES))),
    ),
    Figure(
        BENCHMARKS,
        "Beside a busy main thread fastsock does # messages/s, and Python's threads do #.",
        lambda: (
            *thousands(rate(BUSY, "native epoll, busy main thread")),
            *whole(rate(BUSY, "stdlib threads, busy main thread")),
        ),
    ),
    Figure(
        BENCHMARKS,
        "copying is the limit: fastsock has # with 64 KiB, and # with 1 MiB on 2 connections.",
        lambda: two(ratio(BIG, EPOLL), ratio(BIGGEST, EPOLL)),
    ),
    Figure(
        BENCHMARKS,
        "The rate is # with epoll, # with threads and # with fork.",
        lambda: two(*(ratio(SHORT, f"fastsock {name}") for name in ("epoll", "threads", "fork"))),
    ),
    Figure(
        BENCHMARKS,
        "With one datagram in flight fastsock has # times the rate of C. With 8 x 16 it has # "
        "times; an echo then costs # us of CPU, and in C #. Pure Python has # and #.",
        lambda: two(
            *(ratio(case, DATAGRAMS) for case in UDP),
            cpu(UDP[1], DATAGRAMS),
            cpu(UDP[1], "C recvfrom"),
            *(ratio(case, "stdlib datagrams, udp") for case in UDP),
        ),
    ),
    Figure(
        BENCHMARKS,
        "With one connection a Unix stream carries # messages/s, and TCP #. With 64 connections "
        "they carry # and #.",
        lambda: thousands(
            *(
                rate(f"{UNIX}, {of}", each)
                for of in (ONE, MANY)
                for each in (f"{EPOLL}, unix", EPOLL)
            )
        ),
    ),
    Figure(
        BENCHMARKS,
        "(`churn`) | #/s; memory grew by # bytes per connection",
        lambda: whole(
            results("churn")["figures"]["connections_per_s"],
            results("churn")["figures"]["memory_slope_bytes_per_connection"],
        ),
    ),
    Figure(
        BENCHMARKS,
        "# GB and # million messages verified, # random clients, # of # targets met",
        lambda: (
            *whole(results("soak")["figures"]["verified_gb"]),
            *whole(results("soak")["figures"]["messages"] / 1e6),
            *whole(results("soak")["figures"]["random_clients"]),
            *met("soak"),
        ),
    ),
    Figure(
        BENCHMARKS,
        "# idle connections beside 64 busy ones (`hold`) | # bytes of the server's memory each; "
        "p99 of the busy ones # of that without",
        lambda: (
            *whole(results("hold-idle")["figures"]["held"]),
            *whole(results("hold-idle")["figures"]["server_bytes_each"]),
            *two(p99_over_alone("hold-idle")),
        ),
    ),
    Figure(
        BENCHMARKS,
        "# clients that send and never read (`hold`) | # KiB of the server's memory each; p99 of "
        "the busy ones # of that without",
        lambda: (
            *whole(results("hold-stuck")["figures"]["held"]),
            *one(results("hold-stuck")["figures"]["server_bytes_each"] / 1024),
            *two(p99_over_alone("hold-stuck")),
        ),
    ),
    Figure(
        BENCHMARKS,
        "with 64 busy connections | p99 at most # ms; # ms",
        lambda: one(worst_stop("stop()", "idle"), worst_stop("stop()", "loaded")),
    ),
    Figure(
        BENCHMARKS,
        "has ended: idle; busy | p99 at most # ms; # ms",
        lambda: one(worst_stop("SIGTERM", "idle"), worst_stop("SIGTERM", "loaded")),
    ),
    Figure(
        BENCHMARKS,
        "with 64 busy connections | p99 # ms; # ms:",
        lambda: whole(
            worst_stop("stop()", "loaded", fork=True), worst_stop("SIGTERM", "loaded", fork=True)
        ),
    ),
    Figure(
        SCALING,
        "An echo of 64 B takes # us of the server's CPU time at 64 connections, and the kernel "
        "alone takes # us for both ends",
        lambda: two(cpu(MANY, EPOLL), floor(MANY)),
    ),
    Figure(
        SCALING,
        "one CPU that only serves does about #,000 echoes/s on loopback",
        lambda: whole(1000 / cpu(MANY, EPOLL)),
    ),
    planned("100,000 echoes/s of 64 B", MANY, 1e5),
    planned("1,000,000 echoes/s of 64 B", MANY, 1e6),
    Figure(
        BENCHMARKS,
        "it is about # us in some windows and # us in others",
        lambda: whole(*cpu_range(BIG, EPOLL)),
    ),
    Figure(
        SCALING,
        "took about # us in some windows and # us in others",
        lambda: whole(*cpu_range(BIG, EPOLL)),
    ),
    planned("10 Gbit/s each way in 64 KiB messages: 19,000/s", BIG, 1e10 / 8 / 65536),
    planned("100 Gbit/s each way in 64 KiB messages: 190,000/s", BIG, 1e11 / 8 / 65536),
    Figure(
        ENGINES,
        "beside 248 idle ones `poll` had # of the rate of C epoll, `epoll` # and `io_uring` #.",
        lambda: two(*(ratio(SILENT, f"fastsock {name}") for name in ("poll", "epoll", "io_uring"))),
    ),
    Figure(
        ENGINES,
        "for each message it had # of the rate of C epoll, `threads` #.",
        lambda: two(*(ratio(SHORT, f"fastsock {name}") for name in ("fork", "threads"))),
    ),
    Figure(
        README,
        "fastsock does # round trips a second, and C epoll #.",
        lambda: thousands(rate(ONE, EPOLL), rate(ONE, C_EPOLL)),
    ),
    Figure(
        README,
        "fastsock kept # messages/s, the twin's `selectors` #, its `threads` #.",
        lambda: (
            *thousands(rate(BUSY, "native epoll, busy main thread")),
            *whole(*(rate(BUSY, f"stdlib {each}, busy main thread") for each in TWINS[::-1])),
        ),
    ),
]


def updated(page: str, text: str) -> str:
    """The page's text with every figure as the results have it."""
    for figure in (each for each in FIGURES if each.page == page):
        match = only_match(figure, text)
        values = figure.values()
        for group in range(len(values), 0, -1):
            text = text[: match.start(group)] + values[group - 1] + text[match.end(group) :]
    return text


def only_match(figure: Figure, text: str) -> re.Match[str]:
    matches = list(pattern_of(figure).finditer(text))
    if len(matches) != 1:
        raise SystemExit(f"{figure.page}: {len(matches)} matches of {figure.text!r}")
    return matches[0]


def main() -> None:
    for page in dict.fromkeys(figure.page for figure in FIGURES):
        path = ROOT / page
        path.write_text(updated(page, path.read_text()))
        print(path)


if __name__ == "__main__":
    main()
