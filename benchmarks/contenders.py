"""Every server that takes part, as the command that starts it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.rivals.build import compile_rival, compiler, missing
from fastsock.bench.contenders import (
    NATIVE_ENGINES,
    PURE_ENGINES,
    PYTHON,
    Contender,
    datagrams,
    native,
    pure,
)
from fastsock.server import engines

HOST = "127.0.0.1"
ADDRESS = (HOST, "0")
#: The compiled ones; ratios are taken to the C epoll loop.
PROGRAMS = {
    "C epoll": "epoll_echo",
    "C io_uring": "uring_echo",
    "libuv": "uv_echo",
    "Go": "go_echo",
    "C recvfrom": "udp_echo",
}
SOCAT = ("socat", "-V", f"TCP-LISTEN:0,bind={HOST},fork,reuseaddr")
NCAT = ("ncat", "--version", "-l", "-k", *ADDRESS, "--exec", "/bin/cat")


def rivals() -> list[Contender]:
    """All rivals on TCP that are compared; those that cannot run here say why."""
    return [
        *(compiled(name) for name in PROGRAMS if name != "C recvfrom"),
        protocol("asyncio"),
        protocol("uvloop"),
        coroutines("gevent"),
        coroutines("trio"),
    ]


def probed() -> list[Contender]:
    """The stream servers whose reliability is probed."""
    return [
        *(native(engine) for engine in engines.WORKERS),
        *(pure(engine) for engine in PURE_ENGINES),
        compiled("C epoll"),
        textbook("asyncio streams", "streams"),
        protocol("asyncio"),
        textbook("asyncio Protocol, never paused", "protocol"),
        protocol("uvloop"),
        textbook("gevent StreamServer", "gevent", library="gevent"),
        textbook("socketserver ThreadingTCPServer", "socketserver"),
        installed("socat EXEC:cat", *SOCAT, "EXEC:/bin/cat"),
        installed("socat PIPE", *SOCAT, "PIPE"),
        installed("ncat --exec cat", *NCAT),
    ]


def probed_datagrams() -> list[Contender]:
    return [*datagrams("udp"), compiled("C recvfrom")]


def on_host(contender: Contender, host: str) -> Contender:
    """The same server on another address."""
    return replace(contender, command=tuple(word.replace(HOST, host) for word in contender.command))


def compiled(name: str) -> Contender:
    program = PROGRAMS[name]
    doubt = engines.doubt("io_uring") if name == "C io_uring" else ""
    if lacking := missing(program):
        return Contender(name, (program,), unusable=not_installed(lacking))
    return Contender(
        name,
        (str(compile_rival(program)), *ADDRESS),
        unusable=f"may not run here ({doubt})" if doubt else "",
        version=compiler_version() if program != "go_echo" else "",
    )


@cache
def compiler_version() -> str:
    return f"{Path(compiler()).name} {output(compiler(), '-dumpfullversion').strip()}"


def coroutines(library: str) -> Contender:
    return in_python(library, "rivals.coroutine_echo", "--library", library, library=library)


def protocol(loop: str) -> Contender:
    library = "" if loop == "asyncio" else loop
    return in_python(f"{loop} Protocol", "rivals.protocol_echo", "--loop", loop, library=library)


def textbook(name: str, kind: str, library: str = "") -> Contender:
    return in_python(name, "reliability.textbook", "--kind", kind, library=library)


def in_python(name: str, module: str, *options: str, library: str = "") -> Contender:
    """A module of this folder, which may use a library that is not Python's own."""
    made = Contender(name, (sys.executable, "-m", f"benchmarks.{module}", *ADDRESS, *options))
    if not library:
        return replace(made, version=PYTHON)
    try:
        return replace(made, version=f"{library} {version(library)}, {PYTHON}")
    except PackageNotFoundError:
        return replace(made, unusable=not_installed(f"pip install {library}"))


def installed(name: str, program: str, version_option: str, *arguments: str) -> Contender:
    """A program of the system; its package has its name."""
    path = shutil.which(program)
    if path is None:
        return Contender(name, (program,), unusable=not_installed(f"apt-get install {program}"))
    found = re.search(r"version (\d\S*)", output(path, version_option), re.IGNORECASE)
    number = found[1] if found else "of unknown version"
    return Contender(name, (path, *arguments), version=f"{program} {number}")


def output(*command: str) -> str:
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ).stdout


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
