"""What serve says while it runs: a line with rates, records with time and level, warnings."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from clients import TIMEOUT, connect, echo_exactly, wait_until
from served import ANY_PORT, FASTSOCK, Served, served
from test_output import OUTPUTS, accepts, assert_ends, serving

from fastsock import Endpoint, line_writer
from fastsock.cli import stats_line
from fastsock.cli.exposed import beyond_loopback, exposed
from fastsock.server.stats import ServerStats

RATES = re.compile(
    r"last (\S+): open (\d+), accepted (\S+)/s, in (\S+)/s, out (\S+)/s, errors (\d+)"
)


# --- the line -----------------------------------------------------------------------------------


def ask(server: Served) -> str:
    server.process.send_signal(signal.SIGUSR1)
    return server.line_with("last ")


def test_a_line_at_an_interval() -> None:
    """It has what is open, and rates since the line before."""
    with served(ANY_PORT, "--stats-interval", "100ms") as server:
        found = RATES.fullmatch(server.line_with("last "))
        assert found and found.groups()[1:] == ("0", "0", "0B", "0B", "0")
        with connect(server.endpoint) as sock:
            echo_exactly(sock, b"x" * 10_000)
            assert server.line_with("out ").startswith("last ")
            line = server.line_with("open 1, accepted 0/s, in 0B/s")
            assert RATES.fullmatch(line)
            assert len(line) <= 80
        server.stop()


def test_a_line_on_sigusr1() -> None:
    """Without an interval it is printed on demand alone."""
    with served(ANY_PORT) as server:
        with connect(server.endpoint) as sock:
            echo_exactly(sock, b"x" * 10_000)
            found = RATES.fullmatch(ask(server))
            assert found
            assert (found[2], found[4] != "0B", found[6]) == ("1", True, "0")
        assert server.stop()[-1].startswith("served 1 connection: 9.77KiB in, 9.77KiB out")


def test_sigusr1_that_was_inherited_as_blocked_or_ignored() -> None:
    def inherit() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    with served(ANY_PORT, preexec_fn=inherit) as server:
        assert RATES.fullmatch(ask(server))
        server.stop()


def test_datagrams_have_rates_of_their_own() -> None:
    with served("udp://127.0.0.1:0") as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect((server.endpoint.host, server.endpoint.port))
            sock.send(b"hello")
            assert sock.recv(10) == b"hello"
        line = ask(server)
        assert re.fullmatch(
            r"last \S+: in \S+B/s, out \S+B/s, datagrams in \S+/s, out \S+/s, dropped 0, errors 0",
            line,
        )
        server.stop()


def test_rates() -> None:
    """What happened between two looks, over the seconds between them."""

    def stats(**counters: Any) -> ServerStats:
        zero = dict.fromkeys(("accepted", "open", "bytes_in", "bytes_out", "accept_pauses"), 0)
        given: dict[str, Any] = {"closed": {}, "errors": {}, **zero, **counters}
        return ServerStats(engine="epoll", endpoints=(), **given)

    before = stats(accepted=10, bytes_in=1000, errors={"EPIPE": 1}, dropped={"unnamed": 2})
    after = stats(
        accepted=30, open=7, bytes_in=5000, errors={"EPIPE": 1, "EIO": 3}, dropped={"unnamed": 4}
    )
    assert stats_line.rates(before, after, 2.0) == {
        "seconds": 2.0,
        "open": 7,
        "accepted_per_s": 10.0,
        "bytes_in_per_s": 2000.0,
        "bytes_out_per_s": 0.0,
        "datagrams_in_per_s": 0.0,
        "datagrams_out_per_s": 0.0,
        "dropped": 2,
        "errors": 3,
    }
    line = stats_line.line(after, stats_line.rates(before, after, 0.0))
    assert line.startswith("last 1ms: ")


def test_a_storm_of_sigusr1() -> None:
    """It gives some lines a second, serves on, and ends by SIGTERM with 0."""
    with served(ANY_PORT) as server, connect(server.endpoint) as sock:
        began, ended = time.monotonic(), threading.Event()

        def storm() -> None:
            while not ended.is_set():
                server.process.send_signal(signal.SIGUSR1)

        thread = threading.Thread(target=storm)
        thread.start()
        try:
            for _ in range(200):
                echo_exactly(sock, b"hello")
            wait_until(lambda: time.monotonic() - began > 1)
            rest = server.stop()
        finally:
            ended.set()
            thread.join()
        seconds = time.monotonic() - began
        lines = [line for line in rest if RATES.fullmatch(line)]
        assert 1 <= len(lines) <= 1 + seconds / 0.1
        assert rest[-1].startswith("served 1 connection")


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda each: each.__name__)
def test_lines_whatever_stderr_is(output: Any, tmp_path: Path) -> None:
    """A stderr that is full, gone or not read holds up neither the echo nor the end."""
    target = tmp_path / "stats.json"
    arguments = ("--stats-interval", "100ms", "--log-format", "json", "--json", str(target))
    with output() as stderr, serving(stderr, *arguments) as (process, endpoint):
        with connect(endpoint) as sock:
            for _ in range(20):
                process.send_signal(signal.SIGUSR1)
                echo_exactly(sock, b"hello")
        assert_ends(process, signal.SIGTERM, 0)
    assert json.loads(target.read_text())["bytes_out"] == 100


@pytest.mark.parametrize("value", ["0", "50ms", "2 fortnights", "25h"])
def test_an_interval_that_is_refused(value: str) -> None:
    command = [*FASTSOCK, "serve", ANY_PORT, "--stats-interval", value]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stderr.count("Error: --stats-interval")) == (2, 1)


# --- records ------------------------------------------------------------------------------------

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def test_text_records() -> None:
    """A time in UTC, the level, and the line as it is without them."""
    with served(ANY_PORT, "--log-format", "text") as server:
        (line,) = server.lines
        assert re.fullmatch(rf"{TIME} INFO listening on tcp://\S+ \(epoll, 1 worker\)", line)
        assert re.fullmatch(rf"{TIME} INFO served 0 connections: .*", server.stop()[-1])


def test_json_records() -> None:
    """Each line is an object; the one with rates has its figures by name."""
    with served(ANY_PORT, "--log-format", "json", "--metrics", ":0") as server:
        ask(server)
        rest = server.stop()
    records = [json.loads(line) for line in (*server.lines, *rest)]
    assert all({"time", "level", "message"} <= set(each) for each in records)
    assert all(re.fullmatch(TIME, each["time"]) for each in records)
    messages = [each["message"] for each in records if each["level"] == "info"]
    assert [each.split()[0] for each in messages] == ["listening", "metrics", "last", "served"]
    (rates,) = (each["stats"] for each in records if "stats" in each)
    assert (rates["open"], rates["errors"]) == (0, 0)


def test_a_failure_while_it_serves_is_a_record() -> None:
    """The exit code is 1, and the error has a time too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = ("--fd", str(listener.fileno()), "--log-format", "json")
        with served(*arguments, pass_fds=[listener.fileno()]) as server:
            listener.shutdown(socket.SHUT_RDWR)
            record = json.loads(server.ended(1)[-1])
    assert record["level"] == "error"
    assert "the listener was shut" in record["message"]


def pauses(*arguments: str) -> list[str]:
    """What a server says that runs out of descriptors."""
    name = f"unix://@fastsock-log-{os.getpid()}-{time.monotonic_ns()}"
    command = [*FASTSOCK, "serve", name, *arguments]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process,
        ExitStack() as stack,
    ):
        try:
            wait_until(lambda: accepts(Endpoint.parse(name)))
            used = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
            _, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + 1, hard))
            for _ in range(3):
                stack.enter_context(connect(Endpoint.parse(name)))
            assert process.stderr is not None
            said = [process.stderr.readline()]
            while "accept paused" not in said[-1] and said[-1]:
                said.append(process.stderr.readline())
            process.terminate()
            return [*(line.rstrip("\n") for line in said), *process.stderr.read().splitlines()]
        finally:
            process.kill()


def test_a_level_leaves_out_what_is_below() -> None:
    """With warning the summary and where it listens are not said, a pause is."""
    for line in pauses("--log-level", "warning", "--log-format", "text"):
        assert re.fullmatch(rf"{TIME} WARNING .*", line)
    for line in pauses("--log-level", "warning"):
        assert line.startswith(("fastsock: accept paused: ", "warning: "))


def test_the_records_of_the_library() -> None:
    """They have the form of the command's own."""
    records = [json.loads(line) for line in pauses("--log-format", "json")]
    (level,) = {each["level"] for each in records if "accept paused" in each["message"]}
    assert level == "warning"


def test_a_record_has_the_time_of_its_event() -> None:
    """Also when it is written late, as to a pipe that was full."""
    logger, written = logging.getLogger("fastsock.test"), list[logging.LogRecord]()
    handler, released = logging.Handler(), threading.Event()

    def emit(record: logging.LogRecord) -> None:
        released.wait(TIMEOUT)
        written.append(record)

    handler.emit = emit  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        for number in range(2):
            line_writer.log(logger, logging.WARNING, str(number))
        said = time.time()
        threading.Event().wait(0.05)
        released.set()
        assert line_writer.flush(TIMEOUT)
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in written] == ["0", "1"]
    assert all(record.created <= said for record in written)


# --- warnings -----------------------------------------------------------------------------------

FORGED = "answers forged senders too: bind 127.0.0.1"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["0.0.0.0:0"], ""),
        (["udp://0.0.0.0:0"], FORGED),
        (["udp://127.0.0.1:0"], ""),
        (["unixgram://@fastsock-{}"], ""),
        (["0.0.0.0:0", "--service", "chargen"], "add --allow RANGE"),
        (["127.0.0.1:0", "--service", "chargen"], ""),
        (["0.0.0.0:0", "--service", "chargen", "--allow", "10.0.0.0/8"], ""),
        (["127.0.0.1:0", "--metrics", "0.0.0.0:0"], "every host can read the metrics on 0.0.0.0"),
        (["127.0.0.1:0", "--metrics", ":0"], ""),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_warnings(arguments: list[str], expected: str) -> None:
    """One, that says what to do; root is told so wherever it listens."""
    command = [each.format(os.getpid()) for each in arguments]
    with served(*command) as server:
        if "--metrics" in arguments:
            server.metrics()
        said = " ".join(" ".join(server.stop()).partition("served ")[0].split())
    assert said.count("warning: ") == (bool(expected) or os.geteuid() == 0)
    assert ("this server runs as root: add --user NAME" in said) == (os.geteuid() == 0)
    assert expected in said
    for advice in (FORGED, "--allow", "metrics"):
        assert (advice in said) == (bool(expected) and advice in expected), said


def test_no_warning_of_root_once_it_is_another_user() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with served(ANY_PORT, "--user", "nobody") as server:
        assert [line.split()[0] for line in server.stop()] == ["served"]


def test_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    near = [Endpoint.parse("udp://127.0.0.1:7"), Endpoint.parse("unixgram://@a")]
    assert exposed(near, (), chargen_for_all=True) == ""


@pytest.mark.parametrize(
    ("endpoint", "far"),
    [
        ("127.0.0.1:7", False),
        ("127.8.9.1:7", False),
        ("[::1]:7", False),
        ("localhost:7", False),
        ("unix:/run/echo.sock", False),
        ("[::ffff:127.0.0.1]:7", False),
        ("[::ffff:10.0.0.1]:7", True),
        ("0.0.0.0:7", True),
        ("[::]:7", True),
        ("[fe80::1%eth0]:7", True),
        ("192.168.1.1:7", True),
        ("echo.example:7", True),
    ],
)
def test_what_is_beyond_loopback(endpoint: str, far: bool) -> None:
    assert beyond_loopback(Endpoint.parse(endpoint)) == far
