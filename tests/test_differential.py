"""The same script of clients on every implementation: all have to give the same transcript.

A script is drawn that says what some clients do; its transcript is what they see. Only one
transcript is right, as a script reads no more than was sent, and an end only where one must come:
only the timing is left to chance. The right one is computed from the script alone, and asyncio's
streams, an independent work, are among the implementations.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import misbehaving
import pytest
from clients import STREAM_SIZE, EchoClient, connect, reset, stream, wait_until
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from implementations import IMPLEMENTATIONS, KINDS, any_endpoint
from misbehaving import Behaviour, MisbehavingServer

import fastsock

TIMEOUT = 15.0  # seconds; only something that hangs takes so long
STEPS = 30
LAST = ("finish", "reset", "close")  # what a client does last
#: One buffer that takes most sends at once, one of the size of many, and one that takes few.
BUFFER_SIZES = {"tcp": 65536, "tcp6": 4096, "unix": 1000}

Transcript = list[tuple[object, ...]]


@dataclass(frozen=True)
class Step:
    verb: str
    client: int = 0
    size: int = 0  # bytes; of a connect the client's receive buffer, of a pause milliseconds


@dataclass
class ClientState:
    """What a client has done so far in a script that is being drawn."""

    outstanding: int = 0  # bytes sent and not read yet
    sent: int = 0
    half_closed: bool = False


sizes = st.one_of(
    st.integers(1, 300),
    st.sampled_from([4095, 4096, 4097, 65535, 65536, 65537]),
    st.integers(1, 200_000),
)


@st.composite
def scripts(draw: st.DrawFn, at_a_time: int) -> tuple[Step, ...]:
    """What clients do, at most so many at a time; each that is connected at the end finishes."""
    steps: list[Step] = []
    live: dict[int, ClientState] = {}
    numbers = iter(range(STEPS))
    for _ in range(draw(st.integers(1, STEPS))):
        if not live or (len(live) < at_a_time and draw(st.integers(0, 3)) == 0):
            number = next(numbers)
            live[number] = ClientState()
            steps.append(Step("connect", number, draw(st.sampled_from([0, 0, 16384]))))
            continue
        number = draw(st.sampled_from(sorted(live)))
        step = draw_step(draw, number, live[number])
        steps.append(step)
        if step.verb in LAST:
            del live[number]
    return (*steps, *(Step("finish", number) for number in live))


def draw_step(draw: st.DrawFn, number: int, client: ClientState) -> Step:
    verbs = ["pause", "finish", "reset", "close"]
    if client.outstanding:
        verbs += ["read"] * 4
    if not client.half_closed:
        verbs += ["half-close"] + ["send"] * 6 * (client.sent < STREAM_SIZE)
    verb = draw(st.sampled_from(verbs))
    size = 0
    if verb == "pause":
        size = draw(st.integers(1, 3))
    elif verb == "half-close":
        client.half_closed = True
    elif verb == "send":
        size = min(draw(sizes), STREAM_SIZE - client.sent)
        client.sent += size
        client.outstanding += size
    elif verb == "read":
        size = draw(st.one_of(st.just(client.outstanding), st.integers(1, client.outstanding)))
        client.outstanding -= size
    return Step(verb, number, size)


def clients_at_a_time(script: tuple[Step, ...]) -> int:
    most = now = 0
    for step in script:
        now += (step.verb == "connect") - (step.verb in LAST)
        most = max(most, now)
    return most


def note(step: Step, seen: object) -> tuple[object, ...]:
    if isinstance(seen, bytes):
        seen = f"{len(seen)} bytes, sha256 {hashlib.sha256(seen).hexdigest()[:12]}"
    return (step.verb, step.client, step.size, seen)


# --- what is right ------------------------------------------------------------------------------


def expected(script: tuple[Step, ...]) -> Transcript:
    """The transcript of a server that gives back every byte in order, and then ends."""
    sent: dict[int, int] = {}
    got: dict[int, int] = {}
    transcript = []
    for step in script:
        seen: object = None
        start = got.setdefault(step.client, 0)
        if step.verb == "send":
            sent[step.client] = sent.get(step.client, 0) + step.size
        elif step.verb == "read":
            got[step.client] += step.size
            seen = stream(step.client)[start : start + step.size]
        elif step.verb == "finish":
            seen = stream(step.client)[start : sent.get(step.client, 0)]
        transcript.append(note(step, seen))
    return transcript


# --- what is seen -------------------------------------------------------------------------------


def play(script: tuple[Step, ...], endpoint: Any) -> Transcript:
    """Do what the script says with real clients, and note what they see."""
    transcript: Transcript = []
    with ExitStack() as stack:
        clients: dict[int, EchoClient] = {}
        for step in script:
            seen: object = None
            try:
                if step.verb == "connect":
                    sock = connect(endpoint, rcvbuf=step.size, timeout=TIMEOUT)
                    clients[step.client] = EchoClient(stack.enter_context(sock), step.client)
                else:
                    seen = act(step, clients[step.client])
            except (OSError, EOFError) as error:
                seen = repr(error)
            transcript.append(note(step, seen))
            if isinstance(seen, str):
                break  # what the others see after that depends on how long it took
    return transcript


def act(step: Step, client: EchoClient) -> bytes | None:
    if step.verb == "send":
        client.send(step.size)
    elif step.verb == "read":
        return client.read(step.size)
    elif step.verb == "pause":
        time.sleep(step.size / 1000)
    elif step.verb == "half-close":
        client.half_close()
    elif step.verb == "reset":
        reset(client.sock)
    elif step.verb == "close":
        client.sock.close()
    else:
        seen = client.finish()
        client.sock.close()
        return seen
    return None


# --- the counters -------------------------------------------------------------------------------


def counted(server: Any, before: Any, script: tuple[Step, ...]) -> dict[str, int]:
    """What the server counted in a script; bytes only where each client finished."""
    clients = before.accepted + sum(step.verb == "connect" for step in script)
    wait_until(lambda: server.stats().accepted >= clients, "all accepted")
    wait_until(lambda: server.stats().open == 0, "all closed")
    after = server.stats()
    found = {"accepted": after.accepted - before.accepted}
    if not {*LAST[1:]} & {step.verb for step in script}:
        found["eof"] = after.closed["eof"] - before.closed["eof"]
        found["bytes in"] = after.bytes_in - before.bytes_in
        found["bytes out"] = after.bytes_out - before.bytes_out
        found["errors"] = sum(after.errors.values()) - sum(before.errors.values())
    return found


def to_be_counted(script: tuple[Step, ...]) -> dict[str, int]:
    clients = sum(step.verb == "connect" for step in script)
    if {*LAST[1:]} & {step.verb for step in script}:
        return {"accepted": clients}
    size = sum(step.size for step in script if step.verb == "send")
    return {"accepted": clients, "eof": clients, "bytes in": size, "bytes out": size, "errors": 0}


# --- the tests ----------------------------------------------------------------------------------


class Comparison:
    """Every implementation on one kind of socket, running, and how many scripts they have met."""

    def __init__(self, kind: str, stack: ExitStack) -> None:
        self.scripts = 0
        self.plays = 0
        self._servers = [
            (each, stack.enter_context(each.server(any_endpoint(kind), **options)))
            for options in ({"buffer_size": BUFFER_SIZES[kind]},)
            for each in IMPLEMENTATIONS.values()
        ]

    def compare(self, script: tuple[Step, ...]) -> None:
        self.scripts += 1
        several = clients_at_a_time(script) > 1
        right = (expected(script), to_be_counted(script))
        for implementation, server in self._servers:
            if implementation.one_at_a_time and several:
                continue
            self.plays += 1
            before = server.stats()
            seen = play(script, server.endpoint)
            # Here and not only at the end, where a test that takes too long never comes.
            if seen != right[0]:
                print(f"{implementation.name}: {script}")
            assert seen == right[0], implementation.name
            assert counted(server, before, script) == right[1], implementation.name


def compare_scripts(kind: str, examples: int, started_from: int | None) -> Comparison:
    """Draw scripts, always the same ones unless given a number to start from."""
    with ExitStack() as stack:
        comparison = Comparison(kind, stack)

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=started_from is None,
            suppress_health_check=list(HealthCheck),
        )
        @given(script=st.one_of(scripts(1), scripts(4)))
        def check(script: tuple[Step, ...]) -> None:
            comparison.compare(script)

        (check if started_from is None else seed(started_from)(check))()
    return comparison


@pytest.mark.kinds("tcp", "unix")  # what TCP shows is the same over IPv6; the slow test has it too
def test_same_transcript(socket_kind: str) -> None:
    """40 scripts, one client at a time and up to 4: what they see is right on every server."""
    assert compare_scripts(socket_kind, 40, None).scripts >= 40


@pytest.mark.slow
@pytest.mark.kinds(*KINDS)
def test_same_transcript_of_many_scripts(socket_kind: str, figure: Callable[[str], None]) -> None:
    """2000 scripts; FASTSOCK_TEST_SEED draws those of an earlier run again."""
    started_from = int(os.environ.get("FASTSOCK_TEST_SEED") or random.randrange(sys.maxsize))
    print(f"FASTSOCK_TEST_SEED={started_from}")
    comparison = compare_scripts(socket_kind, 2000, started_from)
    figure(
        f"differential, {socket_kind}: {comparison.scripts} scripts, "
        f"{comparison.plays} transcripts, 0 differences (FASTSOCK_TEST_SEED={started_from})"
    )


MISBEHAVIOURS: dict[str, Behaviour] = {
    "drops a byte": misbehaving.drops_byte(66_000),
    "doubles a byte": misbehaving.doubles_byte(299),
    "flips a byte": misbehaving.flips_byte(5),
    "loses the tail": misbehaving.loses_tail(3),
    "resets in the middle": misbehaving.resets_after(1000),
    "resets at the end": misbehaving.resets_at_eof,
    "closes at once": misbehaving.closes_at_once,
}


@pytest.mark.parametrize("name", ["nothing", *MISBEHAVIOURS])
def test_a_difference_is_noticed(name: str) -> None:
    """A server that does nothing wrong passes, and each of the others does not."""
    script = (
        Step("connect", 0),
        Step("send", 0, 300),
        Step("read", 0, 100),
        Step("connect", 1),
        Step("send", 1, 70_000),
        Step("half-close", 1),
        Step("finish", 1),
        Step("finish", 0),
    )
    behave = MISBEHAVIOURS.get(name, misbehaving.echoes)
    with MisbehavingServer(behave) as server:
        seen = play(script, fastsock.Endpoint.parse(server.address))
    assert (seen != expected(script)) is (name in MISBEHAVIOURS)
