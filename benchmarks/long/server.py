"""``fastsock serve`` in a process of its own, which must end cleanly."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastsock.bench.server_process import END_TIMEOUT, ServerProcess, descriptors_of

DRAIN = "5s"
SETTLES_WITHIN = 20.0  # seconds for the last connections of a round to be closed


class FastsockServer(ServerProcess):
    """At the end of the context it is stopped, and must exit by itself with code 0."""

    def __init__(self, *endpoints: str, engine: str = "epoll", options: Sequence[str] = ()) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="fastsock-")
        self._stats_file = Path(self._directory.name, "stats.json")
        command = [sys.executable, "-m", "fastsock", "serve", *endpoints, "--engine", engine]
        command += [*options, "--drain-timeout", DRAIN, "--json", str(self._stats_file)]
        super().__init__(command, endpoints=len(endpoints))
        self.stats: dict[str, Any] = {}  # once it has ended, as is `messages`
        self.messages: list[str] = []  # in the log, without where it listens and the summary

    def __exit__(self, *error: object) -> None:
        code = self.stop(END_TIMEOUT)
        log = self.log()
        self.close()
        lines = log.replace("\n  ", " ").splitlines()  # the command wraps a long line
        self.messages = lines[len(self.endpoints) : -1]
        if self._stats_file.exists():
            self.stats = json.loads(self._stats_file.read_text())
        self._directory.cleanup()
        if error[0] is None and code != 0:
            raise RuntimeError(f"the server ended with {code}: {log}")

    def descriptors(self) -> int:
        """Of the first process alone: each child of the fork engine has some of its own."""
        return len(descriptors_of(self.pid))

    def settle(self, descriptors: int) -> None:
        """Wait until it has no more than so many open, so until all connections are closed."""
        deadline = time.monotonic() + SETTLES_WITHIN
        while self.descriptors() > descriptors and time.monotonic() < deadline:
            time.sleep(0.01)
