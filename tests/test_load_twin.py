"""Tests of the twin's load client for streams, against good and misbehaving servers.

Those for datagrams are in test_load_datagram.py, which runs both clients.
"""

from __future__ import annotations

import errno
import json
import math
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import misbehaving
import pytest
from clients import running, wait_until
from jsonschema import Draft202012Validator
from load_runs import assert_bad, failures, until_counted
from misbehaving import MisbehavingServer

import fastsock
from fastsock import pure
from fastsock.client.report import LOAD_ERRORS
from fastsock.pure.__main__ import main
from fastsock.pure.load_run import Plan, kind_of

SHORT: dict[str, Any] = {"messages": 100, "timeout": 0.3}
PATIENT = 25.0  # seconds; only a deadlock takes so long


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": 1},
        {"depth": 7, "size": 1000},
        {"connections": 9, "depth": 3},
        {"size": 8_000_000, "messages": 3},  # no buffer holds one
        {"size": 300_000, "depth": 50},
    ],
)
def test_every_message_is_answered(server: fastsock.Server, options: dict[str, Any]) -> None:
    options = {"messages": 100, "size": 64, "timeout": PATIENT, **options}
    report = pure.load(server.endpoint, **options)
    assert not report.reasons
    assert not report.failed
    assert report.errors == dict.fromkeys(LOAD_ERRORS, 0)
    assert report.messages == report.latency.count == options["messages"]
    assert report.bytes == options["messages"] * options["size"]
    took = report.latency
    assert 0 < took.min <= took.p50 <= took.p90 <= took.p99 <= took.p99_9 <= took.p99_99 <= took.max
    assert took.min <= took.mean <= took.max
    wait_until(lambda: server.stats().closed["eof"] == report.options["connections"])
    assert server.stats().bytes_in == server.stats().bytes_out == report.bytes


@pytest.mark.parametrize("size", [64, 3_000_000])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_duration(server: fastsock.Server, size: int, depth: int) -> None:
    """It ends after `duration`, with every byte back; a message begun and not answered by then
    does not count."""
    options: dict[str, Any] = {"connections": 2, "size": size, "depth": depth, "timeout": PATIENT}
    report = until_counted(lambda: pure.load(server.endpoint, duration=0.2, **options))
    assert not report.failed
    assert report.duration == pytest.approx(0.2)
    assert report.messages_per_s == pytest.approx(report.messages / 0.2)
    assert 0 <= report.latency.count - report.messages <= 2 * depth


def test_a_latency() -> None:
    """A server that waits 50 ms before each answer is seen to."""
    with MisbehavingServer(misbehaving.serves_slowly(64, 0.05)) as server:
        report = pure.load(server.address, messages=3)
    assert report.latency.min < 50_000 <= report.latency.p90 <= report.latency.max  # the first


@pytest.mark.parametrize(
    ("behave", "kinds"),
    [
        pytest.param(misbehaving.closes_at_once, {"closed_early", "reset"}, id="closes at once"),
        pytest.param(misbehaving.half_closes_first, {"closed_early"}, id="half-closes first"),
        pytest.param(misbehaving.closes_after(1000), {"closed_early"}, id="closes later"),
        pytest.param(misbehaving.swallows, {"timeout"}, id="swallows"),
        pytest.param(misbehaving.resets_after(0), {"reset"}, id="resets at once"),
        pytest.param(misbehaving.resets_after(1000), {"reset"}, id="resets later"),
        pytest.param(misbehaving.resets_at_eof, {"reset"}, id="resets at the end"),
        pytest.param(misbehaving.stalls_after(1000), {"timeout"}, id="stalls later"),
        pytest.param(misbehaving.never_closes, {"timeout"}, id="never closes"),
        pytest.param(misbehaving.drops_byte(1000), {"mismatch", "timeout"}, id="drops a byte"),
        pytest.param(misbehaving.doubles_byte(1000), {"mismatch"}, id="doubles a byte"),
        pytest.param(misbehaving.flips_byte(1000), {"mismatch"}, id="changes a byte"),
        pytest.param(misbehaving.sends_surplus(10), {"mismatch"}, id="sends more"),
        pytest.param(misbehaving.answers_garbage, {"mismatch"}, id="answers garbage"),
    ],
)
@pytest.mark.parametrize("depth", [1, 5])
def test_a_bad_server_is_reported(
    behave: misbehaving.Behaviour, kinds: set[str], depth: int
) -> None:
    """It costs one connection, which is counted once, and the run ends."""
    began = time.monotonic()
    with MisbehavingServer(behave) as server:
        report = pure.load(server.address, depth=depth, **SHORT)
    assert_bad(report)
    assert set(failures(report)) <= kinds
    assert sum(report.errors.values()) == 1
    assert time.monotonic() - began < 10
    mismatch = failures(report) == {"mismatch": 1}
    assert (report.corrupt_bytes > 0) == mismatch
    assert not (mismatch and report.lost_bytes)


def test_what_was_lost_is_counted() -> None:
    """Of five messages outstanding, the bytes that the server swallows."""
    with MisbehavingServer(misbehaving.stalls_after(1000)) as server:
        report = pure.load(server.address, size=64, depth=5, **SHORT)
    assert report.messages == 1000 // 64
    # The last message goes out when the one before has come back whole.
    assert report.lost_bytes == (report.messages + 5) * 64 - 1000


def test_swapped_connections_are_seen() -> None:
    with MisbehavingServer(misbehaving.swaps_connections) as server:
        report = pure.load(server.address, connections=2, **SHORT)
    assert_bad(report)
    assert set(failures(report)) <= {"mismatch", "reset", "closed_early"}
    assert report.corrupt_bytes > 0


def test_a_byte_too_many_at_the_end() -> None:
    """What comes after the last answer is corrupt."""
    with MisbehavingServer(misbehaving.doubles_byte(99 * 64 + 63)) as server:
        report = pure.load(server.address, **SHORT)
    assert report.messages == 100
    assert failures(report) == {"mismatch": 1}
    assert report.corrupt_bytes == 1


def test_an_answer_before_its_message() -> None:
    """Bytes that were not sent yet are corrupt, also if they are those that would be."""

    def foretell(server: MisbehavingServer, connection: socket.socket) -> None:
        plan = Plan(("", 0), 1, 64, 1, 1, 1.0, 1.0, math.inf)  # type: ignore[arg-type]
        data = server.recv(connection)
        connection.sendall(data + plan.piece(0, 1))
        server.stopping.wait()

    with MisbehavingServer(foretell) as server:
        report = pure.load(server.address, messages=1, timeout=PATIENT)
    assert failures(report) == {"mismatch": 1}
    assert report.corrupt_bytes == 64


def test_a_reset_before_the_half_close() -> None:
    assert kind_of(OSError(errno.ENOTCONN, "")) == "reset"


def test_a_refused_run() -> None:
    """Nothing is measured: no comparison with a latency holds."""
    with misbehaving.refusing_address() as address:
        report = pure.load(address, connections=3, duration=30.0)
    assert_bad(report)
    assert failures(report) == {"refused": 3}
    assert report.messages == report.latency.count == 0
    assert math.isnan(report.latency.p99)


def test_a_full_accept_queue() -> None:
    with misbehaving.full_address() as address:
        report = pure.load(address, connections=2, messages=10, timeout=0.3)
    assert failures(report) == {"timeout": 2}


def test_the_server_goes_away() -> None:
    """When the server stops during a run, its connections fail and the run ends."""
    with fastsock.Server("tcp://127.0.0.1:0") as server:

        def stop_in_the_middle() -> None:
            wait_until(lambda: server.stats().accepted == 3)  # later ones would be refused
            server.stop()

        with running(stop_in_the_middle):
            report = pure.load(server.endpoint, duration=30.0, connections=3)
    assert sum(report.errors.values()) == 3
    assert set(failures(report)) <= {"reset", "closed_early"}
    assert report.duration < 20


@pytest.mark.parametrize("options", [{"messages": 5}, {"duration": 0.1, "size": 1000}])
@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_the_document_has_the_schema(scheme: str, options: dict[str, Any]) -> None:
    """It is that of the native client, without evidence of the client."""
    schema = json.loads((Path(__file__).parent.parent / "docs/load-2.schema.json").read_text())
    with fastsock.Server(f"{scheme}://127.0.0.1:0") as server:
        report = pure.load(server.endpoint, **options)
    document = report.as_dict()
    assert not list(Draft202012Validator(schema).iter_errors(document))
    assert document["client"] is None
    assert document["address"] == f"127.0.0.1:{server.port}"


def test_the_text_judges_no_client(server: fastsock.Server) -> None:
    """The client does not observe itself: it says neither how busy it was nor that all is well."""
    report = pure.load(server.endpoint, messages=100)
    *_, last = str(report).splitlines()
    assert last == "valid     unknown: this client does not observe itself"
    assert "busy" not in str(report)
    assert repr(report).endswith(", validity unknown>")


def test_the_command_of_a_run_without_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """There is no figure to print, and the reason is."""
    with misbehaving.refusing_address() as (host, port):
        assert main(["load", f"{host}:{port}"]) == 1
    told = capsys.readouterr().out
    assert "nan" not in told
    assert re.search(r"^valid     NO\n +connections failed \(refused\): 1$", told, re.MULTILINE)


INTERRUPTED = """
import os, signal, threading, time
import fastsock
from fastsock import pure
with fastsock.Server("tcp://127.0.0.1:0") as server:
    before = threading.active_count()
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        pure.load(server.endpoint, connections=3, duration=3600.0)
    except KeyboardInterrupt:
        # Not join(): one that a signal has interrupted takes its thread for ended.
        deadline = time.monotonic() + 20
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        print("threads left", threading.active_count() - before)
"""


def test_ctrl_c_ends_the_threads() -> None:
    """Of a program that goes on after it."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, timeout=40)
    assert done.stdout == b"threads left 0\n", done.stderr


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"connections": 0}, ValueError),
        ({"size": 1.5}, TypeError),
        ({"depth": 0}, ValueError),
        ({"duration": 0}, ValueError),
        ({"messages": 0}, ValueError),
        ({"timeout": math.nan}, ValueError),
        ({"rate": 100}, TypeError),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        pure.load("tcp://127.0.0.1:7007", **options)
