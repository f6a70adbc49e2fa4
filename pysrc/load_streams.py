"""The load client's run over streams: connect, send, verify the answers, half-close.

A connection without progress is given up.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from time import monotonic

from ..endpoint import SocketAddress
from .latency import TICKS_PER_SECOND
from .load_run import READ, WRITE, LoadRun, Plan, kind_of
from .pattern import PERIOD, PIECE, make_block, start_of

BUFFER_SIZE = 65536
RETRY_INTERVAL = 0.001  # seconds; for a Unix connect() that found the queue full


class LoadConnection(socket.socket):
    """One connection of the client. Positions are bytes since its beginning."""

    def __init__(self, family: int, index: int, budget: float) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self.index = index
        self.start = start_of(index)
        self.budget = budget  # messages this connection may send
        self.target = 0  # end of the last message that may be sent now
        self.sent = 0
        self.received = 0
        self.answered = 0  # messages
        self.sent_at: deque[float] = deque()  # of the outstanding messages
        self.progress = monotonic()  # when bytes last arrived, or the first became outstanding
        self.must_retry = False  # connect() found the queue full
        self.writing = False
        self.half_closed = False


class StreamRun(LoadRun):
    """A run over streams."""

    def __init__(self, address: SocketAddress, plan: Plan) -> None:
        super().__init__(plan, check_interval=min(0.05, plan.timeout / 4))
        self._address = address
        self._size = plan.size
        self._block = make_block()
        self._buffer = bytearray(BUFFER_SIZE)
        self._connections: list[LoadConnection | None] = [None] * plan.connections
        self._open: set[LoadConnection] = set()
        self._next_check = 0.0

    def run(self) -> None:
        try:
            self._connect_all()
            self._start()
            while self._open:
                for key, events in self._wait():
                    connection = key.data
                    if events & READ:
                        self._receive(connection)
                    if events & WRITE and connection in self._open:
                        self._send(connection, monotonic())
                        self._half_close_if_done(connection, monotonic())
                now = monotonic()
                if self._plan.rate:
                    self._send_due(now)
                if now >= self._next_check:
                    self._check(now)
        finally:
            for connection in self._open:
                connection.close()
            self._selector.close()

    # connect

    def _connect_all(self) -> None:
        connecting = set()
        for index in range(self._plan.connections):
            connection = self._open_connection(index)
            if connection and self._connect(connection):
                connecting.add(connection)
        while connecting:
            must_retry = [each for each in connecting if each.must_retry]
            wait = RETRY_INTERVAL if must_retry else self._check_interval
            for key, _ in self._selector.select(wait):
                connection = key.data
                connecting.remove(connection)
                number = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    self._fail(connection, kind_of(OSError(number, "")))
                else:
                    self._selector.modify(connection, READ, connection)
            connecting.difference_update(
                [connection for connection in must_retry if not self._connect(connection)]
            )
            limit = monotonic() - self._plan.timeout
            for connection in [each for each in connecting if each.progress < limit]:
                connecting.remove(connection)
                self._fail(connection, "timeout")

    def _open_connection(self, index: int) -> LoadConnection | None:
        try:
            connection = LoadConnection(self._address.family, index, self._budget(index))
        except OSError as error:
            self.errors[kind_of(error)] += 1
            return None
        self._connections[index] = connection
        self._open.add(connection)
        return connection

    def _connect(self, connection: LoadConnection) -> bool:
        """Begin to connect; return False if it failed."""
        is_unix = self._address.family == socket.AF_UNIX
        try:
            if not is_unix:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setblocking(False)
            number = connection.connect_ex(self._address.name)
            # A full queue: TCP tries again by itself; a Unix socket does not, and there is no event
            # to wait for (connect(2)). For TCP the same errno means that no port is free.
            connection.must_retry = is_unix and number == errno.EAGAIN
            if connection.must_retry:
                return True
            if number not in (0, errno.EINPROGRESS):
                raise OSError(number, "")
            self._selector.register(connection, WRITE, connection)
        except OSError as error:
            self._fail(connection, kind_of(error))
            return False
        return True

    # the run

    def _start(self) -> None:
        now = self._start_clock()
        for connection in list(self._open):
            connection.progress = now
            if not self._plan.rate:
                self._send_more(connection, monotonic())

    def _send_due(self, now: float) -> None:
        """Open loop: send the messages that are due, whether or not answers have arrived."""
        first = self._scheduled
        for number in self._now_due(now):
            self._scheduled += 1
            connection = self._connections[number % self._plan.connections]
            if connection in self._open:
                connection.target += self._size
                if not connection.writing:
                    self._send(connection, monotonic())
        if first < self._scheduled == self._schedule_size:
            for connection in list(self._open):
                self._half_close_if_done(connection, now)

    def _send_more(self, connection: LoadConnection, now: float) -> None:
        """Closed loop: keep `depth` messages in flight."""
        if now < self._end:
            allowed = min(connection.answered + self._plan.depth, connection.budget)
            connection.target = int(allowed) * self._size
            if connection.sent < connection.target and not connection.writing:
                self._send(connection, now)
        if now >= self._end or connection.target >= connection.budget * self._size:
            self._half_close_if_done(connection, now)

    def _send(self, connection: LoadConnection, now: float) -> None:
        """Send up to the target, or what the socket takes; `now` is the time of sending."""
        while (left := connection.target - connection.sent) > 0:
            at = (connection.start + connection.sent) % PERIOD
            try:
                sent = connection.send(self._block[at : at + min(left, PIECE)])
            except BlockingIOError:
                break
            except OSError as error:
                self._fail(connection, kind_of(error))
                return
            if connection.sent == connection.received:
                connection.progress = now
            begun_before = -(-connection.sent // self._size)
            connection.sent += sent
            for _ in range(-(-connection.sent // self._size) - begun_before):
                connection.sent_at.append(now)
            if sent < left:
                now = monotonic()
        writing = connection.sent < connection.target
        if writing != connection.writing:
            connection.writing = writing
            self._selector.modify(connection, READ | WRITE if writing else READ, connection)

    def _receive(self, connection: LoadConnection) -> None:
        try:
            count = connection.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(connection, kind_of(error))
            return
        now = monotonic()
        if not count:
            self._at_end(connection)
            return
        if not self._verified(connection, count):
            self._fail(connection, "mismatch")
            return
        connection.progress = now
        connection.received += count
        answers = connection.received // self._size - connection.answered
        if answers:
            self._record(connection, answers, now)
            connection.answered += answers
        if not self._plan.rate:
            self._send_more(connection, now)
        else:
            self._half_close_if_done(connection, now)

    def _verified(self, connection: LoadConnection, count: int) -> bool:
        outstanding = connection.sent - connection.received
        if count > outstanding:
            self.corrupt_bytes += count - outstanding
            return False
        if not self._plan.verify:
            return True
        at = (connection.start + connection.received) % PERIOD
        return self._equal(self._buffer[:count], self._block[at : at + count])

    def _record(self, connection: LoadConnection, answers: int, now: float) -> None:
        if now < self._begin:
            for _ in range(answers):
                connection.sent_at.popleft()
            return
        if now <= self._end:
            self.messages += answers
            self._last = now
        ticks = self.from_send.ticks
        for _ in range(answers):
            ticks[int((now - connection.sent_at.popleft()) * TICKS_PER_SECOND)] += 1
        if self._plan.rate:
            for number in range(connection.answered, connection.answered + answers):
                self.from_intended.add(now - self._due(connection.index, number))

    # the end

    def _half_close_if_done(self, connection: LoadConnection, now: float) -> None:
        if (
            connection.half_closed
            or connection.sent < connection.target
            or connection not in self._open
        ):
            return
        # Its own share: a server with a limit may accept the next client only when this one ends.
        done = connection.target >= connection.budget * self._size
        over = now >= self._end and self._scheduled >= self._schedule_size
        if not done and not over:
            return
        connection.half_closed = True
        connection.progress = now
        self._last = max(self._last, now)
        try:
            connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._fail(connection, "reset" if error.errno == errno.ENOTCONN else kind_of(error))

    def _at_end(self, connection: LoadConnection) -> None:
        if connection.half_closed and connection.received == connection.sent:
            self._close(connection)
        else:
            self._fail(connection, "closed_early")

    def _check(self, now: float) -> None:
        """End the window when it is over, and the connections that make no progress."""
        self._next_check = now + self._check_interval
        if now >= self._end:
            self._last = now
            self._drop_unsent()
        for connection in list(self._open):
            self._half_close_if_done(connection, now)
            waiting = connection.received < connection.target or connection.half_closed
            if waiting and now - connection.progress > self._plan.timeout:
                self._fail(connection, "timeout")

    def _drop_unsent(self) -> None:
        """Count as late the messages that were due in the window and not sent."""
        plan = self._plan
        for connection in self._open:
            begun = -(-connection.sent // self._size)
            dropped = connection.target // self._size - begun
            connection.target = begun * self._size
            if plan.rate:
                for number in range(begun, begun + dropped):
                    self.from_intended.add(self._end - self._due(connection.index, number))
        self._drop_unscheduled()

    def _fail(self, connection: LoadConnection, kind: str) -> None:
        self.errors[kind] += 1
        now = monotonic()
        if kind != "mismatch":
            self.lost_bytes += connection.sent - connection.received
        if self._begin and now >= self._begin:
            self._last = max(self._last, now)
            for offset, sent_at in enumerate(connection.sent_at):
                self.from_send.add(now - sent_at)
                if self._plan.rate:
                    self.from_intended.add(
                        now - self._due(connection.index, connection.answered + offset)
                    )
        self._close(connection)

    def _close(self, connection: LoadConnection) -> None:
        self._open.remove(connection)
        if connection in self._selector.get_map():
            self._selector.unregister(connection)
        connection.close()
