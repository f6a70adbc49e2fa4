"""Locust in processes of its own, for tests: with workers, with its page, or alone."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastsock.client import hdr

USERS = """
from fastsock.locust import EchoUser

class Probe(EchoUser):
    endpoint = "{endpoint}"
    connections = 2
    threads = 1
{more}
"""
SIZE = 64
COMMAND = (sys.executable, "-m", "locust", "--headless")


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


class Fleet:
    """A master and its workers, with their files in a folder."""

    def __init__(self, folder: Path, *arguments: str, workers: Sequence[str]) -> None:
        self.folder = folder
        port = self._port = free_port()
        self._processes: list[subprocess.Popen[str]] = []
        self.workers: list[subprocess.Popen[str]] = []
        for name in workers:
            self.join(name)
        self.master = self._start(
            "locustfile", "--master", "--master-bind-port", port,
            "--expect-workers", str(len(workers)), "--csv", "stats", "--only-summary",
            "--fastsock-json", "fleet.json", "--fastsock-workers", "workers", *arguments,
        )  # fmt: skip
        self._processes.append(self.master)

    def join(self, file: str) -> None:
        """Start one more worker."""
        self.workers.append(self._start(file, "--worker", "--master-port", self._port))
        self._processes.append(self.workers[-1])

    def _start(self, file: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, "-f", f"{file}.py", *arguments],
            cwd=self.folder,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    def ended(self) -> tuple[int, str]:
        """Exit code and log of the master, once all have ended."""
        _, log = self.master.communicate(timeout=50)
        for worker in self.workers:
            worker.communicate(timeout=20)
        return self.master.returncode, log

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "fleet.json").read_text())
        return found

    def entry(self, name: str) -> dict[str, str]:
        """A row of Locust's own statistics."""
        return rows(self.folder / "stats_stats.csv", "Name")[name]


def rows(path: Path, key: str) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row[key]: row for row in csv.DictReader(file)}


def write(folder: Path, endpoint: object, *lines: str, name: str = "locustfile") -> None:
    """A locustfile whose users have these lines too."""
    more = "\n".join(f"    {each}" for each in lines)
    (folder / f"{name}.py").write_text(USERS.format(endpoint=endpoint, more=more))


@contextmanager
def fleet(
    folder: Path, *arguments: str, workers: Sequence[str] = ("locustfile", "locustfile")
) -> Iterator[Fleet]:
    found = Fleet(folder, *arguments, workers=workers)
    try:
        yield found
    finally:
        found.kill()


def alone(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and log of Locust in one process."""
    done = subprocess.run(
        [*COMMAND, "--only-summary", *arguments],
        cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, timeout=50,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


class Web:
    """Locust with its page, in one process or more (--processes)."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [*COMMAND[:-1], "-f", "locustfile.py", "--web-host", "127.0.0.1", "--web-port",
              port, *arguments],
            cwd=folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", int(port))):
                return
            time.sleep(0.05)

    def start(self, users: int = 1) -> None:
        self._post("/swarm", {"user_count": users, "spawn_rate": users})

    def start_with(self, *, workers: int, users: int) -> None:
        """Start users when so many workers are there, and return when all are spawned."""
        self._wait(lambda status: len(status.get("workers", ())) == workers)
        self.start(users)
        self._wait(lambda status: status["state"] == "running")

    def _wait(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with urllib.request.urlopen(f"{self.url}/stats/requests", timeout=20) as answer:
                if wanted(json.loads(answer.read())):
                    break
            time.sleep(0.1)

    def stop(self) -> None:
        try:
            self._post("/stop", {})
        except urllib.error.HTTPError:  # Locust 2.30 takes a GET
            urllib.request.urlopen(f"{self.url}/stop", timeout=20).close()

    def run(self, seconds: float) -> None:
        self.start()
        time.sleep(seconds)
        self.stop()

    def interrupt(self) -> tuple[int, str]:
        """Exit code and log after Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        _, log = self.process.communicate(timeout=20)
        return self.process.returncode, log

    def _post(self, path: str, values: dict[str, int]) -> None:
        data = urllib.parse.urlencode(values).encode()
        with urllib.request.urlopen(self.url + path, data, timeout=20) as answer:
            answer.read()


@contextmanager
def web(folder: Path, *arguments: str) -> Iterator[Web]:
    found = Web(folder, *arguments)
    try:
        yield found
    finally:
        with suppress(ProcessLookupError):
            os.killpg(found.process.pid, signal.SIGKILL)  # with the workers of --processes
        found.process.communicate()


def answers(report: dict[str, Any]) -> int:
    """All answers, also those after a closed loop's window."""
    return int(report["latency_us"]["from_intended_send"]["count"])


def near(report: dict[str, Any], percent: float) -> set[int]:
    """The percentile and the next value, in microseconds: Locust may take the next rank."""
    histogram = hdr.decode(report["histograms"]["latency"])
    largest = report["latency_us"]["from_intended_send"]["max"]
    rank, found = max(1, int(percent / 100 * len(histogram) + 0.5)), set()
    for index, count in histogram.counts():
        rank -= count
        if rank <= 0:
            found.add(round(min(hdr.step_of(index)[0] / 1e3, largest)))
        if rank < 0:
            break
    return found
