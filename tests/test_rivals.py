"""The compiled rivals: a server that does less than echo correctly cannot be compared with."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from clients import (
    assert_same,
    assert_serves,
    connect,
    fill,
    receive_all,
    reset,
    sending,
    stream,
    wait_until_still,
)
from load_runs import faults

import fastsock
from fastsock.bench.server_process import ServerProcess
from fastsock.server import engines

BUILD = Path(__file__).parents[1] / "benchmarks" / "rivals" / "build.py"
MORE_THAN_SOCKETS_HOLD = stream(1) * 24  # bytes; tcp_wmem and tcp_rmem allow 4 and 6 MiB
KEPT = 1 << 20  # bytes; a buffer, and what the program's own memory moves by


@pytest.fixture(
    params=["epoll_echo", "uring_echo", "uv_echo", pytest.param("go_echo", marks=pytest.mark.slow)]
)
def rival(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    if request.param == "uring_echo" and (doubt := engines.doubt("io_uring")):
        pytest.skip(doubt)
    done = subprocess.run(
        [sys.executable, str(BUILD), request.param], capture_output=True, text=True
    )
    if "first apt-get install" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    with ServerProcess((done.stdout.strip(), "127.0.0.1", "0")) as server:
        yield server
        assert server.stop() == 0


def send_until_stuck(sock: socket.socket) -> int:
    """Send until the server has stopped reading, which it must; return how much was taken."""
    data = memoryview(MORE_THAN_SOCKETS_HOLD)
    sent = 0

    def send_what_is_taken() -> int:
        nonlocal sent
        with suppress(BlockingIOError):
            while sent < len(data):
                sent += sock.send(data[sent : sent + 65536])
        return sent

    timeout = sock.gettimeout()
    sock.setblocking(False)
    assert wait_until_still(send_what_is_taken) < len(data)
    sock.settimeout(timeout)
    return sent


def test_a_client_that_reads_late_gets_everything(rival: ServerProcess) -> None:
    """Until then the server stops reading and keeps one buffer; half-close is answered in full."""
    alone = rival.memory()
    with connect(rival.endpoint, rcvbuf=65536) as sock:
        sent = send_until_stuck(sock)
        stalled = rival.memory()
        with sending(sock, [MORE_THAN_SOCKETS_HOLD[sent:]], then_half_close=True):
            received = receive_all(sock)
    assert_same(received, MORE_THAN_SOCKETS_HOLD)
    assert alone is not None
    assert stalled is not None
    assert stalled - alone < KEPT


@pytest.mark.parametrize("reconnect_every", [None, 1])
def test_every_byte_of_many_clients(rival: ServerProcess, reconnect_every: int | None) -> None:
    """The load client verifies them, and each end-of-file."""
    report = fastsock.load(
        rival.endpoint,
        connections=20,
        size=300,
        depth=4,
        messages=2000,
        wait="block",
        reconnect_every=reconnect_every,
    )
    assert not faults(report)
    assert report.messages == 2000


def test_a_client_that_resets_does_not_disturb_others(rival: ServerProcess) -> None:
    """A reset while the server writes, or has something to write and waits, is not its end."""
    for send in (fill, send_until_stuck):
        sock = connect(rival.endpoint)
        send(sock)
        reset(sock)
    assert_serves(rival.endpoint)
