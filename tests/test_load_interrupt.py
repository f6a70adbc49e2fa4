"""Tests of Ctrl-C at every stage of a load run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import misbehaving
import pytest
from clients import wait_until
from load_runs import WAITS, answer_of, faults_in, loading
from misbehaving import MisbehavingServer

import fastsock


@pytest.mark.parametrize("with_progress", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_gives_a_report(
    server: fastsock.Server, wait: str, threads: int, with_progress: bool
) -> None:
    """Ctrl-C ends the window at once, with a complete report of the results so far."""
    options = {"wait": wait, "threads": threads, "connections": 6, "duration": 50, "warmup": 0}
    with loading(str(server.endpoint), with_progress=with_progress, **options) as process:
        wait_until(lambda: server.stats().bytes_out > 64_000)
        process.send_signal(signal.SIGINT)
        answer = answer_of(process)
    report = answer["report"]
    assert faults_in(report) == ["interrupted by Ctrl-C"]
    assert not report["valid"]
    assert 0 < report["duration_s"] < 25
    assert report["messages"] >= 900
    assert report["lost_bytes"] == report["corrupt_bytes"] == sum(report["errors"].values()) == 0
    assert server.stats().closed["eof"] == 6
    assert answer["alive"] == ["MainThread"]


def test_ctrl_c_in_the_warm_up(server: fastsock.Server) -> None:
    """Ctrl-C before the window gives an empty report that is not valid."""
    with loading(
        str(server.endpoint), duration=50, warmup=50, wait="block", server_pid=os.getpid()
    ) as process:
        wait_until(lambda: server.stats().bytes_out > 64_000)
        process.send_signal(signal.SIGINT)
        report = answer_of(process)["report"]
    assert not report["valid"]
    assert report["duration_s"] == report["messages"] == 0
    assert report["latency_us"]["from_actual_send"] is None
    assert report["server_cpu_s"] is None or report["server_cpu_s"] == 0


def test_ctrl_c_while_connecting() -> None:
    """Ctrl-C ends a run while its connections are still being opened."""
    with (
        misbehaving.full_address() as (host, port),
        loading(
            f"tcp://{host}:{port}", connections=2, duration=50, timeout=50, wait="block"
        ) as process,
    ):
        wait_until(lambda: connecting_to(port))
        process.send_signal(signal.SIGINT)
        report = answer_of(process)["report"]
    assert not report["valid"]
    assert report["messages"] == 0


@pytest.mark.parametrize("wait", WAITS)
def test_a_second_ctrl_c_does_not_wait(wait: str) -> None:
    """After the first Ctrl-C the client still waits for outstanding answers; the second ends it."""
    with MisbehavingServer(misbehaving.swallows) as server:
        host, port = server.address
        with loading(
            f"tcp://{host}:{port}",
            duration=50,
            timeout=50,
            wait=wait,
            finish="half-close",
        ) as process:
            assert server.received.wait(20)
            process.send_signal(signal.SIGINT)
            assert server.ended.wait(20)  # the client has half-closed, and waits
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            answer = answer_of(process)
    assert "interrupted by Ctrl-C" in faults_in(answer["report"])
    assert not answer["report"]["valid"]
    assert answer["report"]["messages"] == 0
    assert answer["alive"] == ["MainThread"]


def connecting_to(port: int) -> bool:
    """Whether a connection to this port of 127.0.0.1 is in SYN_SENT (state 02, proc(5))."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(
        line.split()[2].endswith(f":{port:04X}") and line.split()[3] == "02" for line in lines
    )
