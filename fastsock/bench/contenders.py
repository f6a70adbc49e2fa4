"""The servers that are compared: commands, and servers that run already."""

from __future__ import annotations

import itertools
import os
import platform
import sys
from dataclasses import dataclass, replace
from typing import Literal

from fastsock._version import __version__
from fastsock.endpoint import Endpoint
from fastsock.server import engines

#: Without those that may not work here: they are used where asked for by name.
NATIVE_ENGINES = tuple(name for name in engines.WORKERS if not engines.doubt(name))
PURE_ENGINES = ("threads", "selectors", "asyncio", "serial")

#: What can be compared: the schemes of endpoints.
EndpointKind = Literal["tcp", "udp", "unix", "unixgram"]

#: Groups of contenders.
NATIVE, TWIN, RIVAL = "native", "twin", "rival"

#: What stands for a free port in a command.
PORT = "{port}"

PYTHON = f"Python {platform.python_version()}"

_names = itertools.count()


@dataclass(frozen=True, slots=True)
class Contender:
    """A server to compare or to probe: a command that prints ``listening on ENDPOINT``.

    It is the server at `endpoint` instead, which runs already, if that is given; `pid` is its
    process, if that is known. With `port_of`, a scheme, each ``{port}`` in the command is to be
    replaced by a free port, and the server is to listen there.

    `unusable` is why it cannot be run here: ``is not installed (...)``. `draining` is added to the
    command where clients are to be served to their end after SIGTERM.
    """

    name: str
    command: tuple[str, ...]
    one_at_a_time: bool = False
    unusable: str = ""
    group: str = RIVAL
    version: str = ""
    draining: tuple[str, ...] = ()
    endpoint: Endpoint | None = None
    pid: int | None = None
    port_of: str = ""

    def on(self, kind: str) -> Contender:
        """The same server for clients of endpoints of this kind.

        Raises ValueError if it cannot be one.
        """
        if self.endpoint and self.endpoint.scheme != kind:
            raise ValueError(
                f"rival {self.name!r} is at {self.endpoint}, and the comparison on {kind}; write "
                f"--kind {self.endpoint.scheme}"
            )
        if not any(PORT in word for word in self.command):
            return self
        if kind not in ("tcp", "udp"):
            raise ValueError(f"rival {self.name!r} has a {PORT}, and {kind} has no ports")
        return replace(self, port_of=kind)

    def hindrance(self, connections: int) -> str:
        """Why it cannot serve so many clients at a time; empty if it can."""
        if self.unusable:
            return self.unusable
        return "serves one client at a time" if self.one_at_a_time and connections > 1 else ""


def ours(name: str, group: str, *options: str, one_at_a_time: bool = False) -> Contender:
    """A contender of this package: the native server or its twin."""
    package, version = {
        NATIVE: ("fastsock", f"fastsock {__version__}"),
        TWIN: ("fastsock.pure", PYTHON),
    }[group]
    return Contender(
        name,
        (sys.executable, "-m", package, "serve", *options),
        one_at_a_time,
        group=group,
        version=version,
        draining=("--drain-timeout", "5"),
    )


def native(engine: str, kind: str = "tcp", *, busy_poll: str = "") -> Contender:
    """`busy_poll` is as on the command line: ``auto``, ``0``, or a duration such as ``50us``."""
    options = [free_endpoint(kind), "--engine", engine]
    name = named("fastsock", engine, kind)
    if busy_poll:
        options += ["--busy-poll", busy_poll]
        name += f", busy_poll={busy_poll}"
    return ours(name, NATIVE, *options, one_at_a_time=engine == "serial")


def pure(engine: str, kind: str = "tcp") -> Contender:
    options = (free_endpoint(kind), "--engine", engine)
    name = named("stdlib", engine, kind)
    return ours(name, TWIN, *options, one_at_a_time=engine == "serial")


def datagrams(kind: str) -> list[Contender]:
    """The native server and its twin, each with its one engine for datagrams."""
    return [
        ours(named(name, "datagrams", kind), group, free_endpoint(kind))
        for name, group in (("fastsock", NATIVE), ("stdlib", TWIN))
    ]


def every_engine(kind: str = "tcp") -> list[Contender]:
    """Every engine that is usable here, and every engine of the twin."""
    if kind in ("udp", "unixgram"):
        return datagrams(kind)
    return [
        *(native(engine, kind) for engine in NATIVE_ENGINES),
        *(pure(engine, kind) for engine in PURE_ENGINES),
    ]


def named(server: str, engine: str, kind: str) -> str:
    return f"{server} {engine}" if kind == "tcp" else f"{server} {engine}, {kind}"


def free_endpoint(kind: str) -> str:
    """Where no other server listens: port 0, or an abstract name."""
    if kind in ("tcp", "udp"):
        return f"{kind}://127.0.0.1:0"
    return f"{kind}://@fastsock-bench-{os.getpid()}-{next(_names)}"
