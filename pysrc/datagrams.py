"""Datagrams: receive one, send it back to whom it came from, one at a time.

There are no connections, so this is the only shape that datagrams have.
"""

from __future__ import annotations

import errno
import ipaddress
import select
import socket
import sys
from typing import Any

from .control import Control, Phase
from .tally import Tally

SIZE_MAX = 65535  # bytes; no UDP datagram is longer
CONTROL_SIZE = 128  # bytes for what the kernel tells beside the data

PORTS_OF_SERVICES = 1024  # below
#: Answers leave with so many hops to go, and what comes with as many is an answer of such a server.
ANSWER_HOPS = 200
USUAL_HOPS = 128  # systems start with 255, with 128, or with 64 and below

# From <linux/in.h>, for Pythons whose socket module does not have them.
IP_PKTINFO = 8
IP_RECVTTL = 12

#: A level and a kind to the bytes that the kernel told.
Notes = dict[tuple[int, int], bytes]


def set_options(sock: socket.socket, dual_stack: bool) -> None:
    """Has the kernel tell of each datagram which address was asked, and how many hops are left."""
    if sock.family == socket.AF_INET or dual_stack:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ANSWER_HOPS)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ANSWER_HOPS)


def run(sock: socket.socket, control: Control, tally: Tally, buffer_size: int) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(control.waker, select.POLLIN)
    own_port = sock.getsockname()[1]
    while control.phase is Phase.RUNNING:
        poll.poll()
        control.clear()
        echo_one(sock, tally, own_port)
    # What waits in the queue is answered too, while there is time.
    while control.phase is Phase.DRAINING and echo_one(sock, tally, own_port):
        pass
    sock.close()


def echo_one(sock: socket.socket, tally: Tally, own_port: int) -> bool:
    """Answers a datagram; False when none waits. An error about one client ends nothing."""
    try:
        data, told, _, source = sock.recvmsg(SIZE_MAX, CONTROL_SIZE)
    except BlockingIOError:
        return False
    except OSError as error:
        tally.count_error(error)
        if error.errno in (errno.EBADF, errno.ENOTSOCK):
            raise  # something else in the process closed the descriptor
        return True
    tally.datagrams_in += 1
    tally.datagram_bytes_in += len(data)
    notes = {(level, kind): value for level, kind, value in told}
    if may_loop(source, hops_of(notes), own_port):
        tally.dropped["loop_guard"] += 1
        return True
    try:
        sock.sendmsg([data], from_asked(notes), 0, source)
    except OSError as error:
        tally.count_error(error)
        tally.dropped["send_error"] += 1
        return True
    tally.datagrams_out += 1
    tally.datagram_bytes_out += len(data)
    return True


def may_loop(source: tuple[Any, ...], hops: int, own_port: int) -> bool:
    """Whether it may be the answer of another server, which would answer ours, and so for ever."""
    address = ipaddress.ip_address(source[0].partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return (
        source[1] < PORTS_OF_SERVICES
        or source[1] == own_port
        or USUAL_HOPS < hops <= ANSWER_HOPS
        or address.is_multicast
        or address.is_unspecified
        or (address.version == 4 and address.is_reserved)  # the broadcast address too
    )


def hops_of(notes: Notes) -> int:
    for kind in (
        (socket.IPPROTO_IP, socket.IP_TTL),
        (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT),
    ):
        if kind in notes:
            return int.from_bytes(notes[kind], sys.byteorder)
    return 0


def from_asked(notes: Notes) -> list[tuple[int, int, bytes]]:
    """What makes the answer leave from the address that was asked, by whichever interface."""
    asked = notes.get((socket.IPPROTO_IP, IP_PKTINFO))
    if asked:  # interface, local address, address in the datagram
        return [(socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + asked[4:])]
    asked = notes.get((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO))
    if asked:  # address, interface
        return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, asked[:16] + bytes(4))]
    return []
