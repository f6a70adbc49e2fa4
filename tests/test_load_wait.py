"""Tests of how the load client waits: it spins, blocks, or polls for a while and then blocks."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from clients import wait_until
from load_runs import SERVED, answer_of, assert_good, faults_in, loading
from misbehaving import MisbehavingServer, closes_late

import fastsock
from fastsock.cli import cli
from fastsock.client.options import WAITS

SCHEMA = Path(__file__).parents[1] / "docs" / "load-2.schema.json"
ENDPOINTS = {"tcp": "tcp://127.0.0.1:0", "udp": "udp://127.0.0.1:0"}
kinds = pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=ENDPOINTS)

#: Loads argv[1] with `wait` argv[2].
LOAD = """
import sys
import fastsock
report = fastsock.load(sys.argv[1], duration=0.4, warmup=0, wait=sys.argv[2])
assert not report.failed
"""


@kinds
def test_auto_tries_to_poll(endpoint: str, tmp_path: Path) -> None:
    with fastsock.Server(endpoint) as server:
        blocking = count_polls(server, "block", tmp_path / "block")
        assert count_polls(server, "auto", tmp_path / "auto") > 10 * max(blocking, 1)


def count_polls(server: fastsock.Server, wait: str, log: Path) -> int:
    """How often a client waited with a timeout of 0 in a run."""
    tracer = ("strace", "-f", "--seccomp-bpf", "-qq", "-o", str(log), "-e", "trace=epoll_wait,poll")
    client = (sys.executable, "-c", LOAD, str(server.endpoint), wait)
    subprocess.run((*tracer, *client), check=True, timeout=25)
    return len(re.findall(r"(?:epoll_wait|poll)\(.*, 0\b", log.read_text()))


@kinds
def test_auto_blocks_when_nothing_is_due(endpoint: str) -> None:
    """Ten messages a second take less than a quarter of a CPU."""
    with fastsock.Server(endpoint) as server:
        before = time.process_time()
        report = fastsock.load(server.endpoint, rate=10, duration=1.0, warmup=0.0, wait="auto")
        used = time.process_time() - before
    assert not report.failed
    assert used < 0.25 * report.duration


@kinds
@pytest.mark.parametrize(
    ("messages", "rate"),
    [(5001, None), (101, 20_000)],  # so few that a server's queue holds them all
)
def test_auto_loses_nothing(endpoint: str, messages: int, rate: float | None) -> None:
    with fastsock.Server(endpoint) as server:
        report = fastsock.load(
            server.endpoint,
            messages=messages,
            connections=7,
            threads=2,
            rate=rate,
            wait="auto",
            loss_timeout=10,
        )
    assert not report.failed
    assert report.messages == report.latency.count == messages
    assert 0 < report.client.busy <= 1
    assert report.options["wait"] == "auto"
    jsonschema.validate(report.as_dict(), json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize("wait", WAITS)
def test_time_after_the_last_answer_is_not_counted(wait: str) -> None:
    """The window of a run with `messages` ends at the last answer, not when the server closes."""
    with MisbehavingServer(closes_late(0.5)) as server:
        report = fastsock.load(server.address, messages=20, wait=wait, timeout=10.0)
    assert_good(report)
    assert 0 < report.client.busy <= 1


@kinds
def test_auto_is_interrupted(endpoint: str) -> None:
    """Ctrl-C ends a run that polls or blocks."""
    options: dict[str, Any] = {"connections": 3, "duration": 50, "warmup": 0, "wait": "auto"}
    with (
        fastsock.Server(endpoint) as server,
        loading(str(server.endpoint), **options) as process,
    ):
        wait_until(lambda: server.stats().bytes_out > 64 * 1000)
        process.send_signal(signal.SIGINT)
        answer = answer_of(process)
    assert faults_in(answer["report"]) == ["interrupted by Ctrl-C"]


def test_on_the_command_line() -> None:
    with fastsock.Server(ENDPOINTS["tcp"]) as server:
        arguments = ["load", str(server.endpoint), "-n", "10", "--wait", "auto", "--json", "-"]
        done = CliRunner().invoke(cli, arguments)
    assert done.exit_code in SERVED, done.output
    assert json.loads(done.stdout)["options"]["wait"] == "auto"


def test_spin_is_the_default() -> None:
    with fastsock.Server(ENDPOINTS["tcp"]) as server:
        report = fastsock.load(server.endpoint, messages=10)
    assert_good(report)
    assert report.options["wait"] == "spin"


def test_an_unknown_wait() -> None:
    with pytest.raises(ValueError, match="wait 'nap' is unknown; expected one of spin, bl"):
        fastsock.load("tcp://127.0.0.1:9", wait="nap")
