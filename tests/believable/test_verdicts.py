"""What disturbs a run, and the verdict that the load client must come to.

Each disturbance of the client or its machine has three sizes. "below" is far too small to be seen
in a judged figure: the run must be valid. "above" distorts one by far more than 10 %: the run must
not be valid, for the right reason. What is "near" the bound is recorded and not judged.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from functools import partial

import misbehaving
import pytest
from disturbances import cpu_quota, neighbour, stop_for
from misbehaving import Behaviour, DatagramBehaviour, MisbehavingServer, datagram_server
from records import record
from runs import (
    BLOCK,
    CLIENT_CPU,
    CPUS,
    SERVER_CPU,
    SPIN,
    Client,
    Run,
    echo_server,
    load,
    undisturbed,
)
from servers import delayed_echo, paced_echo, server_process

pytestmark = [pytest.mark.believable, pytest.mark.timeout(180)]

SIZES = ("below", "near", "above")
LOOPS = ("open", "closed")
WAITS = {"spin": SPIN, "block": BLOCK}

sizes = pytest.mark.parametrize("size", SIZES)
loops = pytest.mark.parametrize("loop", LOOPS)
waits = pytest.mark.parametrize("wait", WAITS)
needs_two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="a second CPU is missing")


def judge(
    name: str, disturbance: str, size: str, codes: tuple[str, ...], run: Callable[[], Run]
) -> Run:
    """Run, record and compare with the verdict of this size; `codes` are right above the bound."""
    seen = run() if size == "near" else undisturbed(run, codes if size == "above" else ())
    expected = {"below": "valid", "near": "either", "above": " or ".join(codes)}[size]
    record(name, disturbance=disturbance, size=size, expected=expected, seen=seen.seen())
    if size == "below":
        assert seen.valid, (seen.report["reasons"], seen.beside)
        assert seen.exit_code == 0
    elif size == "above":
        assert not seen.valid, seen.seen()
        assert set(codes) & set(seen.codes), seen.report["reasons"]
        assert seen.exit_code in (1, 4)
    return seen


def arguments(loop: str, wait: str, rate: int) -> tuple[object, ...]:
    return (*WAITS[wait], *(("--rate", rate) if loop == "open" else ()))


# --- the client or its machine is disturbed -----------------------------------------------------


@sizes
@loops
@waits
def test_client_stopped(size: str, loop: str, wait: str) -> None:
    """SIGSTOP once in the window. In a closed loop it is seen in the rate alone."""
    seconds = {"below": 0.0015, "near": 0.02 if loop == "open" else 0.2, "above": 1.0}[size]

    def run() -> Run:
        with Client(server.endpoint, "-d", "2s", *arguments(loop, wait, 1000)) as client:
            client.wait_connected()
            time.sleep(0.6)  # the warm-up takes 0.2 s
            stop_for(client.process, seconds)
            return client.finish()

    with echo_server() as server:
        seen = judge(
            f"client-stopped-{loop}-{wait}-{size}",
            f"client stopped for {seconds * 1e3:g} ms of 2 s; {loop} loop, --wait {wait}",
            size,
            ("client_away",),
            run,
        )
    if size == "above":
        assert 0.9 <= seen.report["client"]["away_s"] <= 1.3, seen.report["client"]


@sizes
@loops
@waits
def test_client_throttled(size: str, loop: str, wait: str) -> None:
    """A cgroup gives the client less than it wants; its own cpu.stat says that it did."""
    share = {"below": 2.0, "near": 0.9, "above": 0.2}[size]
    throttled = 0.0

    def run() -> Run:
        nonlocal throttled
        with (
            cpu_quota(share) as quota,
            Client(server.endpoint, "-d", "2s", *arguments(loop, wait, 5000)) as client,
        ):
            quota.add(client.process.pid)
            seen = client.finish()
            throttled = quota.throttled()
        return seen

    with echo_server() as server:
        judge(
            f"client-throttled-{loop}-{wait}-{size}",
            f"client in a cgroup with {share:.0%} of a CPU; {loop} loop, --wait {wait}",
            size,
            ("throttled",),
            run,
        )
    if size != "near":
        assert (throttled > 0.5) == (size == "above")


@sizes
@loops
@waits
def test_client_shares_its_cpu(size: str, loop: str, wait: str) -> None:
    """Another program works on the client's CPU: for a moment now and then, or always."""
    times = {"below": (0.0003, 0.5), "near": (0.005, 0.25), "above": (1.0, 0.0)}[size]
    often = f"{times[0] * 1e3:g} ms each {sum(times) * 1e3:g} ms" if times[1] else "always"
    with echo_server() as server, neighbour(CLIENT_CPU, busy=times[0], idle=times[1]):
        judge(
            f"client-shares-cpu-{loop}-{wait}-{size}",
            f"another program on the client's CPU, {often}; {loop} loop, --wait {wait}",
            size,
            ("client_delayed",),
            lambda: load(server.endpoint, "-c", 8, "-d", "2s", *arguments(loop, wait, 2000)),
        )


@needs_two_cpus
@pytest.mark.parametrize("loop", LOOPS)
def test_server_shares_its_cpu(loop: str) -> None:
    """The client looks at itself: a server that waits for its CPU is the server's own figure."""
    with echo_server() as server, neighbour(SERVER_CPU):
        seen = load(server.endpoint, "-d", "2s", *arguments(loop, "spin", 1000))
    disturbance = f"another program on the server's CPU, always; {loop} loop"
    record(
        f"server-shares-cpu-{loop}", disturbance=disturbance, expected="either", seen=seen.seen()
    )
    assert not {"client_away", "client_delayed"} & set(seen.codes) or not seen.beside.quiet


@sizes
@waits
def test_more_threads_than_cpus(size: str, wait: str) -> None:
    """Spinning threads take the CPU from each other, and from the server."""
    threads = {"below": 1, "near": len(CPUS), "above": 8 * len(CPUS)}[size]
    spinning = wait == "spin"
    with echo_server() as server:
        seen = judge(
            f"threads-{wait}-{size}",
            f"{threads} threads on {len(CPUS)} CPUs, 64 connections, 2000/s; --wait {wait}",
            size if spinning or size == "near" else "below",
            ("too_many_spinning",),
            lambda: load(
                *(server.endpoint, "-c", 64, "--threads", threads, "--rate", 2000, "-d", "2s"),
                *WAITS[wait],
                cpus=CPUS,
            ),
        )
    if size == "above" and spinning:
        assert "spin" in seen.errors, "nothing was said at the start"


@sizes
def test_server_stopped_in_the_warmup(size: str) -> None:
    """What was due before the window does not count in it."""
    until = {"below": 1.0, "near": 1.9, "above": 2.5}[size]

    def run() -> Run:
        command = (sys.executable, "-c", SERVE)
        with (
            server_process(*command, cpu=SERVER_CPU) as server,
            Client(
                server.endpoint, "-c", 8, "--rate", 1000, "-d", "1s", "--warmup", "2s"
            ) as client,
        ):
            client.wait_connected(8)
            time.sleep(0.8)
            stop_for(server.process, until - 0.8)
            return client.finish()

    # The client is not disturbed, so it may be valid at any size: with the right rate.
    seen = undisturbed(run)
    record(
        f"server-stopped-in-warmup-{size}",
        disturbance=f"server stopped from 0.8 to {until:g} s; warm-up 2 s, window 1 s, 1000/s",
        size=size,
        expected="valid" if size == "below" else "1000/s, or flagged",
        seen=seen.seen(),
    )
    assert seen.valid or size != "below", seen.report["reasons"]
    assert not seen.valid or 990 <= seen.report["messages_per_s"] <= 1010
    assert seen.report["messages_per_s"] <= 1010


SERVE = """
import fastsock
fastsock.serve("tcp://127.0.0.1:0", ready=lambda server: print(server.endpoint, flush=True))
"""


# --- offered load and capacity ------------------------------------------------------------------


@needs_two_cpus
@pytest.mark.parametrize(
    ("rate", "arrivals", "seconds", "size"),
    [
        (800, "uniform", 5, "below"),
        (970, "uniform", 5, "below"),
        (993, "uniform", 5, "near"),
        (1000, "uniform", 5, "above"),
        (1000, "uniform", 20, "above"),
        (1100, "uniform", 5, "above"),
        (795, "poisson", 5, "below"),
        (795, "poisson", 20, "below"),
        (950, "poisson", 5, "near"),
        (1000, "poisson", 5, "near"),
        (1100, "poisson", 5, "above"),
    ],
)
def test_offered_near_the_capacity(rate: int, arrivals: str, seconds: int, size: str) -> None:
    """A server that can answer 993/s: latency that grows through the run is no figure at all."""
    words = ("--rate", rate, "--arrivals", arrivals, "--seed", 1, "-d", f"{seconds}s")
    with paced_echo(993, cpu=SERVER_CPU) as server:
        judge(
            f"capacity-{arrivals}-{rate}-{seconds}s",
            f"{rate}/s ({arrivals}) asked of a server that can do 993/s, {seconds} s",
            size,
            ("not_steady",),
            lambda: load(server.endpoint, *words),
        )


@needs_two_cpus
@pytest.mark.parametrize(
    ("rate", "size"), [(10_000, "below"), (60_000, "near"), (5_000_000, "above")]
)
def test_offered_above_the_capacity(rate: int, size: str) -> None:
    """A healthy server that is asked for too much: no error, nothing lost, and no false rate."""
    with echo_server() as server:
        seen = judge(
            f"overload-{rate}",
            f"{rate:,}/s asked of a healthy server, 64 connections",
            size,
            ("overload", "not_steady"),
            lambda: load(server.endpoint, "-c", 64, "--rate", rate, "-d", "1s"),
        )
    report = seen.report
    assert not sum(report["errors"].values()), report["errors"]
    assert report["lost_bytes"] == report["corrupt_bytes"] == 0
    if size == "above":
        assert seen.exit_code == 4
        # The sockets hold many small messages: all may be answered soon after the window.
        assert report["messages_per_s"] == report["answered_in_window"] / report["duration_s"]
        assert report["messages_per_s"] < 1_000_000


@waits
def test_a_server_that_answers_late(wait: str) -> None:
    """Every message of the window is answered, though some after it."""
    with delayed_echo(0.2, cpu=SERVER_CPU) as server:
        words = ("-c", 4, "-d", "1s", "--rate", 100, *WAITS[wait])
        seen = judge(
            f"late-answers-{wait}",
            f"healthy server that answers after 200 ms, 100/s; --wait {wait}",
            "below",
            (),
            lambda: load(server.endpoint, *words),
        )
    assert seen.report["messages"] == 100
    assert 99 <= seen.report["messages_per_s"] <= 101
    assert 199_000 <= seen.latency["p50"] <= 210_000


@waits
def test_a_low_rate_by_number(wait: str) -> None:
    """Three messages at one in two seconds are sent at that rate."""
    with echo_server() as server:
        seen = judge(
            f"low-rate-{wait}",
            f"nothing; 3 messages at 0.5/s; --wait {wait}",
            "below",
            (),
            lambda: load(server.endpoint, "-n", 3, "--rate", 0.5, *WAITS[wait]),
        )
    assert seen.report["messages"] == 3
    assert 0.49 <= seen.report["messages_per_s"] <= 0.51


@waits
def test_an_idle_client(wait: str) -> None:
    """One message in three seconds: the client has nothing to do, though it may spin."""
    with echo_server() as server:
        words = ("--rate", 0.2, "-d", "3s", "--warmup", 0, *WAITS[wait])
        seen = judge(
            f"idle-{wait}",
            f"nothing; 1 message in 3 s; --wait {wait}",
            "below",
            (),
            lambda: load(server.endpoint, *words),
        )
    assert seen.report["client"]["busy"] < 0.02


# --- servers that do what they must not ---------------------------------------------------------


def answered(behave: Behaviour, *words: object) -> Run:
    with MisbehavingServer(behave) as server:
        host, port = server.address
        return load(f"tcp://{host}:{port}", *words)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_server_that_does_not_close(loop: str) -> None:
    """All answers came, so the figures are right; only the end is not as it should be."""
    rate = ("--rate", 1000) if loop == "open" else ()
    began = time.monotonic()
    seen = judge(
        f"never-closes-{loop}",
        f"server that echoes and does not close after our half-close; {loop} loop",
        "below",
        (),
        partial(answered, misbehaving.never_closes, "-d", "1s", *rate),
    )
    assert seen.notes.count("no_eof") == 1
    assert seen.report["no_eof"] == 1
    assert time.monotonic() - began < 10


def test_a_server_that_does_not_close_after_a_half_close() -> None:
    """Asked for exactly that, the missing end is a failure."""
    words = ("-d", "1s", "--rate", 1000, "--finish", "half-close", "--timeout", "1s")
    seen = judge(
        "never-closes-half-close",
        "server that echoes and does not close after our half-close; --finish half-close",
        "above",
        ("errors",),
        partial(answered, misbehaving.never_closes, *words),
    )
    assert seen.exit_code == 1


PLACE = 20_000  # the byte at which a server begins to misbehave; messages have 64

DISHONEST: dict[str, tuple[Behaviour, tuple[str, ...]]] = {
    "flips a byte": (misbehaving.flips_byte(PLACE), ("corrupt",)),
    "answers other bytes": (misbehaving.answers_garbage, ("corrupt",)),
    "drops a byte": (misbehaving.drops_byte(PLACE), ("corrupt", "lost")),
    "sends a byte twice": (misbehaving.doubles_byte(PLACE), ("corrupt",)),
    "sends bytes that were not asked for": (misbehaving.sends_surplus(64), ("corrupt",)),
    "swaps two connections": (misbehaving.swaps_connections, ("corrupt",)),
    "stops to answer": (misbehaving.stalls_after(PLACE), ("lost",)),
    "reads and answers nothing": (misbehaving.swallows, ("lost", "no_messages")),
    "keeps the last bytes back": (misbehaving.loses_tail(10), ("lost",)),
    "resets": (misbehaving.resets_after(PLACE), ("errors",)),
    "closes early": (misbehaving.closes_after(PLACE), ("errors",)),
    "closes at once": (misbehaving.closes_at_once, ("errors",)),
}


@loops
@pytest.mark.parametrize("what", DISHONEST)
def test_a_dishonest_server(what: str, loop: str) -> None:
    """Whatever a server does wrong is an error, with exit code 1, and no run that looks good."""
    behave, codes = DISHONEST[what]
    rate = ("--rate", 2000) if loop == "open" else ()
    seen = judge(
        f"server-{what.replace(' ', '-')}-{loop}",
        f"server that {what}; {loop} loop",
        "above",
        codes,
        partial(answered, behave, "-c", 2, "-d", "1s", "--timeout", "1s", *rate),
    )
    assert seen.exit_code == 1


def every_20th(change: Callable[[bytes], list[bytes]]) -> DatagramBehaviour:
    return lambda number, payload: change(payload) if number % 20 == 10 else [payload]


DATAGRAMS: dict[str, tuple[DatagramBehaviour, tuple[str, ...]]] = {
    "drops": (every_20th(lambda payload: []), ("lost",)),
    "answers twice": (every_20th(lambda payload: [payload, payload]), ("duplicated",)),
    "changes": (every_20th(lambda payload: [payload[:-1] + b"\xff"]), ("corrupt",)),
}


@pytest.mark.parametrize("what", DATAGRAMS)
def test_a_dishonest_datagram_server(what: str) -> None:
    behave, codes = DATAGRAMS[what]
    with datagram_server(behave) as endpoint:
        judge(
            f"datagrams-{what.replace(' ', '-')}",
            f"server that {what} each twentieth datagram",
            "above",
            codes,
            lambda: load(endpoint, "--rate", 2000, "-d", "1s"),
        )


@loops
def test_an_honest_server(loop: str) -> None:
    """The same servers without a fault, so that a verdict above is about the fault."""
    rate = ("--rate", 2000) if loop == "open" else ()
    judge(
        f"server-echoes-{loop}",
        f"nothing: server in Python that echoes; {loop} loop",
        "below",
        (),
        partial(answered, misbehaving.echoes, "-c", 2, "-d", "1s", *rate),
    )


def test_an_honest_datagram_server() -> None:
    with datagram_server(lambda number, payload: [payload]) as endpoint:
        judge(
            "datagrams-echoes",
            "nothing: server in Python that echoes datagrams",
            "below",
            (),
            lambda: load(endpoint, "--rate", 2000, "-d", "1s"),
        )


# --- an end by a signal -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_interrupted(name: str) -> None:
    """What was measured is reported, and never as a valid run."""
    number = signal.Signals[name]
    with echo_server() as server, Client(server.endpoint, "-d", "20s", "--rate", 1000) as client:
        client.wait_connected()
        time.sleep(3)  # the warm-up takes 2 s
        client.process.send_signal(number)
        seen = client.finish()
    disturbance = f"client ended by {name} in the window"
    record(f"interrupted-{name}", disturbance=disturbance, expected="interrupted", seen=seen.seen())
    assert "interrupted" in seen.codes
    assert seen.exit_code == 128 + number
