"""Tests of datagram servers: answers, source addresses, the loop guard, errors, stopping.

Forged datagrams are sent on raw sockets, which need CAP_NET_RAW. Errors of system calls are
injected with strace(1).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from clients import not_zero, wait_until
from implementations import IMPLEMENTATIONS, ServedProcess, usable_engines
from networks import ip, own_network

import fastsock.pure
from fastsock import Endpoint, Server

TIMEOUT = 20.0  # seconds; only something that hangs takes so long
SIZES = (0, 1, 1472, 1473, 65507)  # 1472 fill an Ethernet frame; 65507 are UDP's maximum
LOOPBACK = "127.0.0.1"
SOL_UDP, UDP_SEGMENT = 17, 103  # linux/udp.h; the socket module has no names for them
BOTH = (Server, fastsock.pure.Server)


def client(endpoint: Endpoint, host: str | None = None) -> closing[socket.socket]:
    """A socket connected to the server: it receives only from the address that it sends to."""
    host = host or endpoint.host
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(TIMEOUT)
    if host.startswith("fe80:"):
        sock.connect((host, endpoint.port, 0, socket.if_nametoindex("lo")))
    else:
        sock.connect((host, endpoint.port))
    return closing(sock)


def echo(sock: socket.socket, payload: bytes = b"probe") -> bytes:
    sock.send(payload)
    return sock.recv(70000)


def payload_of(size: int, seed: int = 0) -> bytes:
    return bytes((seed + place * 7) % 251 for place in range(size))


@contextmanager
def forger() -> Iterator[Any]:
    """A function that sends a datagram with another source address."""
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except PermissionError:
        pytest.skip("raw sockets need CAP_NET_RAW")

    def forge(source: tuple[str, int], target: Endpoint, payload: bytes = b"forged") -> None:
        udp = struct.pack("!HHHH", source[1], target.port, 8 + len(payload), 0) + payload
        # The kernel fills in the length, the identification and the checksum (raw(7)).
        addresses = socket.inet_aton(source[0]) + socket.inet_aton(target.host)
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
        raw.sendto(ip + udp, (target.host, target.port))

    with closing(raw):
        yield forge


def settle(*servers: Server) -> None:
    """Echo many times: if the servers answered each other, their counters would show it."""
    for server in servers:
        with client(server.endpoint) as sock:
            for _ in range(200):
                assert echo(sock) == b"probe"


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("url", ["udp://127.0.0.1:0", "udp://[::1]:0"])
def test_one_datagram(make: Any, url: str, size: int) -> None:
    """A datagram of any size comes back unchanged, the empty one too."""
    with make(url) as server, client(server.endpoint) as sock:
        payload = payload_of(size)
        assert echo(sock, payload) == payload
        assert echo(sock) == b"probe"
    stats = server.stats()
    assert (stats.datagrams_in, stats.datagrams_out) == (2, 2)
    assert (stats.bytes_in, stats.bytes_out) == (size + 5, size + 5)
    assert stats.accepted == stats.open == sum(stats.dropped.values()) == 0


def test_the_largest_datagram_of_ipv6() -> None:
    """The maximum of IPv6 is 20 bytes more than that of IPv4, and is not truncated."""
    with Server("udp://[::1]:0") as server, client(server.endpoint) as sock:
        payload = payload_of(65527)
        assert echo(sock, payload) == payload


def test_batches_of_mixed_sizes_from_several_clients() -> None:
    """Each client gets an answer to each of its datagrams, in order."""
    with Server("udp://127.0.0.1:0") as server, ExitStack() as stack:
        clients = [stack.enter_context(client(server.endpoint)) for _ in range(4)]
        for turn in range(50):
            for number, sock in enumerate(clients):
                for place, size in enumerate((0, 1, 1472, 1473, 500, 0, 64)):
                    sock.send(payload_of(size, turn + number + place))
            for number, sock in enumerate(clients):
                for place, size in enumerate((0, 1, 1472, 1473, 500, 0, 64)):
                    assert sock.recv(70000) == payload_of(size, turn + number + place)
    stats = server.stats()
    assert stats.datagrams_in == stats.datagrams_out == 50 * 4 * 7


def echo_segments(sock: socket.socket, payload: bytes, size: int) -> list[bytes]:
    """Send datagrams of `size` bytes in one call (udp(7), UDP_SEGMENT); return the answers.

    A server may receive them in one call too.
    """
    segmented = (SOL_UDP, UDP_SEGMENT, struct.pack("H", size))
    assert sock.sendmsg([payload], [segmented]) == len(payload)
    return [sock.recv(70000) for _ in range(0, len(payload), size)]


@pytest.mark.parametrize("url", ["udp://127.0.0.1:0", "udp://[::1]:0"])
@pytest.mark.parametrize(("size", "last"), [(1, 1), (64, 63), (1400, 1400), (1448, 1), (9000, 7)])
def test_segments(url: str, size: int, last: int) -> None:
    """Datagrams that a client sends in one call come back one by one, unchanged."""
    count = min(40, 60000 // size)
    payload = payload_of(size * (count - 1) + last)
    with Server(url) as server, client(server.endpoint) as sock:
        answers = echo_segments(sock, payload, size)
        assert answers == [payload[at : at + size] for at in range(0, len(payload), size)]
        assert echo(sock) == b"probe"
    stats = server.stats()
    assert stats.datagrams_in == stats.datagrams_out == count + 1
    assert stats.bytes_in == stats.bytes_out == len(payload) + 5


def test_the_loop_guard_counts_every_segment() -> None:
    with Server("udp://127.0.0.1:0") as server, client(server.endpoint) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 200)
        sock.sendmsg([bytes(95)], [(SOL_UDP, UDP_SEGMENT, struct.pack("H", 10))])
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64)
        assert echo(sock) == b"probe"
    assert server.stats().dropped["loop_guard"] == 10


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("url", ["udp://0.0.0.0:0", "udp://[::]:0?dual_stack=1"])
def test_the_source_of_an_answer(make: Any, url: str) -> None:
    """A wildcard socket answers from the address that the datagram was sent to."""
    with make(url) as server:
        for last in range(2, 10):
            with client(server.endpoint, f"127.0.0.{last}") as sock:
                assert echo(sock) == b"probe"


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("udp://[::]:0", "2001:db8:9::42"),
        ("udp://[::]:0?dual_stack=1", "198.51.100.42"),
        ("udp://0.0.0.0:0", "198.51.100.42"),
    ],
)
def test_an_address_that_only_a_route_makes_local(make: Any, url: str, asked: str) -> None:
    """A whole prefix may be local without one address of it on an interface (ip-route(8))."""
    with own_network():
        ip("-6", "route", "add", "local", "2001:db8:9::/64", "dev", "lo")
        ip("route", "add", "local", "198.51.100.0/24", "dev", "lo")
        with make(url) as server, client(server.endpoint, asked) as sock:
            assert echo(sock) == b"probe"
        assert server.stats().datagrams_out == 1


@pytest.mark.parametrize("make", BOTH)
def test_a_link_local_address(make: Any) -> None:
    """It is local to one interface, by which the answer leaves."""
    with own_network():
        ip("-6", "addr", "add", "fe80::7/64", "dev", "lo", "nodad")
        with make("udp://[::]:0") as server:
            # The kernel makes a new address reachable a little later.
            wait_until(lambda: answers(server.endpoint, "fe80::7"))
        assert server.stats().datagrams_out > 0


def answers(endpoint: Endpoint, address: str) -> bool:
    """Whether the server answers within half a second at this address."""
    with client(endpoint, address) as sock, suppress(TimeoutError):
        sock.settimeout(0.5)
        return echo(sock) == b"probe"
    return False


@pytest.mark.parametrize("make", BOTH)
def test_a_multicast_of_ipv6_is_not_answered(make: Any) -> None:
    """Every host of a link would answer one forged source; and no answer has a group as source."""
    with own_network():
        ip("link", "add", "one", "type", "veth", "peer", "name", "other")  # lo takes no multicast
        for name in ("one", "other"):
            ip("link", "set", name, "addrgenmode", "none", "up")
        ip("-6", "addr", "add", "fe80::7/64", "dev", "one", "nodad")
        with make("udp://[::]:0") as server, client(server.endpoint, "::1") as probe:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                index = socket.if_nametoindex("one")
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
                sock.sendto(b"all", ("ff02::1", server.endpoint.port, 0, index))
            assert echo(probe) == b"probe"
        stats = server.stats()
        assert stats.datagrams_out == 1
        assert stats.dropped["loop_guard"] == stats.datagrams_in - 1 >= 1


@pytest.mark.parametrize("make", BOTH)
def test_a_foreign_address_is_not_bound(make: Any) -> None:
    """That answers may have any local address opens no foreign one to bind()."""
    with pytest.raises(OSError, match="not an address of this machine"):
        make("udp://[2001:db8:9::42]:0").start()


def test_ipv6_wildcard() -> None:
    """A wildcard socket of IPv6 without dual stack does not serve IPv4."""
    with Server("udp://[::]:0") as server:
        with client(server.endpoint, "::1") as sock:
            assert echo(sock) == b"probe"
        with client(server.endpoint, LOOPBACK) as sock, pytest.raises(ConnectionRefusedError):
            echo(sock)


def test_tcp_and_udp_on_one_port() -> None:
    """Both are served, and counted together."""
    with Server("tcp://127.0.0.1:0") as first:
        port = first.endpoint.port
    with Server(f"tcp://127.0.0.1:{port}", f"udp://127.0.0.1:{port}") as server:
        assert [str(each) for each in server.endpoints] == [
            f"tcp://127.0.0.1:{port}",
            f"udp://127.0.0.1:{port}",
        ]
        with socket.create_connection((LOOPBACK, port), TIMEOUT) as stream:
            stream.sendall(b"stream")
            assert stream.recv(6, socket.MSG_WAITALL) == b"stream"
        with client(server.endpoints[1]) as sock:
            assert echo(sock) == b"probe"
    stats = server.stats()
    assert (stats.accepted, stats.datagrams_in, stats.bytes_in) == (1, 1, 11)


# --- the loop guard -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("port", [0, 7, 19, 53, 1023])
def test_ports_below_1024_are_not_answered(make: Any, port: int) -> None:
    """A datagram with a source port below 1024 is dropped and counted."""
    with make("udp://127.0.0.1:0") as server, forger() as forge:
        forge((LOOPBACK, port), server.endpoint)
        settle(server)
    stats = server.stats()
    assert not_zero(stats.dropped) == {"loop_guard": 1}
    assert (stats.datagrams_in, stats.datagrams_out) == (201, 200)


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_the_servers_own_port_is_not_answered(make: Any, host: str) -> None:
    """A datagram with the server's own port as its source is dropped, at any address."""
    with make("udp://127.0.0.1:0") as server, forger() as forge:
        forge((host, server.endpoint.port), server.endpoint)
        settle(server)
    stats = server.stats()
    assert (stats.dropped["loop_guard"], stats.datagrams_in) == (1, 201)


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("host", ["224.0.0.1", "255.255.255.255"])
def test_multicast_and_broadcast_sources_are_not_answered(make: Any, host: str) -> None:
    """The kernel or the server drops datagrams from a multicast or broadcast address."""
    with make("udp://127.0.0.1:0") as server, forger() as forge:
        forge((host, 5000), server.endpoint)
        settle(server)
    stats = server.stats()
    assert stats.datagrams_out == 200
    assert stats.dropped["loop_guard"] == stats.datagrams_in - 200


@pytest.mark.parametrize("make", BOTH)
def test_a_broadcast_is_not_answered(make: Any) -> None:
    """A broadcast is not answered: a forged source would get the answers of all hosts."""
    with make("udp://0.0.0.0:0") as server, client(server.endpoint, LOOPBACK) as probe:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.sendto(b"all", ("127.255.255.255", server.endpoint.port))
        assert echo(probe) == b"probe"
    stats = server.stats()
    assert (stats.dropped["loop_guard"], stats.datagrams_out) == (1, 1)


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("url", ["udp://127.0.0.1:0", "udp://0.0.0.0:0"])
def test_two_servers_do_not_answer_each_other(make: Any, url: str) -> None:
    """A forged datagram gets one answer, which the other server drops."""
    with make(url) as a, make(url) as b, forger() as forge:
        forge((LOOPBACK, b.endpoint.port), Endpoint("udp", LOOPBACK, a.endpoint.port))
        settle(a, b)
    first, second = a.stats(), b.stats()
    assert (first.datagrams_in, first.datagrams_out) == (201, 201)
    assert (second.datagrams_in, second.datagrams_out) == (201, 200)
    assert second.dropped["loop_guard"] == 1


def test_without_the_guard_two_servers_loop_until_stopped() -> None:
    """loop_guard=False lets two servers answer each other; stop() still ends them."""
    with (
        Server("udp://127.0.0.1:0", loop_guard=False) as a,
        Server("udp://127.0.0.1:0", loop_guard=False) as b,
        forger() as forge,
    ):
        forge((LOOPBACK, b.endpoint.port), a.endpoint)
        while b.stats().datagrams_in < 1000:
            settle(a)
        a.stop()
        b.stop(drain=TIMEOUT)


def test_without_the_guard_port_0_is_a_failed_send() -> None:
    """An answer that cannot be sent is dropped and counted; the other answers arrive."""
    with (
        Server("udp://127.0.0.1:0", loop_guard=False) as server,
        forger() as forge,
        client(server.endpoint) as sock,
    ):
        for number in range(100):
            sock.send(b"before %d" % number)
            forge((LOOPBACK, 0), server.endpoint)
            sock.send(b"after %d" % number)
            assert sock.recv(100) == b"before %d" % number
            assert sock.recv(100) == b"after %d" % number
    stats = server.stats()
    assert not_zero(stats.dropped) == {"send_error": 100}
    assert stats.errors == {"EINVAL": 100}


# --- clients that have closed, errors, stopping -------------------------------------------------


@pytest.mark.parametrize("make", BOTH)
def test_clients_that_close_do_not_cost_others_an_answer(make: Any) -> None:
    """ICMP errors for clients that have closed do not cost the others an answer."""
    with make("udp://127.0.0.1:0") as server, client(server.endpoint) as healthy:
        for number in range(2000):
            with client(server.endpoint) as short_lived:
                short_lived.send(b"gone")
            assert echo(healthy, b"%d" % number) == b"%d" % number
    stats = server.stats()
    assert stats.datagrams_in == 4000
    assert stats.datagrams_out + stats.dropped["send_error"] == 4000


def test_a_port_that_is_taken() -> None:
    """A second server on the port fails to bind, and the first goes on."""
    with Server("udp://127.0.0.1:0") as server, client(server.endpoint) as sock:
        with pytest.raises(OSError, match=f"bind {server.endpoint}: Address already in use"):
            Server(server.endpoint).start()
        with pytest.raises(OSError, match="Address already in use"):
            Server("tcp://127.0.0.1:0", server.endpoint).start()
        assert echo(sock) == b"probe"


def test_an_address_of_another_machine() -> None:
    """A failed bind names the step, the endpoint and a remedy."""
    with pytest.raises(OSError, match=r"bind udp://192\.0\.2\.1:0: .*not an address of this"):
        Server("udp://192.0.2.1:0").start()


def test_reuse_port() -> None:
    """Two servers share a port when both asked for it."""
    with (
        Server("udp://127.0.0.1:0", reuse_port=True) as first,
        Server(first.endpoint, reuse_port=True) as second,
        ExitStack() as stack,
    ):
        for _ in range(64):
            assert echo(stack.enter_context(client(first.endpoint))) == b"probe"
        assert first.stats().datagrams_in + second.stats().datagrams_in == 64


def test_stop_frees_the_port() -> None:
    """After stop() the port is free, and the counters can be read."""
    server = Server("udp://127.0.0.1:0")
    server.start()
    with client(server.endpoint) as sock:
        assert echo(sock) == b"probe"
        server.stop()
        assert server.stats().datagrams_out == 1
        with pytest.raises(ConnectionRefusedError):
            echo(sock)
    with Server(server.endpoint):
        pass


def test_stop_under_load() -> None:
    """A flood does not keep the server from stopping."""
    with Server("udp://127.0.0.1:0") as server, client(server.endpoint) as sock:
        ended = threading.Event()

        def flood() -> None:
            while not ended.is_set():
                try:
                    sock.send(b"flood")
                except ConnectionRefusedError:
                    return

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            sock.recv(100)
            server.stop()
        finally:
            ended.set()
            thread.join()


def serving(**options: Any) -> ServedProcess:
    """A datagram server in a process of its own."""
    return ServedProcess(IMPLEMENTATIONS["native-epoll"], endpoint="udp://127.0.0.1:0", **options)


def stopped(server: ServedProcess) -> dict[str, Any]:
    """Stop it, and return its counters."""
    server.signal(signal.SIGTERM)
    stats: dict[str, Any] = server.finish()["stats"]
    return stats


def test_drain() -> None:
    """Datagrams that arrived before the stop are answered before the server ends."""
    with serving(drain_timeout=TIMEOUT) as server, client(server.endpoint) as sock:
        assert echo(sock) == b"probe"
        server.signal(signal.SIGSTOP)
        for number in range(100):
            sock.send(b"%d" % number)
        server.signal(signal.SIGTERM)
        server.signal(signal.SIGCONT)
        for number in range(100):
            assert sock.recv(100) == b"%d" % number
        assert server.finish()["stats"]["datagrams_out"] == 101


@contextmanager
def injecting(call: str, fault: str) -> Iterator[ServedProcess]:
    """A server whose system call `call` fails as `fault` says (strace(1), inject=)."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    tracing = ("-e", f"trace={call}", "-e", f"inject={call}:{fault}", "-e", "signal=none")
    # -D: the child of this process is the server, not strace.
    with serving(under=(strace, "-D", "-f", "-qq", "-o", "/dev/null", *tracing)) as server:
        yield server


SENDING = ("EAGAIN", "ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "EMSGSIZE", "EPERM", "EACCES")
RECEIVING = ("ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "EACCES", "ENOMEM", "ENOBUFS")


def test_segments_are_sent_one_by_one_if_they_must() -> None:
    """The kernel or a network card may refuse to segment an answer (udp(7), UDP_SEGMENT)."""
    with injecting("sendmmsg", "error=EINVAL:when=1") as server, client(server.endpoint) as sock:
        payload = payload_of(64 * 9 + 10)
        segments = [payload[at : at + 64] for at in range(0, 586, 64)]
        assert echo_segments(sock, payload, 64) == segments
        assert echo(sock) == b"probe"
        stats = stopped(server)
    assert stats["datagrams_in"] == stats["datagrams_out"] == 11
    assert not_zero(stats["errors"]) == {}


@pytest.mark.parametrize("error", SENDING)
def test_sending_fails(error: str) -> None:
    """The answers that cannot be sent are dropped and counted; the others arrive."""
    # From the second call on: the first is at the start, to see whether it is allowed.
    with injecting("sendmmsg", f"error={error}:when=2..4") as server:
        with client(server.endpoint) as sock:
            assert echo(sock) == b"probe"
            for number in range(3):
                sock.send(bytes(1 + number))  # of one size they could leave in one call
            for number in range(3, 10):
                assert echo(sock, b"%d" % number) == b"%d" % number
        stats = stopped(server)
    assert stats["errors"] == {error: 3}
    assert stats["dropped"]["send_error"] == 3
    assert (stats["datagrams_in"], stats["datagrams_out"]) == (11, 8)


@pytest.mark.parametrize("error", RECEIVING)
def test_receiving_fails(error: str) -> None:
    """A failed receive is counted and tried again; nothing is lost."""
    with injecting("recvmmsg", f"error={error}:when=2..4") as server:
        with client(server.endpoint) as sock:
            for number in range(10):
                assert echo(sock, b"%d" % number) == b"%d" % number
        stats = stopped(server)
    assert stats["errors"] == {error: 3}
    assert stats["datagrams_in"] == stats["datagrams_out"] == 10


@pytest.mark.parametrize("call", ["recvmmsg", "sendmmsg", "poll"])
def test_interrupted_calls_are_repeated(call: str) -> None:
    """EINTR is not counted as an error, and costs no datagram."""
    with injecting(call, "error=EINTR:when=1+3") as server, client(server.endpoint) as sock:
        for number in range(20):
            assert echo(sock, b"%d" % number) == b"%d" % number
        stats = stopped(server)
    assert stats["errors"] == {}
    assert stats["datagrams_in"] == stats["datagrams_out"] == 20


def test_a_failure_that_stays_does_not_spin() -> None:
    """While every receive fails the loop pauses between them, and the server still stops."""
    with injecting("recvmmsg", "error=ENOMEM") as server, client(server.endpoint) as sock:
        sock.send(b"waits for ever")
        sock.settimeout(1.0)
        with pytest.raises(TimeoutError):
            sock.recv(100)
        stats = stopped(server)
    assert 64 <= stats["errors"]["ENOMEM"] < 100
    assert 1 <= stats["accept_pauses"] < 36


def test_a_socket_that_is_gone() -> None:
    """When the descriptor has been closed by other code, serve() raises the error."""
    with injecting("recvmmsg", "error=EBADF:when=2") as server, client(server.endpoint) as sock:
        assert echo(sock) == b"probe"
        sock.send(b"last")
        assert server.wait() == 1
        assert f"recvmmsg {server.endpoint}: Bad file descriptor" in server.errors()


@pytest.mark.parametrize("call", ["recvmmsg", "sendmmsg"])
@pytest.mark.parametrize("error", ["ENOSYS", "EPERM"])
def test_a_call_that_is_forbidden(call: str, error: str) -> None:
    """A call that a seccomp filter forbids is an error before the server says that it listens."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    tracing = ("-e", f"trace={call}", "-e", f"inject={call}:error={error}")
    command = [sys.executable, "-m", "fastsock", "serve", "udp://127.0.0.1:0"]
    done = subprocess.run(
        [strace, "-f", "-qq", "-o", "/dev/null", *tracing, *command],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 1
    assert re.fullmatch(
        rf"Error: {call} udp://127.0.0.1:\d+: .* \(a seccomp filter may forbid it\)",
        " ".join(done.stderr.split()),
    )


@pytest.mark.parametrize(
    ("call", "error"), [("recvmsg", "ENOSYS"), ("recvmsg", "EBADF"), ("sendmsg", "ENOSYS")]
)
def test_the_twin_ends_on_an_error_that_cannot_pass(call: str, error: str) -> None:
    """It says so in one line; to try again would take a whole CPU."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    tracing = ("-e", f"trace={call}", "-e", f"inject={call}:error={error}")
    command = [sys.executable, "-m", "fastsock.pure", "serve", "udp://127.0.0.1:0"]
    with subprocess.Popen(
        [strace, "-f", "-qq", "-o", "/dev/null", *tracing, *command],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        endpoint = Endpoint.parse(process.stderr.readline().split()[2])
        with client(endpoint) as sock:
            sock.send(b"last")
            _, said = process.communicate(timeout=TIMEOUT)
    number = getattr(errno, error)
    assert process.returncode == 1
    assert said == f"fastsock.pure: {call} {endpoint}: {os.strerror(number)}\n"


@pytest.mark.parametrize("error", ["ENOSYS", "EFAULT"])
def test_sending_fails_for_good(error: str) -> None:
    """An error that is not about the one answer ends the server."""
    with injecting("sendmmsg", f"error={error}:when=2+") as server, client(server.endpoint) as sock:
        assert echo(sock) == b"probe"
        sock.send(b"last")
        assert server.wait() == 1
        assert f"sendmmsg {server.endpoint}: " in server.errors()


# --- options ------------------------------------------------------------------------------------


def test_loop_guard_is_a_bool() -> None:
    """Another type is a TypeError."""
    with pytest.raises(TypeError, match="loop_guard 1 is int; expected True or False"):
        Server("udp://127.0.0.1:0", loop_guard=1)  # type: ignore[arg-type]


STREAM_ONLY: dict[str, Any] = {
    "max_connections": 5,
    "idle_timeout": 1.0,
    "allow": ["127.0.0.0/8"],
    "service": "discard",
    "close_on": b"bye",
}


@pytest.mark.parametrize("name", STREAM_ONLY)
def test_an_option_that_is_for_streams(name: str) -> None:
    """It is refused, also when only one of several endpoints is for datagrams."""
    expected = f"^udp://127.0.0.1:0: {name} goes with streams, not with datagrams$"
    with pytest.raises(ValueError, match=expected):
        Server("tcp://127.0.0.1:0", "udp://127.0.0.1:0", **{name: STREAM_ONLY[name]})


@pytest.mark.parametrize("engine", usable_engines())
def test_beside_every_engine(engine: str, tmp_path: Path) -> None:
    """Datagrams are served beside streams of every engine."""
    unix = f"unix://{tmp_path}/echo"
    with Server("tcp://127.0.0.1:0", "udp://127.0.0.1:0", unix, engine=engine) as server:
        with client(server.endpoints[1]) as sock:
            assert echo(sock) == b"probe"
        with socket.create_connection((server.endpoint.host, server.endpoint.port)) as stream:
            stream.sendall(b"probe")
            assert stream.recv(100) == b"probe"
    assert server.stats().datagrams_out == server.stats().accepted == 1
