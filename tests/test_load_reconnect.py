"""on_disconnect "reconnect": a run goes on after a failure, and counts outages, not errors."""

from __future__ import annotations

import socket
import threading
from typing import Any

import misbehaving
import pytest
from load_runs import QUIET, assert_bad, failures, native_server
from misbehaving import MisbehavingServer

import fastsock
from fastsock.client.report import Outages

RECONNECT: dict[str, Any] = {"on_disconnect": "reconnect", **QUIET}


@pytest.mark.parametrize("rate", [None, 5000])
@pytest.mark.parametrize("wait", ["spin", "block"])
def test_resets_are_outages(rate: float | None, wait: str) -> None:
    """Each connection that the server resets is opened again, at its place in the pattern."""
    options = RECONNECT | {"wait": wait}
    with MisbehavingServer(misbehaving.resets_after(1000)) as server:
        report = fastsock.load(server.address, connections=2, messages=400, rate=rate, **options)
    # When all messages are sent a reset is an error.
    assert set(failures(report)) <= {"reset"}
    assert sum(report.errors.values()) <= 2
    assert report.outages is not None
    # On schedule a client without a CPU sends a whole backlog before it sees the reset.
    assert report.outages.count >= (10 if rate is None else 3)
    # Each outage but the last of a connection was ended by opening it again.
    assert 0 <= report.outages.count - (report.connect_latency.count - 2) <= 2
    assert report.outages.seconds >= report.outages.longest_s > 0
    assert report.corrupt_bytes == 0
    # The reset may overtake answers: they are outstanding then.
    assert report.messages + report.outages.messages <= 400
    if not report.failed:
        assert report.messages + report.outages.messages == 400
        assert report.lost_bytes == 0
    assert report.messages > (100 if rate is None else 0)


def test_a_restart_is_one_outage_of_each_connection() -> None:
    """While no server listens the connections try again and again."""
    address: tuple[str, int] | None = None
    with native_server() as (process, endpoint):
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        address = host, int(port)
        again: list[fastsock.Server] = []

        def restart(seconds: float) -> None:
            if seconds > 0.2 and process.poll() is None:
                process.kill()
                process.wait()
            elif seconds > 0.5 and not again:
                again.append(fastsock.Server(address))
                again[0].start()

        report = fastsock.load(
            endpoint, connections=3, duration=1.2, warmup=0, progress=restart, **RECONNECT
        )
        again[0].stop()
    assert not report.failed, report.reasons
    assert report.outages is not None
    assert report.outages.count == 3
    assert report.outages.longest_s > 0.1
    assert report.outages.messages <= 3
    assert report.messages > 0


def test_an_upload_goes_on_after_a_reset() -> None:
    resets = iter([True])

    def reset_once(server: MisbehavingServer, connection: socket.socket) -> None:
        left = 1 << 20 if next(resets, False) else 1 << 62
        while left > 0 and (data := server.recv(connection)):
            left -= len(data)
        if left <= 0:
            misbehaving.reset(connection)

    with MisbehavingServer(reset_once) as server:
        report = fastsock.load(
            server.address, mode="send", duration=0.8, warmup=0, size=100_000, **RECONNECT
        )
    assert not report.failed, report.reasons
    assert report.outages is not None
    assert report.outages.count == 1
    assert report.bytes > 4 << 20  # far more than before the reset


def test_a_server_that_does_not_come_back_ends_the_run() -> None:
    """An outage ends with an error after the timeout."""
    with native_server() as (process, endpoint):

        def kill(seconds: float) -> None:
            if seconds > 0.1 and process.poll() is None:
                process.kill()

        report = fastsock.load(
            endpoint, messages=1 << 40, progress=kill, **RECONNECT | {"timeout": 0.5}
        )
    assert_bad(report)
    assert failures(report) == {"refused": 1}
    assert report.outages is not None
    assert report.outages.count == 1
    assert report.outages.seconds > 0.4


def test_without_an_outage_the_report_says_none() -> None:
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        report = fastsock.load(server.endpoint, messages=10, **RECONNECT)
        assert report.outages == Outages(0, 0.0, 0.0, 0)
        assert fastsock.load(server.endpoint, messages=10, **QUIET).outages is None


def test_a_server_that_is_not_there_at_the_beginning_is_an_error() -> None:
    with misbehaving.refusing_address() as address:
        report = fastsock.load(address, messages=10, **RECONNECT)
    assert_bad(report)
    assert failures(report) == {"refused": 1}


def test_other_bytes_are_an_error() -> None:
    with MisbehavingServer(misbehaving.answers_garbage) as server:
        report = fastsock.load(server.address, messages=10, **RECONNECT)
    assert_bad(report)
    assert failures(report) == {"mismatch": 1}


def test_a_stall_is_an_outage_after_the_timeout() -> None:
    stalled = threading.Event()

    def stall_once(server: MisbehavingServer, connection: socket.socket) -> None:
        if stalled.is_set():
            return misbehaving.echoes(server, connection)
        stalled.set()
        return misbehaving.stalls_after(640)(server, connection)

    with MisbehavingServer(stall_once) as server:
        report = fastsock.load(server.address, messages=50, **RECONNECT | {"timeout": 0.3})
    assert not report.failed
    assert report.outages is not None
    assert (report.outages.count, report.outages.messages, report.messages) == (1, 1, 49)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "receive"}, "on_disconnect does not go with mode 'receive'"),
        ({"on_disconnect": "retry"}, "expected one of stop, reconnect"),
    ],
)
def test_a_bad_option(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fastsock.load("tcp://127.0.0.1:9", **{"on_disconnect": "reconnect", **options})
    with pytest.raises(ValueError, match="on_disconnect goes with streams"):
        fastsock.load("udp://127.0.0.1:9", on_disconnect="stop")
