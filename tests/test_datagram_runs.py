"""Tests of runs: equal datagrams of one client that come together are answered by one call.

The server is stopped (SIGSTOP) while they are sent, so that it receives them together. Networks of
their own need root and ip(8); strace(1) shows the calls.
"""

from __future__ import annotations

import random
import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from clients import not_zero, wait_until
from implementations import IMPLEMENTATIONS, ServedProcess
from networks import CLIENT, SERVER, inside, two_networks
from test_datagram import client, echo, payload_of, stopped

from fastsock import Endpoint, Server

LOOPBACK = "udp://127.0.0.1:0"


def serving(url: str = LOOPBACK, **options: Any) -> ServedProcess:
    return ServedProcess(IMPLEMENTATIONS["native-epoll"], endpoint=url, **options)


@contextmanager
def sleeping(server: ServedProcess) -> Iterator[None]:
    """The server receives what is sent in the body only after it."""
    server.pause()
    try:
        yield
    finally:
        server.resume()


def payloads_of(*sizes: int) -> list[bytes]:
    return [payload_of(size, place) for place, size in enumerate(sizes)]


def echo_together(
    server: ServedProcess, sock: socket.socket, payloads: Sequence[bytes]
) -> list[bytes]:
    """Echo datagrams that the server finds all at once; a busy kernel delivers them later."""
    with sleeping(server):
        before = delivered(server)
        for payload in payloads:
            sock.send(payload)
        if sock.family != socket.AF_UNIX:
            wait_until(lambda: delivered(server) >= before + len(payloads))
    return [sock.recv(70000) for _ in payloads]


def delivered(server: ServedProcess) -> int:
    """Whole IP packets that the kernel has given to its protocols, in the server's network."""
    network = Path(f"/proc/{server.pid}/net")
    names, values = (
        line.split() for line in (network / "snmp").read_text().splitlines() if line[:3] == "Ip:"
    )
    found = re.search(r"^Ip6InDelivers\s+(\d+)", (network / "snmp6").read_text(), re.MULTILINE)
    return int(values[names.index("InDelivers")]) + (int(found[1]) if found else 0)


@contextmanager
def traced(log: Path, url: str = LOOPBACK, *faults: str) -> Iterator[ServedProcess]:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    tracing = ("-e", "trace=sendmmsg,sendmsg", *faults, "-e", "signal=none", "-v", "-s", "100")
    # -D: the child of this process is the server, not strace.
    with serving(url, under=(strace, "-D", "-f", "-qq", "-o", str(log), *tracing)) as server:
        yield server


def outgoing(log: Path) -> list[list[int]]:
    """The calls that sent something: of each the bytes of every answer."""
    calls = []
    for line in log.read_text().splitlines():
        if "sendmmsg(" in line:
            calls.append([int(size) for size in re.findall(r"\bmsg_len=(\d+)", line)])
        elif "sendmsg(" in line:
            calls.append([int(line.rpartition("= ")[2])])
    return [sizes for sizes in calls if sizes]


@pytest.mark.parametrize("url", [LOOPBACK, "udp://[::1]:0", "udp://[::]:0?dual_stack=1"])
def test_runs_of_many_sizes(url: str) -> None:
    """Each datagram comes back unchanged, and in order."""
    sizes = (1, 2, 63, 64, 1400, 1472, 1473, 9000, 21835, 21836, 32753, 32754, 65507)
    host = "::1" if "[" in url else None
    with serving(url) as server, client(server.endpoint, host) as sock:
        for size in sizes:
            # No more than fit into a receive buffer, which counts the kernel's memory.
            payloads = payloads_of(*[size] * min(100, max(2, 100000 // (size + 700))))
            assert echo_together(server, sock, payloads) == payloads
        stats = stopped(server)
    assert stats["datagrams_in"] == stats["datagrams_out"]
    assert stats["bytes_in"] == stats["bytes_out"]
    assert not_zero(stats["dropped"]) == stats["errors"] == {}


def test_mixed_sizes_and_clients() -> None:
    """Each client gets the answers to its own datagrams, all of them, in order; also empty ones."""
    rng = random.Random(14)
    sent = 0
    with serving() as server, ExitStack() as stack:
        clients = [stack.enter_context(client(server.endpoint)) for _ in range(3)]
        for _ in range(60):
            expected: list[list[bytes]] = [[] for _ in clients]
            with sleeping(server):
                for _ in range(rng.randrange(1, 8)):
                    number, size = rng.randrange(3), rng.choice((0, 1, 1, 64, 64, 500))
                    for _ in range(rng.choice((1, 2, 3, 20))):
                        payload = rng.randbytes(size)
                        clients[number].send(payload)
                        expected[number].append(payload)
                        sent += 1
            for sock, payloads in zip(clients, expected, strict=True):
                assert [sock.recv(70000) for _ in payloads] == payloads
        stats = stopped(server)
    assert stats["datagrams_in"] == stats["datagrams_out"] == sent
    assert stats["bytes_in"] == stats["bytes_out"]


def test_a_run_leaves_in_one_call(tmp_path: Path) -> None:
    """Empty datagrams and other sizes end a run; the answers of a batch leave in one call."""
    log = tmp_path / "strace.log"
    with traced(log) as server, client(server.endpoint) as sock:
        payloads = payloads_of(*[64] * 20)
        assert echo_together(server, sock, payloads) == payloads
        mixed = payloads_of(64, 64, 0, 0, 64, 500, 500, 500)
        assert echo_together(server, sock, mixed) == mixed
        stats = stopped(server)
    assert stats["datagrams_in"] == stats["datagrams_out"] == 28
    assert outgoing(log) == [[64 * 20], [128, 0, 0, 64, 1500]]


def test_a_run_after_lone_datagrams(tmp_path: Path) -> None:
    """Where datagrams come one by one, few calls look for more; then three go alone at most."""
    log = tmp_path / "strace.log"
    with traced(log) as server, client(server.endpoint) as sock:
        for count in range(100, 104):
            for _ in range(count):
                assert echo(sock) == b"probe"
            payloads = payloads_of(*[64] * 20)
            assert echo_together(server, sock, payloads) == payloads
        stopped(server)
    sent = [sizes for sizes in outgoing(log) if sizes != [5]]
    assert sum(map(sum, sent)) == 4 * 20 * 64
    assert sum(sizes > [64 * 16] for sizes in sent) == 4
    assert len(sent) <= 4 * 4


def test_the_longest_run(tmp_path: Path) -> None:
    """A run has at most 64 datagrams, and 65,507 bytes."""
    log = tmp_path / "strace.log"
    with traced(log) as server, client(server.endpoint) as sock:
        for sizes in ([1] * 65, [21835] * 4, [21836] * 3):
            payloads = payloads_of(*sizes)
            assert echo_together(server, sock, payloads) == payloads
        stopped(server)
    assert outgoing(log) == [[64], [1], [21835 * 3, 21835], [21836 * 2, 21836]]


def test_the_address_asked_ends_a_run(tmp_path: Path) -> None:
    """One client asks two addresses of a wildcard socket: each answer has the right source."""
    log = tmp_path / "strace.log"
    asked = ["127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.3", "127.0.0.2"]
    with (
        traced(log, "udp://0.0.0.0:0") as server,
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock,
    ):
        sock.settimeout(20.0)
        with sleeping(server):
            for number, host in enumerate(asked):
                sock.sendto(b"%d" % number, (host, server.endpoint.port))
        for number, host in enumerate(asked):
            assert sock.recvfrom(100) == (b"%d" % number, (host, server.endpoint.port))
        stopped(server)
    assert outgoing(log) == [[2, 2, 1]]


def test_the_loop_guard_inside_a_run() -> None:
    """A datagram that may be a server's answer is dropped from between those of the same size."""
    with serving() as server, client(server.endpoint) as sock:
        with sleeping(server):
            for number in range(9):
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64 if number % 3 else 200)
                sock.send(b"%d" % number)
        assert [sock.recv(100) for _ in range(6)] == [b"1", b"2", b"4", b"5", b"7", b"8"]
        stats = stopped(server)
    assert (stats["datagrams_in"], stats["datagrams_out"]) == (9, 6)
    assert not_zero(stats["dropped"]) == {"loop_guard": 3}


def test_runs_and_segments() -> None:
    """What the kernel has merged (UDP_GRO) leaves as it came, between runs."""
    with Server(LOOPBACK) as server, client(server.endpoint) as sock:
        for _ in range(100):
            for payload in payloads_of(10, 10, 10):
                sock.send(payload)
            sock.sendmsg([payload_of(25)], [(17, 103, b"\n\0")])  # UDP_SEGMENT, 10 bytes
            for payload in payloads_of(10, 10, 5):
                sock.send(payload)
            answers = [sock.recv(100) for _ in range(9)]
            segments = [payload_of(25)[at : at + 10] for at in (0, 10, 20)]
            assert answers == [*payloads_of(10, 10, 10), *segments, *payloads_of(10, 10, 5)]
    stats = server.stats()
    assert stats.datagrams_in == stats.datagrams_out == 900


@pytest.mark.parametrize(
    "url", [f"udp://{SERVER}:0", "udp://0.0.0.0:0", "udp://[::]:0?dual_stack=1"]
)
def test_runs_above_the_mtu(tmp_path: Path, url: str) -> None:
    """Over Ethernet 1473 bytes go in two packets, which no run can; the server remembers it."""
    log = tmp_path / "strace.log"
    with two_networks() as networks:
        with inside(networks.server):
            tracing = traced(log, url)
            server = tracing.__enter__()
        try:
            with inside(networks.client):
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with closing(sock):
                sock.settimeout(20.0)
                sock.bind((CLIENT, 0))
                sock.connect((SERVER, server.endpoint.port))
                assert echo(sock) == b"probe"  # finds the neighbour, for which few packets wait
                for sizes in ([1472] * 4, [1473] * 4, [1473] * 4, [1474] * 3, [1472] * 4):
                    payloads = payloads_of(*sizes)
                    assert echo_together(server, sock, payloads) == payloads
                stats = stopped(server)
        finally:
            tracing.__exit__(None, None, None)
    assert stats["datagrams_in"] == stats["datagrams_out"] == 20
    assert stats["errors"] == {}
    apart = [[1473], [1473], [1473], [1473]]
    assert outgoing(log) == [[5], [5888], *apart, [1473] * 4, [1474] * 3, [5888]]
    assert log.read_text().count("EMSGSIZE") == 1


@pytest.mark.parametrize("error", ["EMSGSIZE", "EIO", "EINVAL", "ENOBUFS", "EAGAIN"])
def test_a_failed_run_goes_one_by_one(tmp_path: Path, error: str) -> None:
    """What the route cannot do is remembered (EIO: an IPsec tunnel), what has run out is not."""
    log = tmp_path / "strace.log"
    with (
        traced(log, LOOPBACK, "-e", f"inject=sendmmsg:error={error}:when=1") as server,
        client(server.endpoint) as sock,
    ):
        payloads = payloads_of(*[64] * 10, 7)
        for _ in range(2):
            assert echo_together(server, sock, payloads) == payloads
        stats = stopped(server)
    assert stats["datagrams_in"] == stats["datagrams_out"] == 22
    assert stats["errors"] == {}
    again = [640, 7] if error in ("ENOBUFS", "EAGAIN") else [*[64] * 10, 7]
    assert [sizes for sizes in outgoing(log) if len(sizes) > 1] == [again]


def test_unix_datagrams_have_no_runs(tmp_path: Path) -> None:
    """UDP_SEGMENT is of UDP alone."""
    endpoint = Endpoint("unixgram", path=f"{tmp_path}/echo")
    with serving(str(endpoint)) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20.0)
        sock.bind(f"{tmp_path}/client")
        sock.connect(endpoint.path)
        payloads = payloads_of(64, 64, 64, 0, 0)
        assert echo_together(server, sock, payloads) == payloads
        stats = stopped(server)
    assert stats["datagrams_in"] == stats["datagrams_out"] == 5
