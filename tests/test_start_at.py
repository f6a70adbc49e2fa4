"""Tests of ``fastsock load --start-at``."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta

import pytest
from load_runs import SERVED
from served import FASTSOCK

import fastsock


def load(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FASTSOCK, "load", *arguments], capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
def test_the_load_begins_then(relative: bool) -> None:
    """Not before it, and soon after; the server has the connections by then."""
    at = datetime.now(UTC) + timedelta(seconds=2)
    given = "+2s" if relative else at.strftime("%Y-%m-%dT%H:%M:%S.%f")
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        arguments = (str(server.endpoint), "--start-at", given, "-d", "0.2", "--wait", "block")
        done = load(*arguments, "--json", "-")
    assert done.returncode in SERVED, done.stderr
    started = datetime.fromisoformat(json.loads(done.stdout)["started_at"])
    # The time is printed in milliseconds; the program itself takes a while to start.
    assert -0.002 <= (started - at).total_seconds() < 3


def test_connections_are_opened_before() -> None:
    """And Ctrl-C ends the wait."""
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        command = [*FASTSOCK, "load", str(server.endpoint), "-c", "3", "--start-at", "+2s"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        until = time.monotonic() + 20
        while server.stats().open < 3 and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130
        assert server.stats().accepted == 3


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--start-at", "soon"), "'soon' is not a time; expected +5s"),
        (("--start-at", "2020-01-01T00:00"), "is over since"),
        (("--start-at", "2999-01-01T00:00"), "is more than a day away"),
        (("--start-at", "+x"), "'x' is not a duration"),
        (("--start-at", "+1s", "--repeat", "2"), "--start-at goes with one run"),
    ],
)
def test_bad_times(arguments: tuple[str, ...], text: str) -> None:
    done = load("127.0.0.1:7", *arguments)
    assert done.returncode == 2
    assert text in " ".join(done.stderr.split())
