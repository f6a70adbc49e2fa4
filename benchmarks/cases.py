"""The cases that are compared: what is loaded, and which servers take part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.contenders import beside_busy_main_thread, compiled, coroutines, protocol, rivals
from fastsock.bench.comparison import Case
from fastsock.bench.contenders import (
    NATIVE_ENGINES,
    Contender,
    datagrams,
    every_engine,
    native,
    pure,
)


def all_servers(case: Case) -> list[Contender]:
    return [*every_engine(), *rivals()]


def all_and_blocking(case: Case) -> list[Contender]:
    """The default engine also without busy-polling."""
    first, *others = all_servers(case)
    return [first, native("epoll", busy_poll="0"), *others]


def all_but_fork(case: Case) -> list[Contender]:
    """A thousand processes on one CPU tell of the scheduler, and need seconds of warm-up."""
    return [each for each in all_servers(case) if each.name != "fastsock fork"]


def loops(case: Case) -> list[Contender]:
    """Without a thread or process per connection, and without the slowest Python libraries."""
    names = [engine for engine in ("epoll", "poll", "io_uring") if engine in NATIVE_ENGINES]
    return [
        *(native(engine) for engine in names),
        pure("selectors"),
        *(compiled(name) for name in ("C epoll", "C io_uring", "libuv", "Go")),
        protocol("asyncio"),
        protocol("uvloop"),
        coroutines("gevent"),
    ]


def loops_and_blocking(case: Case) -> list[Contender]:
    first, *others = loops(case)
    return [first, native("epoll", busy_poll="0"), *others]


def with_datagrams(case: Case) -> list[Contender]:
    """The plain C loop is for UDP only."""
    return [*datagrams(case.kind), *([compiled("C recvfrom")] if case.kind == "udp" else [])]


def unix_and_tcp(case: Case) -> list[Contender]:
    """The same server on a Unix socket and on TCP, so that the ratio is that of the sockets."""
    twins = [pure("selectors", kind) for kind in ("unix", "tcp")]
    return [native("epoll", "unix"), native("epoll", "tcp"), *twins]


def polling_and_blocking(case: Case) -> list[Contender]:
    return [native("epoll"), native("epoll", busy_poll="0"), compiled("C epoll")]


def busy(case: Case) -> list[Contender]:
    return beside_busy_main_thread()


@dataclass(frozen=True, slots=True)
class NamedCase:
    name: str
    load: Case
    contenders: Callable[[Case], list[Contender]] = all_servers


def paced() -> Iterator[NamedCase]:
    """Open loops: what they cost at the same rate."""
    for connections, rate in (
        (1, 1_000),
        (4, 5_000),
        (100, 20_000),
        (100, 100_000),
        (1000, 20_000),
        (1000, 100_000),
    ):
        plural = "s" * (connections > 1)
        name = f"{connections} connection{plural}, 64 B, {rate // 1000}k/s"
        yield NamedCase(name, Case(connections, rate=rate), loops_and_blocking)


def on_one_cpu() -> Iterator[NamedCase]:
    for connections in (1, 4, 64):
        plural = "s" * (connections > 1)
        name = f"{connections} connection{plural}, 64 B, one CPU for server and client"
        yield NamedCase(name, Case(connections, one_cpu=True, wait="block"), polling_and_blocking)


#: Those with the same servers stand together: they share tables.
CASES = (
    NamedCase("1 connection, 64 B", Case(1), all_and_blocking),
    NamedCase("1 connection, 64 B, client that blocks", Case(1, wait="block"), all_and_blocking),
    NamedCase("2 connections, 64 B, client that blocks", Case(2, wait="block"), loops),
    NamedCase("64 connections, 64 B", Case(64)),
    NamedCase("1000 connections, 64 B", Case(1000), all_but_fork),
    NamedCase("256 connections, 8 active, 64 B", Case(8, idle=248), loops),
    NamedCase("8 connections, 64 B, depth 16", Case(8, depth=16), loops),
    NamedCase("16 connections, 16 KiB", Case(16, size=16 << 10), loops),
    NamedCase("16 connections, 64 KiB", Case(16, size=64 << 10), loops),
    NamedCase("2 connections, 1 MiB", Case(2, size=1 << 20), loops),
    NamedCase("8 connections, 1 MiB", Case(8, size=1 << 20), loops),
    NamedCase("64 connections, connect, echo, close, 64 B", Case(64, reconnect_every=1)),
    *paced(),
    *on_one_cpu(),
    NamedCase("UDP, 1 in flight, 64 B", Case(1, kind="udp"), with_datagrams),
    NamedCase("UDP, 8 x 16 in flight, 64 B", Case(8, depth=16, kind="udp"), with_datagrams),
    NamedCase("UDP, 1 x 128 in flight, 64 B", Case(1, depth=128, kind="udp"), with_datagrams),
    NamedCase("Unix datagrams, 1 in flight, 64 B", Case(1, kind="unixgram"), with_datagrams),
    NamedCase(
        "Unix datagrams, 128 in flight, 64 B",
        Case(8, depth=16, kind="unixgram"),
        with_datagrams,
    ),
    NamedCase("Unix stream and TCP, 1 connection, 64 B", Case(1, kind="unix"), unix_and_tcp),
    NamedCase("Unix stream and TCP, 64 connections, 64 B", Case(64, kind="unix"), unix_and_tcp),
    NamedCase(
        "64 connections, 64 B, beside a busy main thread",
        Case(64, pinned=False, wait="block"),
        busy,
    ),
)
