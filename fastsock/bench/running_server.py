"""A server that runs already: it is connected to, and is neither started, signalled nor ended."""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress
from typing import Self

from fastsock._native.client.process_tree import descendants
from fastsock.bench.server_process import NotStartedError, ServerProcess, memory_of
from fastsock.endpoint import Endpoint, SocketAddress

GREETING = bytes(64)
GREETING_TIMEOUT = 5.0  # seconds
_REFUSAL_TIMEOUT = 0.5  # seconds, for the answer to a datagram, or for the error of its refusal


class RunningServer:
    """A server at `endpoint`, of whose processes only `pid` and those that it starts are known.

    Nothing is known of them without `pid`. A context manager, as ServerProcess is. `endpoint` of it
    is the first address of a name that is listened on.

    Raises:
        NotStartedError: nothing listens there.

    """

    #: It serves also while other servers have their turns, on every CPU that it may use.
    stopped_between_turns = False

    def __init__(self, name: str, endpoint: Endpoint, pid: int | None = None) -> None:
        self.name = name
        try:
            self.endpoint = first_listening(endpoint)
        except OSError as error:
            reason = error.strerror or str(error)
            raise NotStartedError(f"{name}: nothing listens on {endpoint}: {reason}") from error
        self._given_pid = pid
        self._pidfd = -1
        if pid is not None:
            with suppress(OSError):  # it has ended since it was checked
                self._pidfd = os.pidfd_open(pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    @property
    def pid(self) -> int | None:
        """The process, as long as it runs; then its number may become another's."""
        if self._pidfd < 0 or has_ended(self._pidfd):
            return None
        return self._given_pid

    @property
    def problem(self) -> str:
        """What is wrong with what is known of it; empty if nothing is."""
        if self._given_pid is None or self.pid is not None:
            return ""
        return f"process {self._given_pid} has ended, so that its CPU time is not known"

    def memory(self) -> int | None:
        """Bytes of memory of its processes, as of a ServerProcess; None where not known."""
        pid = self.pid
        return None if pid is None else memory_of(descendants(pid))


AnyServer = ServerProcess | RunningServer


def check_process(pid: int) -> None:
    """Raise ValueError if `pid` is no running process, or one that this one descends from."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        raise ValueError(f"there is no process {pid}") from None
    try:
        if has_ended(pidfd):
            raise ValueError(f"process {pid} has ended")
    finally:
        os.close(pidfd)
    if os.getpid() in descendants(pid):
        raise ValueError(f"process {pid} has started this one, whose CPU time would be counted too")


def has_ended(pidfd: int) -> bool:
    """Whether the process has ended, though its parent may not know yet; pidfd_open(2)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def first_listening(endpoint: Endpoint) -> Endpoint:
    """The first address of an endpoint that takes a connection.

    A datagram is sent there; where nothing answers, it may be lost, and is no error.

    Raises OSError: that of the last address.
    """
    addresses = endpoint.resolve_all()
    for number, address in enumerate(addresses, 1):
        try:
            with dial(endpoint, address=address) as peer:
                if endpoint.scheme == "udp":
                    peer.settimeout(_REFUSAL_TIMEOUT)
                    with suppress(TimeoutError):
                        peer.send(GREETING)
                        peer.recv(len(GREETING))
        except OSError:
            if number == len(addresses):
                raise
            continue
        break
    if endpoint.is_unix:
        return endpoint
    scope = f"%{address.scope_id}" if address.scope_id else ""
    return Endpoint(endpoint.scheme, address.host + scope, address.port)


def dial(
    endpoint: Endpoint, timeout: float = GREETING_TIMEOUT, *, address: SocketAddress | None = None
) -> socket.socket:
    """A socket that is connected to an address of an endpoint; the first one if none is given."""
    address = address or endpoint.resolve()
    peer = socket.socket(
        address.family, socket.SOCK_STREAM if endpoint.is_stream else socket.SOCK_DGRAM
    )
    try:
        peer.settimeout(timeout)
        if endpoint.scheme == "unixgram":
            peer.bind("")  # the kernel picks a name, or no answer could be sent; unix(7)
        peer.connect(address.name)
    except OSError:
        peer.close()
        raise
    return peer
