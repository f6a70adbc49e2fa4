"""The load client's loop for datagrams, which may be lost, doubled, overtaken, late or changed.

To tell these apart, each datagram begins with the number of its socket and its own. What is not
back in time is given up as lost, and the next takes its place: a lost datagram stalls nothing.
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
NUMBER_BITS = 40  # of them for the datagram's, the others for the socket's
LONGEST = 65507  # bytes; UDP over IPv4 takes no more
BUFFER_SIZE = 65536  # bytes; more than the longest, so that an answer that is longer is seen
BURST = 64  # answers of one socket that are received before the others have their turn
SWEEPS = 20  # looks for lost datagrams in a loss timeout


class Peer:
    """One socket, and what has become of its datagrams."""

    def __init__(self, index: int, sock: socket.socket, budget: float) -> None:
        self.index = index
        self.sock = sock
        self.budget = budget  # datagrams this socket may send
        self.due = 0.0  # datagrams that it may have sent by now
        self.sent = 0
        self.in_flight: dict[int, float] = {}  # number to time of sending, the oldest first
        self.given_up: set[int] = set()
        self.expected = 0  # one more than the highest number that was answered
        self.writing = False


class DatagramLoop(LoadRun):
    """A run over datagrams."""

    def __init__(self, address: SocketAddress, plan: Plan) -> None:
        super().__init__(plan, check_interval=min(0.05, plan.loss_timeout / SWEEPS))
        self.datagrams = self._seen = dict.fromkeys(DATAGRAM_COUNTS, 0)
        self._address = address
        self._block = make_block()
        self._buffer = bytearray(BUFFER_SIZE)
        self._peers: list[Peer | None] = [None] * plan.connections
        self._open: set[Peer] = set()
        self._next_sweep = 0.0
        self._finishing = False

    def run(self) -> None:
        try:
            for index in range(self._plan.connections):
                self._open_peer(index)
            self._start_clock()
            for peer in list(self._open):
                self._send(peer)
            while self._open and not (self._finishing and self._all_settled()):
                ready = self._wait()
                self._finish_if_over(monotonic())  # an answer after the end is followed by nothing
                for key, events in ready:
                    peer = key.data
                    if events & READ:
                        self._receive(peer)
                    if peer in self._open:
                        self._send(peer)
                now = monotonic()
                if self._plan.rate:
                    self._send_due(now)
                if now >= self._next_sweep:
                    self._sweep(now)
                self._finish_if_over(now)
        finally:
            for peer in self._open:
                peer.sock.close()
            self._selector.close()

    def _open_peer(self, index: int) -> None:
        try:
            sock = socket.socket(self._address.family, socket.SOCK_DGRAM)
        except OSError as error:
            self.errors[kind_of(error)] += 1
            return
        peer = self._peers[index] = Peer(index, sock, self._budget(index))
        self._open.add(peer)
        try:
            sock.setblocking(False)
            if self._address.family == socket.AF_UNIX:
                # Nobody could answer a socket without a name. The kernel picks one that is free.
                sock.bind("")
            # Nothing is sent, but the kernel then passes on answers of this server only, and the
            # news that nobody is there.
            sock.connect(self._address.name)
            self._selector.register(sock, READ, peer)
        except OSError as error:
            self._fail(peer, error)

    # sending

    def _send_due(self, now: float) -> None:
        """Open loop: sends the datagrams whose time has come, whether or not answers came back."""
        for number in self._now_due(now):
            self._scheduled += 1
            peer = self._peers[number % self._plan.connections]
            if peer in self._open:
                peer.due += 1
                if not peer.writing:
                    self._send(peer)

    def _send(self, peer: Peer) -> None:
        """Sends what is due; in a closed loop as many as keep `depth` datagrams in flight."""
        if not self._plan.rate and not self._finishing:
            peer.due = min(peer.sent + self._plan.depth - len(peer.in_flight), peer.budget)
        full = False
        while peer.sent < peer.due and not full:
            now = monotonic()
            try:
                peer.sock.sendmsg([self._header(peer, peer.sent), self._body(peer, peer.sent)])
            except BlockingIOError:
                full = True
                continue
            except OSError as error:
                self._fail(peer, error)
                return
            peer.in_flight[peer.sent] = now
            peer.sent += 1
            self._seen["sent"] += 1
        if full != peer.writing:
            peer.writing = full
            self._selector.modify(peer.sock, READ | WRITE if full else READ, peer)

    def _header(self, peer: Peer, number: int) -> bytes:
        return (peer.index << NUMBER_BITS | number).to_bytes(HEADER_SIZE, "little")

    def _body(self, peer: Peer, number: int) -> memoryview:
        """What follows the header differs from one datagram to the next, and by socket."""
        at = (start_of(peer.index) + number) % PERIOD
        return self._block[at : at + self._plan.size - HEADER_SIZE]

    # receiving

    def _receive(self, peer: Peer) -> None:
        for _ in range(BURST):
            try:
                count = peer.sock.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                self._fail(peer, error)
                return
            self._on_answer(peer, count, monotonic())

    def _on_answer(self, peer: Peer, count: int, now: float) -> None:
        number = self._verified(peer, count)
        if number is None:
            return
        if number in peer.in_flight:
            self._seen["received"] += 1
            self._seen["reordered"] += number < peer.expected
            peer.expected = max(peer.expected, number + 1)
            self._record(peer, number, peer.in_flight.pop(number), now)
        elif number in peer.given_up:
            peer.given_up.remove(number)
            self._seen["late"] += 1
        else:
            self._seen["duplicated"] += 1

    def _verified(self, peer: Peer, count: int) -> int | None:
        """Which of the datagrams that were sent here this is; None if it is none of them."""
        if count != self._plan.size:
            self.corrupt_bytes += max(count, 1)
            return None
        header = int.from_bytes(self._buffer[:HEADER_SIZE], "little")
        index, number = divmod(header, 1 << NUMBER_BITS)
        if index != peer.index or number >= peer.sent:
            self.corrupt_bytes += count
            return None
        if not self._plan.verify:
            return number
        got, expected = self._buffer[HEADER_SIZE:count], self._body(peer, number)
        # A bytearray compares with memcmp(); a memoryview on the left would go byte by byte.
        if got == expected:
            return number
        self.corrupt_bytes += sum(a != b for a, b in zip(got, expected, strict=True))
        return None

    def _record(self, peer: Peer, number: int, sent_at: float, now: float) -> None:
        if now < self._begin:
            return
        if now <= self._end:
            self.messages += 1
            self._last = now
        self.from_send.ticks[int((now - sent_at) * TICKS_PER_SECOND)] += 1
        if self._plan.rate:
            self.from_intended.add(now - self._due(peer.index, number))

    # losses, failures, the end

    def _sweep(self, now: float) -> None:
        """Gives up what was not answered in time, and sends what takes its place."""
        self._next_sweep = now + self._check_interval
        for peer in list(self._open):
            while peer.in_flight:
                number, sent_at = next(iter(peer.in_flight.items()))
                if now - sent_at < self._plan.loss_timeout:
                    break
                self._give_up(peer, number)
            self._send(peer)

    def _give_up(self, peer: Peer, number: int) -> None:
        del peer.in_flight[number]
        peer.given_up.add(number)
        self._seen["lost"] += 1

    def _is_over(self, now: float) -> bool:
        """Whether nothing more is to become due."""
        if now >= self._end:
            return True
        if self._plan.messages is None:
            return False
        if self._plan.rate:
            return self._scheduled >= self._schedule_size
        return all(peer.sent >= peer.budget for peer in self._open)

    def _finish_if_over(self, now: float) -> None:
        if self._finishing or not self._is_over(now):
            return
        self._finishing = True
        if now < self._end:
            return
        self._last = now
        for peer in self._open:
            if self._plan.rate:
                for number in range(peer.sent, int(peer.due)):
                    self.from_intended.add(self._end - self._due(peer.index, number))
            peer.due = peer.sent
        self._drop_unscheduled()

    def _all_settled(self) -> bool:
        return not any(peer.in_flight or peer.sent < peer.due for peer in self._open)

    def _fail(self, peer: Peer, error: OSError) -> None:
        """The socket cannot be used; what it has in flight is lost."""
        self.errors[kind_of(error)] += 1
        for number in list(peer.in_flight):
            self._give_up(peer, number)
        now = monotonic()
        if self._begin and now >= self._begin:
            self._last = max(self._last, now)
        self._open.remove(peer)
        if peer.sock in self._selector.get_map():
            self._selector.unregister(peer.sock)
        peer.sock.close()
