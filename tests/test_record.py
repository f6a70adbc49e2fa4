"""The records of connections: their last bytes, while they are open and after."""

from __future__ import annotations

import dataclasses
import gc
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from clients import (
    connect,
    echo_exactly,
    finish_exactly,
    half_close,
    random_chunks,
    receive_all,
    receive_exactly,
    reset,
    running,
    stream,
    wait_until,
)
from implementations import any_endpoint

import fastsock
from fastsock.server.records import ConnectionRecord

ENDED_MAX = 64
kinds = pytest.mark.parametrize("kind", ["tcp", "unix"])


@contextmanager
def connected(kind: str = "tcp", **options: Any) -> Iterator[tuple[fastsock.Server, socket.socket]]:
    with (
        fastsock.Server(any_endpoint(kind), **options) as server,
        closing(connect(server.endpoint)) as sock,
    ):
        yield server, sock


def only(server: fastsock.Server) -> ConnectionRecord:
    (record,) = server.records()
    return record


def open_of(server: fastsock.Server) -> list[bool]:
    return [record.is_open for record in server.records()]


# --- what is recorded ---------------------------------------------------------------------------


@kinds
def test_an_answer_is_recorded_when_it_comes(kind: str) -> None:
    with connected(kind, record="1k") as (server, sock):
        for number in range(200):
            data = b"%03d" % number
            echo_exactly(sock, data)
            record = only(server)
            assert (record.received[-3:], record.sent[-3:]) == (data, data)
        assert (record.bytes_in, record.bytes_out) == (600, 600)
        assert record.received == record.sent == b"".join(b"%03d" % n for n in range(200))
        assert (record.number, record.is_open) == (0, True)


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 4096, 1 << 20])
@pytest.mark.parametrize("buffer_size", [50, 65536])
def test_a_ring_wraps(size: int, buffer_size: int) -> None:
    """Pieces that are shorter than the ring, as long, and longer."""
    data = b""
    with connected(record=size, buffer_size=buffer_size) as (server, sock):
        for chunk in [*random_chunks(size, 3000, 100), stream(1)[:size], stream(2)[: 2 * size + 1]]:
            echo_exactly(sock, chunk)
            data += chunk
            record = only(server)
            assert record.received == record.sent == data[-size:]
            assert record.bytes_in == record.bytes_out == len(data)


def test_what_is_sent_differs_by_a_fault() -> None:
    with connected(record=64, faults=["corrupt", "duplicate"]) as (server, sock):
        sock.sendall(b"hello")
        half_close(sock)
        assert receive_all(sock) == b"\x97ello\x97ello"
        record = only(server)
        assert (record.received, record.sent) == (b"hello", b"\x97ello\x97ello")
        assert (record.bytes_in, record.bytes_out) == (5, 10)


def test_what_a_fault_holds_back_is_not_sent() -> None:
    with connected(record=64, faults=["timeout:after=3"]) as (server, sock):
        sock.sendall(b"hello")
        assert receive_exactly(sock, 3) == b"hel"
        assert (only(server).received, only(server).sent) == (b"hello", b"hel")
        sock.sendall(b"again")
        wait_until(lambda: only(server).bytes_in == 10)
        assert (only(server).received, only(server).sent) == (b"helloagain", b"hel")


def test_a_refused_connection_is_recorded() -> None:
    with fastsock.Server("tcp://127.0.0.1:0", record=64, faults=["refuse"]) as server:
        with pytest.raises(ConnectionResetError), closing(connect(server.endpoint)) as sock:
            sock.recv(1)  # if connect() has not told it already
        record = only(server)
        assert (record.received, record.sent, record.is_open) == (b"", b"", False)


def test_faults_are_set_while_it_records() -> None:
    with fastsock.Server("tcp://127.0.0.1:0", record=64) as server:
        server.faults = ["corrupt"]
        for number in range(2):
            with closing(connect(server.endpoint)) as sock:
                sock.sendall(b"hello")
                receive_exactly(sock, 5)
            server.faults = []
            assert server.records()[number].sent == (b"\x97ello", b"hello")[number]


# --- the peer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_the_peer_is_the_client_s_address(host: str) -> None:
    with (
        fastsock.Server(f"tcp://{host}:0", record=1) as server,
        closing(connect(server.endpoint)) as sock,
    ):
        echo_exactly(sock, b"x")
        assert only(server).peer == f"{host}:{sock.getsockname()[1]}"


@pytest.mark.parametrize("name", ["", "client", "@name", "ä\udcff"])
def test_the_peer_of_a_unix_socket_is_its_path(name: str, tmp_path: Path) -> None:
    path = f"@{os.getpid()}" if name == "@name" else name and f"{tmp_path}/{name}"
    with (
        fastsock.Server(f"unix://{tmp_path}/echo", record=1) as server,
        socket.socket(socket.AF_UNIX) as sock,
    ):
        if path:
            sock.bind("\0" + path[1:] if path.startswith("@") else path)
        sock.connect(server.address)
        echo_exactly(sock, b"x")
        assert only(server).peer == path


# --- which connections are kept -----------------------------------------------------------------


def test_an_ended_connection_is_kept() -> None:
    with connected(record=64) as (server, sock):
        finish_exactly(sock, b"hello")
        assert open_of(server) == [False]  # by when the client sees the end
        with closing(connect(server.endpoint)) as second:
            echo_exactly(second, b"again")
            assert open_of(server) == [False, True]
            reset(second)
            wait_until(lambda: open_of(server) == [False, False])
        assert [record.received for record in server.records()] == [b"hello", b"again"]


@pytest.mark.parametrize("workers", [1, 2])
def test_open_ones_and_the_last_that_ended_are_kept(workers: int) -> None:
    """Those that ended first are left out, however long ago they began."""
    with ExitStack() as stack:
        server = stack.enter_context(
            fastsock.Server("tcp://127.0.0.1:0", record=16, workers=workers)
        )
        socks = []
        for number in range(80):
            socks.append(stack.enter_context(closing(connect(server.endpoint))))
            echo_exactly(socks[-1], b"%d" % number)
        ended = [79, *range(1, 70)]
        for number in ended:
            finish_exactly(socks[number])
        kept = sorted({*range(80)} - {*ended[: len(ended) - ENDED_MAX]})
        records = server.records()
        assert [record.number for record in records] == kept
        assert [record.sent for record in records] == [b"%d" % number for number in kept]
        server.stop()
        left = [record.number for record in server.records()]
        assert len(left) == ENDED_MAX and {0, *range(70, 79)} <= {*left}
        assert not any(open_of(server))


@kinds
def test_a_stop_ends_them_and_they_are_kept(kind: str) -> None:
    server = fastsock.Server(any_endpoint(kind), record=64)
    assert server.records() == ()
    server.start()
    assert server.records() == ()
    with closing(connect(server.endpoint)) as sock:
        echo_exactly(sock, b"hello")
        server.stop()
        assert receive_all(sock) == b""
    assert (only(server).sent, only(server).is_open) == (b"hello", False)
    assert server.stats().closed["stopped"] == 1


@pytest.mark.parametrize("turn", range(20))
def test_what_has_arrived_before_a_stop_is_echoed(turn: int) -> None:
    """As without `record`."""
    server = fastsock.Server("tcp://127.0.0.1:0", record=64)
    server.start()
    with closing(connect(server.endpoint)) as sock:
        echo_exactly(sock, b"first")
        sock.sendall(b"hello")
        server.stop()
        assert receive_all(sock) == b"hello"
    assert only(server).sent == b"firsthello"


def test_a_stop_does_not_wait_for_a_client_that_does_not_read() -> None:
    server = fastsock.Server("tcp://127.0.0.1:0", record=64)
    server.start()
    with closing(connect(server.endpoint, rcvbuf=4096)) as sock:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                sock.send(stream(1)[:65536])
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 5
    record = only(server)
    assert record.bytes_in >= record.bytes_out > 64 == len(record.sent)


def test_records_are_read_while_connections_come_and_go() -> None:
    """Each ring is whole: a run of bytes that count up, as the clients send them."""
    size = 4096
    pattern = bytes(range(251)) * 100
    done = threading.Event()

    def come_and_go(endpoint: Any) -> None:
        while not done.is_set():
            with closing(connect(endpoint)) as sock:
                for _ in range(3):
                    echo_exactly(sock, pattern)

    with (
        fastsock.Server("tcp://127.0.0.1:0", record=size, workers=2) as server,
        ExitStack() as all_,
    ):
        for _ in range(4):
            all_.enter_context(running(lambda: come_and_go(server.endpoint)))
        all_.callback(done.set)
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            records = server.records()
            numbers = [record.number for record in records]
            assert numbers == sorted({*numbers}) and len(numbers) <= ENDED_MAX + 4 + 4
            for record in records:
                for ring, total in (
                    (record.received, record.bytes_in),
                    (record.sent, record.bytes_out),
                ):
                    first = total - len(ring)
                    assert len(ring) == min(total, size)
                    start = first % 251
                    assert ring == pattern[start : start + len(ring)]


def test_records_outlive_their_server() -> None:
    with connected(record=64) as (server, sock):
        echo_exactly(sock, b"hello")
        record = only(server)
    del server
    gc.collect()
    assert record.sent == b"hello"
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.sent = b""  # type: ignore[misc]


# --- the option ---------------------------------------------------------------------------------


def test_without_the_option_there_are_none() -> None:
    with connected() as (server, sock):
        echo_exactly(sock, b"hello")
        assert server.records() == () and server.engine == "epoll"


def test_auto_is_an_engine_that_records() -> None:
    server = fastsock.Server("tcp://127.0.0.1:0", record="4k")
    assert (server.engine, server.stats().engine_reason) == ("threads", "the one that records")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"engine": "epoll"},
            "engine 'epoll' cannot keep records of streams; expected 'threads' or 'auto'",
        ),
        (
            {"engine": "fork"},
            "engine 'fork' cannot keep records of streams; expected 'threads' or 'auto'",
        ),
        ({"service": "discard"}, "service 'discard' cannot keep records; expected 'echo'"),
        ({"close_on": b"quit"}, "close_on cannot be given with record"),
        ({"record": "2M"}, "record .*1MiB"),
        ({"record": -1}, "record .*0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastsock.Server("tcp://127.0.0.1:0", **{"record": 64, **options})


@pytest.mark.parametrize("endpoint", ["udp://127.0.0.1:0", "unixgram://@fastsock-test-record"])
def test_datagrams_are_not_recorded(endpoint: str) -> None:
    with pytest.raises(ValueError, match="record goes with streams, not with datagrams"):
        fastsock.Server("tcp://127.0.0.1:0", endpoint, record=64)
