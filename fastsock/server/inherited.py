"""Sockets that another program has made and bound: systemd, or a program that restarts servers.

With a listener that outlives the servers a restart loses no client: the kernel goes on completing
connections and queues them, also while no server accepts. So such a socket is only borrowed. It is
never shut down, which would end it for every holder. Its path is never removed. What waits in its
queue at a stop is left to the next server.

The holders share one open file description (dup(2)), and O_NONBLOCK belongs to that. The server's
accept() must never block, so the giver's socket becomes non-blocking too. The flag cannot be
removed at the end, because the next server may rely on it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from dataclasses import replace

from fastsock.endpoint import Endpoint

_FIRST = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")
_MPTCP = 262  # IPPROTO_MPTCP; not in the socket module of every Python
_PROTOCOLS = {
    socket.SOCK_STREAM: (socket.IPPROTO_TCP, _MPTCP),
    socket.SOCK_DGRAM: (socket.IPPROTO_UDP,),
}


def listen_fds(environ: MutableMapping[str, str] | None = None) -> dict[int, str]:
    """Take the descriptors that a service manager passed to this process, with their names.

    The protocol of sd_listen_fds(3): the variables count only if LISTEN_PID is this process. They
    are always removed, or a child could take them for its own. A descriptor without a name has "".

    Raises:
        ValueError: LISTEN_FDS is not a number of open descriptors.

    """
    environ = os.environ if environ is None else environ
    pid, _, count, names = (environ.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()):
        return {}
    if not (count.isascii() and count.isdigit()):
        raise ValueError(f"LISTEN_FDS {count!r} is not a number of descriptors")
    descriptors = range(_FIRST, _FIRST + int(count))
    for descriptor in descriptors:
        try:
            os.set_inheritable(descriptor, False)
        except OSError as error:
            raise ValueError(
                f"LISTEN_FDS {count}: descriptor {descriptor}: {os.strerror(error.errno or 0)}"
            ) from None
    given = [ascii(name)[1:-1] if not name.isprintable() else name for name in names.split(":")]
    return {
        descriptor: given[place] if place < len(given) else ""
        for place, descriptor in enumerate(descriptors)
    }


def endpoint_of(descriptor: int) -> Endpoint:
    """Where an inherited socket listens or receives.

    Raises:
        OSError: not an open socket; the text names the descriptor.
        ValueError: a socket that cannot be served on: not listening, not bound, or of another kind.

    """
    sock, endpoint = borrow(descriptor)
    sock.close()
    return endpoint


def borrow(descriptor: int) -> tuple[socket.socket, Endpoint]:
    """A close-on-exec duplicate of a socket that can be served on, and where it is bound.

    Raises what `endpoint_of()` does.
    """
    try:
        copy = os.dup(descriptor)
        try:
            sock = socket.socket(fileno=copy)  # reads SO_DOMAIN, SO_TYPE and SO_PROTOCOL
        except BaseException:
            os.close(copy)
            raise
    except OSError as error:
        number = error.errno or 0
        raise OSError(number, f"inherit descriptor {descriptor}: {os.strerror(number)}") from None
    try:
        return sock, _endpoint(sock)
    except ValueError as error:
        sock.close()
        raise ValueError(f"descriptor {descriptor} {error}") from None
    except BaseException:
        sock.close()
        raise


def _endpoint(sock: socket.socket) -> Endpoint:
    inet = sock.family in (socket.AF_INET, socket.AF_INET6)
    stream = sock.type == socket.SOCK_STREAM
    if not (inet or sock.family == socket.AF_UNIX) or sock.type not in _PROTOCOLS:
        raise ValueError(f"is {_kind(sock)}; expected a tcp, udp, unix or unixgram one")
    if inet and sock.proto not in _PROTOCOLS[sock.type]:
        raise ValueError(f"is {_kind(sock)}, protocol {sock.proto}; expected tcp or udp")
    if stream and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError("is a stream socket that does not listen; expected a listening one")
    return _inet_endpoint(sock, stream) if inet else _unix_endpoint(sock, stream)


def _inet_endpoint(sock: socket.socket, stream: bool) -> Endpoint:
    name = sock.getsockname()
    if not name[1]:
        raise ValueError("is a socket that is not bound to a port; expected a bound one")
    endpoint = replace(Endpoint.parse(name), scheme="tcp" if stream else "udp")
    if sock.family == socket.AF_INET6 and not sock.getsockopt(
        socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
    ):
        return replace(endpoint, dual_stack=True)
    return endpoint


def _unix_endpoint(sock: socket.socket, stream: bool) -> Endpoint:
    name = sock.getsockname()
    if not name:
        raise ValueError("is a socket that is not bound to a name; expected a bound one")
    # getsockname() gives an abstract name as bytes that begin with a NUL, and a path as text.
    path = "@" + os.fsdecode(name[1:]) if isinstance(name, bytes) else os.fsdecode(name)
    return Endpoint("unix" if stream else "unixgram", path=path)


def _kind(sock: socket.socket) -> str:
    family = getattr(sock.family, "name", f"family {sock.family}")
    kind = getattr(sock.type, "name", f"type {sock.type}")
    return f"a socket of {family} and {kind}"
