"""What to write in place of an address that was refused."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from fastsock.endpoint import DEFAULT_ENDPOINT, from_text

_UNIX = {"unix": "tcp", "unixgram": "udp"}  # with the one that takes a host and a port
_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_LONGEST = 80  # characters: a longer spelling would not be read
_SCHEME = re.compile("(tcp|udp|unix|unixgram):", re.ASCII | re.IGNORECASE)
# Every address: "*", 0.0.0.0, and "::" alone.
_EVERY = re.compile(r"\*|\b0\.0\.0\.0\b|(?<![0-9A-Fa-f])::0*(?![0-9A-Fa-f.])")


def corrected(text: str) -> str | None:
    """An address that can be parsed and is probably meant by `text`, which cannot.

    It has every word and number of the text except a scheme, a user name and a URL's path, and it
    adds none but a port. It is every address only if the text is.
    """
    if len(text) > 2 * _LONGEST or text.count("//") > 1:  # too far from an address to guess
        return None
    for kept, candidate in _candidates(text.strip()):
        if len(candidate) <= _LONGEST and candidate.isprintable():
            words = _words(candidate)
            if _words(kept) not in (words, words[:-1]):
                continue
            try:
                endpoint = from_text(candidate)
            except ValueError:
                continue
            if endpoint.host not in ("0.0.0.0", "::") or _EVERY.search(text):
                return candidate
    return None


def _words(text: str) -> list[str]:
    """The names, addresses and numbers, in order; "*" is 0.0.0.0."""
    text = re.sub("^[^/]*@", "", _SCHEME.sub("", text, count=1).strip("/"))
    text = re.sub("(:[0-9]+)[/#].*", r"\1", text).replace("*", "0.0.0.0")
    words = re.split(r"[\s,;:/\[\]@#?]+", text.lower())
    return [word.lstrip("0") or "0" if word.isdigit() else word for word in words if word]


def _candidates(text: str) -> Iterator[tuple[str, str]]:
    """What must be kept of the text, and a spelling that may keep it."""
    text = re.sub(r"\s*([:/])\s*", r"\1", text)
    text = re.sub(r"^(tcp|udp|unix|unixgram)(:*)//", r"\1://", text, flags=re.ASCII | re.IGNORECASE)
    yield text, text
    scheme, colon, address = text.partition(":")
    scheme = scheme.lower()
    slashes = address.startswith("//")
    address = address.removeprefix("//")
    if colon and _SCHEME.match(address):  # "tcp:unix:/x"
        yield address, address
    if scheme in _UNIX:
        yield address, f"{_UNIX[scheme]}://{address}"
        return
    meant = difflib.get_close_matches(scheme, ("tcp", "udp", *_UNIX), 1) if colon else []
    kept = address
    if scheme in _PORTS:
        meant = ["tcp"]
        authority = re.split("[/?#]", address.lstrip("/"), maxsplit=1)[0]
        kept = authority if _words(authority) else address
    if slashes and not (re.fullmatch("[a-z][a-z0-9+-]*", scheme) and _words(address)):
        return  # an address in place of a scheme
    if slashes:
        meant += ["unix" if address.startswith(("/", "@")) else "tcp"]
    for each in meant:
        yield kept, f"{each}://{address}"
        if each not in _UNIX:
            port = _PORTS.get(scheme, DEFAULT_ENDPOINT.port)
            for authority in _authorities(address, port):
                yield kept, f"{each}://{authority}"
    if not slashes:
        for authority in _authorities(text, DEFAULT_ENDPOINT.port):
            yield text, authority


def _authorities(address: str, port: int) -> Iterator[str]:
    """Each way to read a host and a port; `port` is for one that is missing."""
    both = re.split("[/?#]", address.strip("/"), maxsplit=1)[0].rpartition("@")[2]
    both = re.sub(r"[\s,;]*:[\s,;]*", ":", both.strip(" \t\n,;"))  # ",:7007"
    both = re.sub(r"[\s,;]+", ":", both)  # "127.0.0.1 7007", "127.0.0.1,7007"
    both = re.sub(r"\](?=[0-9])", "]:", both)
    both = re.sub(r"^\*(?=:|$)", "0.0.0.0", both)
    if re.fullmatch(r"\[?::[0-9]{2,}\]?", both):  # a port, or an IPv6 address
        return
    yield both
    host, colon, last = both.rpartition(":")
    if colon:
        yield f"{host}:{last.lstrip('0')}"
        host = host.strip("[]")
        yield f"{host}:{last}"
        yield f"[{host}]:{last}"
    yield f"[{both.strip('[]')}]:{port}"
    yield f"{both.removesuffix(':')}:{port}"
