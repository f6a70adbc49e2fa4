"""Tests of the load client against servers that misbehave."""

from __future__ import annotations

import threading
import time
from typing import Any

import misbehaving
import pytest
from load_runs import QUIET, SHORT, WAITS, assert_bad, assert_good, failures, native_server
from misbehaving import MisbehavingServer

import fastsock


def test_a_refused_connection() -> None:
    """Without a listener every connection is refused, and no other figure is reported."""
    with misbehaving.refusing_address() as address:
        report = fastsock.load(address, connections=5, threads=2, duration=10, wait="block")
    assert_bad(report)
    assert failures(report) == {"refused": 5}
    assert report.messages == report.lost_bytes == report.corrupt_bytes == 0
    assert report.latency.count == 0
    assert report.duration == report.messages_per_s == report.bytes_per_s == 0


def test_an_address_that_cannot_be_reached() -> None:
    """A connect that fails at once is named with its error in the reasons."""
    report = fastsock.load("tcp://255.255.255.255:9", **SHORT)
    assert_bad(report)
    assert failures(report) == {"other": 1}
    assert not any("Success" in reason for reason in report.reasons)


@pytest.mark.parametrize("wait", WAITS)
def test_a_full_accept_queue(wait: str) -> None:
    """A server that never accepts is a timeout after `timeout`, not after the kernel's."""
    with misbehaving.full_address() as address:
        report = fastsock.load(address, connections=3, messages=10, timeout=0.3, wait=wait)
    assert_bad(report)
    # The queue may take one more connection; it is never answered.
    assert failures(report) == {"timeout": 3}
    assert report.messages == 0


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("rate", [None, 1000])
@pytest.mark.parametrize(
    ("behave", "kinds"),
    [
        pytest.param(misbehaving.closes_at_once, {"closed_early", "reset"}, id="closes at once"),
        pytest.param(misbehaving.half_closes_first, {"closed_early"}, id="half-closes first"),
        pytest.param(misbehaving.swallows, {"timeout"}, id="swallows"),
        pytest.param(misbehaving.resets_after(0), {"reset"}, id="resets at once"),
        pytest.param(misbehaving.resets_after(1000), {"reset"}, id="resets later"),
        pytest.param(misbehaving.resets_at_eof, {"reset"}, id="resets at the end"),
        pytest.param(misbehaving.stalls_after(0), {"timeout"}, id="stalls at once"),
        pytest.param(misbehaving.stalls_after(1000), {"timeout"}, id="stalls later"),
        pytest.param(misbehaving.drops_byte(0), {"mismatch", "timeout"}, id="drops the first"),
        pytest.param(misbehaving.drops_byte(999), {"mismatch", "timeout"}, id="drops a byte"),
        pytest.param(misbehaving.doubles_byte(999), {"mismatch"}, id="doubles a byte"),
        pytest.param(misbehaving.flips_byte(0), {"mismatch"}, id="flips the first byte"),
        pytest.param(misbehaving.flips_byte(3001), {"mismatch"}, id="flips a byte"),
        pytest.param(misbehaving.sends_surplus(1), {"mismatch"}, id="sends a surplus"),
        pytest.param(misbehaving.answers_garbage, {"mismatch"}, id="answers garbage"),
    ],
)
def test_a_bad_server_is_reported(
    behave: misbehaving.Behaviour, kinds: set[str], rate: float | None, wait: str
) -> None:
    """Each misbehaviour counts as one error of its kind per connection, and ends the run."""
    with MisbehavingServer(behave) as server:
        report = fastsock.load(
            server.address, connections=2, messages=200, rate=rate, timeout=0.3, wait=wait
        )
    assert_bad(report)
    assert set(failures(report)) <= kinds
    assert sum(report.errors.values()) == 2
    assert report.messages <= 200
    assert report.latency.count <= 200
    assert bool(report.corrupt_bytes) == ("mismatch" in failures(report))


def test_a_reset_counts_what_was_lost() -> None:
    """After a reset complete answers are counted, and bytes sent but not answered are lost."""
    with MisbehavingServer(misbehaving.resets_after(1000)) as server:
        report = fastsock.load(server.address, size=100, **SHORT)
    assert_bad(report)
    assert failures(report) == {"reset": 1}
    # The reset may overtake the last answer, or come before the next message was sent.
    assert report.messages in (9, 10)
    assert report.lost_bytes in (0, 100)
    assert report.corrupt_bytes == 0


def test_a_stall_counts_what_was_lost() -> None:
    """A stall after 950 bytes loses the 50 bytes that were sent and did not come back."""
    with MisbehavingServer(misbehaving.stalls_after(950)) as server:
        report = fastsock.load(server.address, size=100, **SHORT)
    assert_bad(report)
    assert failures(report) == {"timeout": 1}
    assert report.messages == 9
    assert report.lost_bytes == 50
    assert report.corrupt_bytes == 0


def test_a_dropped_byte_is_seen() -> None:
    """A byte missing from the stream is a mismatch when the next byte comes in its place."""
    with MisbehavingServer(misbehaving.drops_byte(250)) as server:
        report = fastsock.load(server.address, size=100, depth=4, **SHORT)
    assert_bad(report)
    assert failures(report) == {"mismatch": 1}
    assert report.messages <= 2
    assert report.corrupt_bytes > 0


def test_a_doubled_byte_is_seen() -> None:
    """One byte too many at the end of the last answer is corrupt."""
    with MisbehavingServer(misbehaving.doubles_byte(99)) as server:
        report = fastsock.load(server.address, size=100, messages=1, timeout=0.3, wait="block")
    assert_bad(report)
    assert failures(report) == {"mismatch": 1}
    assert report.corrupt_bytes == 1


def test_a_flipped_byte_is_seen() -> None:
    """One wrong byte counts as one corrupt byte, and fails its connection."""
    with MisbehavingServer(misbehaving.flips_byte(550)) as server:
        report = fastsock.load(server.address, size=100, **SHORT)
    assert_bad(report)
    assert failures(report) == {"mismatch": 1}
    assert report.messages == 5
    assert report.corrupt_bytes == 1
    assert any("1 bytes corrupt" in reason for reason in report.reasons)


def test_swapped_connections_are_seen() -> None:
    """The bytes of another connection are corrupt: no two connections send the same."""
    with MisbehavingServer(misbehaving.swaps_connections) as server:
        report = fastsock.load(server.address, connections=2, **SHORT)
    assert_bad(report)
    assert "mismatch" in failures(report)
    assert report.messages == 0
    assert report.corrupt_bytes > 0


@pytest.mark.parametrize(
    ("finish", "kind"),
    [
        pytest.param("wait", "timeout", id="waiting for the answer"),
        pytest.param("half-close", "closed_early", id="after a half-close"),
    ],
)
def test_a_lost_tail_is_seen(finish: str, kind: str) -> None:
    """A server that closes at half-close with 10 bytes unsent has lost 10 bytes."""
    with MisbehavingServer(misbehaving.loses_tail(10)) as server:
        report = fastsock.load(server.address, size=100, depth=3, finish=finish, **SHORT)
    assert_bad(report)
    assert failures(report) == {kind: 1}
    assert any("proxy_half_close" in each for each in report.reasons) is (finish == "half-close")
    assert report.messages == 99
    assert report.lost_bytes == 10
    assert report.corrupt_bytes == 0
    assert any("10 bytes lost" in reason for reason in report.reasons)


def test_a_server_that_never_closes_loses_nothing() -> None:
    """Every message is answered, but the half-close is not: that is a note."""
    with MisbehavingServer(misbehaving.never_closes) as server:
        report = fastsock.load(server.address, **SHORT)
    assert_good(report)
    assert report.messages == 100
    assert report.no_eof == 1
    assert [note.code for note in report.notes if note.code == "no_eof"]


def test_a_missing_end_fails_where_it_is_tested() -> None:
    """With finish "half-close" the server must close too."""
    with MisbehavingServer(misbehaving.never_closes) as server:
        report = fastsock.load(server.address, finish="half-close", **SHORT)
    assert_bad(report)
    assert failures(report) == {"timeout": 1}
    assert report.messages == 100
    assert report.lost_bytes == 0


def test_a_bytewise_echo_is_good() -> None:
    """An answer may come in any number of pieces: one byte at a time is a correct echo."""
    with MisbehavingServer(misbehaving.echoes_bytewise) as server:
        report = fastsock.load(server.address, size=50, messages=40, depth=2, **QUIET)
    assert_good(report)
    assert report.messages == 40
    assert report.latency.count == 40


def test_a_plain_python_echo_is_good() -> None:
    """The test server itself echoes correctly."""
    with MisbehavingServer(misbehaving.echoes) as server:
        report = fastsock.load(server.address, connections=3, size=1000, **SHORT)
    assert_good(report)
    assert report.messages == 100


def test_one_bad_connection_does_not_stop_the_others(server: fastsock.Server) -> None:
    """When one connection fails the others go on, and the report has both."""
    lock = threading.Lock()
    first = True

    def behave(bad: MisbehavingServer, connection: Any) -> None:
        nonlocal first
        with lock:
            mine, first = first, False
        if not mine:
            misbehaving.echoes(bad, connection)

    with MisbehavingServer(behave) as bad:
        report = fastsock.load(bad.address, connections=3, **{**SHORT, "messages": 300})
    assert_bad(report)
    assert sum(report.errors.values()) == 1
    assert 200 <= report.messages < 300


@pytest.mark.parametrize("rate", [None, 2000])
@pytest.mark.parametrize("wait", WAITS)
def test_a_server_killed_during_a_run(wait: str, rate: float | None) -> None:
    """When the server is killed the run ends at once, with the results so far."""
    with native_server() as (process, endpoint):
        started = time.monotonic()

        def kill(seconds: float) -> None:
            if seconds > 0.2 and process.poll() is None:
                process.kill()

        report = fastsock.load(
            endpoint, connections=4, duration=30, warmup=0, rate=rate, wait=wait, progress=kill
        )
    assert time.monotonic() - started < 20
    assert_bad(report)
    assert set(failures(report)) <= {"reset", "closed_early"}
    assert sum(report.errors.values()) == 4
    assert report.messages > 0
    assert 0 < report.duration < 20
