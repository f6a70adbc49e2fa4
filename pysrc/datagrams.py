"""Datagrams: receive one, send it back to whom it came from, one at a time.

There are no connections, so datagrams have this engine alone. A UDP datagram goes back to
an address and a port. A Unix datagram goes back to the name of its sender's socket, which has one
only if it was bound.
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
#: Bytes for what the kernel tells beside the data.
CONTROL_SIZE = 128

PORTS_OF_SERVICES = 1024  # below
#: Answers leave with so many hops to go, and what comes with as many is an answer of such a server.
ANSWER_HOPS = 200
USUAL_HOPS = 128  # systems start with 255, with 128, or with 64 and below

# From <linux/in.h>, for Pythons whose socket module does not have them.
IP_PKTINFO = 8
IP_RECVTTL = 12

#: What recvmsg() and getsockname() give: (host, port, ...), a path, or bytes if it is abstract.
Name = tuple[Any, ...] | str | bytes

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
    own = sock.getsockname()
    while control.phase is Phase.RUNNING:
        poll.poll()
        control.clear()
        echo_one(sock, tally, own)
    # What waits in the queue is answered too, while there is time.
    while control.phase is Phase.DRAINING and echo_one(sock, tally, own):
        pass
    sock.close()


def echo_one(sock: socket.socket, tally: Tally, own: Name) -> bool:
    """Answers a datagram; False when none waits. An error about one client ends nothing."""
    # A Unix client may send open files (SCM_RIGHTS), and before Linux 6.16 nobody can refuse them.
    # They would fill our table; where there is no room to tell of them, the kernel closes them.
    control_size = 0 if sock.family == socket.AF_UNIX else CONTROL_SIZE
    try:
        data, told, flags, source = sock.recvmsg(SIZE_MAX, control_size)
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
    if reason := reason_to_drop(source, flags, hops_of(notes), own):
        tally.dropped[reason] += 1
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


def reason_to_drop(source: Name | None, flags: int, hops: int, own: Name) -> str:
    """Why it must not be answered, or nothing."""
    if flags & socket.MSG_TRUNC:
        return "truncated"  # its end was thrown away
    if not source:
        return "unnamed"
    return "loop_guard" if may_loop(source, hops, own) else ""


def may_loop(source: Name, hops: int, own: Name) -> bool:
    """Whether it may be the answer of another server, which would answer ours, and so for ever."""
    if not isinstance(source, tuple):
        return source == own  # of a Unix socket: nobody can forge it
    address = ipaddress.ip_address(source[0].partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return (
        source[1] < PORTS_OF_SERVICES
        or source[1] == own[1]
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
