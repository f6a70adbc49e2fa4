"""The options of a server: what each may be, and what goes with which endpoints."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING

from fastsock.options import (
    check_bool,
    check_choice,
    check_each,
    check_int,
    check_number,
    option,
)

if TYPE_CHECKING:
    from fastsock.endpoint import Endpoint

SERVICES = ("echo", "discard", "chargen")
DRAIN_TIMES = (0, 86400.0, "seconds")

_BUFFER_SIZES = (1, 16 * 1024 * 1024)  # bytes; a connection's unsent rest is counted in 32 bits
_MAX_INT = 2**31 - 1
_MAX_WORKERS = 1024
_MAX_IDLE = 365 * 86400.0  # seconds
_MAX_LINE = 4096  # bytes of `close_on`


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """The checked options of a server; see `Server`."""

    backlog: int = option(MISSING, check_int, 1, _MAX_INT)
    unix_mode: int = option(MISSING, check_int, 0, 0o777)
    reuse_port: bool = option(MISSING, check_bool)
    dual_stack: bool = option(MISSING, check_bool)
    nodelay: bool = option(MISSING, check_bool)
    rcvbuf: int = option(MISSING, check_int, 0, _MAX_INT)
    sndbuf: int = option(MISSING, check_int, 0, _MAX_INT)
    workers: int = option(MISSING, check_int, 1, _MAX_WORKERS)
    cpus: tuple[int, ...]
    buffer_size: int = option(MISSING, check_int, *_BUFFER_SIZES)
    busy_poll: float  # seconds
    max_connections: int = option(MISSING, check_int, 0, _MAX_INT)
    idle_timeout: float = option(MISSING, check_number, 0, _MAX_IDLE, "seconds")
    allow: tuple[tuple[bytes, int], ...]
    loop_guard: bool = option(MISSING, check_bool)
    drain_timeout: float = option(MISSING, check_number, *DRAIN_TIMES)
    service: str = option(MISSING, check_choice, SERVICES)
    close_on: bytes

    def __post_init__(self) -> None:
        check_each(self)
        check_close_on(self.close_on, self.service)

    def check_endpoints(self, asked: Sequence[Endpoint], inherited: Sequence[Endpoint]) -> None:
        """Raise ValueError if these options do not go with one of the endpoints."""
        shares = self.workers * len(asked) + len(inherited)
        if self.max_connections and self.max_connections < shares:
            raise ValueError(
                f"max_connections {self.max_connections} is shared by {shares} workers; "
                f"expected 0 for no limit, or at least {shares}"
            )
        stream_only = {
            "max_connections": self.max_connections,
            "idle_timeout": self.idle_timeout,
            "allow": self.allow,
            "service": self.service != "echo",
            "close_on": self.close_on,
        }
        given = [name for name, value in stream_only.items() if value]
        for endpoint in (*asked, *inherited):
            if given and not endpoint.is_stream:
                raise ValueError(f"{endpoint}: {given[0]} goes with streams, not with datagrams")


def check_fds(fds: Iterable[int]) -> tuple[int, ...]:
    return tuple(check_int("descriptor", fd, 0, _MAX_INT) for fd in fds)


def check_cpus(cpus: Sequence[int] | None) -> tuple[int, ...]:
    if cpus is None:
        return ()
    usable = os.sched_getaffinity(0)
    for cpu in cpus:
        if check_int("cpu", cpu, 0, _MAX_INT) not in usable:
            raise ValueError(f"cpu {cpu} cannot be used; expected some of {sorted(usable)}")
    return tuple(cpus)


def check_close_on(line: bytes, service: str) -> bytes:
    if not isinstance(line, bytes):
        raise TypeError(f"close_on {line!r} is {type(line).__name__}; expected bytes")
    if line and service != "echo":
        raise ValueError(f"close_on goes with the service echo, not with {service}")
    if b"\n" in line or b"\r" in line or len(line) > _MAX_LINE:
        raise ValueError(f"close_on {line[:40]!r} is not one line of at most {_MAX_LINE} bytes")
    return line
