"""The cases that are compared: what is loaded, and who takes part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.contenders import beside_busy_main_thread, natives, pures, rivals
from fastsock.compare import Case, Contender


def everyone(case: Case) -> list[Contender]:
    return [*natives(case.connections), *pures(case.connections), *rivals()]


def busy(case: Case) -> list[Contender]:
    return beside_busy_main_thread()


@dataclass(frozen=True, slots=True)
class NamedCase:
    name: str
    load: Case
    contenders: Callable[[Case], list[Contender]] = everyone


CASES = (
    NamedCase("1 connection, 64 B", Case(connections=1)),
    NamedCase("64 connections, 64 B", Case(connections=64)),
    NamedCase("1000 connections, 64 B", Case(connections=1000)),
    NamedCase("8 connections, 64 B, depth 16", Case(connections=8, depth=16)),
    NamedCase("16 connections, 64 KiB", Case(connections=16, size=64 << 10)),
    NamedCase("4 connections, 1 MiB", Case(connections=4, size=1 << 20)),
    NamedCase(
        "64 connections, 64 B, beside a busy main thread", Case(connections=64, pinned=False), busy
    ),
)
