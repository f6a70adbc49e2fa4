"""Network namespaces for tests: one alone, or two joined by a cable that a test can pull.

They need root and ip(8), and are not connected to any other network. The kernel removes them when
their last socket and descriptor are closed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

CLONE_NEWNET = 0x40000000  # <sched.h>
SERVER, CLIENT = "10.99.0.1", "10.99.0.2"

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class TwoNetworks:
    """Descriptors of the networks. A socket belongs to the network that its thread was in."""

    server: int
    client: int

    def pull_cable(self) -> None:
        """The client disappears: the server gets no FIN, no RST and no answer from its address."""
        with inside(self.client):
            ip("link", "set", "to-server", "down")


@contextmanager
def two_networks() -> Iterator[TwoNetworks]:
    """Two networks: the server's with the address SERVER, the client's with CLIENT."""
    if shutil.which("ip") is None:
        pytest.skip("ip (iproute2) is not installed")
    home = current_network()
    opened = [home]
    try:
        server = new_network()
        opened.append(server)
        ip("link", "set", "lo", "up")
        client = new_network()
        opened.append(client)
        peer = f"/proc/{os.getpid()}/fd/{server}"
        add_cable(peer)
        ip("addr", "add", f"{CLIENT}/24", "dev", "to-server")
        ip("link", "set", "to-server", "up")
        enter(server)
        ip("addr", "add", f"{SERVER}/24", "dev", "to-client")
        ip("link", "set", "to-client", "up")
        enter(home)
        yield TwoNetworks(server, client)
    finally:
        if len(opened) > 1:
            enter(home)
        for fd in opened:
            os.close(fd)


def add_cable(peer: str) -> None:
    """A veth pair: one end here, and one in the network `peer`."""
    try:
        ip("link", "add", "to-server", "type", "veth", "peer", "name", "to-client", "netns", peer)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no veth pair: {error.stderr.decode().strip()}")


@contextmanager
def own_network() -> Iterator[None]:
    """A network with only loopback, for this thread and what it starts; every port is free."""
    if shutil.which("ip") is None:
        pytest.skip("ip (iproute2) is not installed")
    home = current_network()
    try:
        os.close(new_network())
        try:
            ip("link", "set", "lo", "up")
            yield
        finally:
            enter(home)
    finally:
        os.close(home)


@contextmanager
def inside(network: int) -> Iterator[None]:
    """In the body, this thread opens sockets and starts programs in that network."""
    home = current_network()
    try:
        enter(network)
        yield
    finally:
        enter(home)
        os.close(home)


def listing(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[int, str]) -> None:
    """Have getaddrinfo(3) list these addresses, each with its family, for every name."""

    def getaddrinfo(name: object, port: int, **_: object) -> list[Any]:
        size = {socket.AF_INET: 2, socket.AF_INET6: 4}
        return [
            (family, socket.SOCK_STREAM, 6, "", (host, port, 0, 0)[: size[family]])
            for family, host in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def current_network() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def new_network() -> int:
    if _libc.unshare(CLONE_NEWNET) != 0:
        pytest.skip("a network namespace needs CAP_SYS_ADMIN")
    return current_network()


def enter(network: int) -> None:
    if _libc.setns(network, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
