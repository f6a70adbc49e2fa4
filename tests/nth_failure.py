"""Run a server many times; in each run the Nth call of one function fails.

SQLite's method: for N = 1, 2, ... run the same short exchange and let the Nth call fail, until a
run makes fewer than N calls. After each run every answer must be right, or cut short on the one
connection that the failure concerned; the server must have gone on and have stopped when told to;
no descriptor, thread, process or block of memory may be left.

Run as a program, with nth_failure.c preloaded: ``python nth_failure.py SERVER LIBRARY COMPLETE``
prints the failures injected per function, and what went wrong, as JSON.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import gc
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients import connect, half_close, receive_all, receive_exactly

import fastsock.server.server  # so that the modules are mapped before Shim looks for them

LIMIT = 10.0  # seconds for one receive; only something that hangs takes so long
BUFFER_SIZE = 1024  # bytes: a message takes several receives
LAST = b"last"
CLIP = 300  # bytes that one send takes: an answer takes several, and the server keeps unsent bytes
RUNS_MAX = 500  # of one fault; one run has far fewer calls

# The errors on the manual page of each call, and for the socket calls also those that Linux may
# pass on from the network. The short version takes the first ones only.
RECEIVING = (
    "ECONNRESET EINTR ENOMEM EAGAIN EBADF ECONNABORTED ECONNREFUSED EFAULT EHOSTUNREACH EINVAL EIO "
    "ENETDOWN ENETUNREACH ENOBUFS ENOTCONN ENOTSOCK EPERM EPIPE ETIMEDOUT"
)
SENDING = (
    "EPIPE EINTR ENOBUFS EAGAIN EACCES EALREADY EBADF ECONNREFUSED ECONNRESET EDESTADDRREQ EFAULT "
    "EHOSTUNREACH EINVAL EISCONN EMSGSIZE ENETDOWN ENETUNREACH ENOMEM ENOTCONN ENOTSOCK EOPNOTSUPP "
    "EPERM ETIMEDOUT"
)
SHORT = 2  # errors of each call in the short version

#: What cannot pass, and ends the service: a call that is forbidden, a socket that was taken away.
ENDING = {
    "accept4": {"EBADF", "EFAULT", "EINVAL", "ENOTSOCK", "EPERM"},
    "epoll_ctl": {"EBADF", "EEXIST", "EINVAL", "ELOOP", "ENOENT", "EPERM"},
    "epoll_wait": {"EBADF", "EFAULT", "EINVAL"},
    "poll": {"EFAULT"},
    "pthread_create": {"EINVAL", "EPERM"},
    "recvmmsg": {"EBADF", "EFAULT", "EINVAL", "EIO", "ENOTCONN", "ENOTSOCK", "EPERM", "EPIPE"},
    "sendmmsg": {"EBADF", "EFAULT", "ENOTSOCK"},
}
HARMLESS = {"EINTR", "EAGAIN", "part"}  # no client loses anything


@dataclass(frozen=True)
class Fault:
    """How a function fails: with an errno, or "part": it does only `part` of its work."""

    function: str
    error: str
    part: int = 0

    @property
    def number(self) -> int:
        return 0 if self.error == "part" else int(getattr(errno, self.error))

    def ends_serving(self) -> bool:
        """Whether the server can accept no new client afterwards."""
        return self.error in ENDING.get(self.function, ())

    def may_cost(self) -> int:
        """How many clients may lose data."""
        if self.ends_serving():
            return sys.maxsize
        if self.function == "sendmmsg" and self.error == "EAGAIN":
            return 1  # an unsent datagram is dropped
        concerns_no_client = self.function in ("accept4", "epoll_wait", "poll", "recvmmsg")
        return 0 if concerns_no_client or self.error in HARMLESS else 1


def faults(complete: bool) -> Iterator[Fault]:
    """All faults, or the short version."""
    errors_of = {
        "recv": RECEIVING,
        "send": SENDING,
        "recvmmsg": RECEIVING,
        "sendmmsg": SENDING,
        "epoll_wait": "EINTR EBADF EFAULT EINVAL",
        "poll": "ENOMEM EINTR EFAULT EINVAL",
        "epoll_ctl": "ENOMEM ENOSPC EBADF EEXIST EINVAL ELOOP ENOENT EPERM",
        "accept4": (
            "EMFILE ECONNABORTED EINVAL EAGAIN EBADF EFAULT EHOSTDOWN EHOSTUNREACH EINTR ENETDOWN "
            "ENETUNREACH ENFILE ENOBUFS ENOMEM ENONET ENOPROTOOPT ENOTSOCK EOPNOTSUPP EPERM EPROTO "
            "ETIMEDOUT"
        ),
        "malloc": "ENOMEM",
        "calloc": "ENOMEM",
        "realloc": "ENOMEM",
        "mmap64": "ENOMEM",
        "pthread_create": "EAGAIN EINVAL EPERM",
        "socket": "EMFILE EACCES EAFNOSUPPORT EINVAL ENFILE ENOBUFS ENOMEM EPROTONOSUPPORT",
        "setsockopt": "ENOMEM EBADF EDOM EFAULT EINVAL EISCONN ENOPROTOOPT ENOTSOCK",
        "bind": "EADDRINUSE EACCES EADDRNOTAVAIL EBADF EFAULT EINVAL ENOTSOCK",
        "listen": "EADDRINUSE EBADF ENOTSOCK EOPNOTSUPP",
        "getsockname": "ENOBUFS EBADF EFAULT EINVAL ENOTCONN ENOTSOCK",
        "eventfd": "EMFILE EINVAL ENFILE ENODEV ENOMEM",
        "epoll_create1": "EMFILE EINVAL ENFILE ENOMEM",
    }
    for function, errors in errors_of.items():
        for error in errors.split()[: None if complete else SHORT]:
            yield Fault(function, error)
    for function in ("recv", "send", "recvmmsg", "sendmmsg", "epoll_wait"):
        yield Fault(function, "part", 1)
    for function in ("epoll_wait", "poll"):
        yield Fault(function, "part", 0)


class Shim:
    """nth_failure.c, which watches the extension modules of fastsock."""

    def __init__(self, library: str) -> None:
        self._c = ctypes.CDLL(library)
        for name in ("nth_calls", "nth_blocks"):
            getattr(self._c, name).restype = ctypes.c_long
        for line in Path("/proc/self/maps").read_text().splitlines():
            if "/fastsock/_native/" in line and " r-xp " in line:
                low, high = (int(part, 16) for part in line.split()[0].split("-"))
                assert self._c.nth_watch(ctypes.c_size_t(low), ctypes.c_size_t(high)) == 0

    def arm(self, fault: Fault, nth: int, clip: int) -> None:
        arguments = (ctypes.c_long(nth), fault.number, ctypes.c_long(fault.part))
        assert self._c.nth_arm(fault.function.encode(), *arguments, ctypes.c_long(clip)) == 0

    def disarm(self) -> bool:
        return bool(self._c.nth_disarm())

    def fired(self) -> bool:
        return bool(self._c.nth_fired())

    def calls(self) -> int:
        return int(self._c.nth_calls())

    def blocks(self) -> int:
        return int(self._c.nth_blocks())


class Client:
    """One connection, and what it sent and received."""

    def __init__(self, endpoint: Any, stack: ExitStack) -> None:
        self.sent = self.received = b""
        self.cut = False
        try:
            self._sock = stack.enter_context(connect(endpoint, timeout=LIMIT))
        except (ConnectionRefusedError, ConnectionResetError):
            self.cut = True

    def echo(self, data: bytes) -> None:
        """Send, and receive as many bytes."""
        self._exchange(data, lambda: receive_exactly(self._sock, len(data)), len(data))

    def finish(self, data: bytes) -> None:
        """Send, half-close, and receive up to the end."""
        self._exchange(data, self._receive_to_the_end, len(data))
        if not self.cut:
            self._sock.close()

    def await_end(self) -> None:
        """Receive up to the end; the server has stopped."""
        if not self.cut and self._sock.fileno() >= 0:
            with suppress(ConnectionResetError):
                self.received += receive_all(self._sock)

    def _receive_to_the_end(self) -> bytes:
        half_close(self._sock)
        return receive_all(self._sock)

    def _exchange(self, data: bytes, receive: Any, size: int) -> None:
        if self.cut:
            return
        self.sent += data
        try:
            self._sock.sendall(data)
            answer = receive()
        except (ConnectionResetError, BrokenPipeError):
            answer = b""
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # half-closed after the reset
                raise
            answer = b""
        self.received += answer
        self.cut = len(answer) < size
        if self.cut:
            self._sock.close()

    def verdict(self) -> str:
        complete = self.received == self.sent
        if complete or (self.cut and self.sent.startswith(self.received)):
            return ""
        return f"sent {len(self.sent)} bytes, got {len(self.received)}, not the same"


class Streams:
    """Connections to a stream engine: some finish, and one is idle when the server stops."""

    clips = (0, CLIP)

    def __init__(self, engine: str, faults: list[str] | None = None, record: int = 0) -> None:
        self.engine, self.options = engine, {"faults": faults, "record": record}

    def server(self) -> Any:
        return fastsock.Server(
            "tcp://127.0.0.1:0", engine=self.engine, buffer_size=BUFFER_SIZE, **self.options
        )

    def exchange(self, server: Any, stack: ExitStack, shim: Shim) -> list[Client]:
        clients = self._exchange(server.endpoint, stack)
        if shim.fired() and clients[-1].cut:  # the next connection must be served
            clients.append(Client(server.endpoint, stack))
            clients[-1].echo(b"are you there?")
        return clients

    def _exchange(self, endpoint: Any, stack: ExitStack) -> list[Client]:
        clients = []
        if self.engine == "serial":
            for number in range(2):
                clients.append(Client(endpoint, stack))
                clients[-1].echo(message(number, 700))
                clients[-1].finish(message(number, 1500))
        else:
            clients = [Client(endpoint, stack) for _ in range(2)]
            for number, client in enumerate(clients):
                client.echo(message(number, 700))
            for number, client in enumerate(clients):
                client.finish(message(number, 1500))
        clients.append(Client(endpoint, stack))
        clients[-1].echo(message(9, 100))
        return clients


class DatagramClient:
    """One datagram and its answer."""

    def __init__(self, sock: socket.socket, data: bytes) -> None:
        self.sent, self.received, self.cut = data, b"", False
        try:
            sock.send(data)
        except ConnectionRefusedError:  # an earlier one met a closed socket
            self.cut = True

    def await_end(self) -> None:
        """A datagram socket has no end."""

    def verdict(self) -> str:
        return "" if self.received == self.sent or self.cut else "another answer"


class Datagrams:
    """Three batches of datagrams, each sent before its answers are received."""

    clips = (0,)

    def __init__(self, faults: list[str] | None = None) -> None:
        self.faults = faults

    def server(self) -> Any:
        return fastsock.Server("udp://127.0.0.1:0", faults=self.faults)

    def exchange(self, server: Any, stack: ExitStack, shim: Shim) -> list[DatagramClient]:
        sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.connect((server.endpoint.host, server.endpoint.port))
        clients = []
        for turn in range(3):
            batch = [DatagramClient(sock, message(turn * 4 + n, 200)) for n in range(4)]
            receive_answers(sock, batch, shim)
            clients += batch
        return clients


def receive_answers(sock: socket.socket, batch: list[DatagramClient], shim: Shim) -> None:
    """Receive the answers; after the injected failure a datagram without an answer is lost.

    The server answers in order: LAST is sent after the failure, and when its answer comes, no
    earlier answer is still on its way.
    """
    waiting = {client.sent: client for client in batch if not client.cut}
    closed = last_sent = False
    deadline = time.monotonic() + LIMIT
    sock.settimeout(0.01)
    while (waiting or last_sent) and time.monotonic() < deadline:
        try:
            data = sock.recv(1 << 16)
            if data == LAST:
                break
            waiting.pop(data).received = data  # KeyError: not an answer, or a second one
        except ConnectionRefusedError:  # the server's socket is closed
            closed = True
        except TimeoutError:
            if closed:
                break
            if shim.fired() and not last_sent:
                last_sent = True
                with suppress(ConnectionRefusedError):
                    sock.send(LAST)
    for client in waiting.values():
        client.cut = True


def message(number: int, size: int) -> bytes:
    return (b"%04d" % number * size)[:size]


def resources() -> set[str]:
    """Every descriptor, thread and child process of this process."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # of iterdir() itself
            found.add(f"descriptor {path.name} of {path.readlink()}")
    for path in Path("/proc/self/task").iterdir():
        found.add(f"thread {path.name}")
        with suppress(FileNotFoundError):
            found |= {f"process {pid}" for pid in (path / "children").read_text().split()}
    return found


class Loop:
    """All runs of one engine."""

    def __init__(self, kind: Streams | Datagrams, shim: Shim) -> None:
        self.kind = kind
        self.shim = shim
        self.injected: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run_all(self, complete: bool) -> None:
        for fault in faults(complete):
            for clip in self.kind.clips:
                for nth in range(1, RUNS_MAX):
                    name = f"call {nth} of {fault.function}: {fault.error}, clip {clip}"
                    faulthandler.dump_traceback_later(3 * LIMIT, exit=True)
                    found, calls = self.run(fault, nth, clip)
                    self.wrong += [f"{name}: {what}" for what in found]
                    if calls < nth:
                        break
                else:
                    self.wrong.append(f"{name}: no end")
        faulthandler.cancel_dump_traceback_later()

    def run(self, fault: Fault, nth: int, clip: int) -> tuple[list[str], int]:
        """Run once; return what went wrong, and how often the function was called."""
        before, blocks = resources(), self.shim.blocks()
        self.shim.arm(fault, nth, clip)
        try:
            found = self._serve(fault)
        except (OSError, KeyError) as error:  # a timeout, or an error that no client expects
            found = [f"{type(error).__name__}: {error}"]
        calls = self.shim.calls()
        if self.shim.disarm():
            self.injected[fault.function] += 1
        if (left := self.left_over(before)) or self.shim.blocks() != blocks:
            found.append(f"left over: {left}, {self.shim.blocks() - blocks} blocks of memory")
        return found, calls

    def _serve(self, fault: Fault) -> list[str]:
        server = self.kind.server()
        with ExitStack() as stack:
            try:
                server.start()
            except (OSError, MemoryError) as error:
                return [] if self.shim.fired() else [f"not started: {error!r}"]
            stack.callback(server.stop)
            clients = self.kind.exchange(server, stack, self.shim)
            server.stop()
            for client in clients:
                client.await_end()
        found = [verdict for client in clients if (verdict := client.verdict())]
        cut = sum(client.cut for client in clients)
        if cut > (fault.may_cost() if self.shim.fired() else 0):
            found.append(f"{cut} of {len(clients)} clients were cut off")
        if server.stats().open:
            found.append(f"{server.stats().open} connections still counted as open")
        return found

    def left_over(self, before: set[str]) -> list[str]:
        deadline = time.monotonic() + LIMIT
        # The kernel may list a thread for a moment after it was joined.
        while (left := resources() - before) and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.001)
        return sorted(left)


def main(kind: str, library: str, complete: str) -> None:
    served: Streams | Datagrams
    if kind == "faults":  # that lose nothing
        served = Streams("threads", ["latency:delay=1ms", "slicer:size=500", "bandwidth:rate=1M/s"])
    elif kind == "record":
        served = Streams("threads", record=1000)
    elif kind == "datagram_faults":
        served = Datagrams(["latency:delay=1ms"])
    else:
        served = Datagrams() if kind == "datagram" else Streams(kind)
    loop = Loop(served, Shim(library))
    started = time.monotonic()
    loop.run_all(bool(int(complete)))
    seconds = time.monotonic() - started
    print(json.dumps({"injected": loop.injected, "wrong": loop.wrong, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
