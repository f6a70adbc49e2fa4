"""An independent clock: the kernel's timestamps of the packets, beside the latency in the report.

A packet socket records each packet with the time at which the kernel sent or received it. From a
request's packet to that of its answer is the latency of everything but the client. The client reads
its clock before it sends and after it has received, so what it reports can only be more.
"""

from __future__ import annotations

import math
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from implementations import IMPLEMENTATIONS, ServedProcess
from link import DEVICE, RUNS_MAX, SERVED, Direction, disturbances, link
from networks import inside, own_network
from records import record

import fastsock

pytestmark = pytest.mark.believable

RATE, MESSAGES, SIZE, CONNECTIONS = 200.0, 1000, 64, 2
#: us of a valid run's p50 that are the client's: its calls, and for a client that blocks its
#: wake-up, some 30 us each here.
CLIENT_PART = 150.0
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0}

ETH_P_ALL, SOL_PACKET, PACKET_STATISTICS = 0x0003, 263, 6  # <linux/if_ether.h>, if_packet.h
SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35  # asm-generic/socket.h
BUFFER = 64 << 20  # bytes: all packets of a run, as nothing reads them before its end
TIMESPEC = struct.Struct("@ll")
SYN = 0x02  # of the flags of TCP


@dataclass(frozen=True)
class Packet:
    """One with bytes of the user, or the SYN of a connection; `at` is CLOCK_REALTIME in ns."""

    at: int
    from_client: bool
    port: int  # the client's
    sequence: int  # of the first byte, TCP alone
    syn: bool
    data: bytes


class Capture:
    """The packets of a device, from now on."""

    def __init__(self, device: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._socket.bind((device, ETH_P_ALL))

    def close(self) -> None:
        self._socket.close()

    def packets(self, server_port: int) -> list[Packet]:
        """Those of that server, once each: what the client sent as it left, the rest as it came."""
        now = time.clock_gettime_ns(time.CLOCK_REALTIME)
        statistics = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        _, dropped = struct.unpack("@II", statistics)
        assert dropped == 0, "the capture is not complete"
        found = []
        for at, outgoing, packet in self._received():
            assert at <= now, "the kernel does not stamp packets yet"
            parsed = parse(at, packet, server_port)
            if parsed is not None and parsed.from_client == outgoing:
                found.append(parsed)
        return found

    def _received(self) -> Iterator[tuple[int, bool, bytes]]:
        room = socket.CMSG_SPACE(TIMESPEC.size)
        while True:
            try:
                packet, [(_, _, stamp)], _, sender = self._socket.recvmsg(
                    65536, room, socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return
            seconds, nanoseconds = TIMESPEC.unpack(stamp)
            at = seconds * 1_000_000_000 + nanoseconds
            yield at, sender[2] == socket.PACKET_OUTGOING, packet


def parse(at: int, packet: bytes, server_port: int) -> Packet | None:
    """A packet of IPv4 (RFC 791) with TCP (RFC 9293) or UDP (RFC 768)."""
    if packet[0] >> 4 != 4:
        return None
    header, protocol = (packet[0] & 15) * 4, packet[9]
    segment = packet[header : int.from_bytes(packet[2:4], "big")]
    if protocol not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        return None
    source, destination = struct.unpack("!HH", segment[:4])
    if server_port not in (source, destination):
        return None
    from_client = destination == server_port
    port = source if from_client else destination
    if protocol == socket.IPPROTO_UDP:
        return Packet(at, from_client, port, 0, False, segment[8:])
    sequence, syn = int.from_bytes(segment[4:8], "big"), bool(segment[13] & SYN)
    data = segment[(segment[12] >> 4) * 4 :]
    return Packet(at, from_client, port, sequence, syn, data) if data or syn else None


def latencies_on_the_wire(packets: list[Packet], scheme: str) -> list[float]:
    """For each message, us from the packet of its request to that of its answer; sorted."""
    times = message_times_of_tcp(packets) if scheme == "tcp" else message_times_of_udp(packets)
    requests, answers = times[True], times[False]
    assert requests.keys() == answers.keys()
    return sorted((answers[key] - at) / 1e3 for key, at in requests.items())


Times = dict[bool, dict[tuple[int, int], int]]  # from the client; port and number; time in ns


def message_times_of_udp(packets: list[Packet]) -> Times:
    times: Times = {True: {}, False: {}}
    for packet in packets:
        number = int.from_bytes(packet.data[:8], "little")  # of the socket and of the datagram
        times[packet.from_client].setdefault((packet.port, number), packet.at)
    return times


def message_times_of_tcp(packets: list[Packet]) -> Times:
    """A request is sent with its first byte, and an answer has come with its last one."""
    times: Times = {True: {}, False: {}}
    first: dict[tuple[bool, int], int] = {}  # the sequence number of byte 0
    for packet in packets:
        stream = (packet.from_client, packet.port)
        if packet.syn:
            first[stream] = packet.sequence + 1
            continue
        begin = (packet.sequence - first[stream]) % 2**32
        end = begin + len(packet.data)
        if packet.from_client:
            numbers = range(math.ceil(begin / SIZE), math.ceil(end / SIZE))
        else:
            numbers = range(begin // SIZE, end // SIZE)
        for number in numbers:
            times[packet.from_client].setdefault((packet.port, number), packet.at)
    return times


def percentile(values: list[float], percent: float) -> float:
    """The value at the rank that the client's histogram takes."""
    return values[max(1, int(percent / 100 * len(values) + 0.5)) - 1]


@contextmanager
def loopback(scheme: str) -> Iterator[tuple[str, fastsock.Endpoint]]:
    with own_network():
        server = ServedProcess(IMPLEMENTATIONS[SERVED], endpoint=f"{scheme}://127.0.0.1:0")
        with closing(server):
            yield "lo", server.endpoint


@contextmanager
def link_of_10_ms(scheme: str) -> Iterator[tuple[str, fastsock.Endpoint]]:
    way = Direction(0.005)
    with link(way, way) as between, between.serving(scheme) as endpoint, inside(between.client):
        yield DEVICE, endpoint


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
@pytest.mark.parametrize("wait", ["block", "spin"])
@pytest.mark.parametrize("path", [loopback, link_of_10_ms])
def test_the_report_and_the_packets_agree(
    path: Callable[[str], AbstractContextManager[tuple[str, fastsock.Endpoint]]],
    scheme: str,
    wait: Any,
) -> None:
    """At every percentile the report has the wire's latency and the client's own small part."""
    if os.geteuid() != 0:
        pytest.skip("a packet socket needs root")
    with path(scheme) as (device, endpoint):
        for _ in range(RUNS_MAX):
            report, wire = measure(device, endpoint, wait)
            assert_wire_is_never_slower(report, wire)
            if not disturbances(report):
                break
    client = of_latency(report.latency_from_send)
    name = path.__name__.replace("_", " ")
    record(
        f"wire-{path.__name__}-{scheme}-{wait}".replace("_", "-"),
        disturbance=f"none: {name}, {scheme}, {RATE:g}/s, --wait {wait}",
        expected=f"client at least the wire's; p50 at most 10 % and {CLIENT_PART:g} us more",
        seen={
            "client_us": client,
            "client_from_intended_us": of_latency(report.latency),
            "wire_us": wire,
            "client_part_us": {each: round(client[each] - wire[each], 3) for each in wire},
            "valid": report.valid,
            "reasons": [str(reason) for reason in report.reasons],
        },
    )
    if found := disturbances(report):
        pytest.skip(f"a machine that is not busy is missing: {found}")
    assert client["p50"] <= 1.1 * wire["p50"] + CLIENT_PART


def measure(
    device: str, endpoint: fastsock.Endpoint, wait: Any
) -> tuple[fastsock.LoadReport, dict[str, float]]:
    """A run, and what the packets say of the same messages, in us."""
    with closing(Capture(device)) as capture:
        report = fastsock.load(
            endpoint,
            rate=RATE,
            messages=MESSAGES,
            size=SIZE,
            connections=CONNECTIONS,
            wait=wait,
            loss_timeout=5.0,
        )
        packets = capture.packets(endpoint.port)
    latencies = latencies_on_the_wire(packets, endpoint.scheme)
    assert len(latencies) == report.latency_from_send.count == MESSAGES
    wire = {name: percentile(latencies, percent) for name, percent in PERCENTILES.items()}
    wire |= {"min": latencies[0], "mean": math.fsum(latencies) / MESSAGES, "max": latencies[-1]}
    return report, wire


def of_latency(latency: Any) -> dict[str, float]:
    return {name: getattr(latency, name) for name in (*PERCENTILES, "min", "mean", "max")}


def assert_wire_is_never_slower(report: fastsock.LoadReport, wire: dict[str, float]) -> None:
    """Each message took the client longer, so each percentile is more too.

    The histogram gives the upper end of a step. The packets' clock may be adjusted meanwhile, by
    0.05 % at most (adjtimex(2)); the client's too, and then both by the same.
    """
    client = of_latency(report.latency_from_send)
    for name, latency in wire.items():
        assert client[name] >= latency * (1 - 0.0005), name
