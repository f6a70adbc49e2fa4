"""Tests of udp endpoints with several workers: one group of sockets, SO_REUSEPORT."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from clients import TIMEOUT, wait_until
from test_datagram import client, echo

from fastsock import Server


def received_per_worker(server: Server) -> list[int]:
    return [worker.counters()["datagrams_in"] for worker in server._workers]


@pytest.mark.parametrize("url", ["udp://127.0.0.1:0", "udp://[::1]:0", "udp://0.0.0.0:0"])
def test_every_worker_serves(url: str) -> None:
    """The kernel spreads the clients; all datagrams of one come to one worker, in order."""
    with Server(url, workers=3) as server, ExitStack() as stack:
        assert f"{server.endpoint} (datagrams, 3 workers)" in repr(server)
        host = None if "0.0.0.0" not in url else "127.0.0.1"
        for _ in range(60):
            sock = stack.enter_context(client(server.endpoint, host))
            before = received_per_worker(server)
            for number in range(10):
                sock.send(b"%d" % number)
            assert [sock.recv(100) for _ in range(10)] == [b"%d" % number for number in range(10)]
            after = received_per_worker(server)
            assert sorted(y - x for x, y in zip(before, after, strict=True)) == [0, 0, 10]
        assert min(received_per_worker(server)) > 0
        port = server.endpoint.port
    stats = server.stats()
    assert stats.datagrams_in == stats.datagrams_out == 600
    assert stats.accepted_per_worker == (0, 0, 0)  # datagrams are no connections
    with Server(f"{url.removesuffix('0')}{port}"):  # the port is free
        pass


@pytest.mark.parametrize(("workers", "answers"), [(1, 1), (3, 0)])
def test_a_broadcast_gets_no_answer_of_each_worker(workers: int, answers: int) -> None:
    """The kernel gives a copy to every socket of the port, unlike a datagram to one host."""
    with (
        Server("udp://0.0.0.0:0", workers=workers, loop_guard=False) as server,
        client(server.endpoint, "127.0.0.1") as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking,
    ):
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        asking.settimeout(TIMEOUT)
        asking.bind(("127.0.0.1", 0))
        asking.sendto(b"all", ("127.255.255.255", server.endpoint.port))
        wait_until(lambda: server.stats().datagrams_in == workers)
        assert echo(sock) == b"probe"  # after it: each worker has seen the broadcast
        wait_until(lambda: server.stats().datagrams_out == answers + 1)
        assert server.stats().dropped["loop_guard"] == (0 if answers else workers)


def test_workers_of_each_kind_of_endpoint(tmp_path: Path) -> None:
    """tcp and udp endpoints have as many as asked for, Unix ones and inherited sockets one."""
    cpu = min(os.sched_getaffinity(0))
    urls = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0", f"unix://{tmp_path}/a", "unixgram://@b"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as borrowed:
        borrowed.bind(("127.0.0.1", 0))
        with (
            Server(*urls, fds=[borrowed.fileno()], workers=3, cpus=[cpu]) as server,
            client(server.endpoints[1]) as sock,
        ):
            assert echo(sock) == b"probe"
            assert len(server.stats().accepted_per_worker) == 3 + 3 + 3
            assert repr(server).count("3 workers") == 2
            assert repr(server).count("1 worker") == 3


def test_a_second_server_does_not_join() -> None:
    """The port is in use, also for a server with workers; with reuse_port they share it."""
    with Server("udp://127.0.0.1:0", workers=2) as server, client(server.endpoint) as sock:
        for workers in (1, 2):
            with pytest.raises(OSError, match="another socket is bound to it") as caught:
                Server(server.endpoint, workers=workers).start()
            assert caught.value.errno == errno.EADDRINUSE
        assert echo(sock) == b"probe"
    with (
        Server(server.endpoint, workers=2, reuse_port=True) as first,
        Server(server.endpoint, workers=2, reuse_port=True) as second,
        ExitStack() as stack,
    ):
        for _ in range(100):
            assert echo(stack.enter_context(client(server.endpoint))) == b"probe"
        assert min(received_per_worker(first) + received_per_worker(second)) > 0


def test_a_drain_of_several_workers() -> None:
    """What waits in the queue of each is answered, while the others close their sockets."""
    with Server("udp://127.0.0.1:0", workers=4) as server, ExitStack() as stack:
        clients = [stack.enter_context(client(server.endpoint)) for _ in range(40)]
        for sock in clients:
            sock.send(b"before the stop")
        server.stop(drain=20.0)
        assert [sock.recv(100) for sock in clients] == [b"before the stop"] * 40


@pytest.mark.parametrize(
    ("endpoints", "fewest"),
    [(["udp://127.0.0.1:0"], 3), (["udp://127.0.0.1:0", "tcp://127.0.0.1:0", "unix://@a"], 7)],
)
def test_workers_count_where_connections_are_shared(endpoints: list[Any], fewest: int) -> None:
    """Before it is said that datagrams have no connections."""
    with pytest.raises(ValueError, match=f"is shared by {fewest} workers"):
        Server(*endpoints, workers=3, max_connections=fewest - 1)
    with pytest.raises(ValueError, match="max_connections goes with streams"):
        Server(*endpoints, workers=3, max_connections=fewest)
