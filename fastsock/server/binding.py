"""From endpoints and descriptors to bound sockets, one for each worker.

A host name is bound at every address that it resolves to, on one port.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from fastsock._native.server.datagram_socket import (
    DatagramSocket,
    InheritedDatagramSocket,
    UnixDatagramSocket,
)
from fastsock._native.server.listener import InheritedListener, Listener, UnixListener
from fastsock.endpoint import Endpoint, SocketAddress
from fastsock.server import inherited
from fastsock.server.hints import hinted
from fastsock.server.unix_file import SocketFile, bind_unix

if TYPE_CHECKING:
    from fastsock._native.server.listener import BoundSocket
    from fastsock.server.options import ServerOptions


#: What a step says of an address that this machine does not have, or of IPv6 switched off.
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_PICKS = 32  # ports that are tried for port 0 of a host name with several addresses


class Binding:
    """What a server is bound to.

    ``endpoints`` are those asked for, with their real ports, and then those of the descriptors;
    ``addresses`` says at how many addresses each is bound. ``sockets`` has one for each worker, in
    their order. ``files`` are those of Unix sockets, which this process removes. ``left_out`` has
    the errors of the addresses of host names that could not be bound.
    """

    def __init__(self) -> None:
        self.endpoints: list[Endpoint] = []
        self.addresses: list[int] = []
        self.left_out: list[str] = []
        self.sockets: list[BoundSocket] = []
        self.files: list[SocketFile] = []

    def add(self, endpoint: Endpoint, addresses: int = 1) -> None:
        self.endpoints.append(endpoint)
        self.addresses.append(addresses)

    def undo(self) -> None:
        """Remove every file and close every socket."""
        while self.files:
            self.files.pop().remove()  # while its socket is bound
        self.close_sockets()

    def close_sockets(self, after: int = 0) -> None:
        """Close the sockets after that many."""
        while len(self.sockets) > after:
            # Not when the last reference goes, which an exception may hold for long.
            self.sockets.pop().close()


def bind(
    endpoints: Iterable[Endpoint],
    fds: Iterable[int],
    options: ServerOptions,
    cancelled: Callable[[], bool],
) -> Binding:
    """Bind each endpoint, with a socket for each worker, and duplicate each descriptor.

    An address of a host name that this machine does not have is left out, if another one is bound.

    Raises:
        CancelledError: `cancelled` returned true while a host name was looked up, or while another
            program held the lock of a Unix path.
        OSError: a step failed; the text names the step and the endpoint. Nothing stays bound.
        ValueError: a descriptor is not a socket that can be served on, or `max_connections` is
            less than the sockets.

    """
    binding = Binding()
    try:
        for endpoint in endpoints:
            if endpoint.is_unix:
                binding.add(_bind_unix(endpoint, options, binding, cancelled))
            else:
                addresses = endpoint.resolve_all(cancelled)
                _bind_inet(endpoint, addresses, options, binding)
        for fd in fds:
            binding.add(_inherit(fd, options, binding))
        several = [
            f"{endpoint.host} has {addresses} addresses"
            for endpoint, addresses in zip(binding.endpoints, binding.addresses, strict=True)
            if addresses > 1
        ]
        options.check_shares(len(binding.sockets), ", ".join(several))
    except BaseException:
        binding.undo()
        raise
    return binding


def _bind_unix(
    endpoint: Endpoint, options: ServerOptions, binding: Binding, cancelled: Callable[[], bool]
) -> Endpoint:
    make: Callable[..., BoundSocket] = partial(UnixDatagramSocket, sndbuf=options.sndbuf)
    if endpoint.is_stream:
        make = partial(UnixListener, backlog=options.backlog)
    make = partial(make, endpoint.path, str(endpoint), mode=options.unix_mode)
    with hinted(endpoint):
        sock, file = bind_unix(endpoint, options.unix_mode, make, cancelled)
    binding.sockets.append(sock)
    if file:
        binding.files.append(file)
    return endpoint


def _bind_inet(
    endpoint: Endpoint,
    addresses: Sequence[SocketAddress],
    options: ServerOptions,
    binding: Binding,
) -> None:
    before = len(binding.sockets)
    picks = _PICKS if endpoint.port == 0 else 1
    while True:
        picks -= 1
        try:
            port, absent = _bind_addresses(endpoint, addresses, options, binding)
        except OSError as error:
            # The port that the kernel picked at one address may be in use at the next one.
            picked = len(binding.sockets) > before
            if error.errno != errno.EADDRINUSE or not picked or not picks:
                raise
        else:
            binding.add(endpoint.with_port(port), len(addresses) - len(absent))
            if endpoint.host != "localhost":  # which is not both addresses where IPv6 is off
                binding.left_out += [error.strerror or str(error) for error in absent]
            return
        binding.close_sockets(before)


def _bind_addresses(
    endpoint: Endpoint,
    addresses: Sequence[SocketAddress],
    options: ServerOptions,
    binding: Binding,
) -> tuple[int, list[OSError]]:
    """Bind those of this machine; return the port, and the errors of the others."""
    port = endpoint.port
    absent: list[OSError] = []
    for address in addresses:
        at = replace(address, port=port)
        where = str(endpoint) if len(addresses) == 1 else f"{endpoint} ({at})"
        try:
            port = _bind_address(endpoint, at, where, options, binding)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            absent.append(error)
    if len(absent) == len(addresses):
        raise absent[0]
    return port, absent


def _bind_address(
    endpoint: Endpoint,
    address: SocketAddress,
    where: str,
    options: ServerOptions,
    binding: Binding,
) -> int:
    """Bind a socket for each worker; return the port."""
    make: Callable[..., BoundSocket] = DatagramSocket
    if endpoint.is_stream:
        make = partial(Listener, backlog=options.backlog, nodelay=options.nodelay)
    dual_stack = options.dual_stack if endpoint.dual_stack is None else endpoint.dual_stack
    # The kernel spreads new connections, and the clients of datagrams, over the sockets that share
    # a port by SO_REUSEPORT. It lets every socket of this user join that asks for it, before or
    # after. Therefore the first socket of several workers binds and listens without it: that fails
    # while another socket has the port. Port 0 is picked without it too: with it the kernel may
    # pick the port of a socket that has it.
    shared = options.reuse_port or options.workers > 1
    port = address.port
    for number in range(options.workers):
        with hinted(endpoint):
            sock = make(
                address.family,
                address.host,
                port,
                address.scope_id,
                where,
                dual_stack=dual_stack,
                reuse_port=number > 0 or (options.reuse_port and endpoint.port != 0),
                rcvbuf=options.rcvbuf,
                sndbuf=options.sndbuf,
            )
        binding.sockets.append(sock)
        port = sock.port
        if shared:
            sock.share_port()
    return port


def _inherit(fd: int, options: ServerOptions, binding: Binding) -> Endpoint:
    sock, endpoint = inherited.borrow(fd)
    where, family = str(endpoint), int(sock.family)
    bound: BoundSocket
    with hinted(endpoint):
        if endpoint.is_stream:
            # A connection can vanish between poll() and accept(), which then would block.
            sock.setblocking(False)
            bound = InheritedListener(sock.detach(), family, where, nodelay=options.nodelay)
        else:
            dual_stack = bool(endpoint.dual_stack)
            bound = InheritedDatagramSocket(sock.detach(), family, where, dual_stack=dual_stack)
    binding.sockets.append(bound)
    return endpoint
