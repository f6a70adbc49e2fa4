"""The local addresses that a run's connections take, checked before the load begins."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

from fastsock.endpoint import Endpoint, SocketAddress


def resolved(sources: Sequence[str]) -> tuple[SocketAddress, ...]:
    """The socket addresses of `sources`.

    Raises:
        ValueError: an address of one link is without its interface.
        OSError: a socket cannot be bound to one, or there is no such interface.

    """
    found = tuple(Endpoint("tcp", each).resolve() for each in sources)
    for text, address in zip(sources, found, strict=True):
        with socket.socket(address.family, socket.SOCK_DGRAM) as sock:
            try:
                sock.bind(address.name)
            except OSError as error:
                reason = os.strerror(error.errno or 0)
                if error.errno == errno.EADDRNOTAVAIL:
                    reason += " (this machine does not have it; its own are in: ip address)"
                raise type(error)(error.errno, f"source {text}: {reason}") from None
    return found


def of_their_family(
    addresses: Sequence[SocketAddress], sources: Sequence[SocketAddress], target: Endpoint
) -> Sequence[SocketAddress]:
    """Those of the target's addresses that `sources`, which are of one family, can connect to.

    Raises ValueError if there is none.
    """
    if not sources:
        return addresses
    family = sources[0].family
    if found := [each for each in addresses if each.family == family]:
        return found
    names = {int(socket.AF_INET): "IPv4", int(socket.AF_INET6): "IPv6"}
    of_sources = ", ".join(each.host for each in sources)
    raise ValueError(
        f"sources {of_sources} are {names[family]}, and {target} has only "
        f"{names[int(addresses[0].family)]} addresses"
    )
