"""Every server that takes part, as the command that starts it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from benchmarks.rivals.build import compile_rival
from fastsock.contenders import NATIVE_ENGINES, PURE_SHAPES, Contender

ADDRESS = ("127.0.0.1", "0")
C_SERVERS = {
    "tcp": ("C epoll", "epoll_echo"),
    "udp": ("C recvfrom", "udp_echo"),
    "completions": ("C io_uring", "uring_echo"),
}
COROUTINES = ("gevent", "trio")


def rivals() -> list[Contender]:
    """The rivals that can run here: the C loop always, the others where they are installed."""
    found = [plain_c("tcp")]
    if Path("/usr/include/liburing.h").exists():
        found.append(plain_c("completions"))
    found.append(protocol("asyncio"))
    if importlib.util.find_spec("uvloop"):
        found.append(protocol("uvloop"))
    return found + [coroutines(name) for name in COROUTINES if importlib.util.find_spec(name)]


def coroutines(library: str) -> Contender:
    script = "benchmarks.rivals.coroutine_echo"
    return Contender(library, (sys.executable, "-m", script, *ADDRESS, "--library", library))


def plain_c(kind: str) -> Contender:
    name, program = C_SERVERS[kind]
    return Contender(name, (str(compile_rival(program)), *ADDRESS))


def protocol(loop: str) -> Contender:
    command = (sys.executable, "-m", "benchmarks.rivals.protocol_echo", *ADDRESS, "--loop", loop)
    return Contender(f"{loop} Protocol", command)


def beside_busy_main_thread() -> list[Contender]:
    """Servers in a background thread of a process whose main thread computes in Python."""
    servers = [("native", engine) for engine in NATIVE_ENGINES if engine != "serial"]
    servers += [("stdlib", shape) for shape in PURE_SHAPES if shape != "serial"]
    return [
        Contender(
            f"{package} {kind}, busy main thread",
            (sys.executable, "-m", "benchmarks.busy_server", package, kind),
        )
        for package, kind in servers
    ]
