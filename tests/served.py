"""``fastsock serve`` in a process of its own, and the lines that it says."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clients import TIMEOUT

from fastsock import Endpoint

FASTSOCK = (sys.executable, "-m", "fastsock")
ANY_PORT = "tcp://127.0.0.1:0"


class Served:
    """A process of ``fastsock serve``, after it has said that it listens at `endpoints`."""

    def __init__(self, process: subprocess.Popen[str], endpoints: int) -> None:
        self.process = process
        self.lines: list[str] = []  # so far
        listening = [self.line_with("listening on ") for _ in range(endpoints)]
        self.endpoints = [
            Endpoint.parse(line.partition("listening on ")[2].split()[0]) for line in listening
        ]

    @property
    def endpoint(self) -> Endpoint:
        return self.endpoints[0]

    def line_with(self, text: str) -> str:
        """The next line that holds the text."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if text in line:
                return self.lines[-1]
        raise AssertionError(f"no {text!r} in {self.lines}")

    def metrics(self) -> Endpoint:
        """Where its metrics are served."""
        address = self.line_with("metrics on ").partition("metrics on ")[2].split('"')[0]
        return Endpoint.parse(address.removeprefix("http://").removesuffix("/metrics"))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> list[str]:
        """End it by a signal; return the lines that it said after those that were read."""
        self.process.send_signal(number)
        return self.ended(0)

    def ended(self, code: int) -> list[str]:
        assert self.process.stderr is not None
        rest = self.process.stderr.read()  # not communicate(), which leaves out what was buffered
        assert self.process.wait(TIMEOUT) == code, rest
        return rest.splitlines()


@contextmanager
def served(*arguments: str, endpoints: int = 1, **options: Any) -> Iterator[Served]:
    """Run ``fastsock serve`` with these arguments, by default on one endpoint."""
    command = [*FASTSOCK, "serve", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            yield Served(process, endpoints)
        finally:
            process.kill()
