"""A host name with several addresses: they are tried in turn, and errors name them all."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import misbehaving
import pytest
from load_runs import QUIET, assert_bad, assert_good, failures
from networks import listing, own_network

import fastsock
from fastsock.endpoint import Endpoint, SocketAddress

NAME = "echo.test"
V4, V6 = socket.AF_INET, socket.AF_INET6


def test_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is the resolver's, but its families alternate (RFC 8305 4); no address twice."""
    listing(
        monkeypatch,
        (V6, "2001:db8::1"),
        (V6, "2001:db8::2"),
        (V6, "2001:db8::1"),
        (V4, "192.0.2.1"),
        (V4, "192.0.2.2"),
        (V4, "192.0.2.3"),
    )
    found = Endpoint.parse(f"tcp://{NAME}:7").resolve_all()
    assert list(map(str, found)) == [
        "[2001:db8::1]:7",
        "192.0.2.1:7",
        "[2001:db8::2]:7",
        "192.0.2.2:7",
        "192.0.2.3:7",
    ]
    assert Endpoint.parse(f"tcp://{NAME}:7").resolve() == found[0]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_next_address_is_tried(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """Where the first address refuses, or its family has no route, the next one is loaded."""
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        listing(monkeypatch, (V4, "127.0.0.2"), (V6, "::1"), (V4, "127.0.0.1"))
        report = fastsock.load(
            f"tcp://{NAME}:{server.endpoint.port}",
            connections=2,
            threads=threads,
            messages=20,
            **QUIET,
        )
    assert_good(report)
    assert report.messages == 20
    assert report.address == f"127.0.0.1:{server.endpoint.port}"


def test_a_name_whose_every_address_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with misbehaving.refusing_address() as (_, port):
        listing(monkeypatch, (V4, "127.0.0.1"), (V4, "127.0.0.2"))
        report = fastsock.load(f"tcp://{NAME}:{port}", messages=5, **QUIET)
    assert_bad(report)
    assert failures(report) == {"refused": 1}
    assert f"connections refused by 127.0.0.1:{port} and 127.0.0.2:{port}: 1" in report.reasons


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (SocketAddress(int(V4), "192.0.2.1", 7), "192.0.2.1:7"),
        (SocketAddress(int(V6), "fe80::1", 7, 2), "[fe80::1%2]:7"),
        (SocketAddress(int(socket.AF_UNIX), path="/run/echo.sock"), "/run/echo.sock"),
    ],
)
def test_the_text_of_an_address(address: SocketAddress, text: str) -> None:
    assert str(address) == text


# --- no port is free ----------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_no_local_port_is_free(scheme: str) -> None:
    """A client that has used up the local ports says so, and what limits them."""
    with own_network():
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("50000 50003")
        with fastsock.Server(f"{scheme}://127.0.0.1:7007") as server:
            options: dict[str, Any] = {"connections": 10, "messages": 10, **QUIET}
            try:
                said = " ".join(fastsock.load(server.endpoint, **options).reasons)
            except OSError as error:
                said = str(error)
    assert "no local port is free" in said
    assert "net.ipv4.ip_local_port_range" in said
