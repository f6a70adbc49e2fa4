"""One connection of a load run: socket, connect, send, recv, close. It has a thread of its own."""

from __future__ import annotations

import select
import socket
from collections import deque
from contextlib import suppress
from time import monotonic, sleep

from .load_run import PIECE, Plan, Tally, kind_of

RETRY_INTERVAL = 0.001  # seconds


def run(plan: Plan, index: int, tally: Tally) -> None:
    """Load the server over one connection, until its share is done or the run is over."""
    try:
        with socket.socket(plan.address.family, socket.SOCK_STREAM) as sock:
            connect(sock, plan)
            exchange(sock, plan, index, tally)
    except OSError as error:
        tally.fail(kind_of(error))


def connect(sock: socket.socket, plan: Plan) -> None:
    if sock.family != socket.AF_UNIX:
        # With Nagle's algorithm a message would wait until the one before is acknowledged.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(plan.timeout)
    give_up = monotonic() + plan.timeout
    while True:
        try:
            return sock.connect(plan.address.name)
        except BlockingIOError:
            # EAGAIN: the queue of a Unix server is full, and there is no event to wait for
            # (connect(2)). TCP tries again by itself.
            if monotonic() > give_up:
                raise TimeoutError from None
            sleep(RETRY_INTERVAL)


def exchange(sock: socket.socket, plan: Plan, index: int, tally: Tally) -> None:
    """Keep `depth` messages outstanding, then half-close and wait for the end of the stream."""
    # A client that first sends the whole of a long message, and a server that cannot send its
    # beginning back, would wait for each other for ever.
    sock.setblocking(False)
    poll = select.poll()
    size, share = plan.size, plan.share(index)
    sent = received = 0  # bytes
    sent_at: deque[float] = deque()  # of each message outstanding
    half_closed = False
    while True:
        if monotonic() >= plan.end:
            share = min(share, -(-sent // size))  # the messages that have been begun
        if received == share * size and not half_closed:
            sock.shutdown(socket.SHUT_WR)
            half_closed = True
        may_send = sent < min(received // size + plan.depth, share) * size
        poll.register(sock, select.POLLIN | (select.POLLOUT if may_send else 0))
        ready = dict(poll.poll(plan.timeout * 1000)).get(sock.fileno(), 0)
        if not ready:
            raise TimeoutError
        # What poll() reported may be gone: then try again (BlockingIOError).
        if ready & select.POLLOUT:
            number, start = divmod(sent, size)
            now = monotonic()
            with suppress(BlockingIOError):
                sent += sock.send(plan.piece(index, number, start))
                if not start:
                    sent_at.append(now)
                tally.outstanding = sent - received
        if ready & ~select.POLLOUT:
            number, start = divmod(received, size)
            with suppress(BlockingIOError):
                data = sock.recv(min(PIECE, size - start))
                if not data:
                    return None if half_closed else tally.fail("closed_early")
                if not tally.verify(data, plan.piece(index, number, start)[: sent - received]):
                    return tally.fail("mismatch")
                received += len(data)
                if received % size == 0:
                    tally.add_answer(sent_at.popleft(), plan.end)
        tally.outstanding = sent - received
