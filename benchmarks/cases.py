"""The cases that are compared: what is loaded, and which servers take part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.contenders import beside_busy_main_thread, compiled, coroutines, rivals
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


def with_datagrams(case: Case) -> list[Contender]:
    """The plain C loop is for UDP only."""
    return [*datagrams(case.kind), *([compiled("C recvfrom")] if case.kind == "udp" else [])]


def unix_and_tcp(case: Case) -> list[Contender]:
    """The same server on a Unix socket and on TCP, so that the ratio is that of the sockets."""
    twins = [pure("selectors", kind) for kind in ("unix", "tcp")]
    return [native("epoll", "unix"), native("epoll", "tcp"), *twins]


def busy_polling(case: Case) -> list[Contender]:
    """Loops that poll again before they block, ours and gevent; and two loops that do not."""
    loops = [engine for engine in ("epoll", "poll", "io_uring") if engine in NATIVE_ENGINES]
    polling = [native(engine, busy_poll="auto") for engine in loops]
    return [*polling, native("epoll"), compiled("C epoll"), coroutines("gevent")]


def busy(case: Case) -> list[Contender]:
    return beside_busy_main_thread()


@dataclass(frozen=True, slots=True)
class NamedCase:
    name: str
    load: Case
    contenders: Callable[[Case], list[Contender]] = all_servers


CASES = (
    NamedCase("1 connection, 64 B", Case(connections=1)),
    NamedCase("64 connections, 64 B", Case(connections=64)),
    NamedCase("1000 connections, 64 B", Case(connections=1000)),
    NamedCase("8 connections, 64 B, depth 16", Case(connections=8, depth=16)),
    NamedCase("16 connections, 16 KiB", Case(connections=16, size=16 << 10)),
    NamedCase("16 connections, 64 KiB", Case(connections=16, size=64 << 10)),
    NamedCase("8 connections, 1 MiB", Case(connections=8, size=1 << 20)),
    NamedCase("64 connections, connect, echo, close, 64 B", Case(reconnect_every=1)),
    NamedCase("1 connection, 64 B, busy_poll", Case(connections=1), busy_polling),
    NamedCase(
        "1 connection, 64 B, busy_poll, client that sleeps",
        Case(connections=1, wait="block"),
        busy_polling,
    ),
    NamedCase("UDP, 1 in flight, 64 B", Case(connections=1, kind="udp"), with_datagrams),
    NamedCase(
        "UDP, 128 in flight, 64 B", Case(connections=8, depth=16, kind="udp"), with_datagrams
    ),
    NamedCase(
        "Unix datagrams, 1 in flight, 64 B", Case(connections=1, kind="unixgram"), with_datagrams
    ),
    NamedCase(
        "Unix datagrams, 128 in flight, 64 B",
        Case(connections=8, depth=16, kind="unixgram"),
        with_datagrams,
    ),
    NamedCase(
        "Unix stream and TCP, 1 connection, 64 B", Case(connections=1, kind="unix"), unix_and_tcp
    ),
    NamedCase(
        "Unix stream and TCP, 64 connections, 64 B",
        Case(connections=64, kind="unix"),
        unix_and_tcp,
    ),
    NamedCase(
        "64 connections, 64 B, beside a busy main thread",
        Case(connections=64, pinned=False, wait="block"),
        busy,
    ),
)
