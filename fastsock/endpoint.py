"""Endpoint addresses: parsed, checked and printed without a system call; resolved on demand.

    tcp://127.0.0.1:7007        udp://0.0.0.0:7007          unix:///run/echo.sock
    tcp://[::1]:0               tcp://[fe80::1%eth0]:7      unix://@abstract
    tcp://[::]:7007?dual_stack=1                            unixgram:///run/echo.dgram

A host and a port alone mean tcp, and a port without a host is on loopback. "//" may be left out:

    127.0.0.1:7007              [::1]:7007                  localhost:7007
    :7007                       udp://:7007                 udp:127.0.0.1:7007
    unix:/run/echo.sock         unix:@abstract              unixgram:/run/echo.dgram

"tcp:7007" is refused: it may be meant as a port, or as a host called tcp. An endpoint prints as the
whole URL.

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
_HTTP_SCHEMES = ("http", "https", "ws", "wss")
_SCHEMES = "tcp, udp, unix or unixgram"
_LOOPBACK = "127.0.0.1"

# sun_path has 108 bytes. A path needs one for its closing NUL, an abstract name one for its leading
# NUL (unix(7)), so that both have at most 107.
_SUN_PATH_BYTES = 107
_MAX_PORT = 65535
_MAX_SCOPE_ID = 2**32 - 1  # sin6_scope_id is 32 bits (ipv6(7))
_MAX_HOST_NAME = 253  # RFC 1123 2.1 and RFC 1035 3.1, without the root's dot
_QUOTED = 80
_PATH_ENDS = (".sock", ".socket", ".dgram")  # of a file name that is no host name

_PORT = re.compile("0|[1-9][0-9]{0,9}")
_OCTET = re.compile("0|[1-9][0-9]{0,2}")
# At most 15 characters (IFNAMSIZ), of those that RFC 6874 does not escape.
_INTERFACE = re.compile("[A-Za-z0-9._~-]{1,15}")
# Not IGNORECASE: the Kelvin sign would match "k", and lower() makes it a "k".
_LABEL = re.compile("[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_SLASHES_AND_PORT = re.compile("/+[^/]*:[0-9]+/*")  # "tcp:/127.0.0.1:7007"
_NO_COLON = re.compile("(tcp|udp|unix|unixgram)//", re.ASCII | re.IGNORECASE)
_NO_HOST = re.compile("::[0-9]{2,}")  # a port, or an IPv6 address
_SEPARATOR = re.compile(r"[\s,;]")
_NO_IPV6 = re.compile("[^0-9A-Fa-f:]")
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
            form = _SCHEMES
            if ":" in self.scheme or "/" in self.scheme:
                form = f"Endpoint.parse({_quote(self.scheme)})"
            raise MisspelledError(f"scheme {_quote(self.scheme)} is unknown", form)

    @classmethod
    def parse(cls, value: Endpoint | str | tuple[Any, ...]) -> Endpoint:
        """Read an endpoint from text, or from a socket address tuple, without a system call.

        Text is a URL or one of the short forms above. ``(host, port)`` and
        ``(host, port, flowinfo, scope_id)`` mean tcp, as in ``socket``. There an empty host means
        every address, and here a missing one means loopback, so that ``("", port)`` is refused.

        Raises:
            TypeError: not one of these, or a tuple item has the wrong type.
            ValueError: not an address; the message names it and what to write.

        """
        if isinstance(value, Endpoint):
            return value
        try:
            if isinstance(value, str):
                return from_text(value)
            if isinstance(value, tuple):
                return _from_tuple(value)
        except MisspelledError as error:
            from fastsock import spelling

            meant = spelling.corrected(value) if isinstance(value, str) else None
            reason, form = error.args
            text = f"endpoint {_quote(value)}: {reason}; write {meant or form}"
            raise ValueError(text) from None
        except ValueError as error:
            raise ValueError(f"endpoint {_quote(value)}: {error}") from None
        except TypeError as error:
            raise TypeError(f"endpoint {_quote(value)}: {error}") from None
        if type(value) is int and 0 <= value <= _MAX_PORT:
            every = f'"0.0.0.0:{value}" for every address'
            raise TypeError(f'endpoint {value} is int; write ":{value}" for loopback or {every}')
        raise _wrong_type("endpoint", value, "a str, a (host, port) tuple or an Endpoint")

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
        addresses = [_found_address(each[4], self.port) for each in found]
        if self.host == "localhost":
            # Both loopback addresses (RFC 6761 6.3); many a container's /etc/hosts has only one.
            addresses.append(SocketAddress(int(socket.AF_INET), "127.0.0.1", self.port))
            addresses.append(SocketAddress(int(socket.AF_INET6), "::1", self.port))
        return _families_in_turn(addresses)


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


class MisspelledError(ValueError):
    """An address that is refused for `reason`, and the `form` that it should have."""

    def __init__(self, reason: str, form: str) -> None:
        super().__init__(reason, form)

    def __str__(self) -> str:
        reason, form = self.args
        return f"{reason}; write {form}"


def from_text(text: str) -> Endpoint:
    """Read a URL or a short form.

    Raises:
        MisspelledError: not an address; perhaps `spelling.corrected()` knows which was meant.
        ValueError: not an address.

    """
    scheme, colon, address = text.partition(":")
    scheme = scheme.lower()  # RFC 3986 3.1
    if address.startswith("//"):
        address = address[2:]
    elif found := _NO_COLON.match(text):
        scheme = found[1].lower()
        form = f"{scheme}:/PATH" if scheme in _UNIX_SCHEMES else f"{scheme}://HOST:PORT"
        raise MisspelledError("':' is missing", form)
    elif not colon or scheme not in _INET_SCHEMES + _UNIX_SCHEMES:
        return _inet("tcp", text, "")
    if scheme in _INET_SCHEMES:
        return _inet(scheme, address, f"{scheme}://")
    if scheme in _HTTP_SCHEMES:
        raise MisspelledError("fastsock speaks no HTTP", "tcp://HOST:PORT")
    if scheme not in _UNIX_SCHEMES:
        raise MisspelledError(f"scheme {_quote(scheme)} is unknown", _SCHEMES)
    return Endpoint(scheme, path=address)


def _inet(scheme: str, address: str, prefix: str) -> Endpoint:
    """Read what follows `prefix`, the scheme as it was written."""
    if _is_like_path(address.strip()):
        unix = _UNIX_SCHEMES[_INET_SCHEMES.index(scheme)]
        raise ValueError(f"a path needs {unix}:; write {_path_form(unix, address.strip())}")
    if "#" in address:
        raise MisspelledError("fragments (#) are not supported", f"{prefix}HOST:PORT")
    authority, question, query = address.partition("?")
    if "/" in authority:
        raise MisspelledError("'/' does not go here", f"{prefix}HOST:PORT")
    if "@" in authority:
        raise MisspelledError("user names (@) are not supported", f"{prefix}HOST:PORT")
    host, port = _split_authority(authority, prefix)
    dual_stack = _parse_query(query) if question else None
    return Endpoint(scheme, host or _LOOPBACK, port, dual_stack=dual_stack)


def _is_like_path(address: str) -> bool:
    if address.startswith(("@", "~", "./", "../")):
        return True
    if address.startswith("/"):
        return not _SLASHES_AND_PORT.fullmatch(address)
    first, slash, _ = address.partition("/")
    is_host = ":" in first or _is_dotted_quad(first)
    return not is_host and (bool(slash) or first.endswith(_PATH_ENDS))


def _path_form(scheme: str, path: str) -> str:
    """What to write for a path; for a relative one, where it is now."""
    try:
        if path.startswith("~/"):
            path = os.path.expanduser(path)  # noqa: PTH111 - pathlib is slow to load
        if path[0] not in "@~":
            path = os.path.abspath(path)  # noqa: PTH100
        if path.isprintable() and path[0] != "~":
            return f"{scheme}:{Endpoint(scheme, path=path).path}"
    except (OSError, ValueError):  # no working directory; a path that is too long
        pass
    return f"{scheme}:/ABSOLUTE/PATH"


def _split_authority(authority: str, prefix: str) -> tuple[str, int]:
    if _SEPARATOR.search(authority):
        raise MisspelledError("spaces and commas do not go here", f"one {prefix}HOST:PORT")
    if authority.startswith("["):
        host, bracket, tail = authority[1:].partition("]")
        if not bracket:
            raise MisspelledError("']' is missing", f"{prefix}[ADDRESS]:PORT")
        if ":" not in host:
            raise MisspelledError("only IPv6 goes in brackets", f"{prefix}HOST:PORT")
        before, colon, port = tail.partition(":")
        if before:
            raise MisspelledError(f"{_quote(before)} follows ']'", f"{prefix}[ADDRESS]:PORT")
    else:
        host, colon, port = authority.rpartition(":")
        if _NO_HOST.fullmatch(authority):
            number = _port_number(port)
            every = f"{prefix}[::]:{number} for every address"
            raise ValueError(f"no host; write {prefix}:{number} for loopback or {every}")
        if ":" in host and not _NO_IPV6.search(host.partition("%")[0]):
            raise MisspelledError("IPv6 needs brackets", f"{prefix}[ADDRESS]:PORT")
        if ":" in host:
            raise MisspelledError("too many colons", f"{prefix}HOST:PORT")
        if not colon and port.isdecimal():
            number = _port_number(port)
            every = f"{prefix}0.0.0.0:{number} for every address"
            raise ValueError(f"no host; write {prefix}:{number} for loopback or {every}")
    if not (colon and port):
        raise MisspelledError("no port", f"{prefix}HOST:PORT")
    return host, _port_number(port)


def _port_number(port: str) -> int:
    if _PORT.fullmatch(port):
        _check_port(int(port))
        return int(port)
    raise MisspelledError(f"port {_quote(port)} is not a plain number", f"one of 0 to {_MAX_PORT}")


def _parse_query(query: str) -> bool:
    if query not in ("dual_stack=0", "dual_stack=1"):
        raise ValueError(f"query {_quote(query)} is unknown; write ?dual_stack=0 or ?dual_stack=1")
    return query.endswith("1")


def _from_tuple(address: tuple[Any, ...]) -> Endpoint:
    if len(address) not in (2, 4):
        raise ValueError(f"{len(address)} items; expected (host, port)")
    host, port, flowinfo, scope_id = address if len(address) == 4 else (*address, 0, 0)
    if not isinstance(host, str):
        raise _wrong_type("host", host, "a str")
    if host in ("", "*"):
        every = f'"0.0.0.0" for every address, "{_LOOPBACK}" for loopback'
        raise ValueError(f"host {host!r} is not an address; write {every}")
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
        raise ValueError(f"the path is empty; write {scheme}:/PATH or {scheme}:@NAME")
    if path[0] == "~":
        raise ValueError(f"'~' is not expanded; write {_path_form(scheme, path)}")
    if path[0] not in "/@":
        form = _path_form(scheme, path)
        raise MisspelledError(f"path {_quote(path)} is relative", form)
    if _CONTROL.search(path):
        # NUL would truncate the path, and a newline would split the line that the server prints.
        raise MisspelledError(f"path {_quote(path)} holds a control character", "it without")
    if "?" in path or "#" in path:
        raise ValueError(f"path {_quote(path)} holds '?' or '#'; write a path without them")
    try:
        size = len(os.fsencode(path.removeprefix("@")))
    except UnicodeEncodeError:
        raise ValueError(f"path {_quote(path)} cannot be encoded as a file name") from None
    if size > _SUN_PATH_BYTES:
        raise ValueError(f"the path has {size} bytes; expected at most {_SUN_PATH_BYTES} (unix(7))")


def _canonical_host(host: str) -> str:
    if not host:
        raise ValueError("the host is empty; write 0.0.0.0 for every address")
    if host == "*":
        raise MisspelledError("host '*' is not an address", "0.0.0.0 for every address")
    if ":" in host:
        return _canonical_ipv6(host)
    if _is_dotted_quad(host):
        return host
    labels = host.removesuffix(".").split(".")
    if _NUMBER_LABEL.fullmatch(labels[-1]):
        # inet_aton(3), and with it getaddrinfo(3), reads 127.1 as 127.0.0.1 and 010 as 8.
        reason = f"host {_quote(host)} is not a dotted quad"
        raise MisspelledError(reason, "four plain numbers of 0 to 255")
    if not all(map(_LABEL.fullmatch, labels)):
        reason = f"host {_quote(host)} is not a host name (RFC 1123)"
        raise MisspelledError(reason, "letters, digits and hyphens, at most 63 between dots")
    if len(host.removesuffix(".")) > _MAX_HOST_NAME:
        raise ValueError(f"the host has {len(host)} characters; expected at most {_MAX_HOST_NAME}")
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
            f"host {_quote(host)} is link-local; write its interface too, as in fe80::1%eth0"
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
            "write the number of the interface"
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


#: A URL or its short form, a socket address tuple, or an Endpoint.
EndpointLike = Endpoint | str | tuple[Any, ...]

DEFAULT_ENDPOINT = Endpoint("tcp", _LOOPBACK, 7007)  # loopback: no network can reach it
