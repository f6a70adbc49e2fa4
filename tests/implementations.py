"""The servers under test: in this process, and as a process of their own.

Run as a program, it is that process: ``python implementations.py NAME OPTIONS`` serves on a free
port, answers ``stats`` on its standard input, and prints what a test asks.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import fastsock
from fastsock._native.client.process_tree import descendants
from fastsock.bench.contenders import PURE_ENGINES
from fastsock.bench.server_process import Process, resident_bytes, smaps_bytes
from fastsock.server import engines

ANY_PORT = "tcp://127.0.0.1:0"
KINDS = ("tcp", "tcp6", "unix")  # of stream sockets
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
GENEROUS = 30.0  # seconds; only something that hangs takes so long

_names = itertools.count()


def any_endpoint(kind: str) -> str:
    """An endpoint of that kind on which no server listens yet."""
    if kind == "unix":
        return f"unix://@fastsock-test-{os.getpid()}-{next(_names)}"
    return ANY_PORT if kind == "tcp" else "tcp://[::1]:0"


@dataclass(frozen=True)
class Implementation:
    """One server to test: a package and the engine it is asked for."""

    name: str
    engine: str
    native: bool

    @property
    def package(self) -> Any:
        """Imported when it is used: the twin takes a third of a process's start."""
        return fastsock if self.native else import_module("fastsock.pure")

    @property
    def one_at_a_time(self) -> bool:
        """Whether a client is served only when the one before it has closed."""
        return self.engine == "serial"

    def server(self, endpoint: Any = ANY_PORT, **options: Any) -> Any:
        return self.package.Server(*where(endpoint, options), engine=self.engine, **options)

    def serve(self, endpoint: Any = ANY_PORT, **options: Any) -> fastsock.ServerStats:
        return self.package.serve(*where(endpoint, options), engine=self.engine, **options)


def where(endpoint: Any, options: dict[str, Any]) -> tuple[Any, ...]:
    """The endpoint; none if there are sockets to inherit."""
    return () if "fds" in options else (endpoint,)


def usable_engines() -> list[str]:
    """The native engines; without one that this kernel or a sandbox may forbid."""
    return [name for name in engines.WORKERS if not engines.doubt(name)]


def left_out() -> dict[str, str]:
    """The other engines, and why they are not tested."""
    doubts = {name: engines.doubt(name) for name in engines.WORKERS}
    return engines.MISSING | {name: why for name, why in doubts.items() if why}


def find_implementations() -> dict[str, Implementation]:
    """Every one there is; those that serve one client at a time come last."""
    found = [
        *(Implementation(f"native-{name}", name, native=True) for name in usable_engines()),
        *(Implementation(f"pure-{name}", name, native=False) for name in PURE_ENGINES),
    ]
    return {each.name: each for each in sorted(found, key=lambda each: each.one_at_a_time)}


IMPLEMENTATIONS = find_implementations()
#: The names of those of each package.
NATIVE = [name for name, each in IMPLEMENTATIONS.items() if each.native]
PURE = [name for name, each in IMPLEMENTATIONS.items() if not each.native]


class Child(Process):
    """A program in a process of its own that answers lines with lines of JSON.

    Its first line is a greeting with its `pid`: under another program it is not the one started.
    """

    def __init__(self, *command: str, pass_fds: tuple[int, ...] = ()) -> None:
        super().__init__(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=pass_fds)
        try:
            self.greeting = self._answer()
        except BaseException:
            self.close()
            raise
        self.pid: int = self.greeting["pid"]

    def processes(self) -> list[int]:
        """Without the program that it runs under."""
        return descendants(self.pid)

    def ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._answer()

    def finish(self) -> dict[str, Any]:
        """Wait for a clean exit; return what the program said last."""
        last = self._answer()
        assert self.wait() == 0, self.errors()
        return last

    def errors(self) -> str:
        """What has been written to standard error."""
        return self.log()

    def resident_bytes(self) -> int:
        return resident_bytes(self.pid)

    def own_bytes(self) -> int:
        """Its anonymous pages, counted one by one, where the resident size is off by dozens."""
        return smaps_bytes(self.pid, "Anonymous")

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the server has ended: {self.errors()}"
        answer: dict[str, Any] = json.loads(line)
        return answer


class ServedProcess(Child):
    """An implementation's serve() in a process of its own, perhaps run under another program.

    ``under`` is that program and its arguments, ``alarm_every`` seconds between two SIGALRM.
    """

    def __init__(
        self,
        implementation: Implementation,
        *,
        under: tuple[str, ...] = (),
        alarm_every: float = 0.0,
        **options: Any,
    ) -> None:
        arguments = [implementation.name, json.dumps(options), str(alarm_every)]
        command = (*under, sys.executable, __file__, *arguments)
        super().__init__(*command, pass_fds=tuple(options.get("fds", ())))
        self.endpoint = fastsock.Endpoint.parse(self.greeting["endpoint"])

    def stats(self) -> dict[str, Any]:
        return self.ask("stats")


def in_fresh_process(function: Callable[..., Any], *arguments: Any, limit: float = GENEROUS) -> str:
    """Call a function of a test module in a new interpreter; return what it printed.

    It may take `limit` seconds.
    """
    code = (
        f"import faulthandler, sys; faulthandler.dump_traceback_later({limit - 10}, exit=True); "
        f"sys.path.insert(0, {str(Path(__file__).parent)!r}); "
        f"import {function.__module__} as module; module.{function.__name__}(*{arguments!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=limit
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def each_in_fresh_process(function: Callable[..., Any], names: list[str], *arguments: Any) -> None:
    """Call a function for each implementation of a package, in one new interpreter for them all.

    It imports the test module once, which takes longer than most of these functions.
    """
    in_fresh_process(in_turn, function.__module__, function.__name__, names, *arguments)


def in_turn(module: str, function: str, names: list[str], *arguments: Any) -> None:
    for name in names:
        try:
            getattr(import_module(module), function)(name, *arguments)
        except BaseException as error:
            error.add_note(f"with {name}")
            raise


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def answer_questions(server: Any) -> None:
    for line in sys.stdin:
        assert line == "stats\n"
        say(**server.stats().as_dict())


def announce(server: Any) -> None:
    say(endpoint=str(server.endpoint), pid=os.getpid())
    threading.Thread(target=answer_questions, args=(server,), daemon=True).start()


def raise_alarms(every: float) -> None:
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, every, every)


def main(name: str, options: str, alarm_every: str) -> None:
    raise_alarms(float(alarm_every))
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    stats = IMPLEMENTATIONS[name].serve(ready=announce, **json.loads(options))
    after = [signal.getsignal(number) for number in STOP_SIGNALS]
    say(stats=stats.as_dict(), handlers_restored=before == after)


if __name__ == "__main__":
    main(*sys.argv[1:])
