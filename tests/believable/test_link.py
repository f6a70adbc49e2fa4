"""What a load run reports of a link with a known delay, loss, duplication and reordering.

The link counts what it does, so the report is compared with the link's own figures.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clients import wait_until
from link import (
    RUNS_MAX,
    Direction,
    Link,
    compiled_link,
    disturbances,
    kernel_counters,
    link,
)
from networks import inside
from records import record

import fastsock
from fastsock import pure

pytestmark = pytest.mark.believable

QUIET: dict[str, Any] = {"wait": "block"}  # two CPUs are shared by client, server and link

#: A run of datagrams. The last ones meet no fault, so that no answer comes after the end.
DATAGRAMS, FAULTY = 1000, 900


def test_the_link_ends_with_its_test() -> None:
    """Also when the test is killed; and with it the networks."""
    code = (
        f"import os, signal, sys; sys.path[:0] = {sys.path!r}\n"
        "from link import link\n"
        "with link() as between:\n"
        "    print(between.program.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    compiled_link()  # which skips the test where there can be none
    killed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert killed.returncode == -signal.SIGKILL
    wait_until(lambda: has_ended(int(killed.stdout)), "the end of the link")


def has_ended(pid: int) -> bool:
    """Also if it is a zombie, which its new parent does not wait for."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


# --- delay --------------------------------------------------------------------------------------

DELAY = 0.005  # seconds, each way
#: us, above what the link itself measured. A round trip is four wake-ups more (the server, the
#: client and the link twice, some 30 us each here); 10 % of it is what makes a run not valid.
TOLERANCE = 1000.0


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
@pytest.mark.parametrize(
    "options",
    [{"connections": 4}, {"connections": 4, "rate": 500.0}],
    ids=["closed loop", "open loop"],
)
def test_a_delay_is_measured(
    scheme: str, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """10 ms by the link are 10 ms in the report, and never less."""
    with link(Direction(DELAY), Direction(DELAY)) as between, between.serving(scheme) as endpoint:
        for _ in range(RUNS_MAX):
            with inside(between.client):
                report = fastsock.load(endpoint, duration=3, warmup=0.5, **QUIET, **options)
            if not disturbances(report):
                break
        counters = between.counters()
        between.assert_nothing_else_was_lost()
    there, back = (counters[way]["delay_us"] for way in ("to_server", "to_client"))
    explained = {name: there[name] + back[name] for name in ("min", "p50", "max")}
    latency = report.latency_from_send
    record(
        record_name("delay", request),
        disturbance=f"a link of {DELAY * 1e3:g} ms each way, {scheme}, {loop(options)}",
        expected=f"p50 and min at least the link's, p50 at most {TOLERANCE:g} us more",
        seen={
            "p50_us": latency.p50,
            "min_us": latency.min,
            "max_us": latency.max,
            "messages_per_s": report.messages_per_s,
            "link_us": explained,
        },
    )
    assert not report.failed
    assert explained["min"] <= latency.min
    assert latency.p50 >= 2e6 * DELAY
    if found := disturbances(report):
        pytest.skip(f"a machine that is not busy is missing: {found}")
    assert latency.p50 <= explained["p50"] + TOLERANCE
    if "rate" in options:
        assert report.messages_per_s == pytest.approx(options["rate"], rel=0.01)
    else:  # each connection has one message outstanding: Little's law
        outstanding = report.messages_per_s * latency.mean / 1e6
        assert outstanding == pytest.approx(options["connections"], rel=0.05)


def loop(options: dict[str, Any]) -> str:
    return f"open loop, {options['rate']:g}/s" if options.get("rate") else "closed loop"


def record_name(name: str, request: pytest.FixtureRequest) -> str:
    chosen = request.node.name.partition("[")[2].rstrip("]").replace(" ", "-")
    return f"link-{name}-{chosen}" if chosen else f"link-{name}"


# --- loss on a stream ---------------------------------------------------------------------------


def test_loss_on_a_stream_is_retransmitted(request: pytest.FixtureRequest) -> None:
    """With 1 % loss every byte comes back; the tail shows it, and the report tells retransmits."""
    lossy = Direction(DELAY, loss=0.01)
    with link(lossy, lossy) as between, between.serving("tcp") as endpoint:
        with inside(between.client):
            report = fastsock.load(endpoint, connections=16, duration=4, warmup=0, **QUIET)
            kernel = kernel_counters("Tcp")["RetransSegs"]
        with inside(between.server):
            kernel_of_server = kernel_counters("Tcp")["RetransSegs"]
        counters = between.counters()
    tcp = report.tcp
    seen = {
        "link_lost": {way: counters[way]["lost"] for way in counters},
        "retransmits_of_client_kernel": kernel,
        "retransmits_of_server_kernel": kernel_of_server,
        "retransmits_in_report": tcp and tcp.retransmits,
        "p50_us": report.latency.p50,
        "p99_us": report.latency.p99,
        "max_us": report.latency.max,
        "messages": report.messages,
    }
    record(
        record_name("loss-tcp", request),
        disturbance=f"a link of {DELAY * 1e3:g} ms each way that loses 1 % of the packets, tcp",
        expected="every byte comes back; p50 is the link's; retransmits as the kernel counts them",
        seen=seen,
    )
    assert not report.failed
    assert all(counters[way]["lost"] > 0 for way in counters)
    assert kernel > 0 and kernel_of_server > 0
    assert 2e6 * DELAY <= report.latency.p50 <= 2e6 * DELAY + 1.5 * TOLERANCE
    assert report.latency.max > 2 * report.latency.p50, "no answer waited for a retransmit"
    assert tcp is not None
    # The kernel also counts what was sent again after the connection was closed: its FIN.
    assert kernel - report.options["connections"] <= tcp.retransmits <= kernel


# --- datagrams ----------------------------------------------------------------------------------

#: 1/s. A socket of the default size holds some 270 small datagrams: half a second of these.
RATE = 500.0

CLEAN = Direction(0.001)
LOSS = Direction(0.001, loss=0.05, until=FAULTY)
DUPLICATES = Direction(0.001, duplicate=0.05, until=FAULTY)
REORDERING = Direction(0.001, reorder=0.05, extra=0.02, until=FAULTY)
ALL = Direction(0.001, loss=0.03, duplicate=0.03, reorder=0.03, extra=0.02, until=FAULTY)

FAULTS = {
    "no fault": (CLEAN, CLEAN),
    "loss to the server": (LOSS, CLEAN),
    "loss to the client": (CLEAN, LOSS),
    "loss both ways": (LOSS, LOSS),
    "duplicates to the server": (DUPLICATES, CLEAN),
    "duplicates to the client": (CLEAN, DUPLICATES),
    "reordering to the server": (REORDERING, CLEAN),
    "reordering to the client": (CLEAN, REORDERING),
    "all to the server": (ALL, CLEAN),
    "all to the client": (CLEAN, ALL),
}


@pytest.mark.parametrize(
    ("options", "client"),
    [({"rate": RATE}, "native"), ({"depth": 32}, "native"), ({"depth": 32}, "pure")],
    ids=["open loop-native", "closed loop-native", "closed loop-pure"],
)
@pytest.mark.parametrize("fault", list(FAULTS))
def test_faults_of_datagrams_are_counted(
    client: str, options: dict[str, Any], fault: str, request: pytest.FixtureRequest
) -> None:
    """Sent, received, lost, duplicated and reordered are what the link has counted, exactly."""
    to_server, to_client = FAULTS[fault]
    with link(to_server, to_client) as between, between.serving("udp") as endpoint:
        report = load_datagrams(
            client, between, endpoint, messages=DATAGRAMS, loss_timeout=0.5, **options
        )
        counters = between.counters()
        between.assert_nothing_else_was_lost()
    there, back = counters["to_server"], counters["to_client"]
    lost = there["lost"] + back["lost"]
    expected = {
        "sent": there["packets"],
        "received": there["packets"] - lost,
        "lost": lost,
        # A copy of a datagram gets an answer of its own. Only one direction makes copies here, so
        # none is copied or lost again.
        "duplicated": there["duplicated"] + back["duplicated"],
        # The server answers in the order in which datagrams come.
        "reordered": there["reordered"] + back["reordered"],
        "late": 0,
    }
    record_datagrams(record_name("datagrams", request), fault, counters, expected, report)
    assert there["packets"] == DATAGRAMS
    assert report.datagrams == expected
    assert report.corrupt_bytes == 0
    for name, probability in (("lost", "loss"), ("duplicated", "duplicate")):
        faulty = getattr(to_server, probability) or getattr(to_client, probability)
        assert (expected[name] > 0) == (faulty > 0)  # the link did what the test is about


@pytest.mark.parametrize("extra", [0.9, 1.4])  # 450 datagrams later, and 700: of 512 remembered
def test_late_answers_are_counted(extra: float, request: pytest.FixtureRequest) -> None:
    """An answer that the link delays beyond the loss timeout is lost and late."""
    late = Direction(0.001, reorder=0.02, extra=extra, until=DATAGRAMS)
    with link(CLEAN, late) as between, between.serving("udp") as endpoint:
        report = load_datagrams(
            "native", between, endpoint, messages=2 * DATAGRAMS, loss_timeout=0.6, rate=RATE
        )
        counters = between.counters()
        between.assert_nothing_else_was_lost()
    delayed = counters["to_client"]["delayed"]
    expected = {
        "sent": 2 * DATAGRAMS,
        "received": 2 * DATAGRAMS - delayed,
        "lost": delayed,
        "duplicated": 0,
        "reordered": 0,
        "late": delayed,
    }
    disturbance = f"answers come {extra} s later than others, after a loss timeout of 0.6 s"
    record_datagrams(record_name("late", request), disturbance, counters, expected, report)
    assert delayed > 0
    assert report.datagrams == expected


def load_datagrams(
    client: str, between: Link, endpoint: fastsock.Endpoint, **options: Any
) -> fastsock.LoadReport:
    with inside(between.client):
        if client == "native":
            return fastsock.load(endpoint, **QUIET, **options)
        return pure.load(endpoint, **options)  # type: ignore[no-any-return]


def record_datagrams(
    name: str,
    disturbance: str,
    counters: dict[str, Any],
    expected: dict[str, int],
    report: fastsock.LoadReport,
) -> None:
    names = ("packets", "lost", "duplicated", "delayed", "reordered")
    record(
        name,
        disturbance=f"udp, {loop(dict(report.options))}: {disturbance}",
        expected=expected,
        seen={
            "datagrams": report.datagrams,
            "link": {way: {name: counters[way][name] for name in names} for way in counters},
        },
    )
