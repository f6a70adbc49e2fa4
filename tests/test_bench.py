"""Comparing servers: who takes part, what is measured of them, and how it is shown."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from clients import wait_until

from fastsock._native.client.process_tree import descendants
from fastsock.bench import comparison as compare
from fastsock.bench import contenders, picture, syscalls
from fastsock.bench.contenders import Contender, RunningServer, every_engine, native
from fastsock.cli import run

SHORT = ("--windows", "1", "--window", "100ms", "--warmup", "10ms")
DONE = (0, 4)  # on a busy machine a server may have nothing of a CPU in so short a window

#: A server that listens nowhere, and the process that it has started.
WITH_A_CHILD = """
sleep 60 &
echo 'listening on tcp://127.0.0.1:1' >&2
wait
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """All engines with one connection and with two: the document, and the picture as SVG."""
    folder = tmp_path_factory.mktemp("bench")
    target, drawn = folder / "bench.json", folder / "bench.svg"
    paths = ["--json", str(target), "--picture", str(drawn)]
    assert run(["bench", "--engines", "all", "-c", "1,2", *SHORT, *paths]) in DONE
    return json.loads(target.read_text()), drawn


def test_every_engine_takes_part(measured: tuple[dict[str, Any], Path]) -> None:
    """Each has its figures for each number of connections."""
    document, _ = measured
    assert document["schema"] == "fastsock.bench/2"
    assert document["method"] == {
        "windows": 1,
        "window_s": 0.1,
        "warmup_s": 0.01,
        "syscalls_by": None,
    }
    alone, both = document["cases"]
    assert [case["case"]["connections"] for case in (alone, both)] == [1, 2]
    assert [result["name"] for result in alone["results"]] == [each.name for each in every_engine()]
    assert {"fastsock fork", "stdlib asyncio"} <= {result["name"] for result in both["results"]}
    for case in (alone, both):
        assert case["floor_us"]["median"] > 0
        for result in case["results"]:
            assert result["windows"] == 1
            assert result["syscalls_per_echo"] is None
            assert result["memory_bytes"]["connected"] > 1 << 20


def test_serial_does_not_take_part_with_two_clients(
    measured: tuple[dict[str, Any], Path],
) -> None:
    """The second client would wait for ever; the reason is told instead."""
    document, _ = measured
    alone, both = document["cases"]
    assert alone["left_out"] == {}
    assert both["left_out"] == dict.fromkeys(
        ("fastsock serial", "stdlib serial"), "serves one client at a time"
    )


def test_the_picture_has_a_line_per_engine(measured: tuple[dict[str, Any], Path]) -> None:
    """In each of the four panels; and its text says where the figures come from."""
    _, drawn = measured
    root = ElementTree.fromstring(drawn.read_text())
    ids = {element.get("id") for element in root.iter()}
    lines = {f"{panel.name}: {each.name}" for panel in picture.PANELS for each in every_engine()}
    assert len(lines) >= 36
    assert lines <= ids
    text = " ".join(root.itertext())
    assert "fastsock 0." in text
    assert "serial: serves one client at a time" in text


def test_the_picture_is_the_same_each_time(
    measured: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    """No date, and no random names in it."""
    document, drawn = measured
    picture.draw_engines(document, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == drawn.read_bytes()


def test_a_picture_as_png(measured: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """The suffix decides."""
    document, _ = measured
    picture.draw_engines(document, tmp_path / "engines.png")
    assert (tmp_path / "engines.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_bench_compares(capsys: pytest.CaptureFixture[str]) -> None:
    """bench runs engines and rivals in turns, says how long it takes, and prints a table each."""
    rival = f"again={sys.executable} -m fastsock serve tcp://127.0.0.1:0"
    who = ["--engines", "stdlib-threads,serial", "--rival", rival, "-c", "1,2"]
    assert run(["bench", *who, *SHORT]) in DONE
    shown = capsys.readouterr()
    assert "5 turns, which take about " in shown.err
    for expected in ("1 connection, 64 B", "2 connections, 64 B", "stdlib threads", "again"):
        assert expected in shown.out
    assert "n/a: it serves one client at a time" in " ".join(shown.out.split())


@pytest.mark.parametrize("kind", ["udp", "unixgram"])
def test_bench_compares_datagrams(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The one engine for them, its twin, and whoever else says where it listens."""
    rival = f"again={sys.executable} -m fastsock.pure serve {contenders.free_endpoint(kind)}"
    windows = ["--windows", "1", "--window", "100ms", "--warmup", "10ms", "--json", "-"]
    assert run(["bench", "--kind", kind, "-c", "2", "--rival", rival, *windows]) in (0, 4)
    document = json.loads(capsys.readouterr().out)
    (case,) = document["cases"]
    assert case["case"]["kind"] == kind
    names = [result["name"] for result in case["results"]]
    assert names == [f"fastsock datagrams, {kind}", f"stdlib datagrams, {kind}", "again"]
    assert all(result["memory_bytes"]["alone"] > 0 for result in case["results"])
    # Not the rates: on a busy machine a server may have nothing of a CPU in so short a window.
    problems = [problem for result in case["results"] for problem in result["problems"]]
    assert not [problem for problem in problems if problem.startswith("connections ")]


@pytest.mark.parametrize("kind", contenders.KINDS)
def test_the_floor_of_every_kind(kind: str) -> None:
    """It is measured over a pair of such sockets, with the largest piece that they take."""
    assert compare.measure_floor(1 << 20, kind) > 0


def test_a_case_is_loaded_as_it_says() -> None:
    """The client sleeps and opens a connection for each echo; the server asks before it blocks."""
    server = RunningServer(native("epoll", busy_poll="50us"), None)
    try:
        with server.turn():
            case = compare.Case(connections=2, wait="block", reconnect_every=1)
            report = compare.run_window(server, case, compare.Method(1, 0.1, 0.01))
        command = Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")
    finally:
        server.stop()
    assert server.name == "fastsock epoll, busy_poll"
    assert command[command.index("--busy-poll") + 1] == "50us"
    assert report.options["wait"] == "block"
    assert report.connect_latency.count > 2


@pytest.fixture(params=["perf", "strace"])
def counting_tool(request: pytest.FixtureRequest) -> str:
    tool: str = request.param
    if not syscalls.can_count(tool):
        pytest.skip(f"{tool} is not installed or may not count here")
    return tool


@pytest.mark.parametrize("engine", ["threads", "fork"])
def test_system_calls_per_echo(counting_tool: str, engine: str) -> None:
    """One to receive and one to send; those of processes that the server makes are counted too."""
    method = compare.Method(1, 0.05, 0.01, counting_tool)
    comparison = compare.compare([native(engine)], compare.Case(1), method)
    (result,) = comparison.as_dict()["results"]
    assert result["syscalls_per_echo"] == pytest.approx(2, abs=0.2)
    assert method.as_dict()["syscalls_by"] == counting_tool


def test_system_calls_that_cannot_be_counted(counting_tool: str) -> None:
    """The error says what the tool said."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
        with pytest.raises(syscalls.CountError, match=f"(?s){counting_tool}: .*process"):
            syscalls.count(counting_tool, [process.pid], lambda: None)


def test_who_cannot_be_run_is_left_out() -> None:
    """And the results say why."""
    reason = "is not installed (apt-get install golang-go)"
    absent = Contender("Go", ("go_echo",), unusable=reason)
    contenders = [native("epoll"), absent, native("serial")]
    comparison = compare.compare(contenders, compare.Case(2), compare.Method(1, 0.05, 0.01))
    assert [result.name for result in comparison.results] == ["fastsock epoll"]
    assert comparison.as_dict()["left_out"] == {
        "Go": reason,
        "fastsock serial": "serves one client at a time",
    }


def test_a_rival_that_does_not_start(capsys: pytest.CaptureFixture[str]) -> None:
    """A contender that ends without listening is an error that repeats what it said."""
    rival = "broken=sh -c 'echo no luck >&2'"
    assert run(["bench", "-c", "1", "--windows", "1", "--rival", rival]) == 1
    assert "broken did not start; it said: no luck" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--engines fancy", "engine 'fancy' does not take part; expected all, or some of epoll,"),
        ("--engines serial -c 2", "none of the servers serves 2 clients at a time"),
        ("-c 1,many", "'1,many' is not a list of numbers like 0,1"),
        ("-c 0", "connections 0"),
        ("--picture engines.jpg", "has none of the suffixes .svg, .png"),
        ("--picture /nowhere/engines.svg", "cannot write /nowhere/engines.svg"),
    ],
)
def test_refused_before_any_server_starts(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says what is wrong and what would not be."""
    assert run(["bench", *arguments.split()]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_picture_needs_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without it the error says how to get it, before anything is measured."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(["bench", "--picture", "engines.svg"]) == 2
    assert "pip install 'fastsock[plot]'" in " ".join(capsys.readouterr().err.split())


def test_a_whole_server_is_stopped() -> None:
    """When it is not its turn, a server's children do not run either."""
    server = RunningServer(Contender("two", ("sh", "-c", WITH_A_CHILD)), None)
    try:
        processes = descendants(server.pid)
        assert len(processes) == 2
        wait_until(lambda: {state_of(pid) for pid in processes} == {"T"})
        with server.turn():
            wait_until(lambda: "T" not in {state_of(pid) for pid in processes})
        wait_until(lambda: {state_of(pid) for pid in processes} == {"T"})
    finally:
        server.stop()


def state_of(pid: int) -> str:
    """T is stopped; see proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_memory_where_the_proportional_one_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resident size, of all processes, is what is left."""

    def hidden(pid: int) -> int:
        raise PermissionError(pid)

    server = RunningServer(Contender("two", ("sh", "-c", WITH_A_CHILD)), None)
    try:
        proportional = server.memory()
        monkeypatch.setattr(contenders, "_proportional", hidden)
        resident = server.memory()
    finally:
        server.stop()
    assert proportional is not None
    assert resident is not None
    assert 0 < proportional < resident
