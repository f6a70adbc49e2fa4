"""Tests of endpoint addresses: parsing, error messages, resolving."""

from __future__ import annotations

import errno
import ipaddress
import os
import pickle
import re
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastsock import spelling
from fastsock.endpoint import DEFAULT_ENDPOINT, Endpoint, SocketAddress

GOOD = [
    ("tcp://127.0.0.1:7007", Endpoint("tcp", "127.0.0.1", 7007)),
    ("tcp://0.0.0.0:0", Endpoint("tcp", "0.0.0.0", 0)),
    ("tcp://255.255.255.255:65535", Endpoint("tcp", "255.255.255.255", 65535)),
    ("udp://0.0.0.0:7007", Endpoint("udp", "0.0.0.0", 7007)),
    ("tcp://[::1]:0", Endpoint("tcp", "::1", 0)),
    ("tcp://[fe80::1%eth0]:7", Endpoint("tcp", "fe80::1%eth0", 7)),
    ("tcp://[fe80::1%3]:7", Endpoint("tcp", "fe80::1%3", 7)),
    ("tcp://[::ffff:127.0.0.1]:7", Endpoint("tcp", "::ffff:127.0.0.1", 7)),
    ("tcp://[::]:7007?dual_stack=1", Endpoint("tcp", "::", 7007, dual_stack=True)),
    ("udp://[::]:7007?dual_stack=0", Endpoint("udp", "::", 7007, dual_stack=False)),
    ("tcp://localhost:80", Endpoint("tcp", "localhost", 80)),
    ("tcp://example.com.:80", Endpoint("tcp", "example.com.", 80)),
    ("tcp://1.echo_server.x-y:80", Endpoint("tcp", "1.echo_server.x-y", 80)),
    ("tcp://3com:80", Endpoint("tcp", "3com", 80)),
    (f"tcp://{'a' * 63}:80", Endpoint("tcp", "a" * 63, 80)),
    ("unix:///run/echo.sock", Endpoint("unix", path="/run/echo.sock")),
    ("unix:///run/my echo%20.sock", Endpoint("unix", path="/run/my echo%20.sock")),
    ("unix://@abstract", Endpoint("unix", path="@abstract")),
    ("unixgram:///run/echo.dgram", Endpoint("unixgram", path="/run/echo.dgram")),
    ("unixgram://@a/b", Endpoint("unixgram", path="@a/b")),
    (f"unix:///{'a' * 106}", Endpoint("unix", path="/" + "a" * 106)),
    (f"unix://@{'a' * 107}", Endpoint("unix", path="@" + "a" * 107)),
]

CANONICAL = [
    ("TCP://LocalHost:80", "tcp://localhost:80"),
    ("tcp://[0:0:0:0:0:0:0:1]:80", "tcp://[::1]:80"),
    ("tcp://[2001:DB8::00FF]:80", "tcp://[2001:db8::ff]:80"),
    ("tcp://[FE80::1%Eth0]:80", "tcp://[fe80::1%Eth0]:80"),
    ("tcp://[fe80::1%02]:80", "tcp://[fe80::1%2]:80"),
    ("tcp://[::1%0]:80", "tcp://[::1]:80"),
    ("tcp://[::ffff:7f00:1]:80", "tcp://[::ffff:127.0.0.1]:80"),
    ("tcp://[::FFFF:127.0.0.1]:80?dual_stack=1", "tcp://[::ffff:127.0.0.1]:80?dual_stack=1"),
    ("tcp://[fe80::1%25eth0]:80", "tcp://[fe80::1%eth0]:80"),  # RFC 6874
    ("tcp://[fe80::1%25]:80", "tcp://[fe80::1%25]:80"),
    ("tcp://[fe80::1%253]:80", "tcp://[fe80::1%253]:80"),
    ("127.0.0.1:7007", "tcp://127.0.0.1:7007"),
    ("localhost:7007", "tcp://localhost:7007"),
    ("Host.Name:0", "tcp://host.name:0"),
    ("[::1]:7007", "tcp://[::1]:7007"),
    ("[::]:7007?dual_stack=1", "tcp://[::]:7007?dual_stack=1"),
    (":7007", "tcp://127.0.0.1:7007"),
    ("tcp://:7007", "tcp://127.0.0.1:7007"),
    ("udp://:7007", "udp://127.0.0.1:7007"),
    ("tcp:127.0.0.1:7007", "tcp://127.0.0.1:7007"),
    ("UDP:[::1]:7007", "udp://[::1]:7007"),
    ("tcp::7007", "tcp://127.0.0.1:7007"),
    ("tcp:tcp:7007", "tcp://tcp:7007"),
    ("unix:/run/echo.sock", "unix:///run/echo.sock"),
    ("unix:/run/a://b", "unix:///run/a://b"),
    ("unix:@name", "unix://@name"),
    ("unixgram:/run/echo.dgram", "unixgram:///run/echo.dgram"),
]

TUPLES = [
    (("127.0.0.1", 80), "tcp://127.0.0.1:80"),
    (("localhost", 0), "tcp://localhost:0"),
    (("::1", 80), "tcp://[::1]:80"),
    (("::1", 80, 0, 0), "tcp://[::1]:80"),
    (("fe80::1", 80, 0, 2), "tcp://[fe80::1%2]:80"),
    (("fe80::1%eth0", 80, 0, 2), "tcp://[fe80::1%2]:80"),
    (("fe80::1%eth0", 80, 0, 0), "tcp://[fe80::1%eth0]:80"),
    (("127.0.0.1", 80, 0, 0), "tcp://127.0.0.1:80"),
]

BAD_VALUES = [
    ("", "no port; write :7007"),
    ("://127.0.0.1:80", "scheme '' is unknown"),
    ("http://127.0.0.1:80", "fastsock speaks no HTTP; write tcp://127.0.0.1:80"),
    ("tcp://127.0.0.1", "no port"),
    ("tcp://[::1]", "no port"),
    ("tcp://", "no port"),
    ("tcp://127.0.0.1:", "no port; write tcp://127.0.0.1:7007"),
    ("tcp://127.0.0.1:٣", "port '٣' is not a plain number"),
    ("tcp://127.0.0.1:+1", "port '+1' is not a plain number"),
    ("tcp://127.0.0.1:-1", "port '-1' is not a plain number"),
    ("tcp://127.0.0.1: 80", "write tcp://127.0.0.1:80"),
    ("tcp://127.0.0.1:80\n", "write tcp://127.0.0.1:80"),
    ("tcp://127.0.0.1:0x50", "port '0x50' is not a plain number"),
    ("tcp://127.0.0.1:8_0", "port '8_0' is not a plain number"),
    ("tcp://127.0.0.1:080", "port '080' is not a plain number"),
    ("tcp://127.0.0.1:65536", "port 65536 is not in 0 to 65535"),
    ("tcp://127.0.0.1:" + "9" * 5000, "is not a plain number; write one of 0 to 65535"),
    ("tcp://[]:80", "only IPv6 goes in brackets"),
    ("tcp://[127.0.0.1]:80", "only IPv6 goes in brackets"),
    ("tcp://[::1:80", "']' is missing"),
    ("tcp://[::1]x:80", "'x' follows ']'"),
    ("tcp://::1:80", "IPv6 needs brackets"),
    ("tcp://fe80::1%eth0:80", "IPv6 needs brackets"),
    ("tcp://[::1::2]:80", "is not an IPv6 address"),
    ("tcp://[::g]:80", "is not an IPv6 address"),
    ("tcp://[::1]]:80", "']' follows ']'; write tcp://[::1]:80"),
    ("tcp://[fe80::1]:80", "link-local; write its interface too"),
    ("tcp://[febf::1]:80", "link-local; write its interface too"),
    ("tcp://[fe80::1%0]:80", "link-local; write its interface too"),
    ("tcp://[fe80::1%]:80", "scope '' is not an interface"),
    ("tcp://[fe80::1%a+b]:80", "scope 'a+b' is not an interface"),
    ("tcp://[fe80::1%abcdefghijklmnop]:80", "is not an interface"),
    ("tcp://[fe80::1%4294967296]:80", "scope '4294967296' is not in"),
    ("tcp://[fe80::1%2525eth0]:80", "scope '25eth0' begins with 25"),
    ("tcp://[fe80::1%25a+b]:80", "scope 'a+b' is not an interface"),
    ("tcp://[::ffff:127.0.0.1%lo]:80", "has no interface in its address"),
    ("tcp://[::ffff:127.0.0.1]:80?dual_stack=0", "write tcp://127.0.0.1:80"),
    ("tcp://1:80", "host '1' is not a dotted quad; write four plain numbers"),
    ("tcp://127.1:80", "is not a dotted quad"),
    ("tcp://0x7f.1:80", "is not a dotted quad"),
    ("tcp://0x7F000001:80", "is not a dotted quad"),
    ("tcp://0177.0.0.1:80", "is not a dotted quad"),
    ("tcp://127.0.0.1.:80", "is not a dotted quad"),
    ("tcp://127.0.0.256:80", "is not a dotted quad"),
    ("tcp://1.2.3.4.5:80", "is not a dotted quad"),
    ("tcp://host.0x:80", "is not a dotted quad"),
    ("tcp://-a:80", "RFC 1123"),
    ("tcp://a-.b:80", "RFC 1123"),
    ("tcp://a..b:80", "RFC 1123"),
    ("tcp://.:80", "RFC 1123"),
    ("tcp://a b:80", "spaces and commas do not go here; write one tcp://HOST:PORT"),
    ("tcp://a\n:80", "write tcp://a:80"),
    ("tcp://\u212aelvin:80", "RFC 1123"),
    ("tcp://münchen:80", "RFC 1123"),
    (f"tcp://{'a' * 64}:80", "RFC 1123"),
    (f"tcp://{'.'.join(['a' * 49] * 6)}:80", "the host has 299 characters; expected at most 253"),
    ("tcp://user@127.0.0.1:80", "user names (@) are not supported"),
    ("tcp://127.0.0.1:80#top", "fragments (#) are not supported"),
    ("tcp://127.0.0.1:80/", "'/' does not go here"),
    ("tcp://127.0.0.1:80/a", "'/' does not go here; write tcp://127.0.0.1:80"),
    ("tcp://[::]:80?", "query '' is unknown"),
    ("tcp://[::]:80?dual_stack", "write ?dual_stack=0 or ?dual_stack=1"),
    ("tcp://[::]:80?dual_stack=true", "write ?dual_stack=0 or ?dual_stack=1"),
    ("tcp://[::]:80?dual_stack=1&dual_stack=1", "write ?dual_stack=0 or ?dual_stack=1"),
    ("tcp://[::]:80?backlog=1", "query 'backlog=1' is unknown"),
    ("tcp://0.0.0.0:80?dual_stack=1", "dual_stack needs an IPv6 host"),
    ("tcp://localhost:80?dual_stack=0", "dual_stack needs an IPv6 host"),
    ("unix://", "the path is empty"),
    ("unix://@", "the path is empty"),
    ("unix://rel/path", "path 'rel/path' is relative; write unix:/srv/rel/path"),
    ("unix://./path", "is relative"),
    ("unix:///a\0b", "holds a control character"),
    ("unix://@a\0b", "holds a control character"),
    ("unix:///a\nb", "holds a control character"),
    ("unix:///a?dual_stack=1", "holds '?' or '#'"),
    ("unix:///a#b", "holds '?' or '#'"),
    (f"unix:///{'a' * 107}", "the path has 108 bytes; expected at most 107"),
    (f"unix:///{'é' * 54}", "the path has 109 bytes; expected at most 107"),
    (f"unixgram://@{'a' * 108}", "the path has 108 bytes; expected at most 107"),
    ("unix:///\ud800", "cannot be encoded"),
    ((), "expected (host, port)"),
    (("127.0.0.1",), "expected (host, port)"),
    (("127.0.0.1", 80, 0), "expected (host, port)"),
    (("", 80), 'write "0.0.0.0" for every address, "127.0.0.1" for loopback'),
    (("[::1]", 80), "is not an IPv6 address"),
    (("127.0.0.1", -1), "port -1 is not in 0 to 65535"),
    (("127.0.0.1", 65536), "port 65536 is not in 0 to 65535"),
    (("127.0.0.1", 10**5000), "port <int> is not in 0 to 65535"),
    (("::1", 80, 1, 0), "flowinfo 1 is not supported"),
    (("::1", 80, 0, -1), "scope_id -1 is not in"),
    (("::1", 80, 0, 2**32), "is not in 0 to 4294967295"),
    (("127.0.0.1", 80, 0, 1), "scope_id 1 needs an IPv6 host"),
    (("fe80::1", 80, 0, 0), "link-local; write its interface too"),
]

#: What people type, and the whole reason that they are given.
MISSPELLED = [
    ("7007", "no host; write :7007 for loopback or 0.0.0.0:7007 for every address"),
    ("tcp:7007", "no host; write tcp://:7007 for loopback or tcp://0.0.0.0:7007 for every address"),
    ("70000", "port 70000 is not in 0 to 65535"),
    ("localhost", "no port; write localhost:7007"),
    ("127.0.0.1", "no port; write 127.0.0.1:7007"),
    ("tcp://127.0.0.1", "no port; write tcp://127.0.0.1:7007"),
    ("udp:localhost", "no port; write udp://localhost:7007"),
    ("[::1]", "no port; write [::1]:7007"),
    ("tcp", "no port; write HOST:PORT"),
    ("*:7007", "host '*' is not an address; write 0.0.0.0:7007"),
    ("::1:7007", "IPv6 needs brackets; write [::1]:7007"),
    ("tcp://2001:db8::1:80", "IPv6 needs brackets; write tcp://[2001:db8::1]:80"),
    ("fe80::1%eth0:80", "IPv6 needs brackets; write [fe80::1%eth0]:80"),
    ("::1", "IPv6 needs brackets; write [::1]:7007"),
    ("::7007", "no host; write :7007 for loopback or [::]:7007 for every address"),
    (
        "udp:::7007",
        "no host; write udp://:7007 for loopback or udp://[::]:7007 for every address",
    ),
    (",:7007", "spaces and commas do not go here; write :7007"),
    (":;7007", "spaces and commas do not go here; write :7007"),
    ("[::7007", "']' is missing; write [ADDRESS]:PORT"),
    (":::7007", "IPv6 needs brackets; write [::]:7007"),
    ("::", "IPv6 needs brackets; write [::]:7007"),
    ("fe80::1:80", "IPv6 needs brackets; write [ADDRESS]:PORT"),
    ("[::1]80", "'80' follows ']'; write [::1]:80"),
    ("[::1:80", "']' is missing; write [::1]:80"),
    ("[127.0.0.1]:80", "only IPv6 goes in brackets; write 127.0.0.1:80"),
    ("127.0.0.1 7007", "spaces and commas do not go here; write 127.0.0.1:7007"),
    ("127.0.0.1, 7007", "spaces and commas do not go here; write 127.0.0.1:7007"),
    (" 127.0.0.1:7007\n", "spaces and commas do not go here; write 127.0.0.1:7007"),
    ("a:1,b:2", "spaces and commas do not go here; write one HOST:PORT"),
    ("127.0.0.1:7007:7008", "too many colons; write HOST:PORT"),
    ("127.0.0.1:080", "port '080' is not a plain number; write 127.0.0.1:80"),
    ("localhost:http", "port 'http' is not a plain number; write one of 0 to 65535"),
    ("127.0.0.1:7007/", "'/' does not go here; write 127.0.0.1:7007"),
    ("//127.0.0.1:7007", "'/' does not go here; write 127.0.0.1:7007"),
    ("tcp:/127.0.0.1:7007", "'/' does not go here; write tcp://127.0.0.1:7007"),
    ("127.0.0.1/24", "'/' does not go here; write HOST:PORT"),
    ("127.0.0.1/24:7007", "'/' does not go here; write HOST:PORT"),
    ("tcp:://127.0.0.1:7", "'/' does not go here; write tcp://127.0.0.1:7"),
    ("tcp: //h:7", "'/' does not go here; write tcp://h:7"),
    ("tcp:unix:/x", "'/' does not go here; write unix:/x"),
    ("tcp:udp://127.0.0.1:7", "'/' does not go here; write udp://127.0.0.1:7"),
    ("tcp//127.0.0.1:7", "':' is missing; write tcp://127.0.0.1:7"),
    ("unix//run/x", "':' is missing; write unix:/PATH"),
    ("user@127.0.0.1:80", "user names (@) are not supported; write 127.0.0.1:80"),
    ("http://example.com/a", "fastsock speaks no HTTP; write tcp://example.com:80"),
    ("http://0", "fastsock speaks no HTTP; write tcp://HOST:PORT"),
    ("http://8080", "fastsock speaks no HTTP; write tcp://HOST:PORT"),
    ("http://*/a", "fastsock speaks no HTTP; write tcp://0.0.0.0:80"),
    ("http://::7007", "fastsock speaks no HTTP; write tcp://HOST:PORT"),
    ("https://[::1]:8443", "fastsock speaks no HTTP; write tcp://[::1]:8443"),
    ("ws://localhost:9000/x", "fastsock speaks no HTTP; write tcp://localhost:9000"),
    ("tpc://127.0.0.1:7", "scheme 'tpc' is unknown; write tcp://127.0.0.1:7"),
    ("tpc:127.0.0.1:7", "too many colons; write tcp://127.0.0.1:7"),
    ("tcp4://127.0.0.1:7", "scheme 'tcp4' is unknown; write tcp://127.0.0.1:7"),
    ("udp6://::1:7", "scheme 'udp6' is unknown; write udp://[::1]:7"),
    ("unixdgram:///run/x", "scheme 'unixdgram' is unknown; write unixgram:///run/x"),
    ("file:///run/x", "scheme 'file' is unknown; write unix:///run/x"),
    ("foo://host:1", "scheme 'foo' is unknown; write tcp://host:1"),
    ("foo://", "scheme 'foo' is unknown; write tcp, udp, unix or unixgram"),
    ("foo://7007", "scheme 'foo' is unknown; write tcp, udp, unix or unixgram"),
    ("foo://host/x", "scheme 'foo' is unknown; write tcp, udp, unix or unixgram"),
    ("foo://@name", "scheme 'foo' is unknown; write unix://@name"),
    ("foo://\u200b", "scheme 'foo' is unknown; write tcp, udp, unix or unixgram"),
    ("/run/echo.sock", "a path needs unix:; write unix:/run/echo.sock"),
    ("./echo.sock", "a path needs unix:; write unix:/srv/echo.sock"),
    ("../echo.sock", "a path needs unix:; write unix:/echo.sock"),
    ("echo.sock", "a path needs unix:; write unix:/srv/echo.sock"),
    ("a?/echo.sock", "a path needs unix:; write unix:/ABSOLUTE/PATH"),
    ("tcp: /run/x", "a path needs unix:; write unix:/run/x"),
    ("~/echo.sock", "a path needs unix:; write unix:/home/ann/echo.sock"),
    ("@name", "a path needs unix:; write unix:@name"),
    ("udp:///run/x", "a path needs unixgram:; write unixgram:/run/x"),
    ("unix:echo.sock", "path 'echo.sock' is relative; write unix:/srv/echo.sock"),
    ("unix:~/x", "'~' is not expanded; write unix:/home/ann/x"),
    ("unix://~bob/x", "'~' is not expanded; write unix:/ABSOLUTE/PATH"),
    (
        "unix://127.0.0.1:7007",
        "path '127.0.0.1:7007' is relative; write tcp://127.0.0.1:7007",
    ),
]

BAD_TYPES = [
    (None, "endpoint None is NoneType; expected a str"),
    (7007, 'write ":7007" for loopback or "0.0.0.0:7007" for every address'),
    (70000, "endpoint 70000 is int"),
    (b"tcp://127.0.0.1:80", "is bytes"),
    (["127.0.0.1", 80], "is list"),
    (("127.0.0.1", True), "port True is bool; expected an int"),
    (("127.0.0.1", None), "port None is NoneType"),
    (("127.0.0.1", 80.0), "port 80.0 is float"),
    (("127.0.0.1", "80"), "port '80' is str"),
    ((None, 80), "host None is NoneType; expected a str"),
    ((b"::1", 80, 0, 1), "is bytes; expected a str"),
    (("::1", 80, None, 0), "flowinfo None is NoneType"),
    (("::1", 80, 0, True), "scope_id True is bool"),
]


@pytest.fixture(autouse=True)
def directories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a relative path is, and one from the home directory."""
    monkeypatch.chdir("/srv")
    monkeypatch.setenv("HOME", "/home/ann")


@pytest.mark.parametrize(("text", "expected"), GOOD)
def test_parse_reads_each_field(text: str, expected: Endpoint) -> None:
    """A canonical URL gives its fields, and they print as the URL."""
    assert Endpoint.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(("text", "expected"), CANONICAL)
def test_parse_gives_one_canonical_form(text: str, expected: str) -> None:
    """Two spellings of one address are equal and print alike."""
    assert str(Endpoint.parse(text)) == expected
    assert Endpoint.parse(text) == Endpoint.parse(expected)


@pytest.mark.parametrize(("address", "expected"), TUPLES)
def test_parse_reads_a_socket_address_as_tcp(address: tuple[object, ...], expected: str) -> None:
    """A socket address tuple means tcp, as in the standard library."""
    assert str(Endpoint.parse(address)) == expected


@pytest.mark.parametrize(("value", "reason"), BAD_VALUES)
def test_parse_refuses_a_bad_value(value: str | tuple[object, ...], reason: str) -> None:
    """A bad value is a ValueError of one short line that names it and what was expected."""
    with pytest.raises(ValueError) as caught:
        Endpoint.parse(value)
    message = str(caught.value)
    assert message.startswith("endpoint ")
    assert reason in message
    assert message.isprintable()
    assert len(message) < 320


@pytest.mark.parametrize(("text", "reason"), MISSPELLED)
def test_a_refusal_says_what_to_write(text: str, reason: str) -> None:
    """It is one spelling where one is probably meant."""
    with pytest.raises(ValueError) as caught:
        Endpoint.parse(text)
    assert str(caught.value) == f"endpoint {text!r}: {reason}"
    assert len(reason) <= 130


@pytest.mark.parametrize(("value", "reason"), BAD_TYPES)
def test_parse_refuses_a_wrong_type(value: object, reason: str) -> None:
    """A wrong type is a TypeError of one line that names it and what was expected."""
    with pytest.raises(TypeError) as caught:
        Endpoint.parse(value)  # type: ignore[arg-type]
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


def test_long_input_is_cut_in_the_message() -> None:
    """A message quotes at most 80 characters of the input."""
    with pytest.raises(ValueError) as caught:
        Endpoint.parse("x" * 1_000_000)
    assert str(caught.value).startswith(f"endpoint '{'x' * 76}...: no port; ")


def test_a_repr_of_many_lines_is_one_line_in_the_message() -> None:
    """A TypeError has one line even when the value's repr has several."""

    class Lines:
        def __repr__(self) -> str:
            return "a\nb"

    with pytest.raises(TypeError, match="endpoint a b is Lines"):
        Endpoint.parse(Lines())  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["127.0.0.1:7007", ":7007", "tcp://h:7", "/run/echo.sock"])
def test_an_address_in_place_of_a_scheme(scheme: str) -> None:
    with pytest.raises(ValueError) as caught:
        Endpoint(scheme)
    assert str(caught.value) == f"scheme {scheme!r} is unknown; write Endpoint.parse({scheme!r})"


def test_a_relative_path_is_advised_if_it_is_short_enough() -> None:
    name = "a" * 102
    with pytest.raises(ValueError, match=f"is relative; write unix:/srv/{name}$"):
        Endpoint.parse(f"unix:{name}")
    with pytest.raises(ValueError, match=r"is relative; write unix:/ABSOLUTE/PATH$"):
        Endpoint.parse(f"unix:{name}a")


def test_a_relative_path_without_a_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    with pytest.raises(ValueError, match=r"is relative; write unix:/ABSOLUTE/PATH$"):
        Endpoint.parse("unix:echo.sock")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"scheme": "sctp"}, ValueError),
        ({"scheme": None}, TypeError),
        ({"scheme": "tcp", "host": "1"}, ValueError),
        ({"scheme": "tcp", "host": "[::1]"}, ValueError),
        ({"scheme": "tcp", "host": "::1", "path": "/x"}, ValueError),
        ({"scheme": "tcp", "host": "::1", "path": b"/x"}, TypeError),
        ({"scheme": "tcp", "host": "::1", "dual_stack": 1}, TypeError),
        ({"scheme": "unix", "path": "/x", "host": "::1"}, ValueError),
        ({"scheme": "unix", "path": "/x", "port": 1}, ValueError),
        ({"scheme": "unix", "path": "/x", "dual_stack": True}, ValueError),
    ],
)
def test_fields_are_checked_like_text(fields: dict[str, object], error: type[Exception]) -> None:
    """An invalid endpoint cannot be made from fields either."""
    with pytest.raises(error):
        Endpoint(**fields)  # type: ignore[arg-type]


def test_fields_are_made_canonical_like_text() -> None:
    """An endpoint made from fields equals the one read from text."""
    assert Endpoint("tcp", "0:0::1", 1) == Endpoint.parse("tcp://[::1]:1")


def test_an_endpoint_parses_to_itself() -> None:
    """parse() returns an Endpoint as it is."""
    assert Endpoint.parse(DEFAULT_ENDPOINT) is DEFAULT_ENDPOINT


def test_the_default_is_loopback() -> None:
    """By default no network can reach the server."""
    assert str(DEFAULT_ENDPOINT) == "tcp://127.0.0.1:7007"


def test_endpoints_are_values() -> None:
    """Endpoints are immutable, hashable and survive pickling."""
    endpoint = Endpoint.parse("tcp://[::]:1?dual_stack=1")
    assert {endpoint: 1}[Endpoint.parse(str(endpoint))] == 1
    assert pickle.loads(pickle.dumps(endpoint)) == endpoint
    with pytest.raises(FrozenInstanceError):
        endpoint.port = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "is_unix", "is_stream"),
    [
        ("tcp://[::1]:1", False, True),
        ("udp://[::1]:1", False, False),
        ("unix://@a", True, True),
        ("unixgram://@a", True, False),
    ],
)
def test_scheme_gives_family_and_type(text: str, is_unix: bool, is_stream: bool) -> None:
    """The scheme decides whether the socket is a unix one, and whether it is a stream."""
    endpoint = Endpoint.parse(text)
    assert (endpoint.is_unix, endpoint.is_stream) == (is_unix, is_stream)


def test_with_port_changes_the_port_only() -> None:
    """with_port() changes no other field."""
    endpoint = Endpoint.parse("udp://[::]:0?dual_stack=1")
    assert str(endpoint.with_port(9)) == "udp://[::]:9?dual_stack=1"
    with pytest.raises(ValueError, match="port 65536 is not in 0 to 65535"):
        endpoint.with_port(65536)
    with pytest.raises(TypeError, match="port True is bool"):
        endpoint.with_port(True)


def test_with_port_refuses_a_unix_endpoint() -> None:
    """A unix endpoint has no port to change."""
    with pytest.raises(ValueError, match="unix endpoints have no port"):
        Endpoint.parse("unix://@a").with_port(0)


def _no_system_call(*_args: object, **_kwargs: object) -> None:
    raise AssertionError("a system call was made")


@pytest.fixture
def no_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("getaddrinfo", "if_nametoindex", "socket"):
        monkeypatch.setattr(socket, name, _no_system_call)


@pytest.mark.usefixtures("no_lookups")
@pytest.mark.parametrize("value", [each for each, _ in GOOD + BAD_VALUES + MISSPELLED])
def test_parsing_looks_nothing_up(value: str | tuple[object, ...]) -> None:
    """Parsing asks neither a name server nor the kernel."""
    with suppress(ValueError):
        Endpoint.parse(value)


def test_importing_is_cheap() -> None:
    """The import loads neither socket nor ipaddress."""
    script = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); "
        "sys.exit(bool({'socket', 'ipaddress', 'urllib.parse'} & sys.modules.keys()))"
    )
    source = sys.modules["fastsock.endpoint"].__file__
    assert source is not None
    # -S: site may import anything, by the .pth files of an environment.
    subprocess.run([sys.executable, "-S", "-c", script, source], check=True, timeout=30)


@pytest.mark.usefixtures("no_lookups")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp://127.0.0.1:80", SocketAddress(socket.AF_INET, "127.0.0.1", 80)),
        ("udp://[::1]:80", SocketAddress(socket.AF_INET6, "::1", 80)),
        ("tcp://[fe80::1%7]:80", SocketAddress(socket.AF_INET6, "fe80::1", 80, 7)),
        ("tcp://[::ffff:127.0.0.1]:80", SocketAddress(socket.AF_INET, "127.0.0.1", 80)),
        ("udp://[::ffff:0:0]:80?dual_stack=1", SocketAddress(socket.AF_INET, "0.0.0.0", 80)),
        ("tcp://[::ffff:0:0:1]:80", SocketAddress(socket.AF_INET6, "::ffff:0:0:1", 80)),
        ("unix:///run/x", SocketAddress(socket.AF_UNIX, path="/run/x")),
        ("unixgram://@x", SocketAddress(socket.AF_UNIX, path="@x")),
    ],
)
def test_resolve_of_numbers_looks_nothing_up(text: str, expected: SocketAddress) -> None:
    """A numeric address is resolved without a name server."""
    assert Endpoint.parse(text).resolve() == expected


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_resolve_takes_the_first_answer(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """A host name gives the first address of getaddrinfo, asked for the right socket type."""
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}

    def getaddrinfo(host: bytes, port: int, *, type: int) -> list[tuple[object, ...]]:
        assert (host, port, type) == (b"echo.test", 80, kinds[scheme])
        return [
            (socket.AF_INET6, type, 0, "", ("fe80::1%eth0", 80, 0, 2)),
            (socket.AF_INET, type, 0, "", ("192.0.2.1", 80)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    expected = SocketAddress(socket.AF_INET6, "fe80::1", 80, 2)
    assert Endpoint(scheme, "echo.test", 80).resolve() == expected


def test_resolve_of_a_name_to_a_mapped_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is IPv4, whether it was written or found."""
    found = [(socket.AF_INET6, socket.SOCK_STREAM, 0, "", ("::ffff:192.0.2.1", 80, 0, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: found)
    expected = SocketAddress(socket.AF_INET, "192.0.2.1", 80)
    assert Endpoint("tcp", "echo.test", 80).resolve() == expected


def test_resolve_of_localhost_is_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """localhost is both loopback addresses, each once, also where /etc/hosts has only one."""
    both = {("127.0.0.1", 80), ("::1", 80)}
    found = Endpoint.parse("tcp://localhost:80").resolve_all()
    assert {(each.host, each.port) for each in found} == both
    listed = [(socket.AF_INET6, socket.SOCK_STREAM, 0, "", ("::1", 80, 0, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: listed)
    found = Endpoint.parse("tcp://localhost:80").resolve_all()
    assert [each.host for each in found] == ["::1", "127.0.0.1"]


def test_resolve_failure_names_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown host is an OSError that names the step and the endpoint."""

    def getaddrinfo(*_args: object, **_kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(socket.gaierror) as caught:
        Endpoint.parse("tcp://no.such.host:1").resolve()
    assert caught.value.errno == socket.EAI_NONAME
    assert caught.value.strerror == "resolve tcp://no.such.host:1: Name or service not known"


def test_resolve_finds_the_interface() -> None:
    """An interface name becomes its index."""
    index, name = socket.if_nameindex()[0]
    found = Endpoint.parse(f"tcp://[fe80::1%{name}]:80").resolve()
    assert found == SocketAddress(socket.AF_INET6, "fe80::1", 80, index)


def test_resolve_names_an_unknown_interface() -> None:
    """An interface that does not exist is an OSError that names it."""
    with pytest.raises(OSError, match="no network interface 'none-such'") as caught:
        Endpoint.parse("tcp://[fe80::1%none-such]:80").resolve()
    assert caught.value.errno == errno.ENODEV


LABEL = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,20}[A-Za-z0-9_])?", fullmatch=True)
LAST_LABEL = st.from_regex(r"[A-Za-z_]([A-Za-z0-9_-]{0,20}[A-Za-z0-9_])?", fullmatch=True)
NAMES = st.builds(
    lambda labels, last, dot: ".".join([*labels, last]) + dot,
    st.lists(LABEL, max_size=4),
    LAST_LABEL,
    st.sampled_from(["", "."]),
)
SCOPES = st.integers(1, 2**32 - 1).map(str) | st.sampled_from(["eth0", "lo", "wg-1.2_~", "0x1"])
IPV6 = st.builds(
    lambda address, scope: f"{address}%{scope}" if scope else str(address),
    st.ip_addresses(v=6).filter(lambda address: not address.ipv4_mapped),
    st.none() | SCOPES,
).filter(lambda host: "%" in host or not ipaddress.ip_address(host).is_link_local)
MAPPED = st.ip_addresses(v=4).map("::ffff:{}".format)
INET_SCHEMES = st.sampled_from(["tcp", "udp"])
PORTS = st.integers(0, 65535)
PATH_TEXT = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="?#"), min_size=1
).filter(lambda text: len(os.fsencode(text)) <= 106)
ENDPOINTS = st.one_of(
    st.builds(Endpoint, INET_SCHEMES, NAMES | st.ip_addresses(v=4).map(str), PORTS),
    st.builds(Endpoint, INET_SCHEMES, IPV6, PORTS, dual_stack=st.none() | st.booleans()),
    st.builds(Endpoint, INET_SCHEMES, MAPPED, PORTS, dual_stack=st.sampled_from([None, True])),
    st.builds(
        lambda scheme, start, text: Endpoint(scheme, path=start + text),
        st.sampled_from(["unix", "unixgram"]),
        st.sampled_from("/@"),
        PATH_TEXT,
    ),
)
PIECES = "tcp udp unix :// : [ ] :: % ?dual_stack= 0 1 / @ # . , ~ * 127 fe80 lo - 0x \0 ٣ é \ud800"
ALMOST = st.lists(st.sampled_from([*PIECES.split(), " ", "\n"])).map("".join)
ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()


@given(ENDPOINTS)
def test_what_is_printed_parses_back(endpoint: Endpoint) -> None:
    """Parsing the text of any endpoint gives the endpoint."""
    assert Endpoint.parse(str(endpoint)) == endpoint


@given(st.text() | ALMOST | ALMOST.map("tcp://".__add__) | ALMOST.map("unix://".__add__))
@example("tcp://[::1%\u0663]:1")
def test_text_is_an_endpoint_or_a_value_error(text: str) -> None:
    """Any text is an endpoint that round-trips, or a ValueError of one line."""
    try:
        endpoint = Endpoint.parse(text)
    except ValueError as error:
        assert type(error) is ValueError
        assert str(error).isprintable()
        assert len(str(error)) < 320
    else:
        assert Endpoint.parse(str(endpoint)) == endpoint


@given(ALMOST | ALMOST.map("127.0.0.1:".__add__))
def test_what_is_advised_can_be_parsed(text: str) -> None:
    """A spelling is advised only if it is an endpoint."""
    meant = spelling.corrected(text)
    assert meant is None or Endpoint.parse(meant)


MARKS = st.sampled_from([":", "::", ",", ";", " ", "[", "]", "//", ":", ":"])
HOSTS = [
    "10.0.0.7",
    "0.0.0.0",
    "host",
    "*",
    "::1",
    "fe80::1%eth0",
    "[::]",
    "7007",
    "80",
    "080",
    "0",
]
STARTS = ["", "tcp://", "tpc:", "http://", "tcp: //", "tcp:", "tcp//", "foo://"]
WORDS = re.compile(r"[a-z0-9.%*]+")


@given(st.sampled_from(STARTS), st.lists(MARKS | st.sampled_from(HOSTS), max_size=8).map("".join))
@example("", "::7007")
@example("", "10.0.0.7//80:80")
@example("http://", "0")
@example("http://", "://10.0.0.7")
@example("http://", "10.0.0.7/10.0.0.7")
@example("tpc:", "7007")
@example("tpc:", "080")
def test_what_is_advised_keeps_what_was_given(start: str, rest: str) -> None:
    """Every name and number, in order, and it is every address only if the text is."""
    meant = spelling.corrected(start + rest)
    # An address, such as that of a host called "tpc", is not refused, and nothing is advised.
    if meant is None or meant == start + rest:
        return

    def words(text: str) -> list[str]:
        found = WORDS.findall(text.replace("*", "0.0.0.0"))
        return [each.lstrip("0") or "0" if each.isdigit() else each for each in found]

    def without_path(text: str) -> str:  # which "//" after a port begins
        text = re.sub(r"\s*([:/])\s*", r"\1", text)
        return re.sub("(:[0-9]+)//.*", r"\1", text) if "//" in text.strip("/") else text

    advised = words(re.sub("^(tcp|udp|unix|unixgram):", "", meant))
    # The start is a scheme, or a host as in "tpc:080".
    kept = [words(without_path(rest)), words(without_path(start + rest))]
    if scheme := re.match("[a-z]+://", rest):
        kept.append(words(without_path(rest[scheme.end() :])) or kept[0])
    if start == "http://":  # and a path begins at any "/" after its host
        kept.append(words(rest.strip("/").partition("/")[0]) or kept[0])
    assert any(each in (advised, advised[:-1]) for each in kept)
    if Endpoint.parse(meant).host in ("0.0.0.0", "::"):
        assert re.search(r"\*|0\.0\.0\.0|(?<![0-9a-f])::0*(?![0-9a-f])", start + rest)


@given(st.lists(ANYTHING, max_size=5).map(tuple) | st.tuples(NAMES | IPV6, ANYTHING))
def test_a_tuple_is_an_endpoint_or_a_typed_error(address: tuple[object, ...]) -> None:
    """Any tuple is a tcp endpoint, or a ValueError or TypeError of one line."""
    try:
        endpoint = Endpoint.parse(address)
    except (ValueError, TypeError) as error:
        assert type(error) in (ValueError, TypeError)
        assert str(error).isprintable()
    else:
        assert endpoint.scheme == "tcp"
