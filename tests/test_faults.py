"""Tests of faults made with real tools; they print figures and assert what is promised."""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from clients import (
    assert_serves,
    connect,
    echo_exactly,
    finish_exactly,
    has_ended,
    not_zero,
    receive_exactly,
    reset,
    wait_until,
)
from implementations import Implementation, ServedProcess, in_fresh_process

import fastsock
from fastsock.server import engines

Figure = Callable[[str], None]
Serve = Callable[..., Any]
ServeProcess = Callable[..., ServedProcess]

SERVERS = [*engines.WORKERS, "datagram"]


# --- sockets destroyed from outside -------------------------------------------------------------


def destroy(*filters: str) -> None:
    """Destroy the TCP sockets that match (ss(8), -K); needs CONFIG_INET_DIAG_DESTROY."""
    ss = shutil.which("ss")
    if ss is None:
        pytest.skip("ss is not installed")
    done = subprocess.run([ss, "-Htn", "-K", *filters], capture_output=True, text=True)
    if done.returncode or not done.stdout:
        pytest.skip(f"ss -K does nothing here: {done.stderr or 'no such socket'}")


@pytest.mark.native
def test_connection_destroyed(implementation: Implementation, serve_process: ServeProcess) -> None:
    """`ss -K` on the server's end of a connection ends only that connection."""
    server = serve_process()
    with ExitStack() as stack:
        sock = stack.enter_context(connect(server.endpoint))
        echo_exactly(sock, b"first")
        if not implementation.one_at_a_time:
            other = stack.enter_context(connect(server.endpoint))
            echo_exactly(other, b"first")
        own, client = server.endpoint.port, sock.getsockname()[1]
        destroy("state", "established", f"( sport = :{own} and dport = :{client} )")
        assert has_ended(sock)
        if not implementation.one_at_a_time:
            echo_exactly(other, b"still served")
        assert_serves(server.endpoint)
    wait_until(lambda: server.stats()["open"] == 0)
    stats = server.stats()
    assert stats["errors"] == {"ECONNABORTED": 1}
    assert stats["closed"]["error"] == 1


@pytest.mark.native
def test_listener_destroyed(serve_process: ServeProcess, figure: Figure) -> None:
    """`ss -K` on the listener ends serve() with an error that says so."""
    server = serve_process()
    assert_serves(server.endpoint)
    destroy("state", "listening", f"( sport = :{server.endpoint.port} )")
    started = time.monotonic()
    assert server.wait() == 1
    seconds = time.monotonic() - started
    assert f"accept {server.endpoint}" in server.errors()
    assert "the listener was shut" in server.errors()
    figure(f"serve() has ended after {seconds * 1e3:.0f} ms")


# --- descriptors run out ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.many_clients
def test_figures_at_the_descriptor_limit(serve_process: ServeProcess, figure: Figure) -> None:
    """200 clients with 5 descriptors left: little CPU, little log, and soon recovered."""
    window = 5.0
    server = serve_process()
    with ExitStack() as stack:
        early = stack.enter_context(connect(server.endpoint))
        echo_exactly(early, b"early")
        server.leave_descriptors(5)
        socks = [stack.enter_context(connect(server.endpoint)) for _ in range(200)]
        wait_until(lambda: server.stats()["accept_pauses"] > 0)
        logged, cpu, start = len(server.errors()), server.cpu_seconds(), time.monotonic()
        threading.Event().wait(window)  # without any request of a client
        share = (server.cpu_seconds() - cpu) / (time.monotonic() - start)
        logged = len(server.errors()) - logged
        echo_exactly(early, b"still served")
        server.leave_descriptors(500)
        start = time.monotonic()
        finish_exactly(socks[-1], b"at last")
        recovery = time.monotonic() - start
    figure(
        f"CPU while starved {100 * share:.2f} %, log {logged / window:.0f} bytes/s, "
        f"the last of 200 served {recovery * 1e3:.0f} ms after the limit was lifted"
    )
    assert share < 0.1
    assert logged < 200 * (window + 1)
    assert recovery < 5


# --- resets -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.native
def test_10000_resets(serve_process: ServeProcess, figure: Figure) -> None:
    """After 10,000 resets at random points no descriptor is left, and clients are served."""
    server = serve_process()
    rng = random.Random(7)
    descriptors = Path(f"/proc/{server.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(10_000):
        sock = connect(server.endpoint)
        sock.sendall(rng.randbytes(size := int(2 ** rng.uniform(0, 17))))
        receive_exactly(sock, rng.choice((0, 1, size // 2)))
        reset(sock)
    assert_serves(server.endpoint)
    wait_until(lambda: server.stats()["open"] == 0)
    wait_until(lambda: len(list(descriptors.iterdir())) == before)
    stats = server.stats()
    assert stats["accepted"] == sum(stats["closed"].values()) == 10_001
    figure(f"closed {not_zero(stats['closed'])}, errors {stats['errors']}")


# --- memory -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", SERVERS)
def test_10000_servers(kind: str, figure: Figure) -> None:
    """Starting and stopping 10,000 times leaves neither memory nor descriptors."""
    memory, descriptors = json.loads(in_fresh_process(measure_growth, kind, 10_000, limit=600))
    figure(f"{memory:+.2f} bytes and {descriptors:+.5f} descriptors for each start and stop")
    assert memory < 64
    assert abs(descriptors) < 0.001


def new_server(kind: str) -> fastsock.Server:
    if kind == "datagram":
        return fastsock.Server("udp://127.0.0.1:0")
    return fastsock.Server("tcp://127.0.0.1:0", engine=kind)


def measure_growth(kind: str, times: int) -> None:
    """Print the growth of memory (bytes) and descriptors per server, as JSON."""
    samples = []
    for turn in range(times + times // 10):
        with new_server(kind):
            pass
        if turn >= times // 10 and turn % (times // 100) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            descriptors = len(list(Path("/proc/self/fd").iterdir()))
            samples.append((turn, pages * os.sysconf("SC_PAGE_SIZE"), descriptors))
    turns, *columns = zip(*samples, strict=True)
    print(json.dumps([statistics.linear_regression(turns, column).slope for column in columns]))
