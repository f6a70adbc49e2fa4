"""A listening socket: create, set options, bind, listen; or a datagram socket, without listen.

Every failure is an OSError (or its subclass for the errno) that names the step and the address.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..endpoint import Endpoint, SocketAddress
from ..server import inherited
from ..server.hints import hinted
from ..server.unix_file import SocketFile, bind_unix
from . import datagrams
from .control import Control, Phase

SO_PASSRIGHTS = 83  # since Linux 6.16; Python has no name for it yet


def open_socket(
    endpoint: Endpoint, backlog: int, unix_mode: int, cancelled: Callable[[], bool]
) -> tuple[socket.socket, SocketFile | None]:
    """Return a socket that listens on `endpoint` or receives datagrams there, and its Unix file.

    At most `backlog` connections wait for accept(), or net.core.somaxconn if that is less.
    """
    make = partial(make_bound, endpoint, endpoint.resolve(cancelled), backlog, unix_mode)
    with hinted(endpoint):
        if endpoint.is_unix:
            return bind_unix(endpoint, unix_mode, make, cancelled)
        return make(), None


def make_bound(
    endpoint: Endpoint,
    address: SocketAddress,
    backlog: int,
    unix_mode: int,
) -> socket.socket:
    kind = socket.SOCK_STREAM if endpoint.is_stream else socket.SOCK_DGRAM
    with step("socket", endpoint):
        sock = socket.socket(address.family, kind)
    try:
        if endpoint.is_unix:
            with step("setsockopt", endpoint):
                refuse_descriptors(sock)
            with step("fchmod", endpoint):
                # bind() gives the file the mode of the socket, which is 0777 unless set first.
                os.fchmod(sock.fileno(), unix_mode)
        else:
            with step("setsockopt", endpoint):
                set_options(sock, endpoint)
        with step("bind", endpoint):
            sock.bind(address.name)
        if not endpoint.is_stream:
            datagrams.answer_from_any(sock)
        if endpoint.is_stream:
            with step("listen", endpoint):
                sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    # What poll() reported may be gone before accept() or recv(): a blocking socket would hang.
    sock.setblocking(False)
    return sock


def refuse_descriptors(sock: socket.socket) -> None:
    """Refuse open files that a client sends (SCM_RIGHTS), where Linux can do so.

    Otherwise the receiving call closes them, and closing a socket that lingers (SO_LINGER) takes as
    long as the client wants.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise


class InheritedListener(socket.socket):
    """A listener with other holders: at a stop the connections in its queue are left to them."""

    control: Control

    def accept(self) -> tuple[socket.socket, Any]:
        if self.control.phase is not Phase.RUNNING:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return super().accept()


def duplicate(descriptor: int) -> socket.socket:
    """Return a non-blocking duplicate of an inherited, bound socket."""
    sock, endpoint = inherited.borrow(descriptor)
    if endpoint.is_stream:
        sock = InheritedListener(fileno=sock.detach())
    elif not endpoint.is_unix:
        datagrams.set_options(sock, bool(endpoint.dual_stack))
        datagrams.answer_from_any(sock)
    if endpoint.is_unix:
        refuse_descriptors(sock)
    sock.setblocking(False)
    return sock


def set_options(sock: socket.socket, endpoint: Endpoint) -> None:
    if endpoint.is_stream:
        # Without it bind() fails for a minute after a stop, while connections are in TIME_WAIT. Not
        # for datagrams: with it another process could take over the port (socket(7)).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # On Linux accepted sockets inherit it: one call, not one per connection. With Nagle's
        # algorithm a small answer would wait until the one before it is acknowledged.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    else:
        datagrams.set_options(sock, bool(endpoint.dual_stack))
    if sock.family == socket.AF_INET6:
        # Always set: a sysctl (net.ipv6.bindv6only) decides the default.
        only = 0 if endpoint.dual_stack else 1
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)


@contextmanager
def step(name: str, endpoint: Endpoint) -> Iterator[None]:
    """Name the step and the endpoint in an OSError."""
    try:
        yield
    except OSError as error:
        number = error.errno or errno.EIO
        raise OSError(number, f"{name} {endpoint}: {os.strerror(number)}") from None
