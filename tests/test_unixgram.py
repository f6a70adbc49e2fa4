"""Tests of unixgram:// endpoints: what is answered, what is not, and what datagrams do to a path.

test_datagram.py tests what datagrams of UDP have too, test_unix.py the rules of a Unix path.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from clients import SO_PASSRIGHTS, not_zero, skip_if_rights_always_pass, wait_until
from implementations import IMPLEMENTATIONS, ServedProcess

import fastsock
from fastsock import pure

LONG = 30.0  # seconds; only something that hangs takes so long
SIZES = (0, 1, 64, 65507, 65535)  # bytes; the last is the most that is answered
FAR_TOO_MANY = 1000  # datagrams, more than a send buffer of the default size holds

MakeServer = Callable[..., Any]
StartProcess = Callable[..., ServedProcess]


@pytest.fixture(params=[fastsock, pure], ids=["native", "pure"])
def make(request: pytest.FixtureRequest) -> MakeServer:
    """A function that makes a server of the package under test, not started."""
    server: MakeServer = request.param.Server
    return server


@pytest.fixture(params=["native-epoll", "pure-threads"])
def start_process(request: pytest.FixtureRequest) -> Iterator[StartProcess]:
    """A function that starts a server in a process of its own, which can be paused."""
    with ExitStack() as stack:

        def start(endpoint: str, **options: Any) -> ServedProcess:
            server = ServedProcess(IMPLEMENTATIONS[request.param], endpoint=endpoint, **options)
            return stack.enter_context(closing(server))

        yield start


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name; at the end no lock is in it."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
        assert not list(Path(name).glob("*.lock"))


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "echo.dgram"


def url(path: Path | str) -> str:
    return f"unixgram://{path}"


def abstract_name() -> str:
    return f"@fastsock-test-{os.getpid()}"


def unbound() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.settimeout(LONG)
    return sock


def bound(name: Path | str = "") -> socket.socket:
    """Without a name the kernel picks an abstract one, "autobind" (unix(7))."""
    sock = unbound()
    sock.bind(str(name))
    return sock


def connected(server: Path | str, name: Path | str = "") -> socket.socket:
    sock = bound(name)
    try:
        sock.connect(f"\0{server[1:]}" if isinstance(server, str) else str(server))
    except BaseException:
        sock.close()
        raise
    return sock


def ask(sock: socket.socket, payload: bytes = b"probe") -> bytes:
    sock.send(payload)
    return sock.recv(70000)


def answers(server: Path | str) -> bool:
    with connected(server) as sock:
        return ask(sock) == b"probe"


def take_refusal_back(path: Path) -> None:
    """Make the socket at `path`, one of this process, as it would be before Linux 6.16."""
    for link in Path("/proc/self/fd").iterdir():
        # OSError: it is that of iterdir(), and gone; or the kernel knows no refusal anyway.
        with suppress(OSError):
            if not str(link.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(link.name))) as sock:
                if sock.getsockname() == str(path):
                    sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 1)


def send_and_close(server: Path, name: Path | str, payload: bytes) -> None:
    with connected(server, name) as sock:
        sock.send(payload)


def end(server: ServedProcess) -> dict[str, Any]:
    """Stop it; return its counters, which are complete then."""
    server.signal(signal.SIGTERM)
    stats: dict[str, Any] = server.finish()["stats"]
    return stats


def address_in_use(server: Any) -> str:
    """The text of the error of a start that finds its address in use."""
    with pytest.raises(OSError) as caught:
        server.start()
    assert caught.value.errno == errno.EADDRINUSE
    return str(caught.value)


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["path", "abstract"])
@pytest.mark.parametrize("size", SIZES)
def test_one_datagram_is_answered_with_the_same_bytes(
    make: MakeServer, path: Path, name: str, size: int
) -> None:
    """Every size comes back as it was, the empty datagram too."""
    where: Path | str = path if name == "path" else abstract_name()
    payload = os.urandom(size)
    with make(url(where)) as server, connected(where) as sock:
        assert str(server.endpoint) == url(where)
        assert ask(sock, payload) == payload
        assert ask(sock) == b"probe"
    stats = server.stats()
    assert (stats.datagrams_in, stats.datagrams_out) == (2, 2)
    assert (stats.bytes_in, stats.bytes_out) == (size + 5, size + 5)
    assert stats.accepted == stats.open == sum(stats.dropped.values()) == 0


def test_clients_with_names_of_every_kind(make: MakeServer, path: Path) -> None:
    """Paths, abstract names with NULs in them and those of the kernel's choice are answered."""
    names = (path.with_name("client"), path.with_name("über \udcff"), "", "\0a\0b\0")
    with make(url(path)), ExitStack() as stack:
        clients = [stack.enter_context(connected(path, name)) for name in names]
        for turn in range(20):
            for number, sock in enumerate(clients):
                sock.send(b"%d %d" % (turn, number))
            for number, sock in enumerate(clients):
                assert sock.recv(100) == b"%d %d" % (turn, number)


def test_a_client_whose_path_has_no_room_for_a_nul(path: Path) -> None:
    """108 bytes may be bound, and are told as 109, which may not be sent to."""
    name = os.fsencode(str(path).ljust(108, "x"))
    libc = ctypes.CDLL(None, use_errno=True)
    with fastsock.Server(url(path)), unbound() as sock:
        address = socket.AF_UNIX.to_bytes(2, sys.byteorder) + name
        assert libc.bind(sock.fileno(), address, len(address)) == 0, ctypes.get_errno()
        sock.connect(str(path))
        assert ask(sock) == b"probe"


@pytest.mark.parametrize("kernel", ["refuses them", "knows no refusal"])
def test_descriptors_that_come_along(make: MakeServer, path: Path, kernel: str) -> None:
    """They are refused, or closed: any client could use up the server's, and keep files open."""
    if kernel == "refuses them":
        skip_if_rights_always_pass()
    with make(url(path)), connected(path) as sock:
        reader, writer = os.pipe()
        try:
            if kernel == "refuses them":
                with pytest.raises(PermissionError):
                    socket.send_fds(sock, [b"probe"], [writer])
            else:
                take_refusal_back(path)
                socket.send_fds(sock, [b"probe"], [writer])
                assert sock.recv(100) == b"probe"
        finally:
            os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            assert select.select([pipe], [], [], LONG)[0]  # the end: no copy of the writer is open
            assert pipe.read() == b""


def test_beside_streams(path: Path) -> None:
    """One server serves Unix sockets of both kinds and UDP, and counts them together."""
    stream = path.with_name("echo.sock")
    with fastsock.Server(url(path), f"unix://{stream}", "udp://127.0.0.1:0") as server:
        assert answers(path)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(stream))
            sock.sendall(b"stream")
            assert sock.recv(6, socket.MSG_WAITALL) == b"stream"
    stats = server.stats()
    assert (stats.accepted, stats.datagrams_out) == (1, 1)
    assert not list(path.parent.iterdir())


# --- what cannot be answered --------------------------------------------------------------------


def test_a_sender_without_a_name(make: MakeServer, path: Path) -> None:
    """This is no error: its datagram is dropped, as there is no address to answer to."""
    with make(url(path)) as server:
        with unbound() as sock:
            sock.sendto(b"no name", str(path))
        assert answers(path)
    stats = server.stats()
    assert not_zero(stats.dropped) == {"unnamed": 1}
    assert not_zero(stats.errors) == {}
    assert (stats.datagrams_in, stats.datagrams_out) == (2, 1)


def test_a_datagram_that_is_too_long(make: MakeServer, path: Path) -> None:
    """Unix datagrams may be longer than any of UDP; nothing is echoed short."""
    with make(url(path)) as server, connected(path) as sock:
        sock.send(bytes(65536))
        sock.send(bytes(100000))
        assert ask(sock) == b"probe"
    stats = server.stats()
    assert not_zero(stats.dropped) == {"truncated": 2}
    assert (stats.datagrams_in, stats.datagrams_out) == (3, 1)


def test_clients_that_vanish(start_process: StartProcess, path: Path) -> None:
    """An answer to a client that is gone is dropped and counted; the next client gets its own."""
    server = start_process(url(path))
    client, removed, stream = (path.with_name(name) for name in ("client", "removed", "stream"))
    server.pause()
    with ExitStack() as stack:
        send_and_close(path, client, b"closed")  # ECONNREFUSED: the file is still there
        send_and_close(path, "", b"abstract, and closed")  # ECONNREFUSED
        send_and_close(path, removed, b"removed")  # ENOENT
        removed.unlink()
        send_and_close(path, stream, b"replaced by a stream socket")  # EPROTOTYPE
        stream.unlink()
        stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(stream))
        other = stack.enter_context(bound())
        elsewhere = stack.enter_context(connected(path))
        elsewhere.send(b"connected to another socket meanwhile")  # EPERM
        elsewhere.connect(other.getsockname())
        shut = stack.enter_context(connected(path))
        shut.send(b"shut down")  # EPIPE
        shut.shutdown(socket.SHUT_RD)
        server.resume()
        assert answers(path)
        stats = end(server)
    assert stats["errors"] == {
        "ECONNREFUSED": 2,
        "ENOENT": 1,
        "EPROTOTYPE": 1,
        "EPERM": 1,
        "EPIPE": 1,
    }
    assert not_zero(stats["dropped"]) == {"send_error": 6}
    assert (stats["datagrams_in"], stats["datagrams_out"]) == (7, 1)


def test_a_client_with_a_full_queue(make: MakeServer, path: Path) -> None:
    """A client that does not read loses what does not fit; the server does not wait for it."""
    room = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    if room > 100:
        pytest.skip(f"net.unix.max_dgram_qlen is {room}, more than a send buffer surely holds")
    with make(url(path)) as server, bound() as unread, connected(path) as sock:
        for _ in range(room + 50):
            unread.sendto(b"never read", str(path))
        for number in range(100):
            assert ask(sock, b"%d" % number) == b"%d" % number
        server.stop()
        stats = server.stats()
    assert stats.datagrams_in == room + 150
    assert stats.datagrams_out + stats.dropped["send_error"] == stats.datagrams_in
    assert stats.errors == {"EAGAIN": stats.dropped["send_error"]}
    assert 0 < stats.dropped["send_error"] < 50  # the queue takes one more than its length


def test_a_client_that_fills_the_send_buffer(make: MakeServer, path: Path) -> None:
    """Answers that are not read fill the server's own send buffer. Other clients then get none,
    but the server goes on receiving, stops when told, and answers again once they are gone."""
    with make(url(path)) as server, connected(path) as sock:
        with connected(path) as full:
            for _ in range(FAR_TOO_MANY):
                full.send(b"never read")
            sock.send(b"lost")
            wait_until(lambda: server.stats().datagrams_in == FAR_TOO_MANY + 1)
            assert server.stats().errors.keys() == {"EAGAIN"}
        assert ask(sock) == b"probe"
        with connected(path) as full:
            for _ in range(FAR_TOO_MANY):
                full.send(b"never read")
            server.stop()
    stats = server.stats()
    assert stats.datagrams_out + stats.dropped["send_error"] == stats.datagrams_in


def test_the_servers_own_address_is_not_answered(start_process: StartProcess, path: Path) -> None:
    """When a client's name has become a link to the server, the server gets its own answer."""
    server = start_process(url(path))
    client = path.with_name("client")
    server.pause()
    send_and_close(path, client, b"forged")
    client.unlink()
    client.symlink_to(path)
    server.resume()
    for _ in range(2):  # the second is received after what the first may have overtaken
        assert answers(path)
    stats = end(server)
    assert not_zero(stats["dropped"]) == {"loop_guard": 1}
    assert (stats["datagrams_in"], stats["datagrams_out"]) == (4, 3)


def test_what_waits_is_answered_at_the_end(start_process: StartProcess, path: Path) -> None:
    """Datagrams that came before the stop are answered before the server ends."""
    server = start_process(url(path), drain_timeout=LONG)
    with connected(path) as sock:
        server.pause()
        for number in range(8):
            sock.send(b"%d" % number)
        server.signal(signal.SIGTERM)
        server.resume()
        for number in range(8):
            assert sock.recv(100) == b"%d" % number
    assert server.finish()["stats"]["datagrams_out"] == 8


# --- the path and abstract names ----------------------------------------------------------------


def test_a_live_server_is_not_stolen(make: MakeServer, path: Path) -> None:
    """The second server fails, the first goes on, and the probe is no datagram to it."""
    with make(url(path)) as first:
        for other in (url(path), f"unix://{path}"):
            expected = f"bind {other}: Address already in use (another socket is bound to it)"
            assert expected in address_in_use(make(other))
        assert answers(path)
    assert first.stats().datagrams_in == 1


def test_the_path_has_its_rights_and_is_removed(make: MakeServer, path: Path) -> None:
    """Whatever the umask is, which stays as it was."""
    before = os.umask(0o027)
    try:
        with make(url(path), unix_mode=0o666):
            assert stat.S_IMODE(path.lstat().st_mode) == 0o666
            assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert not path.exists()


def test_an_abstract_name(make: MakeServer) -> None:
    """It is in use while it is served, and free afterwards."""
    name = abstract_name()
    for _ in range(2):
        with make(url(name)):
            address_in_use(make(url(name)))
            assert answers(name)
    with pytest.raises(ConnectionRefusedError):
        answers(name)


def test_the_send_buffer_can_be_set(path: Path) -> None:
    """An answer that does not fit into it cannot be sent, which shows that the option is used."""
    with fastsock.Server(url(path), sndbuf=8192) as server, connected(path) as sock:
        sock.send(bytes(60000))
        assert ask(sock) == b"probe"
    assert server.stats().errors == {"EMSGSIZE": 1}


# --- the command line ---------------------------------------------------------------------------


def test_the_command_line(path: Path) -> None:
    """serve says where it listens, gives the rights asked for, and removes the path at the end."""
    command = [sys.executable, "-m", "fastsock", "serve", url(path), "--unix-mode", "660"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            assert said == f"listening on {url(path)} (datagrams, 1 worker)\n"
            assert stat.S_IMODE(path.lstat().st_mode) == 0o660
            assert answers(path)
            process.terminate()
            assert process.wait(LONG) == 0
            assert "1 datagram (0 more dropped)" in process.stderr.read()
        finally:
            process.kill()
    assert not path.exists()
