"""The load client's loop for streams: connects, sends, verifies what comes back, half-closes, and
gives up on a server that makes no progress."""

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
#: Seconds until a Unix connect() that found the queue full is tried again.
RETRY_INTERVAL = 0.001


class Client:
    """One connection. Positions are bytes since its beginning."""

    __slots__ = (
        "answered",
        "budget",
        "half_closed",
        "index",
        "progress",
        "received",
        "sent",
        "sent_at",
        "sock",
        "start",
        "target",
        "turned_away",
        "writing",
    )

    def __init__(self, index: int, sock: socket.socket, budget: float) -> None:
        self.index = index
        self.sock = sock
        self.start = start_of(index)
        self.budget = budget  # messages this connection may send
        self.target = 0  # end of the last message that may be sent now
        self.sent = 0
        self.received = 0
        self.answered = 0  # messages
        self.sent_at: deque[float] = deque()  # of the messages that have no answer yet
        self.progress = monotonic()  # when something last arrived, or was first owed
        self.turned_away = False  # while connecting: to be tried again
        self.writing = False
        self.half_closed = False


class LoadLoop(LoadRun):
    """A run over streams."""

    def __init__(self, address: SocketAddress, plan: Plan) -> None:
        super().__init__(plan, check_interval=min(0.05, plan.timeout / 4))
        self._address = address
        self._size = plan.size
        self._block = make_block()
        self._buffer = bytearray(BUFFER_SIZE)
        self._clients: list[Client | None] = [None] * plan.connections
        self._open: set[Client] = set()
        self._next_check = 0.0

    def run(self) -> None:
        try:
            self._connect_all()
            self._start()
            while self._open:
                for key, events in self._wait():
                    client = key.data
                    if events & READ:
                        self._receive(client)
                    if events & WRITE and client in self._open:
                        self._send(client, monotonic())
                        self._half_close_if_done(client, monotonic())
                now = monotonic()
                if self._plan.rate:
                    self._send_due(now)
                if now >= self._next_check:
                    self._check(now)
        finally:
            for client in self._open:
                client.sock.close()
            self._selector.close()

    # connect

    def _connect_all(self) -> None:
        connecting = set()
        for index in range(self._plan.connections):
            client = self._open_client(index)
            if client and self._connect(client):
                connecting.add(client)
        while connecting:
            turned_away = [each for each in connecting if each.turned_away]
            wait = RETRY_INTERVAL if turned_away else self._check_interval
            for key, _ in self._selector.select(wait):
                client = key.data
                connecting.remove(client)
                number = client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    self._fail(client, kind_of(OSError(number, "")))
                else:
                    self._selector.modify(client.sock, READ, client)
            connecting.difference_update(
                [client for client in turned_away if not self._connect(client)]
            )
            limit = monotonic() - self._plan.timeout
            for client in [each for each in connecting if each.progress < limit]:
                connecting.remove(client)
                self._fail(client, "timeout")

    def _open_client(self, index: int) -> Client | None:
        try:
            sock = socket.socket(self._address.family, socket.SOCK_STREAM)
        except OSError as error:
            self.errors[kind_of(error)] += 1
            return None
        client = Client(index, sock, self._budget(index))
        self._clients[index] = client
        self._open.add(client)
        return client

    def _connect(self, client: Client) -> bool:
        """Begins to connect; False when it failed for good."""
        sock = client.sock
        is_unix = self._address.family == socket.AF_UNIX
        try:
            if not is_unix:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            number = sock.connect_ex(self._address.name)
            # A full queue: TCP tries again by itself, a Unix socket leaves that to its owner, with
            # no event to wait for (connect(2)). For TCP the same errno means that no port is left.
            client.turned_away = is_unix and number == errno.EAGAIN
            if client.turned_away:
                return True
            if number not in (0, errno.EINPROGRESS):
                raise OSError(number, "")
            self._selector.register(sock, WRITE, client)
        except OSError as error:
            self._fail(client, kind_of(error))
            return False
        return True

    # the run

    def _start(self) -> None:
        now = self._start_clock()
        for client in list(self._open):
            client.progress = now
            if not self._plan.rate:
                self._send_more(client, monotonic())

    def _send_due(self, now: float) -> None:
        """Open loop: sends the messages whose time has come, whether or not answers came back."""
        first = self._scheduled
        for number in self._now_due(now):
            self._scheduled += 1
            client = self._clients[number % self._plan.connections]
            if client in self._open:
                client.target += self._size
                if not client.writing:
                    self._send(client, monotonic())
        if first < self._scheduled == self._schedule_size:
            for client in list(self._open):
                self._half_close_if_done(client, now)

    def _send_more(self, client: Client, now: float) -> None:
        """Closed loop: keeps `depth` messages in flight."""
        if now < self._end:
            allowed = min(client.answered + self._plan.depth, client.budget)
            client.target = int(allowed) * self._size
            if client.sent < client.target and not client.writing:
                self._send(client, now)
        if now >= self._end or client.target >= client.budget * self._size:
            self._half_close_if_done(client, now)

    def _send(self, client: Client, now: float) -> None:
        """Sends up to the target, or as much as fits; `now` is the time of sending."""
        while (left := client.target - client.sent) > 0:
            at = (client.start + client.sent) % PERIOD
            try:
                sent = client.sock.send(self._block[at : at + min(left, PIECE)])
            except BlockingIOError:
                break
            except OSError as error:
                self._fail(client, kind_of(error))
                return
            if client.sent == client.received:
                client.progress = now
            begun_before = -(-client.sent // self._size)
            client.sent += sent
            for _ in range(-(-client.sent // self._size) - begun_before):
                client.sent_at.append(now)
            if sent < left:
                now = monotonic()
        writing = client.sent < client.target
        if writing != client.writing:
            client.writing = writing
            self._selector.modify(client.sock, READ | WRITE if writing else READ, client)

    def _receive(self, client: Client) -> None:
        try:
            count = client.sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(client, kind_of(error))
            return
        now = monotonic()
        if not count:
            self._at_end(client)
            return
        if not self._verified(client, count):
            self._fail(client, "mismatch")
            return
        client.progress = now
        client.received += count
        answers = client.received // self._size - client.answered
        if answers:
            self._record(client, answers, now)
            client.answered += answers
        if not self._plan.rate:
            self._send_more(client, now)
        else:
            self._half_close_if_done(client, now)

    def _verified(self, client: Client, count: int) -> bool:
        owed = client.sent - client.received
        if count > owed:
            self.corrupt_bytes += count - owed
            return False
        if not self._plan.verify:
            return True
        at = (client.start + client.received) % PERIOD
        got, expected = self._buffer[:count], self._block[at : at + count]
        # A bytearray compares with memcmp(); a memoryview on the left would go byte by byte.
        if got == expected:
            return True
        self.corrupt_bytes += sum(a != b for a, b in zip(got, expected, strict=True))
        return False

    def _record(self, client: Client, answers: int, now: float) -> None:
        if now < self._begin:
            for _ in range(answers):
                client.sent_at.popleft()
            return
        if now <= self._end:
            self.messages += answers
            self._last = now
        ticks = self.from_send.ticks
        for _ in range(answers):
            ticks[int((now - client.sent_at.popleft()) * TICKS_PER_SECOND)] += 1
        if self._plan.rate:
            for number in range(client.answered, client.answered + answers):
                self.from_intended.add(now - self._due(client.index, number))

    # the end

    def _half_close_if_done(self, client: Client, now: float) -> None:
        if client.half_closed or client.sent < client.target or client not in self._open:
            return
        # Its share alone: a server that serves only so many at a time may wait for its place.
        done = client.target >= client.budget * self._size
        over = now >= self._end and self._scheduled >= self._schedule_size
        if not done and not over:
            return
        client.half_closed = True
        client.progress = now
        self._last = max(self._last, now)
        try:
            client.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._fail(client, "reset" if error.errno == errno.ENOTCONN else kind_of(error))

    def _at_end(self, client: Client) -> None:
        if client.half_closed and client.received == client.sent:
            self._close(client)
        else:
            self._fail(client, "closed_early")

    def _check(self, now: float) -> None:
        """Ends the window when it is over, and the connections that make no progress."""
        self._next_check = now + self._check_interval
        if now >= self._end:
            self._last = now
            self._drop_unsent()
        for client in list(self._open):
            self._half_close_if_done(client, now)
            owed = client.received < client.target or client.half_closed
            if owed and now - client.progress > self._plan.timeout:
                self._fail(client, "timeout")

    def _drop_unsent(self) -> None:
        """The messages that were due in the window but had no chance: they count as late."""
        plan = self._plan
        for client in self._open:
            begun = -(-client.sent // self._size)
            dropped = client.target // self._size - begun
            client.target = begun * self._size
            if plan.rate:
                for number in range(begun, begun + dropped):
                    self.from_intended.add(self._end - self._due(client.index, number))
        self._drop_unscheduled()

    def _fail(self, client: Client, kind: str) -> None:
        self.errors[kind] += 1
        now = monotonic()
        if kind != "mismatch":
            self.lost_bytes += client.sent - client.received
        if self._begin and now >= self._begin:
            self._last = max(self._last, now)
            for offset, sent_at in enumerate(client.sent_at):
                self.from_send.add(now - sent_at)
                if self._plan.rate:
                    self.from_intended.add(now - self._due(client.index, client.answered + offset))
        self._close(client)

    def _close(self, client: Client) -> None:
        self._open.remove(client)
        if client.sock in self._selector.get_map():
            self._selector.unregister(client.sock)
        client.sock.close()
