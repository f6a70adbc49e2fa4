"""Clients, stops, starts and descriptor limits in any order, against a model of what must be true.

Run as a program, this file is the process in which the servers live: ``python test_stateful.py
NAME``. It starts and stops them as commands, line by line, say: so its descriptors and its memory
are theirs alone, and a limit that is set for it does not concern the tests.
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
MOST_OUTSTANDING = 256 << 10  # bytes of one client
STEPS = 50  # of one run of the machine
#: What a server's process may grow by: 6 buffers of 64 KiB, their threads, and what malloc() keeps.
MEMORY = 16 * MIB

positions = st.integers(0, MOST_CLIENTS - 1)


class ServingProcess(Child):
    """The process that starts and stops the servers of one implementation."""

    def __init__(self, implementation: Implementation) -> None:
        super().__init__(sys.executable, __file__, implementation.name)
        self.name = implementation.name
        self.one_at_a_time = implementation.one_at_a_time

    def warm_up(self) -> None:
        """Serve a client once; note what a server and a client hold, and what stays afterwards."""
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


class ModelClient(EchoClient):
    """A client and what the model says of it."""

    got = 0  # bytes
    may_wait = False  # to be accepted: it connected when no descriptors were left

    @property
    def outstanding(self) -> int:
        return self.sent - self.got

    @property
    def is_done(self) -> bool:
        """Whether the server has closed it; with bytes outstanding it may have, or not."""
        return self.half_closed and self.outstanding == len(self.early)

    def take(self, data: bytes) -> None:
        """What came back is what was sent, from the next byte on."""
        assert data == stream(self.number)[self.got : min(self.got + len(data), self.sent)]
        self.got += len(data)


class Machine(RuleBasedStateMachine):
    """The model; every rule is something that clients, the application or the system do."""

    steps = 0  # of all machines

    def __init__(self, process: ServingProcess) -> None:
        super().__init__()
        Machine.steps -= 1  # the invariants are looked at once before the first step
        self._process = process
        self._clients: list[ModelClient] = []
        self._endpoint: Any = None  # None: no server
        self._numbers = iter(range(1000))
        self._limited = False
        # Read for each run: what one leaks must not fail all later ones.
        self._idle = process.holds()
        self._most = 1 if process.one_at_a_time else MOST_CLIENTS

    # --- the server -----------------------------------------------------------------------------

    @precondition(lambda self: self._endpoint is None)
    @rule(kind=st.sampled_from(KINDS))
    def start(self, kind: str) -> None:
        answer = self._process.tell(do="start", endpoint=any_endpoint(kind))
        self._endpoint = fastsock.Endpoint.parse(answer["endpoint"])

    @precondition(lambda self: self._endpoint is not None)
    @rule()
    def stop(self) -> None:
        """Every client gets an end, after all its bytes or before, and no wrong byte."""
        self._process.tell(do="stop", drain=0)
        stats = self._process.tell(do="join")
        for client in self._clients:
            self._expect_end(client)
        self._is_stopped(stats)

    @precondition(lambda self: self._endpoint is not None and not self._limited)
    @rule()
    def drain(self) -> None:
        """Every client is served to its end, and then the server stops."""
        self._process.tell(do="stop", drain=60)
        for client in self._clients:
            if not client.half_closed and client.sent < STREAM_SIZE:
                client.send(1)
            self._finish(client)
        stats = self._process.tell(do="join")
        assert stats["closed"]["stopped"] == 0
        self._is_stopped(stats)

    def _is_stopped(self, stats: dict[str, Any]) -> None:
        assert stats["open"] == 0
        assert stats["accepted"] == sum(stats["closed"].values())
        assert refuses(self._endpoint)
        self._clients.clear()
        self._endpoint = None
        self._lift()
        self._wait_until_held_as_expected()

    # --- clients --------------------------------------------------------------------------------

    @precondition(lambda self: self._endpoint is not None and len(self._clients) < self._most)
    @rule(rcvbuf=st.sampled_from([0, 0, 16384]))
    def connect(self, rcvbuf: int) -> None:
        sock = connect(self._endpoint, rcvbuf=rcvbuf, timeout=TIMEOUT)
        client = ModelClient(sock, next(self._numbers))
        client.may_wait = self._limited
        self._clients.append(client)

    @precondition(lambda self: self._clients)
    @rule(position=positions, size=st.one_of(st.integers(1, 1000), st.integers(1, 200_000)))
    def send(self, position: int, size: int) -> None:
        client = self._client(position)
        # A client that is not accepted can send no more than the buffers of its socket take.
        most = 16 << 10 if client.may_wait else MOST_OUTSTANDING
        size = min(size, most - client.outstanding, STREAM_SIZE - client.sent)
        if size > 0 and not client.half_closed:
            client.send(size)

    @precondition(lambda self: self._clients)
    @rule(position=positions, part=st.floats(0, 1))
    def read(self, position: int, part: float) -> None:
        client = self._client(position)
        if client.outstanding and not client.may_wait:
            client.take(client.read(max(1, int(part * client.outstanding))))

    @precondition(lambda self: self._clients)
    @rule(position=positions)
    def half_close(self, position: int) -> None:
        self._client(position).half_close()

    @precondition(lambda self: self._clients)
    @rule(position=positions)
    def finish(self, position: int) -> None:
        client = self._client(position)
        if not client.may_wait:
            self._finish(client)
            self._clients.remove(client)

    @precondition(lambda self: self._clients)
    @rule(position=positions)
    def reset(self, position: int) -> None:
        client = self._client(position)
        reset(client.sock)
        self._clients.remove(client)

    @precondition(lambda self: self._clients)
    @rule(position=positions)
    def close(self, position: int) -> None:
        client = self._client(position)
        client.sock.close()
        self._clients.remove(client)

    # --- descriptors ----------------------------------------------------------------------------

    @precondition(lambda self: self._endpoint is not None and not self._limited)
    @rule(left=st.integers(0, 3))
    def limit(self, left: int) -> None:
        """New clients may have to wait until it is lifted; connected ones are served."""
        self._wait_until_held_as_expected()
        self._process.leave_descriptors(left)
        self._limited = True

    @precondition(lambda self: self._limited)
    @rule()
    def lift(self) -> None:
        self._lift()
        for client in self._clients:
            client.may_wait = False

    # --- what is always true --------------------------------------------------------------------

    @invariant()
    def count(self) -> None:
        Machine.steps += 1

    @invariant()
    def nothing_is_left_or_missing(self) -> None:
        """As many descriptors, threads and processes as the clients there are need."""
        assert self._process.running(), self._process.errors()
        if not self._limited:
            self._wait_until_held_as_expected()

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self._process.resident_bytes() <= self._process.most_memory

    @invariant()
    def no_client_is_disturbed(self) -> None:
        """No client sees an end before it has all of its bytes, nor a byte more."""
        for client in self._clients:
            if not select.select([client.sock], [], [], 0)[0]:
                continue
            byte = client.sock.recv(1, socket.MSG_PEEK)
            if byte:
                assert client.outstanding > len(client.early)
            else:
                assert client.is_done

    def teardown(self) -> None:
        if self._endpoint is not None:
            self.stop()
        self.close_all()

    # --- how it is done -------------------------------------------------------------------------

    def close_all(self) -> None:
        for client in self._clients:
            client.sock.close()

    def _client(self, position: int) -> ModelClient:
        return self._clients[position % len(self._clients)]

    def _finish(self, client: ModelClient) -> None:
        client.take(client.finish())
        assert client.outstanding == 0
        client.sock.close()

    def _expect_end(self, client: ModelClient) -> None:
        with client.sock:
            client.take(bytes(client.early))
            try:
                while part := client.sock.recv(1 << 16):
                    client.take(part)
            except ConnectionResetError:
                pass

    def _lift(self) -> None:
        if self._limited:
            self._process.limit_descriptors(1024)
        self._limited = False

    def _wait_until_held_as_expected(self) -> None:
        """Wait until the process holds what the clients that are there need, and nothing else."""
        holds = {self._idle}
        if self._endpoint is not None:
            most = sum(not client.is_done for client in self._clients)
            least = sum(not client.half_closed for client in self._clients)
            server, client = self._idle + self._process.for_a_server, self._process.for_a_client
            holds = {server + clients * client for clients in range(least, most + 1)}
        wait_until(lambda: self._process.holds() in holds, f"holds one of {holds}")


@pytest.fixture
def process(implementation: Implementation) -> Iterator[ServingProcess]:
    with closing(ServingProcess(implementation)) as process:
        process.warm_up()
        yield process


def run_machines(process: ServingProcess, runs: int, started_from: int | None) -> None:
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
        return Machine(process)

    run_state_machine_as_test(
        make if started_from is None else seed(started_from)(make), settings=chosen
    )


def test_any_order(process: ServingProcess) -> None:
    """A few runs, always the same ones."""
    run_machines(process, 4, None)


@pytest.mark.slow
def test_any_order_at_length(process: ServingProcess, figure: Callable[[str], None]) -> None:
    """10,000 steps; FASTSOCK_TEST_SEED draws those of an earlier run again."""
    first = int(os.environ.get("FASTSOCK_TEST_SEED") or random.randrange(1 << 32))
    Machine.steps = runs = 0
    while Machine.steps < 10_000:
        print(f"FASTSOCK_TEST_SEED={first + runs}")
        run_machines(process, 50, first + runs)
        runs += 1
    figure(
        f"stateful, {process.name}: {Machine.steps} steps, 0 failures "
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
