"""``fastsock serve`` in a process of its own, and what the kernel knows of that process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

STOPS_WITHIN = 30.0  # seconds; a drain of 5 and much more
DRAIN = "5s"
SETTLES_WITHIN = 20.0  # seconds for the last connections of a round to be closed


class WatchedServer:
    """A server process; used as a context manager, at whose end it must exit by itself, cleanly."""

    def __init__(self, *endpoints: str, engine: str = "epoll", options: Sequence[str] = ()) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="fastsock-")
        self._stats_file = Path(self._directory.name, "stats.json")
        command = [sys.executable, "-m", "fastsock", "serve", *endpoints, "--engine", engine]
        self._process = subprocess.Popen(
            [*command, *options, "--drain-timeout", DRAIN, "--json", str(self._stats_file)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        lines = [self._process.stderr.readline() for _ in endpoints]
        found = [re.match(r"listening on (\S+)", line) for line in lines]
        if not all(found):
            self._process.kill()
            raise RuntimeError(f"the server did not start: {''.join(lines)}")
        self.endpoints = [match[1] for match in found if match]
        self.pid = self._process.pid
        self.stats: dict[str, Any] = {}  # once it has ended
        self.said: list[str] = []

    def __enter__(self) -> WatchedServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            _, said = self._process.communicate(timeout=STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise
        self.said = said.splitlines()[:-1]  # without the summary
        if self._stats_file.exists():
            self.stats = json.loads(self._stats_file.read_text())
        self._directory.cleanup()
        if kind is None and self._process.returncode != 0:
            raise RuntimeError(f"the server ended with {self._process.returncode}: {said}")

    def processes(self) -> list[int]:
        """The server and its children, which the fork engine has."""
        found = [self.pid]
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                text = stat.read_text()
            except OSError:  # it has ended meanwhile
                continue
            if int(text.rpartition(")")[2].split()[1]) == self.pid:
                found.append(int(stat.parent.name))
        return found

    def memory(self) -> int:
        """Bytes of its own: anonymous pages, each shared out evenly (smaps_rollup, proc(5)).

        Not the pages of programs and libraries: what they count for depends on who else runs.
        """
        return sum(anonymous(pid) for pid in self.processes())

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def settle(self, descriptors: int) -> None:
        """Wait until it has no more than so many open, so until all connections are closed."""
        deadline = time.monotonic() + SETTLES_WITHIN
        while self.descriptors() > descriptors and time.monotonic() < deadline:
            time.sleep(0.01)


def anonymous(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    match = re.search(r"^Pss_Anon:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
