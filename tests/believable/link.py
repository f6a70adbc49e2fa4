"""A link between two networks that delays, loses, duplicates and reorders packets, and counts them.

Each network has a TUN device; link.c, compiled here, carries the packets from one to the other. So
it needs no netem in the kernel. The devices and the networks go with their last descriptor.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from implementations import IMPLEMENTATIONS, Child, ServedProcess
from networks import CLIENT, SERVER, current_network, enter, inside, ip, new_network
from records import FOLDER

import fastsock

TUN = Path("/dev/net/tun")
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000  # <linux/if_tun.h>
DEVICE = "tun0"  # its name in both networks
SERVED = "native-epoll"  # the server
PREFIX = 24  # bits of the addresses' network
RUNS_MAX = 5  # until one is not disturbed
QUEUE = 10_000  # packets that a device keeps until the link reads them


@dataclass(frozen=True)
class Direction:
    """What happens to the packets of one direction; times in seconds."""

    delay: float = 0.0
    loss: float = 0.0  # probability
    duplicate: float = 0.0  # probability
    reorder: float = 0.0  # probability of `extra` more delay
    extra: float = 0.0
    until: int = 0  # only the first so many packets are lost, duplicated, reordered; 0: all

    def __str__(self) -> str:
        times = f"{self.delay * 1e6},{self.loss},{self.duplicate},{self.reorder},{self.extra * 1e6}"
        return f"{times},{self.until}"


@dataclass(frozen=True)
class Link:
    """Descriptors of the two networks, with the addresses SERVER and CLIENT, and the program."""

    server: int
    client: int
    program: Child

    @contextmanager
    def serving(self, scheme: str) -> Iterator[fastsock.Endpoint]:
        """A server in a process of its own, in the server's network."""
        with inside(self.server):
            server = ServedProcess(IMPLEMENTATIONS[SERVED], endpoint=f"{scheme}://{SERVER}:0")
        with closing(server):
            yield server.endpoint

    def counters(self) -> dict[str, Any]:
        """Of "to_server" and "to_client": packets (TCP and UDP) and what became of them.

        "packets" came, "lost" of them went no further, "duplicated" were sent twice, "delayed" were
        given the extra delay, "reordered" came after one sent later by the same connection (RFC
        4737). "delay_us" is the measured delay, from read() to write().
        """
        counters = self.program.ask("counters")
        for direction in counters.values():
            assert direction["failed"] == 0, "a device did not take a packet"
        return counters

    def assert_nothing_else_was_lost(self) -> None:
        """No device dropped a packet, and no UDP socket: what is missing, the link has lost."""
        for network in (self.server, self.client):
            with inside(network):
                # Columns of proc(5): 4 and 12 are the drops of receiving and of sending.
                fields = device_counters(DEVICE)
                assert fields[3] == fields[11] == 0, "the device dropped packets"
                udp = kernel_counters("Udp")
                assert udp["RcvbufErrors"] == udp["SndbufErrors"] == 0


@contextmanager
def link(
    to_server: Direction = Direction(), to_client: Direction = Direction(), *, seed: int = 1
) -> Iterator[Link]:
    """A link between two new networks; the same seed gives the same faults by number of packet."""
    program = compiled_link()
    with ExitStack() as stack:
        home = kept(stack, current_network())
        stack.callback(enter, home)
        networks, devices = [], []
        for address in (SERVER, CLIENT):
            networks.append(kept(stack, new_network()))
            devices.append(kept(stack, tun_device()))
            ip("addr", "add", f"{address}/{PREFIX}", "dev", DEVICE)
            ip("link", "set", DEVICE, "txqueuelen", str(QUEUE), "up")
            ip("link", "set", "lo", "up")
        enter(home)
        arguments = [*map(str, devices), str(seed), str(to_server), str(to_client)]
        child = Child(str(program), *arguments, pass_fds=tuple(devices))
        yield Link(*networks, stack.enter_context(closing(child)))


def kept(stack: ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def tun_device() -> int:
    """A new TUN device in the network of this thread; it goes with its last descriptor."""
    try:
        fd = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"no TUN device: {error}")
    request = struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI)
    try:
        fcntl.ioctl(fd, TUNSETIFF, request)
    except OSError as error:
        os.close(fd)
        pytest.skip(f"no TUN device: {error}")
    return fd


@cache
def compiled_link() -> Path:
    """The program; skips the test where something that a link needs is missing."""
    if os.geteuid() != 0:
        pytest.skip("a link between two networks needs root")
    if shutil.which("ip") is None:
        pytest.skip("ip (iproute2) is not installed")
    if not TUN.exists():
        pytest.skip(f"no {TUN}")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (cc or gcc) on PATH")
    FOLDER.mkdir(parents=True, exist_ok=True)
    program = FOLDER / "link"
    command = [compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program]
    subprocess.run([*command, Path(__file__).with_suffix(".c")], check=True)
    return program


def disturbances(report: fastsock.LoadReport) -> list[str]:
    """The reasons why the report's p50 may be the client's or the machine's, and not the path's.

    A message that is sent late is still measured from when it is sent.
    """
    return [str(each) for each in report.reasons if getattr(each, "code", "") != "sent_late"]


def kernel_counters(group: str) -> dict[str, int]:
    """The counters of /proc/net/snmp of a protocol, in the network of this thread."""
    names, values = (
        line.split()[1:]
        for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
        if line.startswith(f"{group}:")
    )
    return dict(zip(names, map(int, values), strict=True))


def device_counters(device: str) -> list[int]:
    """The columns of /proc/net/dev of a device, in the network of this thread."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, found, columns = line.partition(":")
        if found and name.strip() == device:
            return [int(column) for column in columns.split()]
    raise LookupError(device)
