"""Endpoint addresses: parsed, checked and printed without a system call; resolved on demand.

    tcp://127.0.0.1:7007        udp://0.0.0.0:7007          unix:///run/echo.sock
    tcp://[::1]:0               tcp://[fe80::1%eth0]:7      unix://@abstract
    tcp://[::]:7007?dual_stack=1                            unixgram:///run/echo.dgram

Nothing is percent-decoded, so that an address reads as it is bound, but for the "%25" of RFC 6874
before an interface: [fe80::1%25eth0] is [fe80::1%eth0]. An IPv4-mapped address, [::ffff:127.0.0.1],
is printed so and resolved to the IPv4 address: Linux takes it only on sockets that take IPv4.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

__all__ = ["DEFAULT_ENDPOINT", "Endpoint", "EndpointLike", "SocketAddress", "SocketName"]

_INET_SCHEMES = ("tcp", "udp")
_UNIX_SCHEMES = ("unix", "unixgram")
_STREAM_SCHEMES = ("tcp", "unix")
_FORMS = "tcp://HOST:PORT, udp://HOST:PORT, unix:///PATH or unixgram:///PATH"

# sun_path has 108 bytes. A path needs one for its closing NUL, an abstract name one for its leading
# NUL (unix(7)), so that both have at most 107.
_SUN_PATH_BYTES = 107
_MAX_PORT = 65535
_MAX_SCOPE_ID = 2**32 - 1  # sin6_scope_id is 32 bits (ipv6(7))
_MAX_HOST_NAME = 253  # RFC 1123 2.1 and RFC 1035 3.1, without the root's dot
_QUOTED = 80

_PORT = re.compile("0|[1-9][0-9]{0,4}")
_OCTET = re.compile("0|[1-9][0-9]{0,2}")
# At most 15 characters (IFNAMSIZ), of those that RFC 6874 does not escape.
_INTERFACE = re.compile("[A-Za-z0-9._~-]{1,15}")
# Not IGNORECASE: the Kelvin sign would match "k", and lower() makes it a "k".
_LABEL = re.compile("[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMBER_LABEL = re.compile("[0-9]+|0[xX][0-9A-Fa-f]*")
_MAPPED = "::ffff:"  # before the dotted quad of an IPv4-mapped address (RFC 4291 2.5.5.2)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


#: What the methods of `socket.socket` take: (host, port), with (flowinfo, scope_id) for IPv6, or
#: the name of a Unix socket, which begins with a NUL if it is abstract.
SocketName = tuple[str, int] | tuple[str, int, int, int] | str


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """The contents of a sockaddr.

    ``family`` is AF_INET, AF_INET6 or AF_UNIX. ``host`` is numeric and without a scope, which is
    ``scope_id`` (an interface index, 0 for none). ``path`` is a file, or ``@name`` for an abstract
    name, which the kernel stores as NUL and ``name`` (unix(7)).
    """

    family: int
    host: str = ""
    port: int = 0
    scope_id: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        scope = f"%{self.scope_id}" if self.scope_id else ""
        host = f"[{self.host}{scope}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def name(self) -> SocketName:
        """The address as `socket.bind()` and `connect()` take it."""
        if self.path:
            return f"\0{self.path[1:]}" if self.path.startswith("@") else self.path
        if ":" in self.host:
            return self.host, self.port, 0, self.scope_id
        return self.host, self.port


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address to listen on or to connect to, always valid and in canonical form.

    Args:
        scheme: "tcp", "udp", "unix" or "unixgram".
        host: an address without brackets or a host name (RFC 1123); tcp and udp only.
        port: 0 to 65535, and 0 picks a free one; tcp and udp only.
        path: an absolute file path, or "@name" in the abstract namespace; at most 107 bytes
            (unix(7)); unix and unixgram only.
        dual_stack: whether an IPv6 socket serves IPv4 too (IPV6_V6ONLY, ipv6(7)); None if the
            endpoint does not say.

    Raises:
        TypeError: a field has the wrong type.
        ValueError: a field has the wrong value, or does not belong to the scheme.

    """

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    dual_stack: bool | None = None

    def __post_init__(self) -> None:
        for name in ("scheme", "host", "path"):
            if not isinstance(getattr(self, name), str):
                raise _wrong_type(name, getattr(self, name), "a str")
        if not isinstance(self.dual_stack, bool | None):
            raise _wrong_type("dual_stack", self.dual_stack, "True, False or None")
        _check_port(self.port)
        if self.scheme in _UNIX_SCHEMES:
            _check_unix(self)
        elif self.scheme in _INET_SCHEMES:
            object.__setattr__(self, "host", _canonical_host(self.host))
            _check_inet(self)
        else:
            raise ValueError(f"scheme {_quote(self.scheme)} is unknown; write {_FORMS}")

    @classmethod
    def parse(cls, value: Endpoint | str | tuple[Any, ...]) -> Endpoint:
        """Read an endpoint from a URL, or from a socket address tuple, without a system call.

        ``(host, port)`` and ``(host, port, flowinfo, scope_id)`` mean tcp, as in ``socket``.

        Raises:
            TypeError: not one of these, or a tuple item has the wrong type.
            ValueError: not an address; the message names it and what was expected.

        """
        if isinstance(value, Endpoint):
            return value
        try:
            if isinstance(value, str):
                return _from_url(value)
            if isinstance(value, tuple):
                return _from_tuple(value)
        except ValueError as error:
            raise ValueError(f"endpoint {_quote(value)}: {error}") from None
        except TypeError as error:
            raise TypeError(f"endpoint {_quote(value)}: {error}") from None
        raise _wrong_type("endpoint", value, "a URL str, a (host, port) tuple or an Endpoint")

    def __str__(self) -> str:
        if self.is_unix:
            return f"{self.scheme}://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        query = "" if self.dual_stack is None else f"?dual_stack={self.dual_stack:d}"
        return f"{self.scheme}://{host}:{self.port}{query}"

    @property
    def is_unix(self) -> bool:
        """Whether the address is in AF_UNIX."""
        return self.scheme in _UNIX_SCHEMES

    @property
    def is_stream(self) -> bool:
        """Whether the socket is SOCK_STREAM, and not SOCK_DGRAM."""
        return self.scheme in _STREAM_SCHEMES

    def with_port(self, port: int) -> Endpoint:
        """Return the same endpoint on another port, such as the one the kernel picked for 0.

        Raises:
            TypeError: the port is not an int.
            ValueError: the port is outside 0 to 65535, or the endpoint is a unix one.

        """
        if self.is_unix:
            raise ValueError(f"endpoint {_quote(str(self))}: {self.scheme} endpoints have no port")
        return replace(self, port=port)

    def resolve(self, cancelled: Callable[[], bool] | None = None) -> SocketAddress:
        """Return the first of `resolve_all()`."""
        return self.resolve_all(cancelled)[0]

    def resolve_all(self, cancelled: Callable[[], bool] | None = None) -> tuple[SocketAddress, ...]:
        """Return the socket addresses: those that getaddrinfo(3) lists for a host name.

        They are in its order, but the families take turns (RFC 8305 4), so that a family without a
        route costs one attempt.

        Only host names and interface names are looked up. May block as long as the name
        server takes; meanwhile the handlers of signals run, and `cancelled` is called again and
        again: the look-up is given up when it returns true.

        Raises:
            OSError: no such host (``socket.gaierror``) or no such interface (ENODEV).
            CancelledError: `cancelled` returned true (fastsock.interruptible).

        """
        # Not at the top: loading it takes about 2 ms, and parsing and printing do not need it.
        import socket

        if self.is_unix:
            return (SocketAddress(int(socket.AF_UNIX), path=self.path),)
        if ":" in self.host:
            address, _, scope = self.host.partition("%")
            return (_ipv6_address(address, self.port, self._scope_id(scope)),)
        if _is_dotted_quad(self.host):
            return (SocketAddress(int(socket.AF_INET), self.host, self.port),)
        return self._look_up(cancelled)

    def _scope_id(self, scope: str) -> int:
        import errno
        import socket

        if not scope or scope.isdigit():
            return int(scope or 0)
        try:
            return socket.if_nametoindex(scope)
        except OSError:
            # Before Python 3.13 this error has no errno.
            message = f"resolve {self}: no network interface {scope!r}"
            raise OSError(errno.ENODEV, message) from None

    def _look_up(self, cancelled: Callable[[], bool] | None) -> tuple[SocketAddress, ...]:
        import socket

        from fastsock import interruptible

        kind = socket.SOCK_STREAM if self.is_stream else socket.SOCK_DGRAM
        try:
            # As bytes: a str would load the IDNA codec, for a name that is ASCII already.
            name = self.host.encode("ascii")
            found = interruptible.call(
                lambda: socket.getaddrinfo(name, self.port, type=kind), cancelled
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise type(error)(error.errno, f"resolve {self}: {reason}") from None
        return _families_in_turn([_found_address(each[4], self.port) for each in found])


def _found_address(name: Any, port: int) -> SocketAddress:
    """The address of a socket name of getaddrinfo(3)."""
    import socket

    host = str(name[0]).partition("%")[0]
    if len(name) == 4:
        return _ipv6_address(host, port, name[3])
    return SocketAddress(int(socket.AF_INET), host, port)


def _families_in_turn(addresses: list[SocketAddress]) -> tuple[SocketAddress, ...]:
    first = [each for each in addresses if each.family == addresses[0].family]
    other = [each for each in addresses if each.family != addresses[0].family]
    in_turn = [each for pair in zip_longest(first, other) for each in pair if each]
    return tuple(dict.fromkeys(in_turn))


def _ipv6_address(host: str, port: int, scope_id: int) -> SocketAddress:
    import socket

    # A socket of AF_INET6 cannot be bound to it with IPV6_V6ONLY (EINVAL), and without is IPv4.
    if mapped := _mapped_ipv4(host):
        return SocketAddress(int(socket.AF_INET), mapped, port)
    return SocketAddress(int(socket.AF_INET6), host, port, scope_id)


def _from_url(url: str) -> Endpoint:
    scheme, separator, address = url.partition("://")
    if not separator:
        raise ValueError(f"no scheme; write {_FORMS}")
    scheme = scheme.lower()  # RFC 3986 3.1
    if scheme not in _INET_SCHEMES:
        return Endpoint(scheme, path=address)
    if "#" in address:
        raise ValueError("fragments (#) are not supported; remove it")
    authority, question, query = address.partition("?")
    if "/" in authority:
        raise ValueError(f"nothing may follow the port, found '/'; write {scheme}://HOST:PORT")
    if "@" in authority:
        raise ValueError(f"user names (@) are not supported; write {scheme}://HOST:PORT")
    host, port = _split_authority(authority, scheme)
    return Endpoint(scheme, host, port, dual_stack=_parse_query(query) if question else None)


def _split_authority(authority: str, scheme: str) -> tuple[str, int]:
    bracketed = authority.startswith("[")
    if bracketed:
        host, bracket, tail = authority[1:].partition("]")
        if not bracket:
            raise ValueError(f"']' is missing; write {scheme}://[ADDRESS]:PORT")
        if ":" not in host:
            raise ValueError(f"only IPv6 goes in brackets, not {_quote(host)}; leave them out")
        before, colon, port = tail.partition(":")
        if before:
            raise ValueError(f"{_quote(before)} follows ']'; write {scheme}://[ADDRESS]:PORT")
    else:
        host, colon, port = authority.rpartition(":")
        if ":" in host:
            raise ValueError(f"IPv6 needs brackets; write {scheme}://[ADDRESS]:PORT")
    if not colon:
        raise ValueError(f"no port; write {scheme}://HOST:PORT, and 0 to pick a free one")
    if not _PORT.fullmatch(port):
        raise ValueError(f"port {_quote(port)} is not decimal digits, 0 to {_MAX_PORT}")
    return host, int(port)


def _parse_query(query: str) -> bool:
    if query not in ("dual_stack=0", "dual_stack=1"):
        raise ValueError(f"query {_quote(query)} is unknown; expected dual_stack=0 or dual_stack=1")
    return query.endswith("1")


def _from_tuple(address: tuple[Any, ...]) -> Endpoint:
    if len(address) not in (2, 4):
        raise ValueError(f"{len(address)} items; expected (host, port)")
    host, port, flowinfo, scope_id = address if len(address) == 4 else (*address, 0, 0)
    if not isinstance(host, str):
        raise _wrong_type("host", host, "a str")
    for name, value in (("flowinfo", flowinfo), ("scope_id", scope_id)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong_type(name, value, "an int")
    if flowinfo != 0:
        raise ValueError(f"flowinfo {_quote(flowinfo)} is not supported; expected 0")
    if not 0 <= scope_id <= _MAX_SCOPE_ID:
        raise ValueError(f"scope_id {_quote(scope_id)} is not in 0 to {_MAX_SCOPE_ID}")
    if scope_id:
        if ":" not in host:
            raise ValueError(f"scope_id {scope_id} needs an IPv6 host, not {_quote(host)}")
        # getaddrinfo gives ("fe80::1%eth0", port, 0, 2); the number wins, as in socket.connect.
        host = f"{host.partition('%')[0]}%{scope_id}"
    return Endpoint("tcp", host, port)


def _check_port(port: object) -> None:
    if isinstance(port, bool) or not isinstance(port, int):
        raise _wrong_type("port", port, "an int")
    if not 0 <= port <= _MAX_PORT:
        raise ValueError(f"port {_quote(port)} is not in 0 to {_MAX_PORT}")


def _check_inet(endpoint: Endpoint) -> None:
    if endpoint.path:
        raise ValueError(f"path {_quote(endpoint.path)} does not go with {endpoint.scheme}")
    if endpoint.dual_stack is not None and ":" not in endpoint.host:
        # A name may resolve to IPv4, and then the option would be ignored silently.
        host = _quote(endpoint.host)
        raise ValueError(f"dual_stack needs an IPv6 host such as [::], not {host}")
    if endpoint.dual_stack is False and (mapped := _mapped_ipv4(endpoint.host)):
        raise ValueError(
            f"dual_stack=0 leaves out IPv4, which {_quote(endpoint.host)} is; "
            f"write {endpoint.scheme}://{mapped}:{endpoint.port}"
        )


def _check_unix(endpoint: Endpoint) -> None:
    scheme, path = endpoint.scheme, endpoint.path
    if endpoint.host or endpoint.port or endpoint.dual_stack is not None:
        raise ValueError(f"host, port and dual_stack do not go with {scheme}")
    if path in ("", "@"):
        # bind(2) replaces an empty name by one of its own ("autobind"), unknown to clients.
        raise ValueError(f"the path is empty; write {scheme}:///PATH or {scheme}://@NAME")
    if path[0] not in "/@":
        raise ValueError(f"path {_quote(path)} is relative; write {scheme}:///ABSOLUTE/PATH")
    if _CONTROL.search(path):
        # NUL would truncate the path, and a newline would split the line that the server prints.
        raise ValueError(f"path {_quote(path)} holds a control character; expected none")
    if "?" in path or "#" in path:
        raise ValueError(f"path {_quote(path)} holds '?' or '#'; queries do not go with {scheme}")
    try:
        size = len(os.fsencode(path.removeprefix("@")))
    except UnicodeEncodeError:
        raise ValueError(f"path {_quote(path)} cannot be encoded as a file name") from None
    if size > _SUN_PATH_BYTES:
        raise ValueError(f"the path has {size} bytes; expected at most {_SUN_PATH_BYTES} (unix(7))")


def _canonical_host(host: str) -> str:
    if not host:
        raise ValueError("the host is empty; write 0.0.0.0 or [::] for every address")
    if ":" in host:
        return _canonical_ipv6(host)
    if _is_dotted_quad(host):
        return host
    labels = host.removesuffix(".").split(".")
    if _NUMBER_LABEL.fullmatch(labels[-1]):
        raise ValueError(
            f"host {_quote(host)} is not a dotted quad like 127.0.0.1; "
            "getaddrinfo would quietly read another address"
        )
    is_name = all(_LABEL.fullmatch(label) for label in labels)
    if not is_name or len(host.removesuffix(".")) > _MAX_HOST_NAME:
        raise ValueError(
            f"host {_quote(host)} is not an address or a name of letters, digits and hyphens, "
            f"63 a label, {_MAX_HOST_NAME} in all (RFC 1123)"
        )
    return host.lower()


def _canonical_ipv6(host: str) -> str:
    import ipaddress

    text, percent, scope = host.partition("%")
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise ValueError(f"host {_quote(host)} is not an IPv6 address like ::1") from None
    scope = _canonical_scope(scope) if percent else ""
    if address.is_link_local and not scope:
        raise ValueError(
            f"host {_quote(host)} is link-local and needs its interface, as in fe80::1%eth0"
        )
    if mapped := address.ipv4_mapped:
        if scope:
            raise ValueError(f"host {_quote(host)} is IPv4, which has no interface in its address")
        # RFC 5952 5; before Python 3.13, str() writes a mapped address in hexadecimal.
        return f"{_MAPPED}{mapped}"
    return f"{address}%{scope}" if scope else str(address)


def _canonical_scope(scope: str) -> str:
    if scope.isascii() and scope.isdigit():
        if len(scope) > len(str(_MAX_SCOPE_ID)) or int(scope) > _MAX_SCOPE_ID:
            raise ValueError(f"scope {_quote(scope)} is not in 0 to {_MAX_SCOPE_ID}")
        return str(int(scope)) if int(scope) else ""
    # RFC 6874 writes "%" in a URL as "%25". Before digits it stays, the index of an interface.
    scope = scope.removeprefix("25")
    if scope.startswith("25"):
        raise ValueError(
            f"scope {_quote(scope)} begins with 25, which RFC 6874 reads as '%'; "
            "write the number of the interface (ip link)"
        )
    if not _INTERFACE.fullmatch(scope):
        raise ValueError(f"scope {_quote(scope)} is not an interface name or number, as in %eth0")
    return scope


def _mapped_ipv4(host: str) -> str:
    """The IPv4 address in an IPv4-mapped one; "" if it is none. `host` is in canonical form."""
    rest = host.removeprefix(_MAPPED)
    return rest if rest != host and _is_dotted_quad(rest) else ""


def _is_dotted_quad(host: str) -> bool:
    octets = host.split(".")
    return len(octets) == 4 and all(_OCTET.fullmatch(o) and int(o) <= 255 for o in octets)


def _wrong_type(name: str, value: object, expected: str) -> TypeError:
    return TypeError(f"{name} {_quote(value)} is {type(value).__name__}; expected {expected}")


def _quote(value: object) -> str:
    try:
        text = repr(value[:_QUOTED] if isinstance(value, str) else value)
    except ValueError:  # an int with more digits than int_max_str_digits
        text = f"<{type(value).__name__}>"
    text = " ".join(text.splitlines())
    too_long = len(text) > _QUOTED or (isinstance(value, str) and len(value) > _QUOTED)
    return f"{text[: _QUOTED - 3]}..." if too_long else text


#: A URL, a socket address tuple, or an Endpoint.
EndpointLike = Endpoint | str | tuple[Any, ...]

DEFAULT_ENDPOINT = Endpoint("tcp", "127.0.0.1", 7007)  # loopback: no network can reach it
