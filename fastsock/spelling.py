"""What to write in place of an address that was refused."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from fastsock.endpoint import DEFAULT_ENDPOINT, from_text

_UNIX = {"unix": "tcp", "unixgram": "udp"}  # with the one that takes a host and a port
_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_LONGEST = 80  # characters: a longer spelling would not be read


def corrected(text: str) -> str | None:
    """An address that can be parsed and is probably meant by `text`, which cannot."""
    if len(text) > 2 * _LONGEST:
        return None
    for candidate in _candidates(text.strip()):
        if len(candidate) <= _LONGEST and candidate.isprintable():
            try:
                from_text(candidate)
            except ValueError:
                continue
            return candidate
    return None


def _candidates(text: str) -> Iterator[str]:
    text = re.sub(r"\s*([:/])\s*", r"\1", text)
    yield text
    scheme, colon, address = text.partition(":")
    scheme = scheme.lower()
    slashes = address.startswith("//")
    address = address.removeprefix("//")
    if scheme in _UNIX:
        yield f"{_UNIX[scheme]}://{address}"
        return
    meant = difflib.get_close_matches(scheme, ("tcp", "udp", *_UNIX), 1) if colon else []
    if scheme in _PORTS:
        meant = ["tcp"]
    if slashes:
        meant += ["unix" if address.startswith("/") else "tcp"]
    for each in meant:
        yield f"{each}://{address}"
        if each not in _UNIX:
            port = _PORTS.get(scheme, DEFAULT_ENDPOINT.port)
            yield from (f"{each}://{authority}" for authority in _authorities(address, port))
    if not slashes:
        yield from _authorities(text, DEFAULT_ENDPOINT.port)


def _authorities(address: str, port: int) -> Iterator[str]:
    """Each way to read a host and a port; `port` is for one that is missing."""
    both = re.split("[/?#]", address.strip("/"), maxsplit=1)[0].rpartition("@")[2]
    both = re.sub(r"[\s,;]+", ":", both.strip())  # "127.0.0.1 7007", "127.0.0.1,7007"
    both = re.sub(r"\](?=[0-9])", "]:", both)
    if both.startswith("*"):
        both = f"0.0.0.0{both[1:]}"
    yield both
    host, _, last = both.rpartition(":")
    yield f"{host}:{last.lstrip('0')}"
    host = host.strip("[]")
    yield f"{host}:{last}"
    if host == ":" and len(last) > 1:  # "::7007"
        yield f"[::]:{last}"
    yield f"[{host}]:{last}"
    yield f"[{both.strip('[]')}]:{port}"
    yield f"{both.removesuffix(':')}:{port}"
