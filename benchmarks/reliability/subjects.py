"""The servers that are probed: how each is started, which version it is, or how to install it."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import contenders
from benchmarks.rivals.build import compile_rival, compiler, missing
from fastsock import pure
from fastsock.bench.contenders import native
from fastsock.bench.contenders import pure as twin
from fastsock.server import engines

ADDRESS = ("127.0.0.1", "0")
NATIVE, TWIN, RIVAL = "native", "twin", "rival"
PYTHON = f"Python {platform.python_version()}"


@dataclass(frozen=True, slots=True)
class Subject:
    """A server to probe.

    `draining` is added to the command where clients are to be served to their end after SIGTERM,
    for servers that have such an option. `missing` says how to install what is not there.
    """

    name: str
    group: str
    command: tuple[str, ...]
    version: str
    draining: tuple[str, ...] = ()
    missing: str = ""

    def shown_command(self) -> str:
        """The command without the paths of this machine."""
        words = [word.rpartition("/")[2] if i == 0 else word for i, word in enumerate(self.command)]
        return " ".join(words)


def stream_servers() -> list[Subject]:
    return [*natives(), *twins(), *rivals()]


def natives() -> list[Subject]:
    return [
        Subject(f"fastsock {name}", NATIVE, native(name).command, own(), ("--drain-timeout", "5s"))
        for name in engines.WORKERS
    ]


def twins() -> list[Subject]:
    return [
        Subject(f"stdlib {engine}", TWIN, twin(engine).command, PYTHON, ("--drain-timeout", "5"))
        for engine in pure.ENGINES
    ]


def rivals() -> list[Subject]:
    return [
        in_c("C epoll", "epoll_echo", *ADDRESS),
        textbook("streams", "asyncio streams"),
        Subject("asyncio Protocol", RIVAL, contenders.protocol("asyncio").command, PYTHON),
        textbook("protocol", "asyncio Protocol, never paused"),
        from_pypi("uvloop", "uvloop Protocol", contenders.protocol("uvloop").command),
        from_pypi("gevent", "gevent StreamServer", textbook_command("gevent")),
        textbook("socketserver", "socketserver ThreadingTCPServer"),
        system("socat", "socat EXEC:cat", "-V", (*SOCAT, "EXEC:/bin/cat")),
        system("socat", "socat PIPE", "-V", (*SOCAT, "PIPE")),
        system("ncat", "ncat --exec cat", "--version", NCAT),
    ]


SOCAT = ("TCP-LISTEN:0,bind=127.0.0.1,fork,reuseaddr",)
NCAT = ("-l", "-k", *ADDRESS, "--exec", "/bin/cat")


def datagram_servers() -> list[Subject]:
    """Each takes the address to listen on as HOST:PORT or as two words, after its command."""
    return [
        Subject("fastsock", NATIVE, (sys.executable, "-m", "fastsock", "serve"), own()),
        Subject("stdlib twin", TWIN, (sys.executable, "-m", "fastsock.pure", "serve"), PYTHON),
        plain_datagram_server(),
    ]


def plain_datagram_server() -> Subject:
    return in_c("C recvfrom and sendto", "udp_echo")


def own() -> str:
    return f"fastsock {importlib.metadata.version('fastsock')}"


def in_c(name: str, source: str, *arguments: str) -> Subject:
    if lacking := missing(source):
        return Subject(name, RIVAL, (source,), "", missing=lacking)
    version = f"{Path(compiler()).name} {first_line(compiler(), '-dumpfullversion')}"
    return Subject(name, RIVAL, (str(compile_rival(source)), *arguments), version)


def textbook(kind: str, name: str) -> Subject:
    return Subject(name, RIVAL, textbook_command(kind), PYTHON)


def textbook_command(kind: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "benchmarks.reliability.textbook", kind, *ADDRESS)


def from_pypi(package: str, name: str, command: tuple[str, ...]) -> Subject:
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Subject(name, RIVAL, command, "", missing=f"pip install {package}")
    return Subject(name, RIVAL, command, f"{package} {version}, {PYTHON}")


def system(program: str, name: str, ask_version: str, arguments: tuple[str, ...]) -> Subject:
    path = shutil.which(program)
    if path is None:
        return Subject(name, RIVAL, (program,), "", missing=f"apt-get install {program}")
    said = re.search(r"version (\d\S*)", output(path, ask_version), re.IGNORECASE)
    version = f"{program} {said[1] if said else 'of unknown version'}"
    return Subject(name, RIVAL, (path, *arguments), version)


def first_line(*command: str) -> str:
    return output(*command).partition("\n")[0]


def output(*command: str) -> str:
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ).stdout
