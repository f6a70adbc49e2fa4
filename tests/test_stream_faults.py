"""Each fault of a stream: what a plain client sees, and what the load client reports."""

from __future__ import annotations

import gc
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from clients import (
    TIMEOUT,
    connect,
    fill,
    finish_exactly,
    half_close,
    nothing_comes,
    receive_all,
    receive_exactly,
    reset,
    running,
    sending,
    stream,
    wait_until,
)
from implementations import any_endpoint
from load_runs import SHORT, failures

import fastsock

BLOCK = 1024
STREAM = stream(1)[: 64 * BLOCK]
RESET, EOF = "reset", "end"

kinds = pytest.mark.parametrize("kind", ["tcp", "unix"])


def serve(*faults: str, kind: str = "tcp", **options: Any) -> fastsock.Server:
    return fastsock.Server(any_endpoint(kind), faults=faults, **options)


@contextmanager
def connected(
    *faults: str, rcvbuf: int = 0, sndbuf: int = 0, kind: str = "tcp", **options: Any
) -> Iterator[tuple[fastsock.Server, socket.socket]]:
    """A server and a client of it, with buffers of its own."""
    with serve(*faults, kind=kind, **options) as server:
        sock = connect(server.endpoint, rcvbuf=rcvbuf, sndbuf=sndbuf)
        with closing(sock):
            yield server, sock


def until_end(sock: socket.socket) -> tuple[bytes, str]:
    """What comes before the end, and which end it is."""
    received = bytearray()
    try:
        while part := sock.recv(1 << 16):
            received += part
    except ConnectionResetError:
        return bytes(received), RESET
    return bytes(received), EOF


def echoed(server: fastsock.Server, data: bytes, piece: int = 1 << 20) -> tuple[bytes, str]:
    """What comes back of `data` and an end, sent in pieces, and how the connection ends."""
    with closing(connect(server.endpoint)) as sock:
        pieces = [data[at : at + piece] for at in range(0, len(data), piece)]
        with sending(sock, pieces, then_half_close=True):
            return until_end(sock)


def changed(received: bytes, sent: bytes) -> list[int]:
    assert len(received) == len(sent)
    return [at for at, (a, b) in enumerate(zip(received, sent, strict=True)) if a != b]


# --- those that cut -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4096, 5000, 1 << 20])
def test_a_reset_comes_after_exactly_so_many_bytes(size: int) -> None:
    """What was echoed has arrived before the reset, which alone would overtake it."""
    data = stream(1)[:size]
    with serve("reset_peer:after=4k") as server:
        for _ in range(20):
            with closing(connect(server.endpoint)) as sock:
                sock.sendall(data[: 1 << 16])
                assert until_end(sock) == (data[:4096], RESET)
        wait_until(lambda: server.stats().closed["fault"] == 20)
        assert server.stats().faults == {"reset_peer": 20}
        assert server.stats().bytes_out == 20 * 4096


def test_a_reset_waits_for_a_slow_reader() -> None:
    """Bytes that the client's window had no room for come too, while the client reads on."""
    size = 1 << 20
    with connected(f"reset_peer:after={size}", rcvbuf=4096) as (_, sock):
        with sending(sock, [stream(1)[:size]]):
            received = b""
            while len(received) < size:
                received += receive_exactly(sock, 65536)
                time.sleep(0.005)
        assert received == stream(1)[:size]
        assert until_end(sock) == (b"", RESET)


def test_a_reset_comes_at_its_time() -> None:
    with connected("reset_peer:after_time=200ms") as (_, sock):
        begun = time.monotonic()
        sock.sendall(b"hello")
        assert receive_exactly(sock, 5) == b"hello"
        assert until_end(sock) == (b"", RESET)
        assert time.monotonic() - begun >= 0.19


def test_a_unix_socket_is_reset_where_bytes_are_unread() -> None:
    """unix(7) has no RST: closing is ECONNRESET for the client if it left bytes unread."""
    data = STREAM[: 3 * BLOCK]
    with connected("reset_peer:after=1k", kind="unix", buffer_size=BLOCK) as (_, sock):
        sock.sendall(data)
        assert until_end(sock) == (data[:BLOCK], RESET)


@kinds
def test_a_refused_connection_ends_at_once(kind: str) -> None:
    with serve("refuse", kind=kind) as server:
        try:
            with closing(connect(server.endpoint)) as sock:
                received, end = until_end(sock)
        except ConnectionResetError:  # before connect() had returned
            received, end = b"", RESET
        assert (received, end) == (b"", RESET if kind == "tcp" else EOF)
        wait_until(lambda: server.stats().closed["fault"] == 1)
        assert server.stats().faults == {"refuse": 1}


def test_faults_that_are_set_before_the_start_act() -> None:
    server = fastsock.Server("tcp://127.0.0.1:0", engine="threads")
    server.faults = ["limit_data:bytes=3"]
    with server:
        assert echoed(server, STREAM) == (STREAM[:3], EOF)


def test_a_delay_ends_when_its_fault_does() -> None:
    """The delay of accepting does not outlive the faults that it belongs to."""
    with serve("accept_delay:delay=1h") as server, closing(connect(server.endpoint)) as first:
        first.sendall(b"hello")
        server.faults = []
        assert receive_exactly(first, 5) == b"hello"


def test_small_pieces_that_wait_take_little_memory() -> None:
    """Also where blocks may be changed: what is queued is limited by what is used."""
    with serve("latency:delay=1h", "corrupt:probability=0") as server:
        before = resident()
        with closing(connect(server.endpoint)) as sock:
            sock.setblocking(False)
            sent = 0
            while sent < 300_000:
                try:
                    sent += sock.send(b"x")
                except BlockingIOError:
                    break
            wait_until(lambda: server.stats().bytes_in == sent)
            assert resident() - before < 100 << 20


@kinds
def test_limited_data_ends_with_an_end(kind: str) -> None:
    with serve("limit_data:bytes=1000", kind=kind) as server:
        assert echoed(server, STREAM) == (STREAM[:1000], EOF)
        assert echoed(server, STREAM[:500]) == (STREAM[:500], EOF)
        with closing(connect(server.endpoint)) as sock:  # does not end, and is closed
            sock.sendall(STREAM[:2000])
            assert until_end(sock) == (STREAM[:1000], EOF)
            wait_until(lambda: server.stats().open == 0)
        assert server.stats().faults == {"limit_data": 2}
        assert server.stats().closed["fault"] == 2


@kinds
def test_a_half_closed_connection_is_still_read(kind: str) -> None:
    size = 8 << 20  # more than any socket holds
    with serve("half_close:after=1k", kind=kind) as server:
        with closing(connect(server.endpoint)) as sock:
            sock.sendall(STREAM[:2000])
            assert until_end(sock) == (STREAM[:BLOCK], EOF)
            with sending(sock, [bytes(size)]):
                wait_until(lambda: server.stats().bytes_in == 2000 + size)
            assert server.stats().open == 1
        wait_until(lambda: server.stats().closed["fault"] == 1)
        assert server.stats().faults == {"half_close": 1}


@kinds
def test_after_a_timeout_nothing_comes(kind: str) -> None:
    """The bytes before come; then the server is silent, and still receives."""
    size = 8 << 20
    with serve("timeout:after=1k", kind=kind) as server:
        with closing(connect(server.endpoint)) as sock:
            sock.sendall(STREAM)
            assert receive_exactly(sock, BLOCK) == STREAM[:BLOCK]
            with sending(sock, [bytes(size)]):
                wait_until(lambda: server.stats().bytes_in == len(STREAM) + size)
            nothing_comes(sock, 0.1)
            assert server.stats().faults == {"timeout": 1}
        wait_until(lambda: server.stats().closed["fault"] == 1)


@kinds
def test_a_server_that_does_not_read_blocks_its_client(kind: str) -> None:
    with connected("no_read:after=1k", kind=kind, sndbuf=65536) as (server, sock):
        sock.sendall(STREAM[:BLOCK])
        assert receive_exactly(sock, BLOCK) == STREAM[:BLOCK]
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.sendall(bytes(32 << 20))
        assert server.stats().bytes_in == BLOCK
        assert server.stats().faults == {"no_read": 1}


@kinds
def test_an_end_that_is_not_read_ends_the_connection(kind: str) -> None:
    """No thread is left for a client that has gone."""
    with serve("no_read", kind=kind) as server:
        with closing(connect(server.endpoint)) as sock:
            sock.sendall(b"unread")
            wait_until(lambda: server.stats().open == 1)
        wait_until(lambda: server.stats().open == 0)
        assert server.stats().bytes_in == 0


@kinds
def test_a_slow_close_comes_late(kind: str) -> None:
    with serve("slow_close:delay=200ms", kind=kind) as server:
        with closing(connect(server.endpoint)) as sock:
            sock.sendall(b"hello")
            half_close(sock)
            assert receive_exactly(sock, 5) == b"hello"
            begun = time.monotonic()
            assert until_end(sock) == (b"", EOF)
            assert time.monotonic() - begun >= 0.15
        wait_until(lambda: server.stats().closed["eof"] == 1)
        assert server.stats().faults == {"slow_close": 1}


def test_accepting_is_delayed() -> None:
    """One connection after the other: the others wait in the kernel's queue."""
    begun = time.monotonic()
    with serve("accept_delay:delay=100ms") as server, ExitStack() as stack:
        socks = [stack.enter_context(closing(connect(server.endpoint))) for _ in range(3)]
        for number, sock in enumerate(socks, 1):
            finish_exactly(sock, b"hello")
            assert time.monotonic() - begun >= 0.1 * number
        assert server.stats().faults == {"accept_delay": 3}


def test_a_stop_accepts_what_is_delayed() -> None:
    with connected("accept_delay:delay=1h") as (server, sock):
        sock.sendall(b"hello")
        time.sleep(0.05)
        assert server.stats().accepted == 0
        begun = time.monotonic()
        server.stop(drain=1)
        assert time.monotonic() - begun < 10
        assert server.stats().accepted == 1
    with serve("accept_delay:delay=1h") as server, closing(connect(server.endpoint)):
        time.sleep(0.05)


# --- those that delay ---------------------------------------------------------------------------


@kinds
def test_latency_delays_each_piece_and_keeps_the_throughput(kind: str) -> None:
    with serve("latency:delay=100ms", kind=kind) as server:
        with closing(connect(server.endpoint)) as sock:
            sent, came = [], []
            for byte in b"abcde":
                sent.append(time.monotonic())
                sock.sendall(bytes([byte]))
                time.sleep(0.01)
            for byte in b"abcde":
                assert sock.recv(1) == bytes([byte])
                came.append(time.monotonic())
            half_close(sock)
            assert until_end(sock) == (b"", EOF)
        assert all(b - a >= 0.1 for a, b in zip(sent, came, strict=True))
        begun = time.monotonic()
        data = stream(1)[: 1 << 20]
        assert echoed(server, data, 1 << 14) == (data, EOF)
        assert 0.1 <= time.monotonic() - begun < 3.2  # one by one the pieces would take 6.4 s
        assert server.stats().faults == {"latency": 2}


def test_jitter_keeps_the_order() -> None:
    with serve("latency:delay=20ms,jitter=20ms") as server:
        assert echoed(server, STREAM, 999) == (STREAM, EOF)


def test_what_latency_holds_back_is_bounded() -> None:
    """Of a client that sends for longer than the delay no more is received than the queue holds."""
    size = 64 << 20
    with connected("latency:delay=1h") as (server, sock):
        sock.settimeout(0.3)
        with suppress(OSError), sending(sock, [bytes(size)]):
            wait_until(lambda: server.stats().bytes_in > (15 << 20))
            time.sleep(0.2)
            assert server.stats().bytes_in <= (16 << 20) + 65536
            server.stop()


@kinds
def test_bandwidth_is_kept(kind: str) -> None:
    """Never more than the rate; the bytes that are on their way come at its pace."""
    with connected("bandwidth:rate=100k/s", kind=kind) as (_, sock):
        data = stream(1)[:50_000]
        begun = time.monotonic()
        with sending(sock, [data], then_half_close=True):
            assert receive_all(sock) == data
        assert 0.49 <= time.monotonic() - begun < TIMEOUT


def test_a_slow_reader_gets_no_burst_later() -> None:
    """What the client did not read for a while does not come faster afterwards."""
    with (
        serve("bandwidth:rate=10M/s", sndbuf=4096) as server,
        closing(connect(server.endpoint, rcvbuf=4096)) as sock,
        sending(sock, [bytes(4 << 20)]),
    ):
        time.sleep(0.3)
        receive_exactly(sock, 1 << 20)  # what the sockets hold
        begun = time.monotonic()
        receive_exactly(sock, 3 << 20)
        assert time.monotonic() - begun >= 0.2


def test_slices_come_one_by_one() -> None:
    with connected("slicer:size=7,delay=5ms") as (_, sock):
        sock.sendall(STREAM[:70])
        half_close(sock)
        parts = []
        begun = time.monotonic()
        while part := sock.recv(1 << 16):
            parts.append(part)
        assert time.monotonic() - begun >= 0.04
        assert b"".join(parts) == STREAM[:70]
        assert parts[0] == STREAM[:7]
        assert len(parts) > 1


# --- those that change the bytes ----------------------------------------------------------------


@pytest.mark.parametrize("piece", [100, 1000, BLOCK, 5000, 1 << 20])
def test_blocks_are_changed_whatever_the_pieces_are(piece: int) -> None:
    """The same seed gives the same bytes, however they come in."""
    data = STREAM + b"a part of a block"
    results = {}
    for fault in ("corrupt", "duplicate", "drop"):
        results[fault] = set()
        for size in (piece, 1 << 20):
            with serve(f"{fault}:probability=.3", seed=7) as server:
                received, end = echoed(server, data, size)
            assert end == EOF
            results[fault].add((received, server.stats().faults[fault]))
        assert len(results[fault]) == 1
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    ((received, count),) = results["corrupt"]
    assert len(changed(received, data)) == count
    assert all(at % BLOCK == 0 for at in changed(received, data))
    ((received, count),) = results["drop"]
    assert 5 < count < 40
    left, at = [], 0
    for block in blocks:
        if received[at : at + len(block)] == block:
            left.append(block)
            at += len(block)
    assert (b"".join(left), len(blocks) - len(left)) == (received, count)
    ((received, count),) = results["duplicate"]
    doubled, at = 0, 0
    for block in blocks:
        assert received[at : at + len(block)] == block
        at += len(block)
        if received[at : at + len(block)] == block:
            doubled, at = doubled + 1, at + len(block)
    assert (at, doubled) == (len(received), count)


@kinds
def test_every_block(kind: str) -> None:
    data = STREAM[: 2 * BLOCK + 5]
    parts = [data[:BLOCK], data[BLOCK : 2 * BLOCK], data[2 * BLOCK :]]
    with serve("drop", kind=kind) as server:
        assert echoed(server, data) == (b"", EOF)
    with serve("duplicate", kind=kind) as server:
        assert echoed(server, data) == (b"".join(part * 2 for part in parts), EOF)
    with serve("corrupt", "duplicate", kind=kind) as server:
        wrong = [bytes([part[0] ^ 255]) + part[1:] for part in parts]
        assert echoed(server, data) == (b"".join(part * 2 for part in wrong), EOF)
        assert server.stats().faults == {"corrupt": 3, "duplicate": 3}


# --- several, and by chance ---------------------------------------------------------------------


def test_faults_are_combined() -> None:
    """Changed first, then delayed, then paced, then cut by what has left."""
    faults = [
        "duplicate",
        "latency:delay=50ms",
        "bandwidth:rate=20k/s",
        "reset_peer:after=3k",
    ]
    with serve(*faults) as server:
        begun = time.monotonic()
        expected = STREAM[:BLOCK] * 2 + STREAM[BLOCK : 2 * BLOCK]
        with closing(connect(server.endpoint)) as sock:
            sock.sendall(STREAM[: 4 * BLOCK])
            assert until_end(sock) == (expected, RESET)
        assert time.monotonic() - begun >= 0.05 + 3 * BLOCK / 20_000 - 0.01
        wait_until(lambda: server.stats().open == 0)
        assert server.stats().faults == {
            "latency": 1,
            "bandwidth": 1,
            "reset_peer": 1,
            "duplicate": 4,
        }


def test_a_silent_connection_can_be_reset() -> None:
    with connected("timeout:after=10", "reset_peer:after_time=200ms") as (_, sock):
        sock.sendall(STREAM)
        assert until_end(sock) == (STREAM[:10], RESET)


def outcomes(server: fastsock.Server, clients: int = 40) -> list[tuple[bytes, str]]:
    """One client after the other."""
    return [echoed(server, STREAM[:100]) for _ in range(clients)]


@pytest.mark.parametrize("workers", [1, 2])
def test_two_runs_with_one_seed_are_equal(workers: int) -> None:
    faults = [
        "limit_data:bytes=10,probability=.3",
        "limit_data:bytes=20,probability=.3",
        "drop:probability=.2",
        "corrupt:probability=.5",
    ]
    seen = []
    for seed in (1, 1, 2):
        with serve(*faults, seed=seed, workers=workers) as server:
            seen.append((outcomes(server), server.stats().faults))
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]
    lengths = {len(received) for received, _ in seen[0][0]}
    assert {0, 10, 20, 100} == lengths


def test_a_probability_is_met() -> None:
    with serve("limit_data:bytes=0,probability=.25") as server:
        cut = sum(received == b"" for received, _ in outcomes(server, 400))
    assert server.stats().faults == {"limit_data": cut}
    assert 60 < cut < 140  # 100 +- 4.6 standard deviations; the seed is always the same


def test_one_connection_does_not_hold_up_the_others() -> None:
    with serve("timeout:probability=.5") as server, ExitStack() as stack:
        socks = [stack.enter_context(closing(connect(server.endpoint))) for _ in range(20)]
        for sock in socks:
            sock.sendall(b"x")
            sock.settimeout(0)
        wait_until(lambda: sum(can_receive(sock) for sock in socks) + stalled(server) == 20)
        assert 0 < stalled(server) < 20


def can_receive(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_PEEK) == b"x"
    except BlockingIOError:
        return False


def stalled(server: fastsock.Server) -> int:
    return server.stats().faults.get("timeout", 0)


# --- while it runs ------------------------------------------------------------------------------


def test_faults_are_changed_for_new_connections() -> None:
    with serve() as server:
        assert server.engine == "threads"
        assert server.faults == ()
        with closing(connect(server.endpoint)) as before:
            finish_exactly(before, b"hello")
        server.faults = ["limit_data:bytes=3"]
        assert server.faults == ("limit_data:bytes=3",)
        with closing(connect(server.endpoint)) as old:
            old.sendall(b"he")
            assert receive_exactly(old, 2) == b"he"
            server.faults = []
            assert echoed(server, b"hello") == (b"hello", EOF)
            old.sendall(b"llo")
            assert until_end(old) == (b"l", EOF)
        assert server.stats().faults == {"limit_data": 1}


def test_numbers_begin_again_with_new_faults() -> None:
    faults = ["limit_data:bytes=0,probability=.5"]
    with serve(*faults) as server:
        first = outcomes(server)
        server.faults = faults
        assert outcomes(server) == first
        wait_until(lambda: server.stats().open == 0)


def test_faults_can_be_set_at_any_time() -> None:
    server = serve()
    server.faults = ["refuse"]
    with server:
        with closing(connect(server.endpoint)) as sock:
            assert until_end(sock) == (b"", RESET)
        for number in range(200):
            server.faults = [f"limit_data:bytes={number}"]
        assert echoed(server, STREAM[:1000]) == (STREAM[:199], EOF)
    server.faults = ["timeout"]
    assert server.faults == ("timeout",)


def test_changing_faults_and_connections_at_once() -> None:
    with serve("slicer:size=3") as server:
        ended = []

        def change() -> None:
            while not ended:
                server.faults = ["slicer:size=3", "latency:delay=1us"]
                server.faults = []

        with running(change):
            for _ in range(200):
                assert echoed(server, STREAM[:100]) == (STREAM[:100], EOF)
            ended.append(True)


# --- stopping -----------------------------------------------------------------------------------

STALLS: dict[str, Callable[[socket.socket], object]] = {
    "latency:delay=1h": lambda sock: sock.sendall(STREAM),
    "bandwidth:rate=1": lambda sock: sock.sendall(STREAM),
    "slicer:size=1,delay=1h": lambda sock: sock.sendall(STREAM),
    "timeout": lambda sock: sock.sendall(STREAM),
    "no_read": fill,
    "half_close": lambda sock: sock.sendall(STREAM),
    "slow_close:delay=1h": half_close,
    "reset_peer:after_time=1h": lambda sock: sock.sendall(STREAM),
    "corrupt": lambda sock: (sock.sendall(STREAM), fill(sock)),
    "limit_data:bytes=10": lambda sock: sock.sendall(STREAM),
    "slicer:size=1": fill,
    "reset_peer:after=1M": fill,
}


@kinds
@pytest.mark.parametrize("fault", STALLS)
def test_a_stop_ends_every_stall_at_once(fault: str, kind: str) -> None:
    with connected(fault, kind=kind) as (server, sock):
        STALLS[fault](sock)
        wait_until(lambda: server.stats().accepted == 1)
        time.sleep(0.05)
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 0.5  # the longest wait that is not ended takes 1 s
    assert server.stats().open == 0
    assert sum(server.stats().closed.values()) == 1


def test_a_stop_ends_a_reset_that_waits_for_its_client() -> None:
    with connected("reset_peer:after=1M", rcvbuf=4096) as (server, sock):
        sock.settimeout(0.5)
        with pytest.raises(OSError):  # its window is full before the 1 MiB has left
            sock.sendall(bytes(16 << 20))
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 0.5


def test_idle_connections_are_closed() -> None:
    with connected("timeout", idle_timeout=0.1) as (server, sock):
        sock.sendall(b"x")
        assert until_end(sock) == (b"", EOF)
        wait_until(lambda: server.stats().closed["idle"] == 1)


@kinds
@pytest.mark.parametrize(
    "fault",
    ["latency:delay=1h", "bandwidth:rate=1", "timeout", "no_read", "slicer:size=1,delay=1h"],
)
def test_a_client_that_resets_ends_its_stall(fault: str, kind: str) -> None:
    with serve(fault, kind=kind) as server:
        sock = connect(server.endpoint)
        sock.sendall(b"hello")
        wait_until(lambda: server.stats().accepted == 1)
        reset(sock)
        wait_until(lambda: server.stats().open == 0)


def test_memory_is_given_back() -> None:
    """Connections that hold bytes back, cut in every way, leave nothing behind."""
    faults = [
        "latency:delay=1ms,jitter=1ms",
        "duplicate:probability=.3",
        "limit_data:bytes=100k,probability=.3",
        "reset_peer:after=50k,probability=.3",
        "timeout:after=70k,probability=.3",
    ]
    with serve(*faults) as server:

        def work() -> int:
            for _ in range(50):
                with closing(connect(server.endpoint)) as sock:
                    sock.sendall(STREAM * 2)
                    receive_exactly(sock, 1000)
                server.faults = faults
            wait_until(lambda: server.stats().open == 0)
            gc.collect()
            return resident()

        work()
        before = work()
        for _ in range(4):
            after = work()
    assert after - before < 8 << 20  # 200 connections of 128 KiB would be 25 MiB


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# --- what the load client reports ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "errors"),
    [
        ("refuse", {"reset"}),
        ("reset_peer:after=1000", {"reset"}),
        ("limit_data:bytes=1000", {"closed_early", "reset"}),
        ("half_close:after=1000", {"closed_early"}),
        ("timeout:after=1000", {"timeout"}),
        ("no_read:after=1000", {"timeout"}),
        ("latency:delay=1h", {"timeout"}),
        ("corrupt", {"mismatch"}),
        ("duplicate", {"mismatch"}),
        ("drop", {"timeout"}),
        ("accept_delay:delay=1h", {"timeout"}),
        ("slicer:size=3", set()),
        ("latency:delay=1ms", set()),
        ("bandwidth:rate=1M/s", set()),
        ("slow_close:delay=10ms", set()),
    ],
)
def test_what_the_load_client_reports(fault: str, errors: set[str]) -> None:
    with serve(fault) as server:
        report = fastsock.load(server.endpoint, size=64, connections=2, **SHORT)
    assert set(failures(report)) <= errors
    assert sum(failures(report).values()) == (2 if errors else 0)
    assert server.stats().faults.get(fault.partition(":")[0], 0) >= (fault[:6] != "accept") * 2


def test_the_load_client_sees_the_latency() -> None:
    with serve("latency:delay=20ms") as server:
        report = fastsock.load(server.endpoint, messages=10, wait="block", timeout=10)
    assert not failures(report)
    assert report.latency.min >= 0.02


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "options", "message"),
    [
        ("tcp://127.0.0.1:0", {"faults": ["loss"]}, "'loss' is for datagrams; those of streams"),
        ("udp://127.0.0.1:0", {"faults": ["refuse"]}, "'refuse' is for streams; those of datagr"),
        (
            "tcp://127.0.0.1:0",
            {"faults": ["refuse"], "engine": "epoll"},
            "engine 'epoll' cannot have faults of streams; expected 'threads' or 'auto'",
        ),
        ("tcp://127.0.0.1:0", {"faults": [], "engine": "fork"}, "engine 'fork' cannot have faults"),
        (
            "tcp://127.0.0.1:0",
            {"faults": [], "service": "discard"},
            "service 'discard' cannot have faults; expected 'echo'",
        ),
        ("tcp://127.0.0.1:0", {"faults": [], "close_on": b"x"}, "close_on cannot be given with f"),
        ("tcp://127.0.0.1:0", {"faults": ["refuse"], "busy_poll": 1e-4}, "busy_poll 0.0001 is not"),
    ],
)
def test_what_does_not_go_together(endpoint: str, options: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        fastsock.Server(endpoint, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_without_faults_cannot_get_some(server: fastsock.Server) -> None:
    with pytest.raises(ValueError, match=r"not 'threads'; make the server with faults=\[\]"):
        server.faults = ["refuse"]
    assert server.faults == ()


def test_a_bad_fault_changes_nothing() -> None:
    with serve("limit_data:bytes=1") as server:
        for bad in ("reset_per", "loss", "latency"):
            with pytest.raises(ValueError):
                server.faults = [bad]
        with pytest.raises(TypeError):
            server.faults = "refuse"
        assert server.faults == ("limit_data:bytes=1",)
        assert echoed(server, b"hello") == (b"h", EOF)


def test_the_engine_says_why() -> None:
    with serve() as server:
        assert "faults" in server.stats().engine_reason
    assert str(server.stats()).endswith("errors: none")
    with connected("refuse") as (server, sock):
        until_end(sock)
    assert str(server.stats()).endswith("errors: none; faults: refuse 1")
    assert server.stats().as_dict()["faults"] == {"refuse": 1}
