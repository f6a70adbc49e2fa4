"""Tests of faults of datagrams: what clients see, what is counted, the queue, and the end.

What a fault may be called, and its parameters, are in test_fault_specs.py.
"""

from __future__ import annotations

import os
import socket
import statistics
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from clients import wait_until
from load_runs import until_counted
from test_datagram import SOL_UDP, UDP_SEGMENT, client, echo, forger

import fastsock
from fastsock import Server

UDP = "udp://127.0.0.1:0"
LONG = "60s"  # longer than a test
QUEUE_DATAGRAMS, QUEUE_BYTES = 65536, 64 << 20  # timed_queue.pxd
#: Half of the datagrams and more have a fault, some several.
MIXED = [
    "loss:probability=0.2",
    "duplicate:probability=0.2",
    "corrupt:probability=0.2",
    "truncate:size=9,probability=0.2",
]


@contextmanager
def unix_client(server: Server, folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(folder / "client"))
        sock.connect(server.address)
        sock.settimeout(20)
        yield sock


def numbered(count: int, size: int = 20) -> list[bytes]:
    return [struct.pack("!I", number).ljust(size, b".") for number in range(count)]


def answers_to(server: Server, sock: socket.socket, payloads: Iterable[bytes]) -> list[list[bytes]]:
    """The answers to each datagram, sent one after the other; no fault may delay."""
    found = []
    before = server.stats().datagrams_in
    for number, payload in enumerate(payloads):
        sock.send(payload)
        found.append(all_that_came(server, sock, before + number + 1))
    return found


def all_that_came(server: Server, sock: socket.socket, sent: int) -> list[bytes]:
    """What came, once the server has dealt with `sent` datagrams: loopback delivers at once."""
    wait_until(lambda: dealt_with(server.stats()) == sent)
    found = []
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            found.append(sock.recv(70000))
    sock.settimeout(20)
    return found


def dealt_with(stats: fastsock.ServerStats) -> int:
    """How many datagrams are lost or answered, or -1 while one of them is not."""
    done = Counter(stats.faults)
    answers = stats.datagrams_in - done["loss"] + done["duplicate"]
    return stats.datagrams_in if stats.datagrams_out == answers else -1


def bits_changed(one: bytes, other: bytes) -> int:
    return sum((x ^ y).bit_count() for x, y in zip(one, other, strict=True))


# --- each fault ---------------------------------------------------------------------------------


def test_loss() -> None:
    with Server(UDP, faults=["loss"]) as server, client(server.endpoint) as sock:
        for payload in numbered(50):
            sock.send(payload)
        wait_until(lambda: server.stats().faults == {"loss": 50})
        server.faults = []
        assert echo(sock) == b"probe"  # no answer was before it
    stats = server.stats()
    assert (stats.datagrams_in, stats.datagrams_out) == (51, 1)
    assert not any(stats.dropped.values())


@pytest.mark.parametrize("specs", [["duplicate"], ["duplicate", "duplicate"]])
@pytest.mark.parametrize("payload", [b"probe", b""])
def test_duplicate(specs: list[str], payload: bytes) -> None:
    """Two answers, never more."""
    with Server(UDP, faults=specs) as server, client(server.endpoint) as sock:
        for _ in range(20):
            sock.send(payload)
            assert [sock.recv(100), sock.recv(100)] == [payload, payload]
        assert not all_that_came(server, sock, 20)
    assert server.stats().faults == {"duplicate": 20}
    assert server.stats().datagrams_out == 40


@pytest.mark.parametrize("size", [1, 2, 1472, 65507])
def test_corrupt(size: int) -> None:
    """One bit of each answer is another one, anywhere."""
    with Server(UDP, faults=["corrupt"]) as server, client(server.endpoint) as sock:
        places = set()
        for _ in range(20):
            answer = echo(sock, bytes(size))
            assert bits_changed(answer, bytes(size)) == 1
            places.add(answer)
        assert len(places) > 1
        assert echo(sock, b"") == b""  # nothing to corrupt
    assert server.stats().faults == {"corrupt": 20}


def test_truncate() -> None:
    with Server(UDP, faults=["truncate:size=3"]) as server, client(server.endpoint) as sock:
        for sent, received in [(b"abcd", b"abc"), (b"abc", b"abc"), (b"", b""), (b"x" * 9, b"xxx")]:
            assert echo(sock, sent) == received
    assert server.stats().faults == {"truncate": 2}  # of four: the others were short
    assert server.stats().bytes_out == 9
    with Server(UDP, faults=["truncate:size=0"]) as server, client(server.endpoint) as sock:
        assert echo(sock) == b""


@pytest.mark.parametrize("delay", [0.0, 0.0005, 0.003, 0.05])
def test_latency(delay: float) -> None:
    """Never too early, and late by less than a millisecond where the machine has time."""
    with Server(UDP) as plain, client(plain.endpoint) as sock:
        usual = statistics.median(seconds_of_echo(sock) for _ in range(30))
    with (
        Server(UDP, faults=[f"latency:delay={delay * 1e6:g}us"]) as server,
        client(server.endpoint) as sock,
    ):
        taken = [seconds_of_echo(sock) for _ in range(30)]
        assert min(taken) >= delay
        assert statistics.quantiles(taken)[0] < delay + usual + 0.001
        wait_until(lambda: server.stats().faults == {"latency": 30})


def seconds_of_echo(sock: socket.socket) -> float:
    start = time.perf_counter()
    assert echo(sock) == b"probe"
    return time.perf_counter() - start


def test_jitter() -> None:
    with (
        Server(UDP, faults=["latency:delay=10ms,jitter=8ms"]) as server,
        client(server.endpoint) as sock,
    ):
        taken = [seconds_of_echo(sock) for _ in range(60)]
    assert min(taken) >= 0.002
    assert min(taken) < 0.006 < 0.014 < max(taken)
    assert statistics.quantiles(taken)[0] < 0.012


def test_what_is_delayed_keeps_its_order() -> None:
    with (
        Server(UDP, faults=["latency:delay=30ms"]) as server,
        client(server.endpoint) as sock,
    ):
        sent = numbered(100)
        for payload in sent:
            sock.send(payload)
        assert [sock.recv(100) for _ in sent] == sent


@pytest.mark.parametrize(
    ("gap", "order"), [(1, [1, 0, 3, 2, 5, 4]), (2, [1, 2, 0, 4, 5, 3]), (5, [1, 2, 3, 4, 5, 0])]
)
@pytest.mark.parametrize("others", [[], ["latency:delay=20ms"]])
def test_reorder(gap: int, order: list[int], others: list[str]) -> None:
    """A datagram is sent behind the next ones of its client."""
    faults = [f"reorder:gap={gap},delay={LONG}", *others]
    with Server(UDP, faults=faults) as server, ExitStack() as stack:
        clients = [stack.enter_context(client(server.endpoint)) for _ in range(3)]
        sent = numbered(6)
        for payload in sent:
            for sock in clients:
                sock.send(payload)
        for sock in clients:
            assert [sock.recv(100) for _ in sent] == [sent[number] for number in order]
        wait_until(lambda: server.stats().faults["reorder"] == 3 * 6 // (gap + 1))


def test_reorder_without_a_next_datagram() -> None:
    """It is sent after `delay`; it was not reordered then."""
    with (
        Server(UDP, faults=["reorder:gap=2,delay=20ms"]) as server,
        client(server.endpoint) as sock,
    ):
        start = time.perf_counter()
        assert echo(sock) == b"probe"
        assert time.perf_counter() - start >= 0.02
        sock.send(b"first")
        sock.send(b"second")
        assert [sock.recv(100), sock.recv(100)] == [b"second", b"first"]
        wait_until(lambda: server.stats().datagrams_out == 3)
    assert server.stats().faults == {"reorder": 1}


def test_many_clients_have_one_held_back() -> None:
    with (
        Server(UDP, faults=[f"reorder:delay={LONG}"]) as server,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(client(server.endpoint)) for _ in range(60)]
        for sock in clients:
            sock.send(b"first")
        for sock in reversed(clients):
            sock.send(b"second")
        for sock in clients:
            assert [sock.recv(100), sock.recv(100)] == [b"second", b"first"]


# --- several faults, one seed -------------------------------------------------------------------


def test_several_faults_together() -> None:
    """Each is decided by itself: some datagrams have several, and every count is what was seen."""
    with Server(UDP, faults=MIXED) as server, client(server.endpoint) as sock:
        sent = numbered(400)
        answers = answers_to(server, sock, sent)
    seen: Counter[str] = Counter()
    several = 0
    for payload, found in zip(sent, answers, strict=True):
        assert len(found) <= 2
        assert len(set(found)) <= 1  # the second is a copy of the first
        if not found:
            seen["loss"] += 1
            continue
        assert len(found[0]) in (9, 20)
        faults = {
            "duplicate": len(found) == 2,
            "truncate": len(found[0]) == 9,
            "corrupt": bits_changed(found[0], payload[: len(found[0])]) == 1,
        }
        seen.update(kind for kind, had in faults.items() if had)
        several += sum(faults.values()) > 1
    stats = server.stats()
    assert stats.faults == seen
    assert several > 20
    assert stats.datagrams_out == stats.datagrams_in - seen["loss"] + seen["duplicate"]
    for count in seen.values():
        assert 40 < count < 120  # 80 are expected


def test_probability_0() -> None:
    faults = [f"{each}:probability=0" for each in ("loss", "duplicate", "corrupt", "reorder")]
    with Server(UDP, faults=faults) as server, client(server.endpoint) as sock:
        for payload in numbered(200):
            assert echo(sock, payload) == payload
    assert server.stats().faults == {}


@pytest.mark.parametrize("options", [{}, {"workers": 2}])
def test_one_seed_has_the_same_faults(options: dict[str, Any]) -> None:
    sent = numbered(150)

    def answers(seed: int) -> list[list[bytes]]:
        with (
            Server(UDP, faults=MIXED, seed=seed, **options) as server,
            client(server.endpoint) as sock,
        ):
            return answers_to(server, sock, sent)

    first = answers(7)
    assert answers(7) == first
    assert answers(8) != first


def test_new_faults_begin_anew() -> None:
    """As at the start: a test that sets them sees the same, whatever ran before it."""
    sent = numbered(100)
    with Server(UDP, faults=MIXED) as server, client(server.endpoint) as sock:
        first = answers_to(server, sock, sent)
        second = answers_to(server, sock, sent)
        assert second != first
        server.faults = MIXED
        assert answers_to(server, sock, sent) == first


def test_faults_are_changed_while_it_runs() -> None:
    """What is sent after the change meets the new faults; what was delayed before stays so."""
    with Server(UDP, faults=[]) as server, client(server.endpoint) as sock:
        for number in range(30):
            server.faults = ["truncate:size=2"]
            assert echo(sock, b"%09d" % number) == b"00"
            server.faults = []
            assert echo(sock, b"%09d" % number) == b"%09d" % number
        server.faults = ["latency:delay=300ms"]
        sock.send(b"delayed")
        wait_until(lambda: server.stats().datagrams_in == 61)
        server.faults = []
        assert echo(sock) == b"probe"
        assert sock.recv(100) == b"delayed"
    assert server.stats().faults == {"truncate": 30, "latency": 1}


def test_faults_cannot_be_added_to_a_server_without() -> None:
    with Server(UDP) as server, client(server.endpoint) as sock:
        with pytest.raises(ValueError, match=r"faults=\[\]"):
            server.faults = ["loss"]
        assert echo(sock) == b"probe"


# --- the load client ----------------------------------------------------------------------------


@pytest.mark.parametrize("url", [UDP, "udp://[::1]:0", "unixgram://@fastsock-test-{}"])
@pytest.mark.parametrize(
    "faults",
    [
        ["loss:probability=0.05", "duplicate:probability=0.1", "latency:delay=1ms"],
        ["corrupt:probability=0.05", "duplicate:probability=0"],
        ["truncate:size=16,probability=0.05"],
        ["reorder:probability=0.1,gap=2,delay=100ms"],
    ],
)
def test_the_load_client_sees_what_was_done(url: str, faults: list[str]) -> None:
    with Server(url.format(os.getpid()), faults=faults) as server:
        report = until_counted(
            lambda: fastsock.load(
                server.endpoint,
                connections=2,
                depth=8,
                size=64,
                messages=1000,
                loss_timeout=0.2,
                wait="block",
            )
        )
    stats = server.stats()
    seen, done = report.datagrams, Counter(stats.faults)
    assert seen is not None
    # An answer that is corrupt counts as lost: it is no answer.
    assert seen["lost"] == done["loss"] + done["corrupt"] + done["truncate"]
    assert seen["duplicated"] == done["duplicate"]
    assert seen["reordered"] == done["reorder"]
    assert bool(report.corrupt_bytes) == bool(done["corrupt"] + done["truncate"])
    assert sum(done.values()) > 30


# --- where datagrams come from ------------------------------------------------------------------


@pytest.mark.parametrize("url", ["udp://0.0.0.0:0", "udp://[::]:0?dual_stack=1"])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_source_of_a_delayed_answer(url: str, workers: int) -> None:
    """It leaves from the address that was asked, whichever was asked meanwhile."""
    faults = ["latency:delay=20ms,jitter=10ms", "duplicate"]
    with Server(url, faults=faults, workers=workers) as server, ExitStack() as stack:
        clients = [
            stack.enter_context(client(server.endpoint, f"127.0.0.{last}")) for last in range(2, 20)
        ]
        for number, sock in enumerate(clients):
            sock.send(b"%d" % number)
        for number, sock in enumerate(clients):
            assert [sock.recv(100), sock.recv(100)] == [b"%d" % number] * 2


def test_ipv6() -> None:
    with (
        Server("udp://[::]:0", faults=["latency:delay=5ms", "corrupt"]) as server,
        client(server.endpoint, "::1") as sock,
    ):
        assert bits_changed(echo(sock), b"probe") == 1


@pytest.mark.parametrize(("workers", "answers"), [(1, 2), (2, 0)])
def test_a_broadcast(workers: int, answers: int) -> None:
    with (
        Server(
            "udp://0.0.0.0:0", faults=["duplicate"], workers=workers, loop_guard=False
        ) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking,
    ):
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        asking.bind(("127.0.0.1", 0))
        asking.sendto(b"all", ("127.255.255.255", server.endpoint.port))
        wait_until(lambda: server.stats().datagrams_in == workers)
        wait_until(lambda: server.stats().datagrams_out == answers)
        assert server.stats().dropped["loop_guard"] == (0 if answers else workers)


def test_the_loop_guard() -> None:
    """No fault makes an answer of what may be an answer."""
    with Server(UDP, faults=["duplicate"]) as server, client(server.endpoint) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 200)
        for _ in range(10):
            sock.send(b"may loop")
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64)
        assert echo(sock) == b"probe"
        wait_until(lambda: server.stats().dropped["loop_guard"] == 10)
    assert server.stats().datagrams_out == 2


def test_two_servers_do_not_answer_each_other() -> None:
    with (
        Server(UDP, faults=["duplicate"]) as one,
        Server(UDP, faults=["duplicate"]) as other,
        forger() as forge,
    ):
        forge(("127.0.0.1", other.port), one.endpoint)
        wait_until(lambda: other.stats().dropped["loop_guard"] == 2)
    assert (one.stats().datagrams_in, one.stats().datagrams_out) == (1, 2)
    assert other.stats().datagrams_out == 0


def test_merged_datagrams_have_their_own_faults() -> None:
    """The kernel may hand several to the server as one (UDP_GRO); each is decided by itself."""
    sent = numbered(40)
    segmented = (SOL_UDP, UDP_SEGMENT, struct.pack("H", len(sent[0])))
    with Server(UDP, faults=MIXED) as server, client(server.endpoint) as sock:
        one_by_one = answers_to(server, sock, sent)
        server.faults = MIXED
        sock.sendmsg([b"".join(sent)], [segmented])
        assert all_that_came(server, sock, 80) == [each for found in one_by_one for each in found]
    assert server.stats().datagrams_in == 80


def test_unixgram(tmp_path: Path) -> None:
    with (
        Server(
            f"unixgram://{tmp_path}/server", faults=["duplicate", "latency:delay=2ms"]
        ) as server,
        unix_client(server, tmp_path) as sock,
    ):
        for payload in (b"probe", b"", bytes(65535)):
            sock.send(payload)
            assert [sock.recv(70000), sock.recv(70000)] == [payload, payload]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unnamed:
            unnamed.connect(server.address)
            unnamed.send(b"no address to answer to")
        wait_until(lambda: server.stats().dropped["unnamed"] == 1)


def test_a_client_that_does_not_read(tmp_path: Path) -> None:
    """Its answers are dropped when no more can be queued; the others are served."""
    with (
        Server(f"unixgram://{tmp_path}/server", faults=["duplicate"]) as server,
        unix_client(server, tmp_path) as sock,
    ):
        for _ in range(1000):
            sock.send(b"x")
        wait_until(lambda: server.stats().dropped["send_error"] > 0)
        wait_until(
            lambda: server.stats().datagrams_out + server.stats().dropped["send_error"] == 2000
        )
    assert server.stats().errors == {"EAGAIN": server.stats().dropped["send_error"]}


def test_an_inherited_socket() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with (
            Server(fds=[sock.fileno()], faults=["truncate:size=3"]) as server,
            client(server.endpoint) as asking,
        ):
            assert echo(asking) == b"pro"


def test_an_inherited_socket_that_is_shut_down() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0fastsock-test-shut-{os.getpid()}")
        server = Server(fds=[sock.fileno()], faults=[])
        shut = threading.Timer(0.1, lambda: sock.shutdown(socket.SHUT_RD))
        with pytest.raises(OSError, match="was shut"):
            server.serve_forever(ready=lambda _: shut.start())
        shut.join()


def test_streams_beside_datagrams() -> None:
    """Each has the faults that it can have."""
    with Server("tcp://127.0.0.1:0", UDP, faults=["truncate:size=3"]) as server:
        with client(server.endpoints[1]) as sock:
            assert echo(sock) == b"pro"
        with socket.create_connection(server.address) as stream:
            stream.sendall(b"probe")
            assert stream.recv(5, socket.MSG_WAITALL) == b"probe"


# --- the queue and the end ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "count"), [(10, QUEUE_DATAGRAMS + 3000), (60000, QUEUE_BYTES // 60000 + 100)]
)
def test_the_queue_is_bounded(tmp_path: Path, size: int, count: int) -> None:
    """What does not fit is dropped and counted; a stop drops the rest within milliseconds."""
    with (
        Server(f"unixgram://{tmp_path}/server", faults=[f"latency:delay={LONG}"]) as server,
        unix_client(server, tmp_path) as sock,
    ):
        for _ in range(count):
            sock.send(bytes(size))  # waits for room, so that none is lost
        wait_until(lambda: server.stats().datagrams_in == count)
        full = server.stats().dropped["queue_full"]
        if size < 100:
            assert full == count - QUEUE_DATAGRAMS
        else:
            assert 100 <= full < 120  # what is kept for each datagram counts too
        start = time.perf_counter()
        server.stop()
        assert time.perf_counter() - start < 0.5
    stats = server.stats()
    assert stats.dropped["stopped"] == count - full
    assert (stats.datagrams_out, stats.faults) == (0, {})


def test_a_stop_without_drain() -> None:
    faults = [f"latency:delay={LONG}", "reorder:probability=0.5"]
    with Server(UDP, faults=faults) as server, client(server.endpoint) as sock:
        for payload in numbered(100):
            sock.send(payload)
        wait_until(lambda: server.stats().datagrams_in == 100)
        start = time.perf_counter()
        server.stop()
        assert time.perf_counter() - start < 0.5
    assert server.stats().dropped["stopped"] == 100


def test_a_drain_sends_what_is_delayed() -> None:
    """It ends when the last is sent, long before its deadline."""
    with (
        Server(UDP, faults=["latency:delay=200ms"]) as server,
        client(server.endpoint) as sock,
    ):
        sent = numbered(100)
        for payload in sent:
            sock.send(payload)
        start = time.perf_counter()
        server.stop(drain=20.0)
        assert 0.1 < time.perf_counter() - start < 10
        assert [sock.recv(100) for _ in sent] == sent
    assert not any(server.stats().dropped.values())


def test_the_deadline_of_a_drain() -> None:
    """What is delayed for longer is dropped then; a second stop ends it at once."""
    faults = [f"latency:delay={LONG}"]
    with Server(UDP, faults=faults) as server, client(server.endpoint) as sock:
        sock.send(b"probe")
        wait_until(lambda: server.stats().datagrams_in == 1)
        start = time.perf_counter()
        server.stop(drain=0.2)
        assert 0.2 <= time.perf_counter() - start < 5
    assert server.stats().dropped["stopped"] == 1
    with Server(UDP, faults=faults) as server, client(server.endpoint) as sock:
        sock.send(b"probe")
        wait_until(lambda: server.stats().datagrams_in == 1)
        again = threading.Timer(0.1, lambda: server.stop(0))
        again.start()
        start = time.perf_counter()
        server.stop(drain=60)
        assert time.perf_counter() - start < 5
        again.join()


def test_a_fork_leaves_the_queue_alone() -> None:
    with (
        Server(UDP, faults=["latency:delay=50ms", "duplicate"]) as server,
        client(server.endpoint) as sock,
    ):
        for payload in numbered(20):
            sock.send(payload)
        child = os.fork()
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert len([sock.recv(100) for _ in range(40)]) == 40
