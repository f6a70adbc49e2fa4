"""Tests of the send delay of an open loop: actual minus intended send time."""

from __future__ import annotations

import math
import socket
import threading
from typing import Any

import pytest
from load_runs import assert_good, unix_server

import fastsock
from fastsock.client.options import WAITS

ENDPOINTS = {"tcp": "tcp://127.0.0.1:0", "udp": "udp://127.0.0.1:0"}


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize(("connections", "threads"), [(1, 1), (5, 2)])
@pytest.mark.parametrize("kind", ENDPOINTS)
def test_the_delay_is_the_difference_of_the_latencies(
    kind: str, connections: int, threads: int, wait: str
) -> None:
    """Every message has a delay: its latency from the intended minus that from the actual time."""
    with fastsock.Server(ENDPOINTS[kind]) as server:
        report = fastsock.load(
            server.endpoint,
            rate=1000,
            messages=101,
            connections=connections,
            threads=threads,
            wait=wait,
            loss_timeout=10,
        )
    assert not report.failed
    delay, intended, sent = report.send_delay, report.latency, report.latency_from_send
    assert delay.count == intended.count == sent.count == 101
    assert 0 <= delay.min <= delay.p50 <= delay.max
    assert intended.mean == pytest.approx(delay.mean + sent.mean)


def test_an_upload_has_a_delay() -> None:
    """An upload has send delays, and no latencies."""
    with fastsock.Server(ENDPOINTS["tcp"], service="discard") as server:
        report = fastsock.load(
            server.endpoint, mode="send", rate=1000, messages=50, size=100, wait="block"
        )
    assert not report.failed
    assert report.send_delay.count == 50
    assert math.isnan(report.latency.p50)


def test_a_full_socket_delays() -> None:
    """A message that waits for room in the socket buffer has a delay."""

    def pause_then_read(connection: socket.socket, over: threading.Event) -> None:
        over.wait(0.3)
        while connection.recv(65536):
            pass

    options: dict[str, Any] = {"mode": "send", "rate": 1000, "messages": 50, "size": 20_000}
    with unix_server(pause_then_read) as endpoint:
        report = fastsock.load(endpoint, wait="block", **options)
    assert report.messages == 50
    assert not report.failed
    assert report.send_delay.max > 100_000  # us; the socket buffer holds about ten of them


def test_a_closed_loop_has_no_delay() -> None:
    """A closed loop has no schedule, and no send delay."""
    with fastsock.Server(ENDPOINTS["tcp"]) as server:
        report = fastsock.load(server.endpoint, messages=10, wait="block")
    assert_good(report)
    assert report.send_delay.count == 0
    assert math.isnan(report.send_delay.max)
    assert report.as_dict()["latency_us"]["send_delay"] is None
