"""Tests of the load client's options: bad ones are refused, defaults are filled in."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from load_runs import SHORT

import fastsock


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"connections": 0}, ValueError),
        ({"connections": 65537}, ValueError),
        ({"connections": 1.0}, TypeError),
        ({"connections": True}, TypeError),
        ({"connections": "1"}, TypeError),
        ({"connections": None}, TypeError),
        ({"size": 0}, ValueError),
        ({"size": -1}, ValueError),
        ({"size": (1 << 30) + 1}, ValueError),
        ({"size": "64 parsecs"}, ValueError),
        ({"size": 64.0}, TypeError),
        ({"depth": 0}, ValueError),
        ({"depth": 65537}, ValueError),
        ({"depth": 1.5}, TypeError),
        ({"depth": 17, "size": 1 << 20}, ValueError),
        ({"depth": 2, "rate": 100}, ValueError),
        ({"duration": 0}, ValueError),
        ({"duration": -1}, ValueError),
        ({"duration": float("nan")}, ValueError),
        ({"duration": float("inf")}, ValueError),
        ({"duration": 10**400}, ValueError),
        ({"duration": "5k"}, ValueError),
        ({"duration": False}, TypeError),
        ({"messages": 0}, ValueError),
        ({"messages": 1 << 49}, ValueError),
        ({"messages": 10.0}, TypeError),
        ({"messages": "1.5"}, ValueError),
        ({"messages": 10, "duration": 1}, ValueError),
        ({"messages": 10, "warmup": 1}, ValueError),
        ({"warmup": -0.1}, ValueError),
        ({"warmup": float("nan")}, ValueError),
        ({"warmup": b"1"}, TypeError),
        ({"warmup": ""}, ValueError),
        ({"warmup": False}, TypeError),
        ({"rate": 0}, ValueError),
        ({"rate": -1}, ValueError),
        ({"rate": 1e10}, ValueError),
        ({"rate": float("nan")}, ValueError),
        ({"rate": "1KiB"}, ValueError),
        ({"rate": True}, TypeError),
        ({"verify": 1}, TypeError),
        ({"verify": None}, TypeError),
        ({"nodelay": 0}, TypeError),
        ({"wait": "sleep"}, ValueError),
        ({"wait": None}, TypeError),
        ({"threads": 0}, ValueError),
        ({"threads": 2}, ValueError),
        ({"threads": 5, "connections": 4}, ValueError),
        ({"threads": 1.0}, TypeError),
        ({"timeout": 0}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("inf")}, ValueError),
        ({"timeout": None}, TypeError),
        ({"server_pid": 0}, ValueError),
        ({"server_pid": "1"}, TypeError),
        ({"targets": "p99<1ms"}, TypeError),
        ({"targets": None}, TypeError),
        ({"percentiles": "50"}, TypeError),
        ({"percentiles": [True]}, TypeError),
        ({"percentiles": ["99"]}, TypeError),
        ({"percentiles": []}, ValueError),
        ({"percentiles": [0]}, ValueError),
        ({"percentiles": [100]}, ValueError),
        ({"percentiles": [float("nan")]}, ValueError),
        ({"percentiles": [10**400]}, ValueError),
        ({"percentiles": [99.9999]}, ValueError),
        ({"percentiles": range(1, 13)}, ValueError),
        ({"sources": "127.0.0.2"}, TypeError),
        ({"sources": None}, TypeError),
        ({"sources": [2130706434]}, TypeError),
        ({"sources": ["localhost"]}, ValueError),
        ({"sources": ["127.0.0.2:0"]}, ValueError),
        ({"sources": ["0.0.0.0"]}, ValueError),
        ({"sources": ["ff02::1"]}, ValueError),
        ({"sources": ["127.0.0.2", "::1"]}, ValueError),
        ({"sources": ["::1"]}, ValueError),  # the server is IPv4
        ({"no_such_option": 1}, TypeError),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_a_bad_option(
    server: fastsock.Server, options: dict[str, Any], error: type[Exception]
) -> None:
    """A bad option is an error of one line that names it, before any connect."""
    with pytest.raises(error) as caught:
        fastsock.load(server.endpoint, **options)
    assert type(caught.value) is error
    text = str(caught.value)
    assert text and "\n" not in text
    assert any(name in text for name in options)
    assert server.stats().accepted == 0


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("tcp://127.0.0.1:0", ValueError),
        (("127.0.0.1", 0), ValueError),
        ("", ValueError),
        ("127.0.0.1", ValueError),
        ("tcp://", ValueError),
        ("tcp://127.0.0.1:65536", ValueError),
        ("http://127.0.0.1:80", ValueError),
        (None, TypeError),
        (7007, TypeError),
        (b"tcp://127.0.0.1:7007", TypeError),
        ("unix:///" + "x" * 107, ValueError),
        ("unix://echo.sock", ValueError),
        ("unixgram:///" + "x" * 107, ValueError),
    ],
)
def test_a_bad_target(target: Any, error: type[Exception]) -> None:
    """A bad target is an error of one line."""
    with pytest.raises(error) as caught:
        fastsock.load(target)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


def test_a_host_that_cannot_be_resolved() -> None:
    """A host name that cannot be resolved is an OSError, not a failed run."""
    with pytest.raises(OSError):
        fastsock.load("tcp://no-such-host.invalid:7007", **SHORT)


def test_no_such_server_pid(server: fastsock.Server) -> None:
    """A `server_pid` that names no process is an OSError."""
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait(30)
    with pytest.raises(OSError):
        fastsock.load(server.endpoint, server_pid=gone.pid, **SHORT)


def test_defaults_are_filled_in(server: fastsock.Server) -> None:
    """The report holds every option as it was used, defaults included."""
    report = fastsock.load(server.endpoint, duration=0.1)
    assert report.options == {
        "mode": "echo",
        "connections": 1,
        "size": 64,
        "depth": 1,
        "duration": 0.1,
        "messages": None,
        "warmup": pytest.approx(0.01),
        "rate": None,
        "arrivals": "uniform",
        "seed": 1,
        "verify": True,
        "wait": "spin",
        "threads": 1,
        "nodelay": True,
        "reconnect_every": None,
        "timeout": 5.0,
        "finish": None,
        "on_disconnect": None,
        "loss_timeout": 0.2,
        "gso": False,
        "interval": None,
        "stages": None,
        "ramp_up": 0.0,
        "sources": (),
        "server_pid": None,
        "targets": (),
        "percentiles": (50.0, 90.0, 99.0, 99.9),
        "label": None,
    }


def test_no_descriptors_left_for_the_run() -> None:
    """A run that needs more descriptors than there are is an OSError that says what to do."""
    script = """
import resource
import fastsock
with fastsock.Server("tcp://127.0.0.1:0") as server:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        fastsock.load(server.endpoint, connections=200, threads=2, messages=200, wait="block")
    except OSError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert "ulimit -n" in done.stdout
    assert "Too many open files" in done.stdout
