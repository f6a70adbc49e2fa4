"""From an endpoint to what bind() and connect() take."""

from __future__ import annotations

import socket

from ..endpoint import Endpoint

#: (host, port), and for IPv6 also (flow label, scope id); or a path, NUL first if it is abstract.
SocketName = tuple[str, int] | tuple[str, int, int, int] | str


def socket_name(endpoint: Endpoint) -> tuple[socket.AddressFamily, SocketName]:
    """The family and the socket name of an endpoint; OSError when the host has no address."""
    address = endpoint.resolve()
    family = socket.AddressFamily(address.family)
    if family == socket.AF_UNIX:
        abstract = address.path.startswith("@")
        return family, "\0" + address.path[1:] if abstract else address.path
    if family == socket.AF_INET6:
        return family, (address.host, address.port, 0, address.scope_id)
    return family, (address.host, address.port)
