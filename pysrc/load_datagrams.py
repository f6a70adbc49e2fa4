"""The load client's run over datagrams, which may be lost, doubled, reordered, late or changed.

To tell these apart, each datagram begins with the number of its socket and its own number. One that
is not answered in time is counted as lost, and the next takes its place: a loss stalls nothing.
"""

from __future__ import annotations

import socket
from time import monotonic

from ..client.report import DATAGRAM_COUNTS
from ..endpoint import SocketAddress
from .latency import TICKS_PER_SECOND
from .load_run import READ, WRITE, LoadRun, Plan, kind_of
from .pattern import PERIOD, make_block, start_of

HEADER_SIZE = 8  # bytes: the two numbers
NUMBER_BITS = 40  # of the header for the datagram's number, the others for the socket's
LONGEST = 65507  # bytes; the most in UDP over IPv4
BUFFER_SIZE = 65536  # bytes; more than LONGEST, so that a longer answer is noticed
BURST = 64  # answers received from one socket before the next socket has its turn
SWEEPS = 20  # searches for lost datagrams per loss timeout


class DatagramSocket(socket.socket):
    """One socket of the client, and the state of its datagrams."""

    def __init__(self, family: int, index: int, budget: float) -> None:
        super().__init__(family, socket.SOCK_DGRAM)
        self.index = index
        self.budget = budget  # datagrams it may send in all
        self.due = 0.0  # datagrams it may have sent by now
        self.sent = 0
        self.in_flight: dict[int, float] = {}  # number to time of sending, oldest first
        self.given_up: set[int] = set()
        self.expected = 0  # one more than the highest number answered
        self.writing = False


class DatagramRun(LoadRun):
    """A run over datagrams."""

    def __init__(self, address: SocketAddress, plan: Plan) -> None:
        super().__init__(plan, check_interval=min(0.05, plan.loss_timeout / SWEEPS))
        self.datagrams = self._counts = dict.fromkeys(DATAGRAM_COUNTS, 0)
        self._address = address
        self._block = make_block()
        self._buffer = bytearray(BUFFER_SIZE)
        self._sockets: list[DatagramSocket | None] = [None] * plan.connections
        self._open: set[DatagramSocket] = set()
        self._next_sweep = 0.0
        self._finishing = False

    def run(self) -> None:
        try:
            for index in range(self._plan.connections):
                self._open_socket(index)
            self._start_clock()
            for sock in list(self._open):
                self._send(sock)
            while self._open and not (self._finishing and self._all_settled()):
                ready = self._wait()
                self._finish_if_over(monotonic())  # after the end, answers cause no sends
                for key, events in ready:
                    sock = key.data
                    if events & READ:
                        self._receive(sock)
                    if sock in self._open:
                        self._send(sock)
                now = monotonic()
                if self._plan.rate:
                    self._send_due(now)
                if now >= self._next_sweep:
                    self._sweep(now)
                self._finish_if_over(now)
        finally:
            for sock in self._open:
                sock.close()
            self._selector.close()

    def _open_socket(self, index: int) -> None:
        try:
            sock = DatagramSocket(self._address.family, index, self._budget(index))
        except OSError as error:
            self.errors[kind_of(error)] += 1
            return
        self._sockets[index] = sock
        self._open.add(sock)
        try:
            sock.setblocking(False)
            if self._address.family == socket.AF_UNIX:
                # A socket without a name cannot be answered. The kernel picks a free name.
                sock.bind("")
            # Sends nothing, but then the kernel delivers answers of this server only, and reports
            # a port that is closed.
            sock.connect(self._address.name)
            self._selector.register(sock, READ, sock)
        except OSError as error:
            self._fail(sock, error)

    # sending

    def _send_due(self, now: float) -> None:
        """Open loop: send the datagrams that are due, whether or not answers have arrived."""
        for number in self._now_due(now):
            self._scheduled += 1
            sock = self._sockets[number % self._plan.connections]
            if sock in self._open:
                sock.due += 1
                if not sock.writing:
                    self._send(sock)

    def _send(self, sock: DatagramSocket) -> None:
        """Send what is due; in a closed loop, keep `depth` datagrams in flight."""
        if not self._plan.rate and not self._finishing:
            sock.due = min(sock.sent + self._plan.depth - len(sock.in_flight), sock.budget)
        full = False
        while sock.sent < sock.due and not full:
            now = monotonic()
            try:
                sock.sendmsg([self._header(sock, sock.sent), self._body(sock, sock.sent)])
            except BlockingIOError:
                full = True
                continue
            except OSError as error:
                self._fail(sock, error)
                return
            sock.in_flight[sock.sent] = now
            sock.sent += 1
            self._counts["sent"] += 1
        if full != sock.writing:
            sock.writing = full
            self._selector.modify(sock, READ | WRITE if full else READ, sock)

    def _header(self, sock: DatagramSocket, number: int) -> bytes:
        return (sock.index << NUMBER_BITS | number).to_bytes(HEADER_SIZE, "little")

    def _body(self, sock: DatagramSocket, number: int) -> memoryview:
        """Return what follows the header; it differs between datagrams and between sockets."""
        at = (start_of(sock.index) + number) % PERIOD
        return self._block[at : at + self._plan.size - HEADER_SIZE]

    # receiving

    def _receive(self, sock: DatagramSocket) -> None:
        for _ in range(BURST):
            try:
                count = sock.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                self._fail(sock, error)
                return
            self._on_answer(sock, count, monotonic())

    def _on_answer(self, sock: DatagramSocket, count: int, now: float) -> None:
        number = self._verified(sock, count)
        if number is None:
            return
        if number in sock.in_flight:
            self._counts["received"] += 1
            self._counts["reordered"] += number < sock.expected
            sock.expected = max(sock.expected, number + 1)
            self._record(sock, number, sock.in_flight.pop(number), now)
        elif number in sock.given_up:
            sock.given_up.remove(number)
            self._counts["late"] += 1
        else:
            self._counts["duplicated"] += 1

    def _verified(self, sock: DatagramSocket, count: int) -> int | None:
        """Return the number of the datagram that this answers; None if it answers none."""
        if count != self._plan.size:
            self.corrupt_bytes += max(count, 1)
            return None
        header = int.from_bytes(self._buffer[:HEADER_SIZE], "little")
        index, number = divmod(header, 1 << NUMBER_BITS)
        if index != sock.index or number >= sock.sent:
            self.corrupt_bytes += count
            return None
        if not self._plan.verify:
            return number
        equal = self._equal(self._buffer[HEADER_SIZE:count], self._body(sock, number))
        return number if equal else None

    def _record(self, sock: DatagramSocket, number: int, sent_at: float, now: float) -> None:
        if now < self._begin:
            return
        if now <= self._end:
            self.messages += 1
            self._last = now
        self.from_send.ticks[int((now - sent_at) * TICKS_PER_SECOND)] += 1
        if self._plan.rate:
            self.from_intended.add(now - self._due(sock.index, number))

    # losses, failures, the end

    def _sweep(self, now: float) -> None:
        """Give up datagrams not answered in time, and send the next in their place."""
        self._next_sweep = now + self._check_interval
        for sock in list(self._open):
            while sock.in_flight:
                number, sent_at = next(iter(sock.in_flight.items()))
                if now - sent_at < self._plan.loss_timeout:
                    break
                self._give_up(sock, number)
            self._send(sock)

    def _give_up(self, sock: DatagramSocket, number: int) -> None:
        del sock.in_flight[number]
        sock.given_up.add(number)
        self._counts["lost"] += 1

    def _is_over(self, now: float) -> bool:
        """Whether no more datagrams become due."""
        if now >= self._end:
            return True
        if self._plan.messages is None:
            return False
        if self._plan.rate:
            return self._scheduled >= self._schedule_size
        return all(sock.sent >= sock.budget for sock in self._open)

    def _finish_if_over(self, now: float) -> None:
        if self._finishing or not self._is_over(now):
            return
        self._finishing = True
        if now < self._end:
            return
        self._last = now
        for sock in self._open:
            if self._plan.rate:
                for number in range(sock.sent, int(sock.due)):
                    self.from_intended.add(self._end - self._due(sock.index, number))
            sock.due = sock.sent
        self._drop_unscheduled()

    def _all_settled(self) -> bool:
        return not any(sock.in_flight or sock.sent < sock.due for sock in self._open)

    def _fail(self, sock: DatagramSocket, error: OSError) -> None:
        """Close a socket that failed; its datagrams in flight are lost."""
        self.errors[kind_of(error)] += 1
        for number in list(sock.in_flight):
            self._give_up(sock, number)
        now = monotonic()
        if self._begin and now >= self._begin:
            self._last = max(self._last, now)
        self._open.remove(sock)
        if sock in self._selector.get_map():
            self._selector.unregister(sock)
        sock.close()
