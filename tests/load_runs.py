"""Helpers for tests of the load client: options, checks of reports, servers and processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from clients import running

import fastsock
from fastsock.client.report import LOAD_ERRORS, Finding

WAITS = ("spin", "block")

#: Leaves the CPU to the server; tests of waiting use both ways.
QUIET: dict[str, Any] = {"wait": "block", "timeout": 5.0}

#: A run of a fixed number of messages.
SHORT: dict[str, Any] = {"wait": "block", "timeout": 0.3, "messages": 100}

#: Loads argv[1]; on Ctrl-C prints the report and the names of the threads left, as JSON.
INTERRUPTED = """
import json, sys, threading
import fastsock
target, options = sys.argv[1], json.loads(sys.argv[2])
if options.pop("with_progress"):
    options["progress"] = lambda seconds: None
try:
    report = fastsock.load(target, **options)
except fastsock.LoadInterrupted as interrupt:
    alive = [thread.name for thread in threading.enumerate()]
    print(json.dumps({"report": interrupt.report.as_dict(), "alive": alive}))
    sys.exit(130)
"""


#: Codes of reasons that a busy machine gives: no fault of the client or of the server.
DISTURBED = {
    "client_away",
    "client_delayed",
    "throttled",
    "stolen",
    "sent_late",
    "too_many_spinning",
    "not_steady",
}


#: Exit codes of a load that the server has served; on a busy machine it is not valid.
SERVED = (0, 4)


def faults(report: fastsock.LoadReport) -> tuple[Finding, ...]:
    """The reasons that are not the machine's."""
    return tuple(each for each in report.reasons if each.code not in DISTURBED)


def faults_in(document: dict[str, Any]) -> list[str]:
    """The same of a report as JSON."""
    return [each["text"] for each in document["reasons"] if each["code"] not in DISTURBED]


def failures(report: fastsock.LoadReport) -> dict[str, int]:
    return {kind: count for kind, count in report.errors.items() if count}


def assert_good(report: fastsock.LoadReport) -> None:
    assert not faults(report)
    assert not report.failed
    assert not failures(report)
    assert report.lost_bytes == report.corrupt_bytes == 0


def assert_bad(report: fastsock.LoadReport) -> None:
    """The run failed and says so in every way that a report has."""
    assert report.failed
    assert not report.valid
    assert report.reasons
    assert all(reason and "\n" not in reason for reason in report.reasons)
    assert set(report.errors) <= set(LOAD_ERRORS)


def until_counted(load: Callable[[], fastsock.LoadReport]) -> fastsock.LoadReport:
    """Run again if on a busy machine no answer came in the window; at most 10 times."""
    for _ in range(10):
        report = load()
        if report.messages:
            break
    return report


@contextmanager
def unix_server(behave: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """A Unix server of one client; on Unix the client can tell what is not read (unix(7))."""
    over = threading.Event()
    name = f"fastsock-test-load-{os.getpid()}"  # two suites may run at a time

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            behave(connection, over)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        with running(lambda: serve(listener)):
            try:
                yield f"unix://@{name}"
            finally:
                over.set()


class loading:
    """A process that loads `target`, to be interrupted; killed at the end."""

    def __init__(self, target: str, *, with_progress: bool = True, **options: Any) -> None:
        self.arguments = [target, json.dumps({"with_progress": with_progress, **options})]

    def __enter__(self) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, *self.arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)


def answer_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What an interrupted process printed; it must end by itself."""
    output, errors = process.communicate(timeout=25)
    assert process.returncode == 130, errors
    answer: dict[str, Any] = json.loads(output)
    return answer


class native_server:
    """A Server in a process of its own: ``with native_server() as (process, endpoint)``."""

    script = """
import sys
import fastsock
fastsock.serve("tcp://127.0.0.1:0", ready=lambda server: print(server.endpoint, flush=True))
"""

    def __enter__(self) -> tuple[subprocess.Popen[str], str]:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.script], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        return self.process, self.process.stdout.readline().strip()

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)
