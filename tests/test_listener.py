"""Tests of the listening socket: options, error messages, closing."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fastsock._native.server import listener as native

LOOPBACK = "127.0.0.1"
Listen = Callable[..., native.Listener]


def listen_on(port: int = 0, **options: Any) -> native.Listener:
    chosen = {"family": socket.AF_INET, "host": LOOPBACK, "scope_id": 0, "backlog": 5, **options}
    host = f"[{chosen['host']}]" if chosen["family"] == socket.AF_INET6 else chosen["host"]
    return native.Listener(
        chosen.pop("family"),
        chosen.pop("host"),
        port,
        chosen.pop("scope_id"),
        f"tcp://{host}:{port}",
        **chosen,
    )


@pytest.fixture
def listen() -> Iterator[Listen]:
    """A function that makes a listener; all are closed at the end."""
    made: list[native.Listener] = []

    def make(port: int = 0, **options: Any) -> native.Listener:
        made.append(listen_on(port, **options))
        return made[-1]

    yield make
    for listener in made:
        listener.close()


def duplicate(listener: native.Listener) -> socket.socket:
    """A second descriptor of the same socket."""
    return socket.socket(fileno=os.dup(listener.fd))


def accept_one(listener: native.Listener) -> socket.socket:
    """An accepted connection; its client has closed."""
    with duplicate(listener) as same, socket.create_connection((LOOPBACK, listener.port)):
        return same.accept()[0]


def option(sock: socket.socket, level: int, name: int) -> int:
    return sock.getsockopt(level, name)


def test_is_a_listening_stream_socket(listen: Listen) -> None:
    """It accepts connections, does not block, and has FD_CLOEXEC."""
    listener = listen()
    with duplicate(listener) as sock:
        assert option(sock, socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        assert option(sock, socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
        assert sock.getsockname() == (LOOPBACK, listener.port)
    assert fcntl.fcntl(listener.fd, fcntl.F_GETFL) & os.O_NONBLOCK
    assert fcntl.fcntl(listener.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_address_can_be_reused_and_the_port_not_shared(listen: Listen) -> None:
    """SO_REUSEADDR is on, for restarts; SO_REUSEPORT, which allows a second server, is off."""
    with duplicate(listen()) as sock:
        assert option(sock, socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        assert option(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0


def test_reuse_port_lets_two_listen(listen: Listen) -> None:
    """With reuse_port two listeners share a port."""
    first = listen(reuse_port=True)
    second = listen(first.port, reuse_port=True)
    assert second.port == first.port
    with duplicate(second) as sock:
        assert option(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1


@pytest.mark.parametrize("dual_stack", [False, True])
def test_dual_stack_is_set_either_way(listen: Listen, dual_stack: bool) -> None:
    """IPV6_V6ONLY does not depend on the system's default."""
    with duplicate(listen(family=socket.AF_INET6, host="::", dual_stack=dual_stack)) as sock:
        assert option(sock, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == (not dual_stack)


@pytest.mark.parametrize("nodelay", [False, True])
def test_nodelay_reaches_accepted_sockets(listen: Listen, nodelay: bool) -> None:
    """`nodelay` sets TCP_NODELAY on every accepted connection."""
    with accept_one(listen(nodelay=nodelay)) as sock:
        assert bool(option(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY)) == nodelay


@pytest.mark.parametrize(
    ("keyword", "name"), [("rcvbuf", socket.SO_RCVBUF), ("sndbuf", socket.SO_SNDBUF)]
)
def test_buffer_sizes_reach_accepted_sockets(listen: Listen, keyword: str, name: int) -> None:
    """A size in bytes is set, and doubled by the kernel (socket(7)); 0 keeps the default."""
    with accept_one(listen(**{keyword: 10_000})) as sock:
        assert option(sock, socket.SOL_SOCKET, name) == 20_000
    with duplicate(listen(**{keyword: 0})) as ours, socket.socket() as untouched:
        assert option(ours, socket.SOL_SOCKET, name) == option(untouched, socket.SOL_SOCKET, name)


def test_backlog_is_passed_on(listen: Listen) -> None:
    """The kernel has the backlog that was asked for (a listener's tcpi_sacked; ss(8), Send-Q)."""
    with duplicate(listen(backlog=7)) as sock:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    assert struct.unpack_from("I", info, 28) == (7,)


def test_port_is_the_bound_one(listen: Listen) -> None:
    """For port 0, `port` is the one that the kernel picked, over IPv6 too."""
    for family, host in ((socket.AF_INET, LOOPBACK), (socket.AF_INET6, "::1")):
        listener = listen(family=family, host=host)
        assert 0 < listener.port < 65536
        socket.create_connection((host, listener.port)).close()


def test_port_of_a_closed_listener(listen: Listen) -> None:
    """The port of a closed listener is an OSError that names the step and the endpoint."""
    listener = listen()
    listener.close()
    with pytest.raises(OSError, match=r"^\[Errno 9\] getsockname tcp://127\.0\.0\.1:0: ") as caught:
        _ = listener.port
    assert caught.value.errno == errno.EBADF


def test_close_is_idempotent_and_frees_the_port(listen: Listen) -> None:
    """After close() the port can be bound at once, and closing again does nothing."""
    listener = listen()
    port, fd = listener.port, listener.fd
    listener.close()
    with Path(os.devnull).open() as file:  # gets the same number, and must not be closed
        assert file.fileno() == fd
        listener.close()
        assert os.fstat(file.fileno())
    assert listener.fd == -1
    assert listen(port).port == port


def test_listener_is_closed_with_its_last_reference() -> None:
    """Without close(), the descriptor is closed with the last reference."""
    listener = listen_on()
    port = listener.port
    del listener
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, port))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (
            {"host": "192.0.2.1"},
            errno.EADDRNOTAVAIL,
            "bind tcp://192.0.2.1:0: Cannot assign requested address",
        ),
        (
            {"family": 9999},
            errno.EAFNOSUPPORT,
            "socket tcp://127.0.0.1:0: Address family not supported by protocol",
        ),
        (
            {"family": socket.AF_UNIX},
            errno.EOPNOTSUPP,
            "setsockopt TCP_NODELAY tcp://127.0.0.1:0: Operation not supported",
        ),
    ],
    ids=["bind", "socket", "setsockopt"],
)
def test_failure_names_step_and_endpoint(
    listen: Listen, options: dict[str, Any], error: int, text: str
) -> None:
    """A failed step is an OSError that says which, where and why."""
    with pytest.raises(OSError) as caught:
        listen(**options)
    assert (caught.value.errno, caught.value.strerror) == (error, text)


def test_port_in_use(listen: Listen) -> None:
    """A port that another socket listens on is refused."""
    port = listen().port
    with pytest.raises(OSError) as caught:
        listen(port)
    assert caught.value.errno == errno.EADDRINUSE
    assert caught.value.strerror == (f"bind tcp://127.0.0.1:{port}: Address already in use")


def test_port_bound_but_not_listened_on(listen: Listen) -> None:
    """The message names the step that failed, bind or listen."""
    with closing(socket.socket()) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((LOOPBACK, 0))
        port = other.getsockname()[1]
        listener = listen(port)
        with pytest.raises(OSError) as caught:
            other.listen()
        assert caught.value.errno == errno.EADDRINUSE
        listener.close()
        other.listen()
        with pytest.raises(OSError, match=f"^\\[Errno 98\\] (bind|listen) tcp://127.0.0.1:{port}"):
            listen(port)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"host": "localhost"}, ValueError),
        ({"host": "::1"}, ValueError),
        ({"backlog": "5"}, TypeError),
        ({"unknown": 1}, TypeError),
        ({"rcvbuf": 1 << 40}, OverflowError),
    ],
    ids=str,
)
def test_bad_argument_leaves_nothing_open(
    listen: Listen, options: dict[str, Any], kind: type[Exception]
) -> None:
    """A bad argument is refused, and the socket is closed if it was open."""
    with pytest.raises(kind):
        listen(**options)
