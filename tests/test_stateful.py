"""Clients, stops, starts and descriptor limits in any order, against a model of what must be true.

Run as a program, this file is the process in which the servers live: ``python test_stateful.py
NAME``. It is told line by line to start and to stop them, so that its descriptors and its memory
are theirs alone, and a limit that is set for it harms nobody else.
"""

from __future__ import annotations

import json
import os
import random
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from clients import (
    STREAM_SIZE,
    EchoClient,
    connect,
    echo_exactly,
    random_chunks,
    refuses,
    reset,
    stream,
    wait_until,
    wait_until_still,
)
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from implementations import (
    ANY_PORT,
    GENEROUS,
    IMPLEMENTATIONS,
    KINDS,
    Child,
    Implementation,
    any_endpoint,
    say,
)
from leftovers import everything

import fastsock

MIB = 1 << 20
TIMEOUT = 15.0  # seconds; only something that hangs takes so long
MOST_CLIENTS = 6
MOST_OWED = 256 << 10  # bytes that are not read yet, of one client
STEPS = 50  # of one run of the machine
#: What a server's process may grow by: 6 buffers of 64 KiB, their threads, and what malloc() keeps.
MEMORY = 16 * MIB

positions = st.integers(0, MOST_CLIENTS - 1)


class Room(Child):
    """The process in which the servers of one implementation are started and stopped."""

    def __init__(self, implementation: Implementation) -> None:
        super().__init__(sys.executable, __file__, implementation.name)
        self.name = implementation.name
        self.one_at_a_time = implementation.one_at_a_time

    def warm_up(self) -> None:
        """Once round: what a server and a client cost, and what stays after the first time."""
        idle = self.holds()
        answer = self.tell(do="start", endpoint=ANY_PORT)
        with connect(fastsock.Endpoint.parse(answer["endpoint"]), timeout=TIMEOUT) as sock:
            echo_exactly(sock, *random_chunks(1, 200_000, 1000))
            with_a_client = wait_until_still(self.holds)
        wait_until(lambda: self.holds() < with_a_client, "holds less without the client")
        alone = wait_until_still(self.holds)
        self.for_a_server = alone - idle
        self.for_a_client = with_a_client - alone
        self.tell(do="stop", drain=0)
        self.tell(do="join")
        wait_until(lambda: self.holds() == idle, "holds what it held before the start")
        self.most_memory = self.resident_bytes() + MEMORY

    def tell(self, **command: object) -> dict[str, Any]:
        return self.ask(json.dumps(command))

    def holds(self) -> int:
        """How many descriptors, threads and child processes there are."""
        return len(everything(self.pid))


class Member(EchoClient):
    """A client and what the model says of it."""

    got = 0  # bytes
    waits = False  # to be accepted, perhaps: it came when no descriptors were left

    @property
    def owed(self) -> int:
        return self.sent - self.got

    @property
    def is_done(self) -> bool:
        """Whether the server has let it go by now. If bytes are owed it may have, or not."""
        return self.half_closed and self.owed == len(self.early)

    def take(self, data: bytes) -> None:
        """What came back is what was sent, from the very byte on that is due."""
        assert data == stream(self.number)[self.got : min(self.got + len(data), self.sent)]
        self.got += len(data)


class Machine(RuleBasedStateMachine):
    """The model; every rule is something that clients, the application or the system do."""

    steps = 0  # of all machines

    def __init__(self, room: Room) -> None:
        super().__init__()
        Machine.steps -= 1  # the invariants are looked at once before the first step
        self._room = room
        self._members: list[Member] = []
        self._endpoint: Any = None  # None: no server
        self._numbers = iter(range(1000))
        self._limited = False
        # Anew each time: what one run leaks must not fail all that come after it.
        self._idle = room.holds()
        self._most = 1 if room.one_at_a_time else MOST_CLIENTS

    # --- the server -----------------------------------------------------------------------------

    @precondition(lambda self: self._endpoint is None)
    @rule(kind=st.sampled_from(KINDS))
    def start(self, kind: str) -> None:
        answer = self._room.tell(do="start", endpoint=any_endpoint(kind))
        self._endpoint = fastsock.Endpoint.parse(answer["endpoint"])

    @precondition(lambda self: self._endpoint is not None)
    @rule()
    def stop(self) -> None:
        """Everybody gets an end: after all that is owed, or before, but nothing wrong."""
        self._room.tell(do="stop", drain=0)
        stats = self._room.tell(do="join")
        for member in self._members:
            self._expect_end(member)
        self._is_stopped(stats)

    @precondition(lambda self: self._endpoint is not None and not self._limited)
    @rule()
    def drain(self) -> None:
        """Everybody is served to the end, however much is owed, and then there is no server."""
        self._room.tell(do="stop", drain=60)
        for member in self._members:
            if not member.half_closed and member.sent < STREAM_SIZE:
                member.send(1)
            self._finish(member)
        stats = self._room.tell(do="join")
        assert stats["closed"]["stopped"] == 0
        self._is_stopped(stats)

    def _is_stopped(self, stats: dict[str, Any]) -> None:
        assert stats["open"] == 0
        assert stats["accepted"] == sum(stats["closed"].values())
        assert refuses(self._endpoint)
        self._members.clear()
        self._endpoint = None
        self._lift()
        self._wait_until_held()

    # --- clients --------------------------------------------------------------------------------

    @precondition(lambda self: self._endpoint is not None and len(self._members) < self._most)
    @rule(rcvbuf=st.sampled_from([0, 0, 16384]))
    def connect(self, rcvbuf: int) -> None:
        sock = connect(self._endpoint, rcvbuf=rcvbuf, timeout=TIMEOUT)
        member = Member(sock, next(self._numbers))
        member.waits = self._limited
        self._members.append(member)

    @precondition(lambda self: self._members)
    @rule(position=positions, size=st.one_of(st.integers(1, 1000), st.integers(1, 200_000)))
    def send(self, position: int, size: int) -> None:
        member = self._member(position)
        # Who is not served cannot be expected to get rid of more than a socket's buffers take.
        most = 16 << 10 if member.waits else MOST_OWED
        size = min(size, most - member.owed, STREAM_SIZE - member.sent)
        if size > 0 and not member.half_closed:
            member.send(size)

    @precondition(lambda self: self._members)
    @rule(position=positions, part=st.floats(0, 1))
    def read(self, position: int, part: float) -> None:
        member = self._member(position)
        if member.owed and not member.waits:
            member.take(member.read(max(1, int(part * member.owed))))

    @precondition(lambda self: self._members)
    @rule(position=positions)
    def half_close(self, position: int) -> None:
        self._member(position).half_close()

    @precondition(lambda self: self._members)
    @rule(position=positions)
    def finish(self, position: int) -> None:
        member = self._member(position)
        if not member.waits:
            self._finish(member)
            self._members.remove(member)

    @precondition(lambda self: self._members)
    @rule(position=positions)
    def reset(self, position: int) -> None:
        member = self._member(position)
        reset(member.sock)
        self._members.remove(member)

    @precondition(lambda self: self._members)
    @rule(position=positions)
    def close(self, position: int) -> None:
        member = self._member(position)
        member.sock.close()
        self._members.remove(member)

    # --- descriptors ----------------------------------------------------------------------------

    @precondition(lambda self: self._endpoint is not None and not self._limited)
    @rule(left=st.integers(0, 3))
    def limit(self, left: int) -> None:
        """Newcomers may have to wait until it is lifted; who is in goes on."""
        self._wait_until_held()
        self._room.leave_descriptors(left)
        self._limited = True

    @precondition(lambda self: self._limited)
    @rule()
    def lift(self) -> None:
        self._lift()
        for member in self._members:
            member.waits = False

    # --- what is always true --------------------------------------------------------------------

    @invariant()
    def count(self) -> None:
        Machine.steps += 1

    @invariant()
    def nothing_is_left_or_missing(self) -> None:
        """As many descriptors, threads and processes as the clients there are need."""
        assert self._room.running(), self._room.errors()
        if not self._limited:
            self._wait_until_held()

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self._room.resident_bytes() <= self._room.most_memory

    @invariant()
    def nobody_is_disturbed(self) -> None:
        """No client sees an end before it has all of its bytes, nor a byte more."""
        for member in self._members:
            if not select.select([member.sock], [], [], 0)[0]:
                continue
            byte = member.sock.recv(1, socket.MSG_PEEK)
            if byte:
                assert member.owed > len(member.early)
            else:
                assert member.is_done

    def teardown(self) -> None:
        if self._endpoint is not None:
            self.stop()
        self.close_all()

    # --- how it is done -------------------------------------------------------------------------

    def close_all(self) -> None:
        for member in self._members:
            member.sock.close()

    def _member(self, position: int) -> Member:
        return self._members[position % len(self._members)]

    def _finish(self, member: Member) -> None:
        member.take(member.finish())
        assert member.owed == 0
        member.sock.close()

    def _expect_end(self, member: Member) -> None:
        with member.sock:
            member.take(bytes(member.early))
            try:
                while part := member.sock.recv(1 << 16):
                    member.take(part)
            except ConnectionResetError:
                pass

    def _lift(self) -> None:
        if self._limited:
            self._room.limit_descriptors(1024)
        self._limited = False

    def _wait_until_held(self) -> None:
        """Wait until the process holds what the clients that are there need, and nothing else."""
        holds = {self._idle}
        if self._endpoint is not None:
            most = sum(not member.is_done for member in self._members)
            least = sum(not member.half_closed for member in self._members)
            server, client = self._idle + self._room.for_a_server, self._room.for_a_client
            holds = {server + clients * client for clients in range(least, most + 1)}
        wait_until(lambda: self._room.holds() in holds, f"holds one of {holds}")


@pytest.fixture
def room(implementation: Implementation) -> Iterator[Room]:
    with closing(Room(implementation)) as room:
        room.warm_up()
        yield room


def run_machines(room: Room, runs: int, started_from: int | None) -> None:
    chosen = settings(
        max_examples=runs,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        derandomize=started_from is None,
        phases=set(Phase) - ({Phase.shrink} if started_from is None else set()),  # it takes long
        suppress_health_check=list(HealthCheck),
    )

    def make() -> Machine:
        return Machine(room)

    run_state_machine_as_test(
        make if started_from is None else seed(started_from)(make), settings=chosen
    )


def test_any_order(room: Room) -> None:
    """A few runs, always the same ones."""
    run_machines(room, 6, None)


@pytest.mark.slow
def test_any_order_at_length(room: Room, figure: Callable[[str], None]) -> None:
    """10,000 steps; FASTSOCK_TEST_SEED draws those of an earlier run again."""
    first = int(os.environ.get("FASTSOCK_TEST_SEED") or random.randrange(1 << 32))
    Machine.steps = runs = 0
    while Machine.steps < 10_000:
        print(f"FASTSOCK_TEST_SEED={first + runs}")
        run_machines(room, 50, first + runs)
        runs += 1
    figure(
        f"stateful, {room.name}: {Machine.steps} steps, 0 failures "
        f"(FASTSOCK_TEST_SEED={first} and the {runs - 1} after it)"
    )


# --- the process of the servers -----------------------------------------------------------------


def main(name: str) -> None:
    server: Any = None
    stopping = threading.Thread()
    say(pid=os.getpid())
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "start":
            server = IMPLEMENTATIONS[name].server(command["endpoint"])
            server.start()
            say(endpoint=str(server.endpoint))
        elif command["do"] == "stop":
            stopping = threading.Thread(target=server.stop, args=(command["drain"],))
            stopping.start()
            say()
        else:
            stopping.join(GENEROUS)
            assert not stopping.is_alive()
            say(**server.stats().as_dict())
            server = None


if __name__ == "__main__":
    main(*sys.argv[1:])
