"""Tests of the floor: round trips over a connected pair of sockets in one thread."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from fastsock._native.client import floor

Pair = tuple[socket.socket, socket.socket]

TENTH = 100_000_000  # ns


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A TCP connection over loopback, both ends blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        a = socket.create_connection(listener.getsockname(), timeout=10)
        b, _ = listener.accept()
    a.settimeout(None)
    with a, b:
        for end in (a, b):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield a, b


@pytest.mark.parametrize("size", [1, 64, 16384, 65536])
def test_it_counts_echoes_and_time(pair: Pair, size: int) -> None:
    """It makes echoes for the duration, and returns their number and the elapsed time."""
    a, b = pair
    echoes, elapsed = floor.round_trips(a.fileno(), b.fileno(), size, TENTH)
    assert echoes >= 1
    assert elapsed >= TENTH
    assert elapsed / echoes >= 100  # ns: not even one system call is cheaper


def test_nothing_is_left_in_the_pair(pair: Pair) -> None:
    """Every byte that was sent has been received."""
    a, b = pair
    floor.round_trips(a.fileno(), b.fileno(), 1000, TENTH // 10)
    for end in pair:
        end.setblocking(False)
        with pytest.raises(BlockingIOError):
            end.recv(1)


def test_no_time_is_no_echo(pair: Pair) -> None:
    """A duration of 0 does nothing."""
    assert floor.round_trips(pair[0].fileno(), pair[1].fileno(), 64, 0) == (0, 0)


def test_other_threads_run_meanwhile(pair: Pair) -> None:
    """The call holds no GIL: another thread runs meanwhile."""
    turns = 0
    done = threading.Event()

    def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1

    counter = threading.Thread(target=count)
    counter.start()
    try:
        before = turns
        floor.round_trips(pair[0].fileno(), pair[1].fileno(), 64, TENTH)
        assert turns - before > 100
    finally:
        done.set()
        counter.join(10)


@pytest.mark.parametrize("size", [0, 65537, 1 << 40])
def test_a_size_out_of_range(pair: Pair, size: int) -> None:
    """A message has 1 byte to 64 KiB."""
    with pytest.raises(ValueError, match="not between 1 and 65536"):
        floor.round_trips(pair[0].fileno(), pair[1].fileno(), size, TENTH)


def test_a_pair_that_is_closed(pair: Pair) -> None:
    """An end-of-file or an error in place of an echo is a ConnectionError."""
    a, b = pair
    b.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError):
        floor.round_trips(a.fileno(), b.fileno(), 64, TENTH)


def test_a_descriptor_that_is_none() -> None:
    """A number that is no open socket is a ConnectionError."""
    with pytest.raises(ConnectionError):
        floor.round_trips(-1, -1, 64, TENTH)
