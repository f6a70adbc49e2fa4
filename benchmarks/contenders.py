"""Every server that takes part, as the command that starts it."""

from __future__ import annotations

import importlib.util
import sys

from benchmarks.rivals.build import compile_rival, missing
from fastsock.bench.contenders import NATIVE_ENGINES, PURE_ENGINES, Contender
from fastsock.server import engines

ADDRESS = ("127.0.0.1", "0")
#: The compiled ones, of which the C epoll loop is what others are set against.
PROGRAMS = {
    "C epoll": "epoll_echo",
    "C io_uring": "uring_echo",
    "libuv": "uv_echo",
    "Go": "go_echo",
    "C recvfrom": "udp_echo",
}


def rivals() -> list[Contender]:
    """All rivals on TCP; those that cannot run here say why."""
    return [
        *(compiled(name) for name in PROGRAMS if name != "C recvfrom"),
        protocol("asyncio"),
        protocol("uvloop"),
        coroutines("gevent"),
        coroutines("trio"),
    ]


def compiled(name: str) -> Contender:
    program = PROGRAMS[name]
    doubt = engines.doubt("io_uring") if name == "C io_uring" else ""
    if lacking := missing(program):
        return Contender(name, (program,), unusable=not_installed(lacking))
    unusable = f"may not run here ({doubt})" if doubt else ""
    return Contender(name, (str(compile_rival(program)), *ADDRESS), unusable=unusable)


def coroutines(library: str) -> Contender:
    script = "benchmarks.rivals.coroutine_echo"
    command = (sys.executable, "-m", script, *ADDRESS, "--library", library)
    return Contender(library, command, unusable=without_module(library))


def protocol(loop: str) -> Contender:
    command = (sys.executable, "-m", "benchmarks.rivals.protocol_echo", *ADDRESS, "--loop", loop)
    return Contender(f"{loop} Protocol", command, unusable=without_module(loop))


def without_module(name: str) -> str:
    return "" if importlib.util.find_spec(name) else not_installed(f"pip install {name}")


def not_installed(how: str) -> str:
    return f"is not installed ({how})"


def beside_busy_main_thread() -> list[Contender]:
    """Servers in a background thread of a process whose main thread computes in Python."""
    servers = [("native", engine) for engine in NATIVE_ENGINES if engine != "serial"]
    servers += [("stdlib", engine) for engine in PURE_ENGINES if engine != "serial"]
    return [
        Contender(
            f"{package} {kind}, busy main thread",
            (sys.executable, "-m", "benchmarks.busy_server", package, kind),
        )
        for package, kind in servers
    ]
