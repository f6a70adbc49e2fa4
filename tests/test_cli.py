"""Tests of the command line: output, exit codes, errors of one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from load_runs import SERVED, faults

import fastsock
from fastsock.cli import run

FASTSOCK = (sys.executable, "-m", "fastsock")


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run ``fastsock serve`` on a free port; give the process and its endpoint."""
    process = subprocess.Popen(
        [*FASTSOCK, "serve", "tcp://127.0.0.1:0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.fullmatch(
                r"listening on (tcp://127\.0\.0\.1:\d+) \(epoll, 1 worker\)\n", line
            )
            assert found, line
            yield process, found[1]
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)], ids=["SIGINT", "SIGTERM"]
)
def test_serve_ends_with_a_signal(number: signal.Signals, code: int) -> None:
    """A signal ends serve, which prints a summary on stderr and nothing on stdout."""
    as_root = os.geteuid() == 0
    with serving() as (process, endpoint):
        assert not faults(fastsock.load(endpoint, messages=10))
        process.send_signal(number)
        assert process.wait(timeout=10) == code
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read() == ""
        *warnings, summary = process.stderr.read().splitlines()
        assert summary == "served 1 connection: 640B in, 640B out; errors: none"
        assert warnings == (["warning: this server runs as root: add --user NAME"] * as_root)


def test_serve_writes_its_counters(tmp_path: Path) -> None:
    """serve --json FILE writes the counters at the end."""
    target = tmp_path / "stats.json"
    with serving("--json", str(target)) as (process, endpoint):
        fastsock.load(endpoint, messages=10)
        process.terminate()
        process.wait(timeout=10)
    assert json.loads(target.read_text())["accepted"] == 1


def test_load_prints_a_report(server: fastsock.Server, capsys: pytest.CaptureFixture[str]) -> None:
    """load prints an aligned report on stdout and nothing on stderr."""
    assert run(["load", str(server.endpoint), "-n", "1000", "-c", "4", "-s", "1k"]) in SERVED
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"{server.endpoint}: 4 connections, 1KiB messages, depth 1, window ")
    assert "\nmessages  1000 " in out
    assert re.search(r"^valid     (yes|NO)$", out, re.MULTILINE)
    # 1000 answers have 100 above p90, 10 above p99 and 1 above p99.9; 4 connections are too few.
    (latency,) = re.findall(r"^latency +(.*) us$", out, re.MULTILINE)
    assert [each == "-" for each in latency.split()] == [False] * 5 + [True, False]
    (connect,) = re.findall(r"^connect +(.*) us$", out, re.MULTILINE)
    assert [each == "-" for each in connect.split()] == [False] * 2 + [True] * 4 + [False]
    assert max(map(len, out.splitlines())) <= 80


def test_load_shows_the_latencies_of_an_open_loop(
    server: fastsock.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --rate there is a line each for the intended and actual send time and the delay."""
    assert run(["load", str(server.endpoint), "--rate", "1k/s", "-d", "300ms"]) in (0, 4)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines][3:6] == ["intended", "sent", "delay"]


def test_load_shows_throughput_one_way(capsys: pytest.CaptureFixture[str]) -> None:
    """--mode send prints messages, bytes and bits per second, and no latency."""
    with fastsock.Server("tcp://127.0.0.1:0", service="discard") as server:
        arguments = ["load", str(server.endpoint), "--mode", "send", "-n", "20"]
        assert run(arguments) in SERVED
    lines = capsys.readouterr().out.splitlines()
    assert "1 connection, 128KiB messages, send, window " in lines[0]
    assert re.fullmatch(r"sent      20   \S+/s   \S+iB/s   \S+bit/s", lines[1])
    titles = [line.split()[0] for line in lines[2:]]
    if "tcp" in titles:  # only where a segment was sent again
        titles.remove("tcp")
    assert titles[:3] == ["min", "connect", "client"]


def test_load_writes_json_to_stdout(
    server: fastsock.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json - stdout is one JSON document and nothing else."""
    assert run(["load", str(server.endpoint), "-n", "10", "--json", "-"]) in SERVED
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "fastsock.load/2"
    assert document["messages"] == 10


def test_a_result_is_not_lost_when_its_file_cannot_be_written(
    server: fastsock.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """When writing fails after the run, the JSON goes to stdout and the exit code is 2."""
    assert run(["load", str(server.endpoint), "-n", "10", "--json", "/dev/full"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out[out.index("{") :])["messages"] == 10
    assert err == "Error: cannot write /dev/full: No space left on device; the result follows\n"


def test_a_refused_connection(capsys: pytest.CaptureFixture[str]) -> None:
    """A refused connection is one line that says so, exit code 1."""
    with fastsock.Server("tcp://127.0.0.1:0") as gone:
        endpoint = str(gone.endpoint)
    assert run(["load", endpoint, "-d", "1s"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert " ".join(err.split()) == (
        f"Error: {endpoint}: connections refused by {endpoint[6:]}: 1; nothing listens there; "
        f"start a server: fastsock serve {endpoint}"
    )


USAGE_ERRORS = [
    (["serve", "--engine", "kqueue"], "engine 'kqueue' is unknown"),
    (["serve", "--buffer-size", "0"], "--buffer-size 0 is out of range"),
    (["serve", "--backlog", "0"], "--backlog 0 is out of range"),
    (["serve", "--drain-timeout", "-1s"], "--drain-timeout"),
    (["serve", "unixgram://@a", "--service", "discard"], "service goes with streams"),
    (["serve", "udp://127.0.0.1:0", "--service", "discard"], "service goes with streams"),
    (["serve", "--unix-mode", "888"], "mode '888' is not octal"),
    (["serve", "--unix-mode", "1777"], "mode '1777' is not octal"),
    (["serve", "tcp://1:80"], "host '1' is not a dotted quad"),
    (["serve", "--json", "/no/such/place"], "cannot write /no/such/place"),
    (["load"], "load needs an ENDPOINT, as in: fastsock load 127.0.0.1:7007"),
    (["load", "127.0.0.1"], "no port; write 127.0.0.1:7007"),
    (["load", "tcp://127.0.0.1:0"], "port 0 cannot be connected to"),
    (["load", "tcp://127.0.0.1:7", "--size", "0"], "size 0 is out of range"),
    (["load", "tcp://127.0.0.1:7", "--size", "12 parsecs"], "parsecs"),
    (["load", "tcp://127.0.0.1:7", "--rate", "0"], "rate 0"),
    (["load", "tcp://127.0.0.1:7", "--duration", "-1s"], "--duration"),
    (["load", "tcp://127.0.0.1:7", "--depth", "64", "--size", "1M"], "in flight"),
    (["load", "tcp://127.0.0.1:7", "-n", "5", "-d", "1s"], "messages does not go with duration"),
    (["load", "tcp://127.0.0.1:7", "--threads", "2"], "threads 2 is more than connections 1"),
    (["load", "tcp://127.0.0.1:7", "--mode", "both"], "--mode"),
    (["load", "udp://127.0.0.1:7", "--mode", "send"], "goes with streams, not with datagrams"),
    (["bench", "--connections", "0"], "connections 0 is out of range"),
    (["bench", "--rival", "nothing"], "--rival 'nothing' has no name"),
    (["bench", "--windows", "0"], "--windows"),
    (["bench", "--kind", "tls"], "--kind 'tls' is unknown; expected one of"),
    (
        ["bench", "--kind", "udp", "--size", "64k"],
        "--size 65536 is no size of a datagram; expected 8 to 65507",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "expected"), USAGE_ERRORS, ids=[" ".join(row[0]) for row in USAGE_ERRORS]
)
def test_usage_errors(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad argument is exit code 2 and an error of one line."""
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("Error: ") == 1
    assert expected in " ".join(err.split())


def test_port_in_use(server: fastsock.Server, capsys: pytest.CaptureFixture[str]) -> None:
    """An address that is taken is exit code 1 and one line that names it."""
    assert run(["serve", str(server.endpoint)]) == 1
    assert " ".join(capsys.readouterr().err.split()) == (
        f"Error: bind {server.endpoint}: Address already in use "
        "(another socket is bound to it; port 0 picks a free one)"
    )


def test_unresolvable_host(capsys: pytest.CaptureFixture[str]) -> None:
    """A host that does not exist is exit code 1 and one line that names it."""
    assert run(["load", "tcp://no-such-host.invalid:7", "-d", "1s"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Error: resolve tcp://no-such-host.invalid:7: ")
    assert err.count("Error: ") == 1


def test_ctrl_c_reports_what_was_measured(server: fastsock.Server) -> None:
    """Ctrl-C ends a load run with its report and exit code 130."""
    process = subprocess.Popen(
        [*FASTSOCK, "load", str(server.endpoint), "-d", "60s", "--warmup", "0s", "--wait", "block"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        while server.stats().bytes_in < 64_000:
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=10)
    assert process.returncode == 130, stderr
    assert "valid     NO\n          interrupted by Ctrl-C\n" in stdout
    assert "Traceback" not in stderr


def test_options_come_from_the_environment(
    server: fastsock.Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """FASTSOCK_LOAD_SIZE sets load --size."""
    monkeypatch.setenv("FASTSOCK_LOAD_SIZE", "2k")
    assert run(["load", str(server.endpoint), "-n", "10", "--json", "-"]) in SERVED
    assert json.loads(capsys.readouterr().out)["options"]["size"] == 2048


def test_info_names_every_engine(capsys: pytest.CaptureFixture[str]) -> None:
    """info prints the state of every engine; --json has the same."""
    assert run(["info"]) == 0
    text = capsys.readouterr().out
    assert run(["info", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert max(map(len, text.splitlines())) <= 80
    for name, state in document["engines"].items():
        assert f"{name} {state}" in " ".join(text.split())


@pytest.mark.parametrize("command", ["serve", "load", "compare", "merge", "bench", "info"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command has --help."""
    assert run([command, "--help"]) == 0
    assert "Usage: fastsock" in capsys.readouterr().out


def test_serve_takes_limits_and_workers() -> None:
    """Limits, workers and --close-on can be given on the command line."""
    options = "--workers 2 --cpus 0 --max-connections 10 --idle-timeout 1min --allow 127.0.0.0/8"
    command = [*FASTSOCK, "serve", "tcp://127.0.0.1:0", *options.split(), "--close-on", "exit"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "(epoll, 2 workers)" in process.stderr.readline()
        process.terminate()
        assert process.wait(timeout=10) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--service", "daytime"], "service 'daytime' is unknown"),
        (["--cpus", "first"], "'first' is not a list of numbers"),
        (["--allow", "all"], "allow 'all'"),
        (["--max-connections", "-1"], "--max-connections -1"),
    ],
)
def test_serve_refuses(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad option of serve is a usage error."""
    assert run(["serve", *arguments]) == 2
    assert expected in capsys.readouterr().err
