"""Probes of every stream server, one function each.

A probe gets a function that starts the server in a fresh process, and returns its figures and a
verdict: "ok", or the word for what went wrong. Seconds, bytes and counts unless the name says
otherwise.
"""

from __future__ import annotations

import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import fastsock
from benchmarks.reliability.client import (
    EOF,
    PATIENCE,
    STALL,
    TAKES_NO_MORE,
    Clients,
    Transfer,
    connect,
    echoes,
    fill,
    payload,
    receive,
    reset,
    seconds_until,
    transfer,
    wait_readable,
)
from fastsock.bench.server_process import ServerProcess

MIB = 1 << 20
SMALL = 16 * 1024  # bytes that socket buffers take without waiting
STUCK_CAP = 32 * MIB  # bytes that a client offers which never reads
STOP_LIMIT = 5.0  # seconds
RECOVERY_LIMIT = 10.0  # seconds
STARVED_CLIENTS = 200
SPARE_DESCRIPTORS = 5
BUSY_CLIENTS = 64
SIGNALS = (signal.SIGTERM, signal.SIGINT)

Figures = dict[str, Any]


class Start(Protocol):
    def __call__(self, *, draining: bool = False) -> ServerProcess: ...


@dataclass(frozen=True, slots=True)
class Effort:
    """The amounts of every probe; QUICK is for a short trial."""

    runs: int = 10  # transfers
    stuck: int = 8  # clients that never read
    resets: int = 200
    stops: int = 3  # for each signal
    windows: int = 3  # for a percentile; the best counts
    messages: int = 5000  # in each of them
    settling: float = 0.5  # seconds until the descriptors are used up
    starved: float = 1.5  # seconds at their limit


THOROUGH = Effort()
QUICK = Effort(
    runs=1, stuck=1, resets=5, stops=1, windows=1, messages=50, settling=0.1, starved=0.2
)


def short_echo(start: Start, effort: Effort) -> Figures:
    """256 writes of one byte, each answered before the next, then 1 MiB in one go."""
    with start() as server, connect(server.address) as sock:
        right = 0
        for value in range(256):
            sock.sendall(bytes([value]))
            right += sock.recv(2) == bytes([value])
        large = transfer(sock, payload(MIB))
    wrong = judge([large]) if right == 256 else "corrupts"
    return {"verdict": wrong, "bytes": right + large.received, "of": 256 + MIB}


def half_close(start: Start, effort: Effort) -> Figures:
    """8 MiB and the end of the client's stream; all of it must come back, and then the end."""
    return repeat(start, effort.runs, payload(8 * MIB))


def slow_reader(start: Start, effort: Effort) -> Figures:
    """As above, with 4 MiB from a client that reads only once nothing more is taken from it."""
    return repeat(start, max(1, effort.runs // 3), payload(4 * MIB), hold=True, rcvbuf=65536)


def repeat(start: Start, runs: int, data: bytes, *, hold: bool = False, rcvbuf: int = 0) -> Figures:
    done: list[Transfer] = []
    with start() as server:
        while len(done) < runs and [each.end for each in done].count(STALL) < 2:
            with connect(server.address, rcvbuf=rcvbuf) as sock:
                done.append(transfer(sock, data, hold=hold))
    return {
        "verdict": judge(done),
        "complete": sum(each.complete for each in done),
        "runs": len(done),
        "least_bytes": min(each.received for each in done),
        "of": len(data),
    }


def judge(done: list[Transfer]) -> str:
    if all(each.complete for each in done):
        return "ok"
    if not all(each.exact for each in done):
        return "corrupts"
    if any(each.end == EOF for each in done):
        return "loses"  # as if all were sent
    return "stalls" if any(each.end == STALL for each in done) else "resets"


def stuck_readers(start: Start, effort: Effort) -> Figures:
    """Clients that send and never read: what is taken from one, its cost, another client's p99."""
    with start() as server, ExitStack() as stack:
        alone = p99_us(server, effort)
        before = memory_of(server)
        socks = [
            stack.enter_context(connect(server.address, rcvbuf=4096, sndbuf=65536))
            for _ in range(effort.stuck)
        ]
        taken = [fill(sock, STUCK_CAP) for sock in socks]
        growth = (memory_of(server) - before) / len(socks)
        beside = p99_us(server, effort)
        alive = server.running()
    verdict = "ok"
    if not alive:
        verdict = "dies"
    elif max(taken) >= STUCK_CAP or growth > MIB:
        verdict = "grows"
    elif beside is None:
        verdict = "one at a time"
    return {
        "verdict": verdict,
        "taken_bytes": max(taken),
        "cap_bytes": STUCK_CAP,
        "growth_bytes": growth,
        "p99_alone_us": alone,
        "p99_beside_us": beside,
    }


def memory_of(server: ServerProcess) -> int:
    memory = server.memory()
    if memory is None:
        raise OSError(f"the memory of process {server.pid} cannot be read")
    return memory


def p99_us(server: ServerProcess, effort: Effort) -> float | None:
    """Microseconds for one client with 64-byte messages, the best of some windows; None: no echo.

    The best, because a busy machine only ever adds.
    """
    best = []
    for _ in range(effort.windows):
        report = fastsock.load(
            server.address,
            connections=1,
            size=64,
            messages=effort.messages,
            timeout=PATIENCE,
            wait="block",
        )
        if not report.messages:
            return None
        best.append(report.latency.p99)
    return min(best)


def descriptor_limit(start: Start, effort: Effort) -> Figures:
    """200 clients where there are descriptors for 5: CPU and log meanwhile, and recovery."""
    with start() as server:
        echoes(server.address)
        server.leave_descriptors(SPARE_DESCRIPTORS)
        with Clients(server.address, STARVED_CLIENTS) as clients:
            clients.run(effort.settling)
            before = clients.answered
            begin, cpu, log = time.monotonic(), server.cpu_seconds(), server.log_size()
            clients.run(effort.starved)
            took = time.monotonic() - begin
            figures: Figures = {
                "served": clients.answered,
                "served_meanwhile": clients.answered - before,
                "closed": clients.closed,
                "clients": STARVED_CLIENTS,
                "cpu_percent": (server.cpu_seconds() - cpu) / took * 100,
                "log_bytes_per_s": (server.log_size() - log) / took,
                "recovery_s": None,
                "new_client_s": None,
            }
            if not server.running():
                return {"verdict": "dies", **figures}
            clients.close_answered()
            begin = time.monotonic()
            if clients.waiting:
                clients.run(PATIENCE, until=lambda: clients.answered > 0)
            if clients.answered:
                figures["recovery_s"] = time.monotonic() - begin
        # Again and again: a server may refuse a new client before it sees that others have closed.
        figures["new_client_s"] = seconds_until(
            lambda: echoes(server.address, RECOVERY_LIMIT), RECOVERY_LIMIT
        )
        verdict = judge_limit(figures) if server.running() else "dies"
    return {"verdict": verdict, **figures}


def judge_limit(figures: Figures) -> str:
    """By the promise: 2 % of a CPU, a line of log a second, no client closed, and soon recovered.

    Soon is a second for a client that waits already, and 2 for a new one, which has to wait until
    the server is through with the connections in its queue that were closed meanwhile.
    """
    recovery, new = figures["recovery_s"], figures["new_client_s"]
    starved = figures["served"] < figures["clients"]
    if new is None and recovery is None:
        return "hangs"
    if figures["cpu_percent"] > 50:
        return "spins"
    if figures["closed"]:
        return "closes"
    if figures["cpu_percent"] > 2 and not figures["served_meanwhile"]:
        return "busy"
    if figures["log_bytes_per_s"] > 250:
        return "noisy"
    if new is None or new > 2 or (starved and (recovery is None or recovery > 1)):
        return "slow"
    return "ok"


def resets(start: Start, effort: Effort) -> Figures:
    """Clients that reset in the middle of a transfer; no descriptor may be left of them."""
    data = payload(SMALL * 4)
    with start() as server:
        echoes(server.address)
        before = server.descriptors()
        for number in range(effort.resets):
            sock = connect(server.address)
            sock.setblocking(False)
            sock.send(data[: 1 + number * 997 % len(data)])
            reset(sock)
        served = seconds_until(lambda: echoes(server.address), PATIENCE)
        back = seconds_until(lambda: server.descriptors() <= before, PATIENCE)
        left = server.descriptors() - before
        alive = server.running()
    verdict = "ok" if back is not None else "leaks"
    if served is None:
        verdict = "hangs" if alive else "dies"
    return {"verdict": verdict, "resets": effort.resets, "descriptors_left": max(left, 0)}


def reset_before_accept(start: Start, effort: Effort) -> Figures:
    """Clients that connect to a stopped server (SIGSTOP) and reset before it continues."""
    with start() as server:
        echoes(server.address)
        server.pause()
        queued = 0
        for _ in range(min(50, effort.resets)):
            try:
                reset(connect(server.address, timeout=0.1))
                queued += 1
            except OSError:  # the queue is full
                break
        server.resume()
        served = seconds_until(lambda: echoes(server.address), PATIENCE)
        alive = server.running()
    verdict = "ok"
    if served is None:
        verdict = "hangs" if alive else "dies"
    return {"verdict": verdict, "queued": queued, "served_after_s": served}


def stop_idle(start: Start, effort: Effort) -> Figures:
    """SIGTERM and SIGINT to the first process: time until it has ended, and its exit code."""
    return stop(start, effort, busy=False)


def stop_busy(start: Start, effort: Effort) -> Figures:
    """The same while 64 clients load it."""
    return stop(start, effort, busy=True)


def stop(start: Start, effort: Effort, *, busy: bool) -> Figures:
    figures: Figures = {"verdict": "ok"}
    for number in SIGNALS:
        took, codes, left = [], set(), 0
        for _ in range(effort.stops):
            with start() as server, ExitStack() as stack:
                seconds_until(lambda: echoes(server.address), PATIENCE)
                # Until the process of that client has ended.
                seconds_until(lambda: len(server.processes()) == 1, PATIENCE)
                if busy:
                    stack.enter_context(Load(server))
                begin = time.monotonic()
                server.signal(number)
                code = server.wait(STOP_LIMIT)
                took.append(time.monotonic() - begin)
                codes.add(code)
                left = max(left, 0 if code is None else len(server.processes()))
        if None in codes:
            figures["verdict"] = "hangs"
        elif left and figures["verdict"] == "ok":
            figures["verdict"] = "leaves children"
        figures[number.name] = {
            "median_ms": statistics.median(took) * 1e3,
            "max_ms": max(took) * 1e3,
            "exit_codes": sorted(str(code) for code in codes),
            "processes_left": left,
        }
    return figures


class Load:
    """64 clients that load a server, from a thread that holds no GIL, until it has ended."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        fastsock.load(
            self._server.address,
            connections=BUSY_CLIENTS,
            duration=STOP_LIMIT + 1,
            timeout=1.0,
            wait="block",
        )

    def __enter__(self) -> None:
        before = self._server.cpu_seconds()
        self._thread.start()
        seconds_until(lambda: self._server.cpu_seconds() > before, PATIENCE)

    def __exit__(self, *_: object) -> None:
        self._thread.join()


def bytes_in_flight(start: Start, effort: Effort) -> Figures:
    """SIGTERM when 8 clients have sent 16 KiB and their end, 4 of them not yet accepted."""
    done: list[Transfer] = []
    for _ in range(effort.stops):
        with start(draining=True) as server, ExitStack() as stack:
            done += stop_in_flight(server, stack)
    complete = sum(each.complete for each in done)
    return {
        "verdict": "ok" if complete == len(done) else "loses",
        "complete": complete,
        "clients": len(done),
        "lost_bytes": sum(each.sent - each.received for each in done),
    }


def stop_in_flight(server: ServerProcess, stack: ExitStack) -> list[Transfer]:
    data = payload(SMALL)
    clients = [stack.enter_context(connect(server.address)) for _ in range(4)]
    for sock in clients:
        sock.sendall(data[:1])
    # A server of one client at a time answers one of them, and the others wait like the last ones.
    wait_readable(clients, TAKES_NO_MORE)
    server.pause()
    with suppress(OSError):  # a short queue may be full
        clients += [stack.enter_context(connect(server.address, timeout=0.5)) for _ in range(4)]
    for number, sock in enumerate(clients):
        sock.sendall(data[1:] if number < 4 else data)
        sock.shutdown(socket.SHUT_WR)
    server.signal(signal.SIGTERM)
    server.resume()
    return [receive(sock, data) for sock in clients]


Probe = Callable[[Start, Effort], Figures]

PROBES: dict[str, Probe] = {
    probe.__name__: probe
    for probe in (
        short_echo,
        half_close,
        slow_reader,
        stuck_readers,
        descriptor_limit,
        resets,
        reset_before_accept,
        stop_idle,
        stop_busy,
        bytes_in_flight,
    )
}
