"""Probes of every UDP server: one forged datagram, and where its answers come from.

In a network namespace of its own, so that the kernel's counters (/proc/net/snmp) count nothing
else. That takes root, and so does forging.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from fastsock.bench.server_process import ServerProcess

CLONE_NEWNET = 0x40000000  # <sched.h>
SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # <linux/sockios.h>, <linux/if.h>
WINDOW = 1.0  # seconds after the forged datagram
TIMEOUT = 0.5  # seconds; loopback takes microseconds

Address = tuple[str, int]
Figures = dict[str, Any]


class Start(Protocol):
    """Start the server that is probed, or a plain one, which knows of no loops."""

    def __call__(self, host: str, *, plain: bool = False) -> ServerProcess: ...


def in_own_network(work: Callable[[], Figures]) -> Figures:
    """Run it in a thread with a network of its own, which its child processes share.

    Raises PermissionError without root.
    """
    outcome: list[Figures | OSError] = []

    def run() -> None:
        try:
            enter_own_network()
            outcome.append(work())
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(outcome[0], OSError):
        raise outcome[0]
    return outcome[0]


def enter_own_network() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"unshare: {os.strerror(error)}")
    with socket.socket() as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def forged_from_other(start: Start) -> Figures:
    """One datagram to a server that seems to come from another server of the same kind."""
    with start("127.0.0.1") as one, start("127.0.0.1") as other:
        packets = packets_after(lambda: forge(other.address, one.address))
    return judged(packets)


def forged_from_plain(start: Start) -> Figures:
    """One datagram that seems to come from a server of another program, which answers anything."""
    with start("127.0.0.1") as server, start("127.0.0.1", plain=True) as plain:
        packets = packets_after(lambda: forge(plain.address, server.address))
    return judged(packets)


def forged_from_itself(start: Start) -> Figures:
    """One datagram to a server that seems to come from its own address and port."""
    with start("127.0.0.1") as server:
        packets = packets_after(lambda: forge(server.address, server.address))
    return judged(packets)


def judged(packets: int) -> Figures:
    return {"verdict": "ok" if packets <= 2 else "loops", "packets": packets}


def packets_after(act: Callable[[], None]) -> int:
    """Datagrams received in this network within WINDOW after it."""
    before = datagrams_received()
    act()
    time.sleep(WINDOW)
    return datagrams_received() - before


def datagrams_received() -> int:
    rows = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (row.split() for row in rows if row.startswith("Udp:"))
    return int(dict(zip(names, values, strict=True))["InDatagrams"])


def forge(source: Address, target: Address) -> None:
    """Send a datagram from an address that is not ours; raw(7)."""
    data = b"forged"
    udp = struct.pack("!HHHH", source[1], target[1], 8 + len(data), 0) + data
    # The kernel fills in the length, the identification and the checksum.
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(target[0])
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(ip + udp, target)


def answers_from_asked(start: Start) -> Figures:
    """Send to a server on all addresses at eight of them; the answer must come from that one."""
    answered = 0
    with start("0.0.0.0") as server:
        for last in range(2, 10):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, suppress(OSError):
                sock.settimeout(TIMEOUT)
                sock.connect((f"127.0.0.{last}", server.address[1]))
                sock.send(b"probe")
                answered += sock.recv(64) == b"probe"
    return {"verdict": "ok" if answered == 8 else "loses", "answered": answered, "of": 8}


PROBES: dict[str, Callable[[Start], Figures]] = {
    probe.__name__: probe
    for probe in (forged_from_other, forged_from_itself, forged_from_plain, answers_from_asked)
}
#: The answers of a program that marks nothing cannot be told from a client's; see SECURITY.md.
NOT_PROMISED = ("forged_from_plain",)
