"""One socket of a load run over datagrams, which may be lost, doubled, reordered, late or changed.

To tell these apart, each datagram begins with the number of its socket and its own number. One that
is not answered in time is counted as lost, and the next takes its place: a loss stalls nothing.
"""

from __future__ import annotations

import select
import socket
from contextlib import suppress
from time import monotonic

from .load_run import PIECE, Plan, Tally, kind_of

HEADER_SIZE = 8  # bytes: the two numbers
NUMBER_BITS = 40  # of the header for the datagram's number, the others for the socket's


def run(plan: Plan, index: int, tally: Tally) -> None:
    """Load the server from one socket, until its share is done or the run is over."""
    try:
        with socket.socket(plan.address.family, socket.SOCK_DGRAM) as sock:
            if sock.family == socket.AF_UNIX:
                # Without a name there is no answer. The kernel picks a free one (unix(7)).
                sock.bind("")
            # Sends nothing, but then the kernel delivers the answers of this server only, and
            # reports a port that is closed (udp(7)).
            sock.connect(plan.address.name)
            exchange(sock, plan, index, tally)
    except OSError as error:
        tally.fail(kind_of(error))


def exchange(sock: socket.socket, plan: Plan, index: int, tally: Tally) -> None:
    """Keep `depth` datagrams in flight; at the end wait for those that are."""
    sock.setblocking(False)
    poll, counts = select.poll(), tally.datagrams
    share, sent = plan.share(index), 0
    in_flight: dict[int, float] = {}  # number to time of sending, oldest first
    given_up: set[int] = set()
    highest = -1  # number that has been answered
    try:
        while True:
            now = monotonic()
            for number in [n for n, at in in_flight.items() if now >= at + plan.loss_timeout]:
                del in_flight[number]
                given_up.add(number)
                counts["lost"] += 1
            if now >= plan.end:
                share = sent
            may_send = sent < share and len(in_flight) < plan.depth
            if not may_send and not in_flight:
                return
            poll.register(sock, select.POLLIN | (select.POLLOUT if may_send else 0))
            oldest = next(iter(in_flight.values()), None)
            wait = plan.timeout if oldest is None else oldest + plan.loss_timeout - now
            ready = dict(poll.poll(wait * 1000)).get(sock.fileno(), 0)
            if not ready and not in_flight:
                raise TimeoutError  # the queue of a Unix server stays full
            # What poll() reported may be gone, or have a wrong checksum: BlockingIOError.
            if ready & select.POLLOUT:
                with suppress(BlockingIOError):
                    now = monotonic()
                    sock.send(message(plan, index, sent))
                    in_flight[sent] = now
                    sent += 1
                    counts["sent"] += 1
            if ready & ~select.POLLOUT:
                with suppress(BlockingIOError):
                    answer = sock.recv(PIECE)
                    header = int.from_bytes(answer[:HEADER_SIZE], "little")
                    owner, number = divmod(header, 1 << NUMBER_BITS)
                    if len(answer) != plan.size or owner != index or number >= sent:
                        tally.corrupt_bytes += max(len(answer), 1)
                    elif not tally.verify(answer, message(plan, index, number)):
                        pass  # it answers none
                    elif number in in_flight:
                        counts["received"] += 1
                        counts["reordered"] += number < highest
                        highest = max(highest, number)
                        tally.add_answer(in_flight.pop(number), plan.end)
                    elif number in given_up:
                        given_up.remove(number)
                        counts["late"] += 1
                    else:
                        counts["duplicated"] += 1
    finally:
        counts["lost"] += len(in_flight)


def message(plan: Plan, index: int, number: int) -> bytes:
    header = (index << NUMBER_BITS | number).to_bytes(HEADER_SIZE, "little")
    return header + plan.piece(index, number, HEADER_SIZE)
