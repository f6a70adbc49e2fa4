"""Tests of the load client for datagrams, against good and misbehaving servers."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from clients import running, wait_until
from load_runs import SERVED, faults, until_counted
from misbehaving import datagram_server as misbehaving

import fastsock
from fastsock import pure
from fastsock.cli import cli
from fastsock.pure.__main__ import main

SCHEMA = Path(__file__).parents[1] / "docs" / "load-2.schema.json"
QUICK: dict[str, Any] = {"wait": "block", "loss_timeout": 0.05}  # where datagrams are lost
PATIENT: dict[str, Any] = {"wait": "block", "loss_timeout": 20.0}  # where none are

# Datagrams; a socket's queue of the default size holds them all, however long its reader sleeps.
EVERY = 250
#: The twin has one way to wait, and no `warmup`: 0 is what it does. A case with other options that
#: it does not have is not for it. `gso` has tests of its own.
IGNORED = {"wait", "warmup"}
NATIVE_ONLY = {"threads", "rate", "verify"}

Load = Callable[..., fastsock.LoadReport]
Answers = list[bytes]


ENDPOINTS = {"udp": "udp://127.0.0.1:0", "unixgram": f"unixgram://@fastsock-test-{os.getpid()}"}


@pytest.fixture(params=list(ENDPOINTS))
def server(request: pytest.FixtureRequest) -> Iterator[fastsock.Server]:
    with fastsock.Server(ENDPOINTS[request.param]) as server:
        yield server


@pytest.fixture(params=["native", "pure"])
def load(request: pytest.FixtureRequest) -> Load:
    def load_purely(endpoint: object, **options: Any) -> fastsock.LoadReport:
        known = {name: value for name, value in options.items() if name not in IGNORED}
        return pure.load(endpoint, **known)  # type: ignore[arg-type]

    return fastsock.load if request.param == "native" else load_purely


def cases(*options: dict[str, Any]) -> pytest.MarkDecorator:
    """Each case with the native client, and with the twin if it has these options."""
    both = [(client, each) for each in options for client in ("native", "pure")]
    known = [case for case in both if case[0] == "native" or suits_the_twin(case[1])]
    return pytest.mark.parametrize(("load", "options"), known, indirect=["load"])


def suits_the_twin(options: dict[str, Any]) -> bool:
    return not NATIVE_ONLY & options.keys() and not options.get("warmup")


def counts(report: fastsock.LoadReport) -> dict[str, int]:
    assert report.datagrams is not None
    assert report.datagrams["sent"] == report.datagrams["received"] + report.datagrams["lost"]
    return dict(report.datagrams)


def expected(sent: int, **others: int) -> dict[str, int]:
    lost = others.get("lost", 0)
    names = ("duplicated", "reordered", "late")
    faults = {name: others.get(name, 0) for name in names}
    return {"sent": sent, "received": sent - lost, "lost": lost, **faults}


# --- good servers -------------------------------------------------------------------------------


@cases(
    {},
    {"size": 8},
    {"size": 1473, "connections": 7},
    {"size": 65507},
    {"connections": 5, "depth": 8},
    {"connections": 5, "threads": 2},
    {"verify": False},
    {"wait": "spin"},
    {"wait": "auto"},
    {"rate": 2000.0, "connections": 3},
)
def test_every_datagram_is_answered(
    load: Load, server: fastsock.Server, options: dict[str, Any]
) -> None:
    """`messages` datagrams are sent, and all of them come back."""
    report = load(server.endpoint, messages=EVERY, **(PATIENT | options))
    assert counts(report) == expected(EVERY)
    assert (report.messages, report.latency.count) == (EVERY, EVERY)
    assert not report.failed
    assert report.corrupt_bytes == report.lost_bytes == 0
    server.stop()
    assert server.stats().datagrams_out == EVERY
    assert server.stats().bytes_out == EVERY * report.options["size"]


@pytest.mark.parametrize("twin", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"depth": 100},
        {"depth": 90, "size": 8},
        {"depth": 20, "size": 1473, "connections": 3},
        {"depth": 3, "size": 32500},
        {"size": 65507},
        {"rate": 20_000.0, "connections": 2},
    ],
)
def test_gso(twin: bool, options: dict[str, Any]) -> None:
    """With `gso` too, `messages` datagrams are sent and each comes back once.

    The server of the twin receives and sends them one by one.
    """
    make = pure.Server if twin else fastsock.Server
    with make("udp://127.0.0.1:0") as server:
        report = fastsock.load(server.endpoint, messages=EVERY, gso=True, **(PATIENT | options))
    assert counts(report) == expected(EVERY)
    assert (report.messages, report.latency.count) == (EVERY, EVERY)
    assert not report.failed
    assert report.corrupt_bytes == 0
    assert server.stats().datagrams_out == EVERY


def test_gso_sends_several_in_one_call(tmp_path: Path) -> None:
    """32 datagrams that are due at once are sent in one call."""
    log = tmp_path / "strace.log"
    with fastsock.Server("udp://127.0.0.1:0") as server:
        options = ["--gso", "--depth", "32", "--messages", "32", "--loss-timeout", "20s"]
        load = [sys.executable, "-m", "fastsock", "load", str(server.endpoint), *options]
        command = ["strace", "-f", "-qq", "-o", str(log), "-e", "trace=sendmsg", *load]
        done = subprocess.run(command, capture_output=True)
        assert done.returncode in SERVED, done.stderr
    assert len(re.findall(r"sendmsg\(.*= 2048$", log.read_text(), re.MULTILINE)) == 1


def test_gso_is_for_udp() -> None:
    with pytest.raises(ValueError, match="gso goes with udp"):
        fastsock.load("unixgram://@fastsock-none", gso=True)
    with pytest.raises(ValueError, match="gso goes with udp"):
        fastsock.load("tcp://127.0.0.1:9", gso=True)


@cases({"warmup": 0.0}, {"warmup": 0.1})
def test_a_window(load: Load, server: fastsock.Server, options: dict[str, Any]) -> None:
    """With a duration, answers in the window count, and answers before it do not."""
    more: dict[str, Any] = {"connections": 2, "wait": "block", "duration": 0.2}
    report = until_counted(lambda: load(server.endpoint, **options, **more))
    assert 0 < report.messages <= report.latency.count
    received = counts(report)["received"]
    assert (
        report.latency.count < received if options["warmup"] else report.latency.count == received
    )
    assert report.duration > 0.19


def test_answers_after_the_window(load: Load) -> None:
    """Answers after the window are awaited and have a latency, but do not count as messages."""

    def answer_late(number: int, payload: bytes) -> Answers:
        time.sleep(0.3 if number == 0 else 0)
        return [payload]

    with misbehaving(answer_late) as url:
        report = load(url, duration=0.1, warmup=0, **PATIENT)
    assert counts(report) == expected(1)
    assert (report.messages, report.latency.count) == (0, 1)


def test_the_document(server: fastsock.Server) -> None:
    """The JSON document matches the schema and has the counts."""
    report = fastsock.load(server.endpoint, messages=10, **PATIENT)
    document = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    assert document["datagrams"] == counts(report) == expected(10)


def test_ipv6(load: Load) -> None:
    """A server on IPv6 is loaded like any other."""
    with fastsock.Server("udp://[::1]:0") as server:
        assert counts(load(server.endpoint, messages=50, **PATIENT)) == expected(50)


def test_streams_have_no_datagrams(load: Load) -> None:
    """`datagrams` is None for TCP."""
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        report = load(server.endpoint, messages=5)
    assert report.datagrams is None
    assert report.as_dict()["datagrams"] is None


# --- misbehaving servers ------------------------------------------------------------------------


@cases({}, {"depth": 4}, {"rate": 2000.0}, {"connections": 3})
def test_every_tenth_is_dropped(load: Load, options: dict[str, Any]) -> None:
    """Lost datagrams are counted and do not stall the run, in closed and open loops."""
    with misbehaving(lambda number, payload: [] if number % 10 == 9 else [payload]) as url:
        report = load(url, messages=200, **QUICK, **options)
    seen = counts(report)
    assert seen["sent"] == 200
    assert seen["lost"] - seen["late"] == 20  # on a machine that stalls, some are late
    assert not report.valid and not report.failed
    assert f"{seen['lost']} of 200 datagrams lost" in report.reasons


def test_a_server_that_answers_nothing(load: Load) -> None:
    """A closed loop sends the next datagram after each loss timeout, and ends."""
    with misbehaving(lambda number, payload: []) as url:
        report = load(url, messages=8, connections=2, **QUICK)
    assert counts(report) == expected(8, lost=8)
    assert "no message was answered in the window" in report.reasons


def test_answers_that_come_twice(load: Load) -> None:
    """A second answer is counted as duplicated, not as a message, and the run is not valid."""
    with misbehaving(lambda number, payload: [payload] * 2) as url:
        report = load(url, messages=100, **PATIENT)
    # The second answer to the last datagram may come after the end.
    assert 99 <= counts(report)["duplicated"] <= 100
    assert counts(report) == expected(100, duplicated=counts(report)["duplicated"])
    assert report.messages == 100
    assert any("answered more than once" in reason for reason in report.reasons)


def test_answers_in_another_order(load: Load) -> None:
    """Each pair of swapped answers counts as one reordered datagram, and nothing is lost."""
    held: Answers = []

    def swap(number: int, payload: bytes) -> Answers:
        held.append(payload)
        if number % 2 == 0:
            return []
        answers = held[::-1]
        held.clear()
        return answers

    with misbehaving(swap) as url:
        report = load(url, messages=100, depth=2, **PATIENT)
    assert counts(report) == expected(100, reordered=50)
    assert not faults(report)


def test_answers_that_come_late(load: Load) -> None:
    """An answer after the loss timeout is late, and its datagram stays lost."""
    held: Answers = []

    def delay_the_first(number: int, payload: bytes) -> Answers:
        if number == 0:
            held.append(payload)
            return []
        return [payload, *held] if number == 5 else [payload]

    with misbehaving(delay_the_first) as url:
        report = load(url, messages=20, **QUICK)
    seen = counts(report)
    assert seen["sent"] == 20
    assert seen["lost"] == seen["late"] >= 1
    assert not report.failed


@pytest.mark.parametrize("place", [0, 7, 8, 63])
def test_bytes_that_change(load: Load, place: int) -> None:
    """A wrong byte, in the header or after it, is corrupt; the datagram counts as lost."""

    def change_one(number: int, payload: bytes) -> Answers:
        wrong = bytes([payload[place] ^ 1])
        return [payload[:place] + wrong + payload[place + 1 :] if number == 5 else payload]

    with misbehaving(change_one) as url:
        report = load(url, messages=20, **QUICK)
    seen = counts(report)
    assert seen["lost"] - seen["late"] == 1
    assert report.failed
    if place == 7:  # the socket's number: no byte counts as this socket's
        assert report.corrupt_bytes == 64
    elif place:
        assert report.corrupt_bytes == 1
    else:  # the datagram's number: it is taken for another datagram, with a wrong payload
        assert 1 <= report.corrupt_bytes <= 56


NEVER_SENT = (1 << 30).to_bytes(8, "little") + bytes(56)  # the right socket, a wrong number


@pytest.mark.parametrize(
    "answer", [b"", b"x", b"y" * 63, b"z" * 65, b"\xff" * 64, NEVER_SENT], ids=range(6)
)
def test_answers_of_another_size_or_kind(load: Load, answer: bytes) -> None:
    """An answer that was never sent is corrupt, and does not stop the run."""
    with misbehaving(lambda number, payload: [payload, answer]) as url:
        report = load(url, messages=20, **PATIENT)
    assert counts(report) == expected(20)
    assert report.failed
    assert report.corrupt_bytes >= 19 * max(len(answer), 1)


def test_answers_to_another_socket(load: Load) -> None:
    """A datagram that another socket sent is corrupt here."""
    held: Answers = []

    def mix_up(number: int, payload: bytes) -> Answers:
        held.append(payload)
        return [held[-2] if number else payload]

    with misbehaving(mix_up) as url:
        report = load(url, messages=20, connections=2, **QUICK)
    assert report.failed
    assert counts(report)["lost"] > 0


@cases({"messages": 10}, {"duration": 30.0}, {"rate": 100.0})
def test_a_refused_run(load: Load, server: fastsock.Server, options: dict[str, Any]) -> None:
    """Without a server the sockets fail as refused, and the run ends at once."""
    server.stop()
    report = load(server.endpoint, connections=2, wait="block", **options)
    assert report.errors["refused"] == 2
    assert report.failed
    assert any("refused" in reason for reason in report.reasons)


@cases({}, {"rate": 100.0})
def test_the_server_goes_away(load: Load, server: fastsock.Server, options: dict[str, Any]) -> None:
    """When the server stops during a run, the sockets fail as refused and the run ends."""

    def stop_in_the_middle() -> None:
        wait_until(lambda: server.stats().datagrams_in > 10)
        server.stop()

    with running(stop_in_the_middle):
        report = load(server.endpoint, duration=30.0, connections=2, **QUICK | options)
    assert report.errors["refused"] == 2
    assert counts(report)["received"] > 0
    assert report.duration < 20


@pytest.mark.parametrize("there", ["nothing", "a file", "a stale socket", "a stream socket"])
def test_a_unix_path_that_does_not_answer(load: Load, tmp_path: Path, there: str) -> None:
    """Whatever is at the path, the sockets fail and load() does not raise."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as sock:
        if there == "a file":
            path.touch()
        elif there != "nothing":
            sock.bind(str(path))
        if there == "a stale socket":
            sock.close()
        report = load(f"unixgram://{path}", connections=2, duration=30.0)
    assert report.failed
    kind = "other" if there == "a stream socket" else "refused"
    assert report.errors[kind] == 2
    assert counts(report) == expected(0)


def test_a_unix_server_that_is_slow(load: Load, tmp_path: Path) -> None:
    """While the server's queue is full the client waits, and loses nothing."""
    with misbehaving(lambda number, payload: [payload], f"{tmp_path}/s") as url:
        report = load(url, messages=2000, connections=4, depth=50, **PATIENT)
    assert counts(report) == expected(2000)
    assert not faults(report)


# --- options and output -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 65508])
def test_a_bad_size(load: Load, size: int) -> None:
    """A datagram has at least the 8 bytes of its number, and at most what UDP takes."""
    with pytest.raises(ValueError, match=f"size {size} is no size of a datagram"):
        load("udp://127.0.0.1:7007", size=size)


def test_reconnecting_is_for_streams() -> None:
    """A datagram has no connection that could be opened again."""
    with pytest.raises(ValueError, match="reconnect_every goes with streams, not with"):
        fastsock.load("udp://127.0.0.1:7007", reconnect_every=1)


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_bad_loss_timeout(load: Load, value: float) -> None:
    """The loss timeout is a positive number of seconds."""
    with pytest.raises(ValueError, match="loss_timeout"):
        load("udp://127.0.0.1:7007", loss_timeout=value)


def test_the_command_line(server: fastsock.Server) -> None:
    """The command prints the datagram counts."""
    arguments = ["load", str(server.endpoint), "-n", "100", "--loss-timeout", "20s"]
    result = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert result.return_value in SERVED
    line = "datagrams sent 100, received 100, lost 0, duplicated 0, reordered 0, late 0"
    assert line in result.output
    assert line in str(fastsock.load(server.endpoint, messages=100, **PATIENT)).splitlines()


def test_the_command_line_of_the_twin(
    server: fastsock.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command of the twin prints the datagram counts too."""
    # On a busy machine every answer may come after so short a window.
    assert main(["load", str(server.endpoint), "--duration", "0.1"]) in (0, 4)
    assert re.search(
        r"^datagrams sent (\d+), received \1, lost 0, duplicated 0, reordered 0, late 0$",
        capsys.readouterr().out,
        re.MULTILINE,
    )
