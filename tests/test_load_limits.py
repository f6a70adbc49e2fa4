"""Tests of the load client against a server that accepts fewer connections than the client opens.

The other connections wait in the server's queue until accepted ones have closed. So a run with
`messages` ends only if each connection closes when it has sent its share.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from typing import Any

import misbehaving
import pytest
from clients import wait_until
from load_runs import assert_good, failures
from misbehaving import MisbehavingServer

import fastsock
from fastsock import pure
from fastsock.client.options import WAITS

CONNECTIONS = 8
LIMITS: tuple[dict[str, Any], ...] = ({"max_connections": 2}, {"engine": "serial"})
SERVICES = {"echo": "echo", "send": "discard", "receive": "chargen"}

Load = Callable[..., fastsock.LoadReport]


def connections_served(load: Load, limit: dict[str, Any], messages: int, **options: Any) -> int:
    """Run with every message answered; return how many connections the server accepted."""
    service = SERVICES[options.get("mode", "echo")]
    options = {"connections": CONNECTIONS, "messages": messages, "timeout": 10.0} | options
    with fastsock.Server("tcp://127.0.0.1:0", service=service, **limit) as server:
        report = load(server.endpoint, **options)
        wait_until(lambda: server.stats().open == 0)
        served = server.stats().accepted
    assert not report.failed
    assert report.messages == messages
    if "rate" not in options:
        assert_good(report)
    return served


@pytest.mark.parametrize("limit", LIMITS, ids=["max_connections", "serial"])
@pytest.mark.parametrize("load", [fastsock.load, pure.load], ids=["native", "pure"])
def test_every_connection_has_its_turn(load: Load, limit: dict[str, Any]) -> None:
    """A connection closes when it has sent its share, also one without any message."""
    for messages in (3, CONNECTIONS, 401):
        assert connections_served(load, limit, messages) == CONNECTIONS


@pytest.mark.parametrize("limit", LIMITS, ids=["max_connections", "serial"])
def test_every_connection_has_its_turn_in_an_open_loop(limit: dict[str, Any]) -> None:
    for messages in (3, CONNECTIONS, 401):
        served = connections_served(fastsock.load, limit, messages, rate=5000)
        assert served == CONNECTIONS


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("mode", SERVICES)
def test_every_mode(mode: str, threads: int, wait: str) -> None:
    served = connections_served(
        fastsock.load, LIMITS[0], 101, mode=mode, threads=threads, wait=wait, size=1000
    )
    assert served == CONNECTIONS


def test_with_messages_in_flight() -> None:
    for depth in (5, 64):
        assert connections_served(fastsock.load, LIMITS[0], 401, depth=depth) == CONNECTIONS


def test_a_connection_that_is_done_is_not_opened_again() -> None:
    """With reconnect_every, no more connections are opened than the messages need."""
    messages = 10 * CONNECTIONS
    for every in (1, 5, 10):
        served = connections_served(fastsock.load, LIMITS[0], messages, reconnect_every=every)
        assert served == messages // every


def test_an_open_loop_does_not_wait_for_its_end() -> None:
    """A connection that is done closes 20 seconds before the other one sends its message."""
    first_has_closed = threading.Event()
    too_late = []

    def behave(server: MisbehavingServer, connection: socket.socket) -> None:
        if connection is server.sockets[0]:
            misbehaving.echoes(server, connection)
            first_has_closed.set()
        else:
            first_has_closed.wait()
            too_late.extend(select.select([connection], [], [], 0)[0])

    with MisbehavingServer(behave) as server:
        report = fastsock.load(server.address, connections=2, messages=2, rate=0.05, timeout=30.0)
    assert report.messages == 1
    assert failures(report) == {"closed_early": 1}
    assert not too_late
