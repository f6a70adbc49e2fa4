"""Tests of what a Server says of where it listens: address, host, port, repr() and its lines."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from clients import (
    TIMEOUT,
    connect_to,
    echo_exactly,
    running,
    wait_until,
)
from implementations import ANY_PORT, GENEROUS, in_fresh_process

from fastsock import Endpoint, Server


def test_endpoint_before_start() -> None:
    """Before start() a server has no endpoint, and counters of 0."""
    server = Server(ANY_PORT)
    text = r"has not been started; use it in a with statement, or call start\(\)$"
    with pytest.raises(RuntimeError, match=text):
        _ = server.endpoint
    assert server.stats().accepted == 0


@pytest.mark.parametrize("endpoint", [ANY_PORT, "udp://[::1]:0", "tcp://0.0.0.0:0"])
def test_address_host_and_port(endpoint: str) -> None:
    """They are those of the first endpoint, with the real port, and fit the calls of socket."""
    with Server(endpoint, ANY_PORT) as server:
        assert server.address == (server.host, server.port)
        assert server.port == server.endpoint.port > 0
        assert server.host == Endpoint.parse(endpoint).host
        if server.endpoint.scheme == "tcp":
            with socket.create_connection(server.address) as sock:
                echo_exactly(sock, b"hello")
        else:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                sock.settimeout(TIMEOUT)
                sock.connect(server.address)
                sock.send(b"hello")
                assert sock.recv(9) == b"hello"


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_address_with_an_interface(scheme: str) -> None:
    """getaddrinfo(3) knows no name of an interface in [::1%lo], which is not link-local."""
    with Server(f"{scheme}://[::1%lo]:0") as server:
        assert server.address == (f"::1%{socket.if_nametoindex('lo')}", server.port)
        if scheme == "tcp":
            sock = socket.create_connection(server.address)
        else:
            sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            sock.connect(server.address)
        with sock:
            sock.settimeout(TIMEOUT)
            echo_exactly(sock, b"hello")


@pytest.mark.parametrize("abstract", [False, True])
def test_address_of_a_unix_socket(abstract: bool, tmp_path: Path) -> None:
    """It is what connect() takes; there is no host and no port, and the error says so."""
    path = f"@fastsock-{os.getpid()}" if abstract else str(tmp_path / "echo")
    with Server(f"unix://{path}") as server, socket.socket(socket.AF_UNIX) as sock:
        assert server.address == ("\0" + path[1:] if abstract else path)
        sock.settimeout(TIMEOUT)
        sock.connect(server.address)
        echo_exactly(sock, b"hello")
        for name in ("host", "port"):
            message = f"unix://{path} has no {name}; server.address is its path"
            with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
                getattr(server, name)


@pytest.mark.parametrize("name", ["address", "host", "port"])
def test_address_before_start(name: str) -> None:
    with pytest.raises(RuntimeError, match="this server has not been started"):
        getattr(Server(ANY_PORT), name)


def test_repr_says_where_and_how() -> None:
    """Before, during and after the service."""
    server = Server(ANY_PORT, "udp://127.0.0.1:0", workers=2, engine="poll")
    assert repr(server) == (
        "<fastsock.Server tcp://127.0.0.1:0 (poll, 2 workers), "
        "udp://127.0.0.1:0 (datagrams, 2 workers), new>"
    )
    with server:
        where = f"{server.endpoint} (poll, 2 workers), {server.endpoints[1]} (datagrams, 2 workers)"
        assert repr(server) == f"<fastsock.Server {where}, running>"
    assert repr(server) == f"<fastsock.Server {where}, stopped>"


def test_repr_of_inherited_sockets() -> None:
    """The descriptor is named, before the start too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = "tcp://{}:{}".format(*listener.getsockname())
        expected = f"{where} (epoll, 1 worker, descriptor {listener.fileno()})"
        server = Server(fds=[listener.fileno()], engine="epoll", workers=2)
        assert repr(server) == f"<fastsock.Server {expected}, new>"
        with server:
            assert repr(server) == f"<fastsock.Server {expected}, running>"


def test_repr_of_half_a_server() -> None:
    """An __init__ that has failed leaves an object that a debugger shows."""
    server = Server.__new__(Server)
    assert repr(server) == "<fastsock.Server, not constructed>"
    with pytest.raises(ValueError, match="workers"):
        server.__init__(ANY_PORT, workers=0)  # type: ignore[misc]
    assert repr(server) == "<fastsock.Server, not constructed>"


def test_repr_while_draining_and_after_fork() -> None:
    in_fresh_process(show_a_server_while_draining_and_after_fork)


def show_a_server_while_draining_and_after_fork() -> None:
    with connect_to(Server(ANY_PORT)) as (server, _):
        pid = os.fork()
        if pid == 0:
            os._exit(f"of process {os.getppid()}>" not in repr(server))
        assert os.waitpid(pid, 0)[1] == 0
        with running(lambda: server.stop(drain=30)):
            wait_until(lambda: repr(server).endswith(", stopping>"))
            server.stop(0)


# --- where it listens ---------------------------------------------------------------------------


SERVE = """
import logging, os, sys, threading, fastsock
from fastsock import line_writer
{setup}
def stop(server):
    threading.Timer(0.2, server.stop).start()
servers = []
start = fastsock.Server.start
def started(server, **options):
    start(server, **options)
    servers.append(server)
    stop(server)
fastsock.Server.start = started
{call}
line_writer.flush(5)
print(*servers[0].endpoints)
"""
BOTH = "'tcp://127.0.0.1:0', 'udp://127.0.0.1:0'"
NOTHING: list[str] = []
LINES = [
    "listening on {} (epoll, 1 worker)",
    "listening on {} (datagrams, 1 worker)",
]


@pytest.mark.parametrize(
    ("setup", "call", "expected"),
    [
        ("", f"fastsock.serve({BOTH}, engine='epoll')", LINES),
        (
            "logging.basicConfig(level=logging.INFO)",
            f"fastsock.serve({BOTH}, engine='epoll')",
            [f"INFO:fastsock:{line}" for line in LINES],
        ),
        ("logging.basicConfig()", f"fastsock.serve({BOTH})", NOTHING),
        ("logging.getLogger('fastsock').setLevel('ERROR')", f"fastsock.serve({BOTH})", NOTHING),
        ("logging.getLogger('fastsock').disabled = True", f"fastsock.serve({BOTH})", NOTHING),
        (
            "logging.getLogger('fastsock').setLevel('INFO')",
            f"fastsock.serve({BOTH}, engine='epoll')",
            LINES,
        ),
        (
            "logging.basicConfig(); logging.getLogger('fastsock').setLevel('INFO')",
            f"fastsock.serve({BOTH}, engine='epoll')",
            [f"INFO:fastsock:{line}" for line in LINES],
        ),
        ("", f"fastsock.serve({BOTH}, ready=lambda server: None)", NOTHING),
        ("", f"with fastsock.Server({BOTH}): pass", NOTHING),
        (
            "logging.basicConfig(level=logging.INFO)",
            f"with fastsock.Server({BOTH}, engine='epoll'): pass",
            [f"INFO:fastsock:{line}" for line in LINES],
        ),
    ],
    ids=[
        "plain",
        "info",
        "warning",
        "quiet",
        "disabled",
        "level alone",
        "level and handler",
        "ready",
        "server",
        "server info",
    ],
)
def test_where_it_listens_is_said_once(setup: str, call: str, expected: list[str]) -> None:
    """serve() writes it to stderr where logging has no handler; a Server only logs it."""
    code = SERVE.format(setup=setup, call=call)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=GENEROUS
    )
    assert done.returncode == 0, done.stderr
    endpoints = done.stdout.split()
    lines = [line.format(each) for line, each in zip(expected, endpoints, strict=False)]
    assert done.stderr.splitlines() == lines
