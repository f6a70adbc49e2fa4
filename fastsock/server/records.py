"""The last bytes of each connection, for a test that fails."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ConnectionRecord:
    """The last bytes of one connection, as many as ``Server(record=...)`` says, of each direction.

    ``number`` counts connections from 0, in the order in which they were accepted. ``peer`` is the
    client's address, ``"127.0.0.1:40213"`` or the path of its Unix socket. It is empty for a Unix
    socket that is not bound, and for a client that has reset the connection at once. ``received``
    and ``sent`` are the bytes, the last one at the end; ``bytes_in`` and ``bytes_out`` say how many
    there were in all. What ``sent`` has was handed to the kernel, and may not have arrived.
    """

    number: int
    peer: str
    received: bytes
    sent: bytes
    bytes_in: int
    bytes_out: int
    is_open: bool


def record_of(number: int, address: bytes, *others: Any) -> ConnectionRecord:
    """Of what RecordTable.copied() has of a connection."""
    return ConnectionRecord(number, _peer(address), *others)


def _peer(address: bytes) -> str:
    """The text of a sockaddr_in, sockaddr_in6 or sockaddr_un, without its padding."""
    family = int.from_bytes(address[:2], sys.byteorder)
    port = int.from_bytes(address[2:4], "big")
    if family == socket.AF_INET:
        return f"{socket.inet_ntop(family, address[4:8])}:{port}"
    if family == socket.AF_INET6:
        return f"[{socket.inet_ntop(family, address[8:24])}]:{port}"
    path = address[2:]
    if path.startswith(b"\0"):  # an abstract name, which has its size instead of an end
        return os.fsdecode(b"@" + path[1:])
    return os.fsdecode(path.rstrip(b"\0"))
