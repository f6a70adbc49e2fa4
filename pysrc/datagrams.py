"""Datagrams: receive one, send it back to its sender, one at a time.

There are no connections, so datagrams have this engine alone. A UDP datagram goes back to an
address and a port. A Unix datagram goes back to the name of its sender's socket, which has one only
if it was bound.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import select
import socket
import sys
from collections.abc import Generator
from contextlib import suppress
from typing import Any

from .acceptor import PAUSE
from .control import Control, Phase
from .counters import Counters
from .transient import NETWORK, SENDING_ENDS, SHORTAGE

SIZE_MAX = 65535  # bytes; no UDP datagram is longer
ANCILLARY_SIZE = 128  # bytes for the ancillary data that the kernel adds

SERVICE_PORTS = 1024  # services have ports below this one
#: Answers leave with this hop limit. A datagram that arrives with 129 to 200 hops left is taken for
#: the answer of such a server: other systems start with 255, with 128, or with 64 or less.
ANSWER_HOPS = 200
USUAL_HOPS = 128

# From <linux/in.h>, for Pythons whose socket module does not have them.
IP_PKTINFO = 8
IP_RECVTTL = 12
IPV6_FREEBIND = 78  # from <linux/in6.h>

#: What recvmsg() and getsockname() give: (host, port, ...), a path, or bytes if it is abstract.
SocketName = tuple[Any, ...] | str | bytes

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Ancillary data: level and type to value.
Ancillary = dict[tuple[int, int], bytes]


def set_options(sock: socket.socket, dual_stack: bool) -> None:
    """Ask the kernel for the destination address and the hops left of each datagram."""
    if sock.family == socket.AF_INET or dual_stack:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ANSWER_HOPS)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ANSWER_HOPS)


def answer_from_any(sock: socket.socket) -> None:
    """Let IPv6 answers leave from every address at which datagrams come in; after bind().

    A route can make a whole prefix local, with no address on an interface. Before bind() this would
    let bind() take every address.
    """
    if sock.family == socket.AF_INET6:
        with suppress(OSError):  # since Linux 4.15
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)


def run(
    sock: socket.socket, control: Control, counters: Counters, buffer_size: int
) -> Generator[None, None, None]:
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLRDHUP)
    poll.register(control.reader, select.POLLIN)
    own = sock.getsockname()
    yield
    while control.phase is Phase.RUNNING:
        events = dict(poll.poll())
        if events.get(sock.fileno(), 0) & (select.POLLHUP | select.POLLRDHUP):
            # Another holder of the socket has shut it down: it stays readable, with nothing there.
            raise OSError(errno.EINVAL, f"recvmsg: {os.strerror(errno.EINVAL)}")
        control.clear()
        echo_one(sock, control, counters, own)
    # A drain answers what waits in the queue, until the deadline.
    while control.phase is Phase.DRAINING and echo_one(sock, control, counters, own):
        pass
    sock.close()


def echo_one(sock: socket.socket, control: Control, counters: Counters, own: SocketName) -> bool:
    """Answer a datagram; return False if none waits. An error of one client ends nothing."""
    # A Unix client may send open files (SCM_RIGHTS), which no socket can refuse before Linux 6.16.
    # They would use up our descriptors. Without room for ancillary data the kernel closes them.
    ancillary_size = 0 if sock.family == socket.AF_UNIX else ANCILLARY_SIZE
    try:
        data, messages, flags, source = sock.recvmsg(SIZE_MAX, ancillary_size)
    except BlockingIOError:
        return False
    except OSError as error:
        counters.count_error(error)
        if error.errno in SHORTAGE:
            counters.accept_pauses += 1
            control.wait(PAUSE)
        elif error.errno not in NETWORK:
            raise OSError(error.errno, f"recvmsg: {error.strerror}") from None
        return True
    counters.datagrams_in += 1
    counters.datagram_bytes_in += len(data)
    ancillary = {(level, kind): value for level, kind, value in messages}
    asked = destination(ancillary)
    if reason := reason_to_drop(source, flags, hops_left(ancillary), own, asked):
        counters.dropped[reason] += 1
        return True
    try:
        sock.sendmsg([data], answer_source(asked, ancillary), 0, source)
    except OSError as error:
        counters.count_error(error)
        counters.dropped["send_error"] += 1
        if error.errno in SENDING_ENDS:
            raise OSError(error.errno, f"sendmsg: {error.strerror}") from None
        return True
    counters.datagrams_out += 1
    counters.datagram_bytes_out += len(data)
    return True


def reason_to_drop(
    source: SocketName | None, flags: int, hops: int, own: SocketName, asked: Address | None
) -> str:
    """Return why a datagram must not be answered, or an empty string."""
    if flags & socket.MSG_TRUNC:
        return "truncated"  # the kernel dropped its end
    if not source:
        return "unnamed"
    # To every host of a network: all of them would answer one forged source.
    everyone = asked is not None and is_shared(asked)
    return "loop_guard" if everyone or may_loop(source, hops, own) else ""


def may_loop(source: SocketName, hops: int, own: SocketName) -> bool:
    """Whether a datagram may be a server's answer: two servers would answer each other for ever."""
    if not isinstance(source, tuple):
        return source == own  # the name of a Unix socket cannot be forged
    return (
        source[1] < SERVICE_PORTS
        or source[1] == own[1]
        or USUAL_HOPS < hops <= ANSWER_HOPS
        or is_shared(ipaddress.ip_address(source[0].partition("%")[0]))
    )


def is_shared(address: Address) -> bool:
    """Whether it is an address of more than one host, or of none."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    reserved = address.version == 4 and address.is_reserved  # the broadcast address too
    return address.is_multicast or address.is_unspecified or reserved


def hops_left(ancillary: Ancillary) -> int:
    for key in (
        (socket.IPPROTO_IP, socket.IP_TTL),
        (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT),
    ):
        if key in ancillary:
            return int.from_bytes(ancillary[key], sys.byteorder)
    return 0


def destination(ancillary: Ancillary) -> Address | None:
    """Return the address that the client sent to; for a broadcast, that of the broadcast."""
    info = ancillary.get((socket.IPPROTO_IP, IP_PKTINFO))
    if info:  # interface, local address, address in the datagram
        interface, local, asked = info[:4], info[4:8], info[8:12]
        # A datagram that was queued before IP_PKTINFO was set has no interface and no local one.
        broadcast = any(interface) and local != asked
        return ipaddress.IPv4Address("255.255.255.255" if broadcast else asked)
    info = ancillary.get((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO))
    return ipaddress.IPv6Address(info[:16]) if info else None


def answer_source(asked: Address | None, ancillary: Ancillary) -> list[tuple[int, int, bytes]]:
    """Return ancillary data that sends the answer from the address the client sent to.

    The interface is left to the routing table, but a link-local address belongs to one.
    """
    if isinstance(asked, ipaddress.IPv4Address):
        return [(socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + asked.packed + bytes(4))]
    if asked is None:
        return []
    info = ancillary[socket.IPPROTO_IPV6, socket.IPV6_PKTINFO]
    interface = info[16:] if asked.is_link_local else bytes(4)
    return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, asked.packed + interface)]
