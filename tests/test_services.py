"""Tests of the services discard and chargen, and of the line that ends a connection."""

from __future__ import annotations

import fcntl
import string
import sys
import termios
from typing import Any

import pytest
from clients import (
    CHARGEN,
    connect,
    echo_exactly,
    half_close,
    receive_all,
    receive_exactly,
    sending,
    wait_until,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastsock


@pytest.mark.native
@pytest.mark.many_clients
def test_discard_answers_nothing(serve: Any) -> None:
    """RFC 863: what comes in is thrown away, and nothing is sent back until the end."""
    server = serve(service="discard")
    zeros = [bytes(1 << 20)] * 4
    with connect(server.endpoint) as sock, sending(sock, zeros, then_half_close=True):
        assert receive_all(sock) == b""
    wait_until(lambda: server.stats().open == 0)
    stats = server.stats()
    assert stats.bytes_in == 4 << 20
    assert stats.bytes_out == 0
    assert stats.closed["eof"] == 1


@pytest.mark.native
@pytest.mark.many_clients
@pytest.mark.parametrize("buffer_size", [1, 7031, 65536])
def test_chargen_sends_the_rotating_lines(serve: Any, buffer_size: int) -> None:
    """RFC 864: lines of 72 printable characters, each starting one character later."""
    size = 3 * len(CHARGEN) + 17 if buffer_size > 1 else 2000
    server = serve(service="chargen", buffer_size=buffer_size)
    with connect(server.endpoint) as sock:
        assert receive_exactly(sock, size) == (CHARGEN * 4)[:size]
    assert CHARGEN.startswith(
        b" !\"#$%&'()*+,-./0123456789:;<=>?@" + string.ascii_uppercase.encode()
    )


@pytest.mark.native
@pytest.mark.many_clients
def test_chargen_throws_its_input_away(serve: Any) -> None:
    """What a client sends changes nothing, and its half-close ends the stream."""
    server = serve(service="chargen")
    zeros = [bytes(1 << 20)]
    with connect(server.endpoint) as sock, sending(sock, zeros, then_half_close=True):
        received = receive_all(sock)
    assert received == (CHARGEN * (len(received) // len(CHARGEN) + 1))[: len(received)]
    wait_until(lambda: server.stats().open == 0)
    assert server.stats().bytes_out >= len(received)


@pytest.mark.native
@pytest.mark.many_clients
def test_chargen_waits_for_a_client_that_does_not_read(serve: Any) -> None:
    """Flow control limits the rate: a client that reads nothing costs what the socket holds."""
    server = serve(service="chargen")
    with connect(server.endpoint, rcvbuf=4096) as sock:
        before = -1
        while before != server.stats().bytes_out:  # until the sockets are full
            before = server.stats().bytes_out
            with connect(server.endpoint) as other:
                assert receive_exactly(other, 1 << 20) == (CHARGEN * 150)[: 1 << 20]
            if server.stats().bytes_out > 1 << 30:
                pytest.fail("more was sent than any socket holds")
            before = server.stats().bytes_out
        assert receive_exactly(sock, len(CHARGEN)) == CHARGEN


@pytest.mark.native
@pytest.mark.many_clients
@pytest.mark.parametrize("end", [b"exit\n", b"exit\r\n"])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_close_on_ends_the_connection(serve: Any, end: bytes, one_by_one: bool) -> None:
    """All up to and including the line comes back, in one piece or many, and then the end."""
    server = serve(close_on=b"exit")
    before = b"exit now\nno exit\n exit\r\nexi\nexitt\n\n"
    stream = before + end + b"not this\n"
    chunks = [bytes([byte]) for byte in stream] if one_by_one else [stream]
    with connect(server.endpoint) as sock, sending(sock, chunks):
        assert receive_all(sock) == before + end
    wait_until(lambda: server.stats().open == 0)
    assert server.stats().closed["close_on"] == 1


@pytest.mark.native
@pytest.mark.many_clients
def test_close_on_waits_for_a_slow_reader_longer_than_it_lingers(serve: Any) -> None:
    """A client that does not close is closed after a second, but not while bytes are unsent."""
    server = serve(
        close_on=b"exit", max_connections=2, buffer_size=1 << 20, sndbuf=1, rcvbuf=1 << 20
    )
    data = (b"x" * 999 + b"\n") * 100 + b"exit\n"
    with connect(server.endpoint) as first, connect(server.endpoint) as second:
        wait_until(lambda: server.stats().accepted == 2)
        with connect(server.endpoint, rcvbuf=4096) as sock:
            sock.sendall(data)
            wait_until(lambda: unacknowledged(sock) == 0)  # so that one recv() gets it all
            first.close()
            wait_until(lambda: server.stats().bytes_in == len(data))
            linger(server, second)
            with connect(server.endpoint) as third:
                linger(server, third)
            assert receive_all(sock) == data


def linger(server: Any, sock: Any) -> None:
    """Send the closing line and do not close: the server does so after a second."""
    before = server.stats().closed["close_on"]
    echo_exactly(sock, b"exit\n")
    wait_until(lambda: server.stats().closed["close_on"] > before)


def unacknowledged(sock: Any) -> int:
    """Bytes that have not reached the other end's receive queue yet (tcp(7), SIOCOUTQ)."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


@pytest.mark.native
@pytest.mark.many_clients
def test_close_on_after_a_slow_reader(serve: Any) -> None:
    """All bytes before the line are sent before the end."""
    server = serve(close_on=b"exit")
    data = (b"x" * 999 + b"\n") * 4000
    with connect(server.endpoint, rcvbuf=4096) as sock, sending(sock, [data, b"exit\n"]):
        assert receive_all(sock) == data + b"exit\n"


def echoed(stream: bytes, line: bytes) -> bytes:
    """The model: what a connection that ends with `line` sends back."""
    sent = b""
    for each in stream.splitlines(keepends=True):
        sent += each
        if each == line + b"\n":
            break
    return sent


# One server for all examples: a server keeps nothing from one connection to the next.
@pytest.mark.native("epoll")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(st.text("ab\n", min_size=1, max_size=5).map(str.encode), max_size=8))
def test_close_on_agrees_with_a_model(closing_server: Any, chunks: list[bytes]) -> None:
    """However a stream is cut, it ends after the first line that equals the closing one."""
    with connect(closing_server.endpoint) as sock, sending(sock, chunks, then_half_close=True):
        assert receive_all(sock) == echoed(b"".join(chunks), b"ab")


@pytest.fixture
def closing_server(serve: Any) -> Any:
    return serve(close_on=b"ab")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"service": "daytime"}, ValueError),
        ({"service": 7}, TypeError),
        ({"close_on": "exit"}, TypeError),
        ({"close_on": b"two\nlines"}, ValueError),
        ({"close_on": b"x" * 5000}, ValueError),
        ({"close_on": b"exit", "service": "discard"}, ValueError),
    ],
    ids=str,
)
def test_bad_services(options: dict[str, Any], error: type[Exception]) -> None:
    """A bad option is refused in one line before anything is bound."""
    with pytest.raises(error) as caught:
        fastsock.Server("tcp://127.0.0.1:0", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.native
@pytest.mark.many_clients
def test_echo_is_untouched_by_a_line(serve: Any) -> None:
    """Without close_on a line is data like any other."""
    server = serve()
    with connect(server.endpoint) as sock:
        echo_exactly(sock, b"exit\n")
        half_close(sock)
        assert receive_all(sock) == b""
