"""Idle or stuck connections, held by processes of their own.

As a program, ``python -m benchmarks.long.idle HOST PORT NUMBER KIND``, it connects as often as each
line of its input says, answers with how many it holds and an error if there was one, and ends with
its input. Idle ones say nothing; stuck ones send until nothing more is taken, and never read.
"""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from contextlib import suppress
from types import TracebackType

PER_PROCESS = 20_000  # connections
PER_ADDRESS = 5_000  # far less than its ephemeral ports, of which many may be in TIME_WAIT
IP_BIND_ADDRESS_NO_PORT = 24  # <linux/in.h>: connect() picks the port, free for that one server
SPARE = 100  # descriptors
SMALL = 16 * 1024  # bytes of a stuck connection's socket buffers
STUCK_AFTER = 0.02  # seconds


class IdleClients:
    """As many connections as are asked for, "idle" or "stuck"; closed at the end of the context."""

    def __init__(self, host: str, port: int, kind: str) -> None:
        self._where = (host, str(port))
        self._kind = kind
        self._processes: list[tuple[subprocess.Popen[str], int]] = []
        self.held = 0

    def __enter__(self) -> IdleClients:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process, _ in self._processes:
            process.communicate()

    def add(self, count: int) -> str:
        """Open so many more; return "" or why there are fewer."""
        while count > 0:
            room = PER_PROCESS - self._processes[-1][1] if self._processes else 0
            if not room:
                self._start()
                room = PER_PROCESS
            process, held = self._processes[-1]
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f"{min(count, room)}\n")
            process.stdin.flush()
            total, _, error = process.stdout.readline().rstrip().partition(" ")
            added = int(total) - held
            self._processes[-1] = (process, held + added)
            self.held += added
            count -= added
            if error:
                return error
        return ""

    def _start(self) -> None:
        number = str(len(self._processes))
        command = [sys.executable, "-m", "benchmarks.long.idle", *self._where, number, self._kind]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._processes.append((process, 0))


def raise_limit() -> int:
    """Allow as many descriptors as this user may have; return how many these are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = int(open("/proc/sys/fs/nr_open").read())  # noqa: PTH123, SIM115 - one line of proc(5)
    for limit in (wanted, hard):  # the first is for root alone
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, hard)))
        except (ValueError, OSError):
            continue
        return limit
    return soft


def connect(host: str, port: int, place: int, kind: str) -> socket.socket:
    """Connection number `place`; each address of 127/8 has its own ports."""
    address = place // PER_ADDRESS
    sock = socket.socket()
    try:
        sock.settimeout(30)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((f"127.1.{address // 250}.{address % 250 + 1}", 0))
        if kind == "stuck":  # little is to be in the kernel, which would have megabytes for each
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        sock.connect((host, port))
        if kind == "stuck":
            fill(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def fill(sock: socket.socket) -> None:
    """Send until nothing has been taken for a while."""
    sock.settimeout(STUCK_AFTER)
    with suppress(TimeoutError):
        while True:
            sock.send(bytes(SMALL))


def main() -> None:
    host, port, number, kind = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    raise_limit()
    socks: list[socket.socket] = []
    for line in sys.stdin:
        error = ""
        for _ in range(int(line)):
            try:
                socks.append(connect(host, port, number * PER_PROCESS + len(socks), kind))
            except OSError as failure:
                error = str(failure)
                break
        print(len(socks), error, flush=True)


if __name__ == "__main__":
    main()
