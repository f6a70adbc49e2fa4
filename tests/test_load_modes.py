"""Tests of one-way loads: uploads to a discard service, downloads from a chargen service."""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import misbehaving
import pytest
from clients import CHARGEN, wait_until
from load_runs import (
    QUIET,
    answer_of,
    assert_bad,
    assert_good,
    failures,
    faults_in,
    loading,
    unix_server,
    until_counted,
)
from misbehaving import Behaviour, MisbehavingServer

import fastsock

SERVICES = {"echo": "echo", "send": "discard", "receive": "chargen"}
ONE_WAY = ("send", "receive")
KIND_NAMES = ("tcp", "tcp6", "unix")
KINDS = ("tcp://127.0.0.1:0", "tcp://[::1]:0", f"unix://@fastsock-test-modes-{os.getpid()}")
WAITS = ("spin", "block")

#: With a short timeout, for servers that stall.
QUICK: dict[str, Any] = {"wait": "block", "timeout": 0.3}


@contextmanager
def serving(mode: str, endpoint: str = KINDS[0]) -> Iterator[fastsock.Server]:
    """A server with the service for this mode."""
    server = fastsock.Server(endpoint, service=SERVICES[mode])
    try:
        server.start()
    except OSError as error:
        pytest.skip(f"no {endpoint} here: {error}")
    try:
        yield server
    finally:
        server.stop()


# --- misbehaving servers ------------------------------------------------------------------------


def sends(pieces: Sequence[bytes], *, then_close: bool = False) -> Behaviour:
    """Send the pieces one by one, then wait for the client's end-of-file, or close at once."""

    def behave(server: MisbehavingServer, connection: socket.socket) -> None:
        for piece in pieces:
            connection.sendall(piece)
        if not then_close:
            takes(server, connection)

    return behave


def generates_for_ever(server: MisbehavingServer, connection: socket.socket) -> None:
    """A chargen service that never reads, and so does not see a half-close."""
    while not server.stopping.is_set():
        connection.sendall(CHARGEN)


def takes(server: MisbehavingServer, connection: socket.socket) -> None:
    """A discard service."""
    while server.recv(connection):
        pass


def takes_then_resets(size: int) -> Behaviour:
    def behave(server: MisbehavingServer, connection: socket.socket) -> None:
        left = size
        while left > 0 and (data := server.recv(connection)):
            left -= len(data)
        misbehaving.reset(connection)

    return behave


def takes_nothing(server: MisbehavingServer, connection: socket.socket) -> None:
    server.stopping.wait()


def pieces_of(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


# --- counting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=KIND_NAMES)
@pytest.mark.parametrize(
    ("messages", "connections", "threads", "size"),
    [(1, 1, 1, 1), (100, 3, 2, 1000), (3, 5, 1, 65537), (5, 2, 1, 1 << 20)],
)
def test_an_upload_is_delivered_exactly(
    kind: str, messages: int, connections: int, threads: int, size: int
) -> None:
    """A run of `messages` ends when the server has received every byte."""
    with serving("send", kind) as server:
        report = fastsock.load(
            server.endpoint,
            mode="send",
            messages=messages,
            connections=connections,
            threads=threads,
            size=size,
            **QUIET,
        )
        assert_good(report)
        assert report.messages == messages
        assert report.bytes == server.stats().bytes_in == messages * size
        wait_until(lambda: server.stats().open == 0)
        assert server.stats().closed["eof"] == server.stats().accepted == connections


@pytest.mark.parametrize("kind", KINDS, ids=KIND_NAMES)
@pytest.mark.parametrize(
    ("messages", "connections", "threads", "size"),
    [(1, 1, 1, 1), (1000, 3, 2, 74), (3, 5, 1, 7030), (5, 2, 1, 1 << 20)],
)
def test_a_download_is_counted_exactly(
    kind: str, messages: int, connections: int, threads: int, size: int
) -> None:
    """Exactly `messages` are counted, however much more the server has sent."""
    with serving("receive", kind) as server:
        report = fastsock.load(
            server.endpoint,
            mode="receive",
            messages=messages,
            connections=connections,
            threads=threads,
            size=size,
            **QUIET,
        )
        assert_good(report)
        assert report.messages == messages
        assert report.bytes == messages * size
        wait_until(lambda: server.stats().open == 0)
        assert server.stats().bytes_out >= report.bytes
        assert server.stats().closed["eof"] == connections


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("mode", ONE_WAY)
def test_a_window_of_time(mode: str, wait: str) -> None:
    """The window lasts `duration`; there is throughput and no latency."""
    with serving(mode) as server:
        options: dict[str, Any] = {"mode": mode, "connections": 3, "wait": wait}
        report = until_counted(
            lambda: fastsock.load(server.endpoint, duration=0.2, warmup=0.05, **options)
        )
    assert_good(report)
    assert report.duration == pytest.approx(0.2)
    assert report.bytes == report.messages * 131072 > 0
    assert report.latency.count == report.latency_from_send.count == 0
    assert math.isnan(report.latency.p50) and math.isnan(report.latency_from_send.max)
    assert report.connect_latency.count == 3
    assert report.as_dict()["latency_us"]["from_intended_send"] is None


def test_an_upload_at_a_rate() -> None:
    """An upload at a rate follows the schedule."""
    with serving("send") as server:
        report = fastsock.load(
            server.endpoint, mode="send", rate=500, messages=51, connections=2, size=10, **QUIET
        )
        assert server.stats().bytes_in == 510
    assert not report.failed  # on a busy machine the rate may be missed
    assert report.messages == 51
    assert report.offered_per_s == 500
    assert report.duration >= 50 / 500


def test_an_upload_rate_that_was_not_reached() -> None:
    """A server that reads nothing leaves messages unsent, and the report says so."""
    with MisbehavingServer(takes_nothing) as server:
        report = fastsock.load(
            server.address, mode="send", rate=1000, size=1 << 20, duration=0.2, **QUICK
        )
    assert_bad(report)
    assert report.offered == 200
    assert 0 < report.unanswered == 200 - report.messages
    assert failures(report) == {"timeout": 1}


def test_an_upload_reconnects() -> None:
    """Each connection is opened again after `reconnect_every` messages; every byte arrives."""
    with serving("send") as server:
        report = fastsock.load(
            server.endpoint, mode="send", messages=60, connections=3, reconnect_every=5, **QUIET
        )
        assert server.stats().bytes_in == report.bytes
        assert 12 <= server.stats().accepted <= 15  # or opened once more, for no message
    assert_good(report)
    assert report.messages == 60


def test_a_download_counts_the_time_since_connecting() -> None:
    """The time counts from connecting on, as the server sends before the common start."""
    with serving("receive") as server:
        report = fastsock.load(server.endpoint, mode="receive", messages=1, size=1, **QUIET)
    assert_good(report)
    assert report.duration >= 0.002  # the start is so much later than connecting


# --- verifying a download -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 71, 74, 7029, 7030, 300_000])
def test_lines_are_verified_in_any_pieces(size: int) -> None:
    """A correct stream is accepted in pieces of any size."""
    stream = CHARGEN * (100 if size > 1000 else 2)
    with MisbehavingServer(sends(pieces_of(stream, size))) as server:
        report = fastsock.load(
            server.address, mode="receive", messages=len(stream) // 10, size=10, **QUIET
        )
    assert_good(report)


@pytest.mark.parametrize("piece", [50, 7030, 500_000])
@pytest.mark.parametrize("at", [0, 73, 7030, 499_999])
def test_a_changed_byte_is_seen(at: int, piece: int) -> None:
    """One wrong byte counts as one corrupt byte, wherever it is."""
    stream = bytearray(CHARGEN * 72)
    stream[at] ^= 0xFF
    with MisbehavingServer(sends(pieces_of(bytes(stream), piece))) as server:
        report = fastsock.load(server.address, mode="receive", messages=5, size=100_000, **QUIET)
    assert_bad(report)
    assert failures(report) == {"mismatch": 1}
    assert report.corrupt_bytes == 1
    assert report.messages <= at // 100_000
    assert "connections brought other bytes than the lines of a chargen service: 1" in (
        report.reasons
    )


@pytest.mark.parametrize("edit", [b"", b"!!"], ids=["dropped", "doubled"])
def test_a_shifted_stream_is_seen(edit: bytes) -> None:
    """A byte too few or too many makes the bytes after it corrupt."""
    stream = CHARGEN[:1000] + edit + CHARGEN[1001:] + CHARGEN
    with MisbehavingServer(sends([stream])) as server:
        report = fastsock.load(server.address, mode="receive", messages=14, size=1000, **QUIET)
    assert_bad(report)
    assert failures(report) == {"mismatch": 1}
    assert report.corrupt_bytes > 1


def test_without_verify_any_bytes_count() -> None:
    """verify=False counts any bytes."""
    with MisbehavingServer(sends([bytes(100_000)])) as server:
        report = fastsock.load(
            server.address, mode="receive", messages=100, size=1000, verify=False, **QUIET
        )
    assert_good(report)
    assert report.messages == 100


# --- other services, and faults -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "service", "reason"),
    [
        ("send", "echo", "connections answered, which a discard service does not: 2"),
        ("send", "receive", "connections answered, which a discard service does not: 2"),
        ("receive", "echo", "the server sent nothing: perhaps it is not a chargen service"),
        ("receive", "send", "the server sent nothing: perhaps it is not a chargen service"),
        ("echo", "send", "nothing of what was sent came back: perhaps it is not an echo service"),
        ("echo", "receive", "connections answered with other bytes than were sent: 2"),
    ],
)
@pytest.mark.parametrize("amount", [{"messages": 1000}, {"duration": 0.6, "warmup": 0}])
def test_the_wrong_service_is_named(
    mode: str, service: str, reason: str, amount: dict[str, Any]
) -> None:
    """With the wrong service the run fails soon, and a reason names the cause."""
    with serving(service) as server:
        report = fastsock.load(server.endpoint, mode=mode, connections=2, **amount, **QUICK)
    assert_bad(report)
    assert reason in report.reasons


def test_a_short_run_against_silence_is_not_valid() -> None:
    """A run too short for a timeout has the reason too."""
    with serving("echo") as server:
        report = fastsock.load(server.endpoint, mode="receive", duration=0.05, wait="block")
    assert not report.failed
    assert report.reasons == (
        "the server sent nothing: perhaps it is not a chargen service",
        "no message was received in the window",
    )


@pytest.mark.parametrize(
    ("behave", "kinds"),
    [
        (misbehaving.closes_at_once, {"closed_early", "reset"}),
        (misbehaving.half_closes_first, {"closed_early"}),
        (misbehaving.swallows, {"timeout"}),
        (takes_nothing, {"timeout"}),
        (takes_then_resets(1 << 20), {"reset"}),
    ],
    ids=["closes", "half-closes", "never closes", "takes nothing", "resets"],
)
@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_an_upload_that_is_not_taken(behave: Behaviour, kinds: set[str], size: int) -> None:
    """An upload fails unless the server reads every byte and then closes with a FIN."""
    if behave is misbehaving.closes_at_once:
        size = 1 << 20  # what fits into the socket buffer is sent before the close is seen
    messages = (32 << 20) // size if size > 1000 else 4000
    with MisbehavingServer(behave) as server:
        report = fastsock.load(server.address, mode="send", messages=messages, size=size, **QUICK)
    assert_bad(report)
    assert set(failures(report)) <= kinds
    assert report.lost_bytes == 0


def test_an_end_before_everything_was_read() -> None:
    """An upload fails when a Unix server half-closes with input unread."""

    def behave(connection: socket.socket, over: threading.Event) -> None:
        half_closed = select.poll()
        half_closed.register(connection, select.POLLRDHUP)
        half_closed.poll(20_000)
        connection.shutdown(socket.SHUT_WR)
        over.wait(20)

    with unix_server(behave) as endpoint:
        report = fastsock.load(endpoint, mode="send", messages=10, size=1000, **QUIET)
    assert_bad(report)
    assert failures(report) == {"closed_early": 1}


def test_a_slow_reader_is_not_a_timeout() -> None:
    """A server that keeps reading a little does not time out, however long the upload takes."""

    def behave(connection: socket.socket, over: threading.Event) -> None:
        while connection.recv(4096):
            over.wait(0.02)

    with unix_server(behave) as endpoint:
        report = fastsock.load(
            endpoint, mode="send", messages=48, size=4096, wait="block", timeout=0.4
        )
    assert_good(report)
    assert report.duration > 0.8


def test_a_download_that_ends_early() -> None:
    """A download fails when the server closes before all messages have come."""
    with MisbehavingServer(sends([CHARGEN], then_close=True)) as server:
        report = fastsock.load(server.address, mode="receive", messages=10, size=1000, **QUIET)
    assert_bad(report)
    assert failures(report) == {"closed_early": 1}
    assert report.messages == 7


def test_a_download_that_stalls() -> None:
    """A download fails when the server sends nothing for the timeout."""
    with MisbehavingServer(sends([CHARGEN])) as server:
        report = fastsock.load(server.address, mode="receive", messages=10, size=1000, **QUICK)
    assert_bad(report)
    assert failures(report) == {"timeout": 1}
    assert "perhaps" not in " ".join(report.reasons)


def test_a_generator_that_sees_no_half_close() -> None:
    """A server that goes on sending after the half-close is good: RFC 864 allows it."""
    with MisbehavingServer(generates_for_ever) as server:
        report = fastsock.load(server.address, mode="receive", messages=10, **QUIET)
    assert_good(report)
    assert report.messages == 10


@pytest.mark.parametrize("mode", ONE_WAY)
def test_ctrl_c_gives_a_report(mode: str) -> None:
    """Ctrl-C ends the window at once, and every connection with end-of-file."""
    options = {"mode": mode, "connections": 4, "threads": 2, "duration": 50, "warmup": 0}
    with serving(mode) as server, loading(str(server.endpoint), wait="block", **options) as process:
        wait_until(lambda: server.stats().bytes_in + server.stats().bytes_out > 10 << 20)
        process.send_signal(signal.SIGINT)
        report = answer_of(process)["report"]
        wait_until(lambda: server.stats().open == 0)
        assert server.stats().closed["eof"] == 4
    assert faults_in(report) == ["interrupted by Ctrl-C"]
    assert report["messages"] > 0
    assert 0 < report["duration_s"] < 25


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"mode": "both"}, ValueError, "mode 'both' is unknown"),
        ({"mode": 1}, TypeError, "mode 1 is int"),
        ({"mode": "send", "depth": 2}, ValueError, "depth does not go with mode 'send'"),
        ({"mode": "receive", "depth": 2}, ValueError, "depth does not go with mode 'receive'"),
        ({"mode": "receive", "rate": 10}, ValueError, "do not go with mode 'receive'"),
        ({"mode": "receive", "reconnect_every": 1}, ValueError, "do not go with mode 'receive'"),
    ],
)
def test_a_bad_option(options: dict[str, Any], error: type[Exception], words: str) -> None:
    """An option without meaning in a mode is refused before a connection is opened."""
    with pytest.raises(error, match=words):
        fastsock.load("tcp://127.0.0.1:9", **options)


@pytest.mark.parametrize("mode", ONE_WAY)
def test_one_way_is_for_streams(mode: str) -> None:
    """One-way modes refuse datagrams: without answers losses are not seen."""
    with pytest.raises(ValueError, match="goes with streams, not with datagrams"):
        fastsock.load("udp://127.0.0.1:9", mode=mode)


def test_sizes_by_mode() -> None:
    """A one-way message has 128 KiB by default, as 64 bytes would measure only the calls."""
    with serving("send") as server:
        report = fastsock.load(server.endpoint, mode="send", messages=1, **QUIET)
    assert report.options["size"] == report.bytes == 131072
    assert report.options["mode"] == "send"
