"""Tests of every engine with ncat, socat, asyncio and Python's socket files as clients.

A client's fault must not pass for the server's, so the server's own counters are compared first.
Checked with ncat 7.93 and socat 1.7.4: ncat half-closes when its input ends, and reads on to the
end. socat closes half a second after its input has ended, unless told to wait longer (-t). ncat is
known to lose the last bytes, but only as a server that runs a command.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clients import (
    TIMEOUT,
    assert_same,
    connect,
    finish_exactly,
    not_zero,
    receive_exactly,
    wait_until,
)
from implementations import ANY_PORT, KINDS, Implementation, any_endpoint

import fastsock

pytestmark = [pytest.mark.native, pytest.mark.kinds(*KINDS)]

DATA = random.Random(1).randbytes(1 << 20)
PROBE = b"help\r\n\r\n"  # what nmap sends to identify a service

Command = Callable[[fastsock.Endpoint], list[str]]


def ncat(endpoint: fastsock.Endpoint) -> list[str]:
    if endpoint.is_unix:
        return ["ncat", "-U", endpoint.path]
    return ["ncat", *["-u"] * (endpoint.scheme == "udp"), endpoint.host, str(endpoint.port)]


def socat(endpoint: fastsock.Endpoint) -> list[str]:
    address = f"UNIX-CONNECT:{endpoint.path}"
    if not endpoint.is_unix:
        six = ":" in endpoint.host
        address = f"{endpoint.scheme.upper()}{6 if six else 4}:" + (
            f"[{endpoint.host}]:{endpoint.port}" if six else f"{endpoint.host}:{endpoint.port}"
        )
    return ["socat", f"-t{TIMEOUT:g}", "-", address]


@pytest.fixture(params=[ncat, socat], ids=lambda command: command.__name__)
def command(request: pytest.FixtureRequest) -> Command:
    found: Command = request.param
    if not shutil.which(found.__name__):
        pytest.skip(f"{found.__name__} is not installed")
    return found


@pytest.fixture
def server(implementation: Implementation, socket_kind: str) -> Iterator[Any]:
    """A running server; a Unix one at a path, as ncat does not know abstract names."""
    with tempfile.TemporaryDirectory() as folder:
        endpoint = any_endpoint(socket_kind)
        if socket_kind == "unix":
            endpoint = f"unix://{Path(folder, 'echo')}"
        with implementation.server(endpoint) as server:
            yield server


@contextmanager
def interactive(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A running program, with unbuffered pipes for its input and output; killed at the end."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def echo_through(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin
    assert process.stdout
    process.stdin.write(data)
    received = b""
    while len(received) < len(data) and (part := process.stdout.read(len(data) - len(received))):
        received += part
    assert received == data


def assert_served(server: Any, size: int, clients: int = 1) -> None:
    """The server received and sent `size` bytes, and every connection ended with end-of-file."""
    wait_until(lambda: sum(server.stats().closed.values()) == clients, "all closed")
    stats = server.stats()
    assert not_zero(stats.closed) == {"eof": clients}
    assert (stats.bytes_in, stats.bytes_out) == (size, size)
    assert stats.errors == {}


def test_program_gets_everything_back(server: Any, command: Command) -> None:
    """The program gets a megabyte and end-of-file; it prints the same megabyte and ends."""
    done = subprocess.run(
        command(server.endpoint), input=DATA, capture_output=True, timeout=TIMEOUT
    )
    assert_served(server, len(DATA))
    assert (done.returncode, done.stderr) == (0, b"")
    assert_same(done.stdout, DATA)


@pytest.mark.kinds("tcp")
def test_program_line_by_line(server: Any, command: Command) -> None:
    """Each line is answered before the next one is sent, as at a terminal."""
    with interactive(command(server.endpoint)) as process:
        for line in (b"hello\n", PROBE, b"\0\xff\n"):
            echo_through(process, line)
        assert process.stdin
        process.stdin.close()
        assert process.wait(TIMEOUT) == 0
    assert_served(server, 6 + len(PROBE) + 3)


@pytest.mark.kinds("tcp")
def test_program_is_killed(server: Any, command: Command) -> None:
    """A client that is killed between two messages costs no other client anything."""
    with interactive(command(server.endpoint)) as process:
        echo_through(process, PROBE)
        process.kill()
    with connect(server.endpoint) as sock:
        finish_exactly(sock, DATA)
    wait_until(lambda: server.stats().open == 0, "all closed")
    assert server.stats().closed["eof"] + server.stats().closed["reset"] == 2


def test_asyncio_streams(server: Any) -> None:
    """asyncio's streams: write, half-close, read to the end."""
    assert_same(asyncio.run(echo_by_streams(server.endpoint, DATA)), DATA)
    assert_served(server, len(DATA))


async def echo_by_streams(endpoint: fastsock.Endpoint, data: bytes) -> bytes:
    if endpoint.is_unix:
        reader, writer = await asyncio.open_unix_connection(endpoint.path)
    else:
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    writer.write(data)
    writer.write_eof()
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def test_socket_file(server: Any) -> None:
    """A socket as a file (makefile()): lines are written and read back."""
    lines = [b"%d\n" % number for number in range(1000)]
    with connect(server.endpoint) as sock, sock.makefile("rwb") as file:
        file.writelines(lines)
        file.flush()
        assert [file.readline() for _ in lines] == lines
        sock.shutdown(socket.SHUT_WR)
        assert file.read() == b""
    assert_served(server, sum(map(len, lines)))


# --- the probe on tcp and udp -------------------------------------------------------------------


def test_probe_by_sockets(implementation: Implementation) -> None:
    """nmap's probe comes back unchanged over TCP and UDP of one server."""
    with fastsock.Server(ANY_PORT, "udp://127.0.0.1:0", engine=implementation.engine) as server:
        stream, datagrams = server.endpoints
        with connect(stream) as sock:
            sock.sendall(PROBE)
            assert receive_exactly(sock, len(PROBE)) == PROBE
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(TIMEOUT)
            sock.sendto(PROBE, (datagrams.host, datagrams.port))
            assert sock.recvfrom(100) == (PROBE, (datagrams.host, datagrams.port))


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_probe_by_udp_programs(command: Command, host: str) -> None:
    """nmap's probe comes back through the programs over UDP."""
    with (
        fastsock.Server(f"udp://{host}:0") as server,
        interactive(command(server.endpoint)) as process,
    ):
        echo_through(process, PROBE)
