"""Comparing servers: which take part, what is measured of them, and how it is shown."""

from __future__ import annotations

import copy
import gc
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from math import log
from pathlib import Path
from random import Random
from statistics import quantiles
from types import ModuleType
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
from clients import wait_until

from fastsock import pure
from fastsock._native.client.process_tree import descendants
from fastsock.bench import comparison as compare
from fastsock.bench import contenders, picture, server_process
from fastsock.bench.contenders import Contender, every_engine, native
from fastsock.bench.server_process import NotStartedError, ServerProcess
from fastsock.cli import run
from fastsock.client.report import LoadReport

SHORT = ("--windows", "1", "--window", "100ms", "--warmup", "10ms")
DONE = (0, 4)  # on a busy machine a server may have nothing of a CPU in so short a window

#: A server that listens nowhere, and the process that it has started.
SCRIPT = """
sleep 60 &
echo 'listening on tcp://127.0.0.1:1' >&2
wait
"""
WITH_A_CHILD = Contender("two", ("sh", "-c", SCRIPT))


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
    assert document["schema"] == "fastsock.bench/4"
    assert document["method"] == {
        "windows": 1,
        "window_s": 0.1,
        "warmup_s": 0.01,
        "warmup_per_connection_s": 0.001,
        "syscalls_by": None,
    }
    alone, both = document["cases"]
    assert [case["case"]["connections"] for case in (alone, both)] == [1, 2]
    assert [result["name"] for result in alone["results"]] == [each.name for each in every_engine()]
    assert {"fastsock fork", "stdlib asyncio"} <= {result["name"] for result in both["results"]}
    for case in (alone, both):
        assert case["floor_us"]["median"] > 0
        assert case["reference"] == case["results"][0]["name"]
        for result in case["results"]:
            assert result["windows"] == 1
            for figure in ("messages_per_s", "server_cpu_us_per_echo", "p99_us"):
                (value,) = result["per_window"][figure]
                assert value == pytest.approx(result[figure]["median"], rel=0.01)
            assert result["syscalls_per_echo"] is None
            assert result["memory_bytes"]["connected"] > 1 << 20


def test_every_engine_of_the_twin_is_known() -> None:
    assert set(contenders.PURE_ENGINES) == set(pure.ENGINES)


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


@pytest.mark.parametrize("problems", [[], ["errors"]])
def test_a_picture_says_what_is_not_valid(
    problems: list[str], measured: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    """In its title."""
    document = copy.deepcopy(measured[0])
    for case in document["cases"]:
        for result in case["results"]:
            result["problems"] = []
    document["cases"][-1]["results"][-1]["problems"] = problems
    picture.draw_engines(document, tmp_path / "drawn.svg")
    drawn = (tmp_path / "drawn.svg").read_text()
    assert ("(some figures are not valid)" in drawn) == bool(problems)


def test_a_picture_as_png(measured: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """The suffix decides."""
    document, _ = measured
    picture.draw_engines(document, tmp_path / "engines.png")
    assert (tmp_path / "engines.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("servers", [1, None])
def test_a_picture_without_a_latency(
    servers: int | None, measured: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    """Servers that answered nothing have no point; where none did, the panel is empty."""
    document = copy.deepcopy(measured[0])
    for case in document["cases"]:
        for result in case["results"][:servers]:
            result["p99_us"] = None
    picture.draw_engines(document, tmp_path / "silent.svg")
    assert (tmp_path / "silent.svg").read_text() != measured[1].read_text()


def test_bench_compares(capsys: pytest.CaptureFixture[str]) -> None:
    """bench runs engines and rivals in turns, says how long it takes, and prints a table each."""
    rival = f"again={sys.executable} -m fastsock serve tcp://127.0.0.1:0"
    options = ["--engines", "stdlib-threads,serial", "--rival", rival, "-c", "1,2"]
    assert run(["bench", *options, *SHORT]) in DONE
    shown = capsys.readouterr()
    assert "5 turns, which take about " in shown.err
    for expected in ("1 connection, 64 B", "2 connections, 64 B", "stdlib threads", "again"):
        assert expected in shown.out
    assert "n/a: the server serves one client at a time" in " ".join(shown.out.split())


def rates_of(name: str, *rates: float) -> compare.Result:
    return compare.Result(name, rates=list(rates))


FLOOR = compare.Interval.of([1.0])


def test_ratios_are_to_the_reference() -> None:
    """A server with twice the reference's rate has the ratio 2, of windows of one round."""
    results = (rates_of("slow", 10, 30, 20), rates_of("C epoll", 20, 60, 80))
    of = compare.Comparison(compare.Case(), results, FLOOR, "slow").rate_ratio(results[1])
    assert of is not None
    assert (of.median, of.low, of.high) == (2, 2, 4)
    of = compare.Comparison(compare.Case(), results, FLOOR, "C epoll").rate_ratio(results[0])
    assert of is not None
    assert of.median == 0.5


@pytest.mark.parametrize(
    ("count", "low", "high", "confidence"),
    [
        (1, 1, 1, 0),
        (2, 1, 2, 0.5),
        (5, 1, 5, 0.9375),
        (6, 1, 6, 0.969),
        (9, 2, 8, 0.961),
        (15, 4, 12, 0.965),
        (100, 40, 61, 0.965),
    ],
)
def test_the_interval_of_a_median(count: int, low: float, high: float, confidence: float) -> None:
    """As in tables of order statistics: Conover, Practical Nonparametric Statistics, A3."""
    interval = compare.Interval.of(range(count, 0, -1))
    assert (interval.low, interval.high) == (low, high)
    assert interval.confidence == pytest.approx(confidence, abs=0.001)
    assert interval.median == (count + 1) / 2


def test_an_interval_holds_the_median_as_often_as_it_says() -> None:
    """Of windows that are far from normally distributed too."""
    random = Random(1)
    intervals = [
        compare.Interval.of([random.expovariate(1) for _ in range(9)]) for _ in range(4000)
    ]
    held = sum(each.low <= log(2) <= each.high for each in intervals) / len(intervals)
    assert held == pytest.approx(intervals[0].confidence, abs=0.01)


def test_two_runs_have_intervals_that_overlap() -> None:
    """Runs that differ by chance alone hardly ever contradict each other, as quartiles do."""
    random = Random(2)
    apart = {"interval": 0, "quartiles": 0}
    for _ in range(2000):
        runs = [[random.gauss(1, 0.03) for _ in range(compare.Method().windows)] for _ in range(2)]
        one, other = (compare.Interval.of(run) for run in runs)
        apart["interval"] += one.high < other.low or other.high < one.low
        (low, _, high), (low2, _, high2) = (quantiles(run, method="inclusive") for run in runs)
        apart["quartiles"] += high < low2 or high2 < low
    assert apart["interval"] < 0.01 * 2000
    assert apart["quartiles"] > 0.03 * 2000


def test_a_rate_of_0_has_no_ratio() -> None:
    """Neither of the server nor to it; a window of many is not counted."""
    silent, once, plain = (
        rates_of(name, *rates)
        for name, rates in (("silent", (0, 0, 1)), ("once", (0, 2, 2)), ("plain", (1, 1, 1)))
    )
    results = (silent, once, plain)
    to_plain = compare.Comparison(compare.Case(), results, FLOOR, "plain")
    assert to_plain.rate_ratio(silent) is None
    assert to_plain.as_dict()["results"][0]["rate_ratio"] is None
    to_once = compare.Comparison(compare.Case(), results, FLOOR, "once").rate_ratio(plain)
    assert to_once is not None
    assert to_once.median == 0.5
    never = (rates_of("never", 0, 0, 0), plain)
    assert compare.Comparison(compare.Case(), never, FLOOR, "never").rate_ratio(plain) is None


@pytest.mark.parametrize(
    ("asked", "used"), [("fastsock poll", "fastsock poll"), ("Go", "fastsock epoll")]
)
def test_the_reference_is_the_first_where_the_one_asked_for_is_absent(
    asked: str, used: str
) -> None:
    """The comparison names the reference that it used."""
    method = compare.Method(1, 0.05, 0.01)
    servers = [native("epoll"), native("poll")]
    compared = compare.compare(servers, compare.Case(1), method, reference=asked)
    assert compared.as_dict()["reference"] == used


@pytest.mark.parametrize("kind", ["udp", "unixgram"])
def test_bench_compares_datagrams(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The one engine for them, its twin, and another that prints where it listens."""
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


@pytest.mark.parametrize("kind", get_args(contenders.EndpointKind))
def test_the_floor_of_every_kind(kind: str) -> None:
    """It is measured over a pair of such sockets, with the largest piece that they take."""
    assert compare.measure_floor(1 << 20, kind) > 0


def test_a_case_is_loaded_as_it_says() -> None:
    """The client sleeps and opens a connection for each echo; the server busy-polls."""
    with compare.started(native("epoll", busy_poll="50us"), None) as server:
        with compare.turn(server):
            case = compare.Case(connections=2, wait="block", reconnect_every=1)
            report = compare.run_window(server, case, compare.Method(1, 0.1, 0.01))
        command = Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")
    assert server.name == "fastsock epoll, busy_poll=50us"
    assert command[command.index("--busy-poll") + 1] == "50us"
    assert report.options["wait"] == "block"
    assert report.connect_latency.count > 2


def test_a_paced_case() -> None:
    """The rate is what was asked for, of all connections together.

    A busy machine answers less in a short window, so one of ten must have the rate.
    """
    case = compare.Case(2, rate=1000)
    assert case.title == "2 connections, 64 B, 1k/s"
    with compare.started(native("epoll"), None) as server, compare.turn(server):
        for _ in range(10):
            report = compare.run_window(server, case, compare.Method(1, 0.2, 0.01))
            assert report.options["connections"] == 2
            assert report.offered == pytest.approx(1000 * report.duration, abs=2)
            if report.messages_per_s == pytest.approx(1000, rel=0.05):
                return
    pytest.fail(f"the last window answered {report.messages_per_s:.0f} a second")


def test_idle_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are open before the first turn and until the last one, beside those that work."""
    opened = []

    def run_window(server: ServerProcess, *arguments: Any) -> LoadReport:
        opened.append(server.descriptors())
        return run_as_it_is(server, *arguments)

    run_as_it_is = compare.run_window
    monkeypatch.setattr(compare, "run_window", run_window)
    servers = [native("epoll"), native("threads"), native("serial")]
    case = compare.Case(1, idle=200)
    compared = compare.compare(servers, case, compare.Method(2, 0.05, 0.01))
    assert case.title == "1 connection, 64 B, beside 200 idle"
    assert compared.left_out == {"fastsock serial": "serves one client at a time"}
    assert len(opened) >= 4
    assert all(200 < count < 250 for count in opened)


def test_idle_connections_that_are_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison ends, and says of which server."""
    code = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); time.sleep(60)"
    server = Contender("silent", (sys.executable, "-c", code))
    dial = compare.dial
    monkeypatch.setattr(compare, "dial", lambda endpoint: dial(endpoint, timeout=0.1))
    with pytest.raises(RuntimeError, match="silent: 3 idle connections: timed out"):
        compare.compare([server], compare.Case(1, idle=3), compare.Method(1, 0.02, 0.01))


@pytest.fixture
def syscalls() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1]))
        from benchmarks import syscalls

        yield syscalls


@pytest.fixture(params=["perf", "strace"])
def counting_tool(request: pytest.FixtureRequest, syscalls: ModuleType) -> str:
    tool: str = request.param
    if not syscalls.can_count(tool):
        pytest.skip(f"{tool} is not installed or may not count here")
    return tool


@pytest.mark.parametrize("engine", ["threads", "fork"])
def test_system_calls_per_echo(counting_tool: str, engine: str, syscalls: ModuleType) -> None:
    """One to receive and one to send; those of processes that the server makes are counted too."""
    method = compare.Method(1, 0.05, 0.01)
    counting = partial(syscalls.per_echo, counting_tool)
    comparison = compare.compare(
        [native(engine)], compare.Case(1), method, syscalls_per_echo=counting
    )
    document = compare.document({"one": comparison}, method, syscalls_by=counting_tool)
    assert document["method"]["syscalls_by"] == counting_tool
    (result,) = document["cases"][0]["results"]
    assert result["syscalls_per_echo"] == pytest.approx(2, abs=0.2)


def test_system_calls_that_cannot_be_counted(counting_tool: str, syscalls: ModuleType) -> None:
    """The error has the tool's output."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
        with pytest.raises(syscalls.CountError, match=f"(?s){counting_tool}: .*process"):
            syscalls.count(counting_tool, [process.pid], lambda: None)


def test_a_server_that_cannot_be_run_is_left_out() -> None:
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


@pytest.mark.parametrize(
    ("printed", "error"),
    [
        ("no luck", "did not start; it printed: no luck; it must print: listening on ENDPOINT"),
        ("listening on http://localhost:80; sleep 9", "broken printed a bad endpoint: endpoint"),
    ],
)
def test_a_rival_that_does_not_start(
    printed: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A contender that ends without listening is an error with what it printed."""
    rival = f"broken=sh -c 'echo {printed}'"
    assert run(["bench", "--engines", "epoll", "-c", "1", *SHORT, "--rival", rival]) == 1
    assert error in " ".join(capsys.readouterr().err.split())


def test_rivals_by_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One a line, as their commands have spaces."""
    monkeypatch.setenv("FASTSOCK_BENCH_RIVAL", "one=sh -c 'exit 1'\nbroken\n")
    assert run(["bench"]) == 2
    assert "FASTSOCK_BENCH_RIVAL 'broken' has no name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--engines fancy", "engine 'fancy' is unknown; expected all, or some of epoll,"),
        ("--engines asyncio", "engine 'asyncio' is unknown; did you mean stdlib-asyncio?"),
        ("--engines epol", "engine 'epol' is unknown; did you mean epoll?"),
        ("--engines serial -c 2", "none of the servers serves 2 clients at a time"),
        ("-c 1-10", "'1-10' is not a list of numbers; write them with commas, as in 1,10,100"),
        ("-c 0", "connections 0"),
        ("--picture engines.jpg", "ends with none of .svg, .png; write engines.svg"),
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
    assert "needs matplotlib: pip install 'fastsock[report]'" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_whole_server_is_stopped() -> None:
    """When it is not its turn, a server's children do not run either."""
    with compare.started(WITH_A_CHILD, None) as server:
        processes = server.processes()
        assert len(processes) == 2
        assert {state_of(pid) for pid in processes} == {"T"}
        with compare.turn(server):
            wait_until(lambda: "T" not in {state_of(pid) for pid in processes})
        assert {state_of(pid) for pid in processes} == {"T"}


def state_of(pid: int) -> str:
    """T is stopped; see proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_memory_where_the_proportional_one_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resident size, of all processes, is what is left."""

    def hidden(pid: int, field: str) -> int:
        raise PermissionError(pid)

    with ServerProcess(WITH_A_CHILD.command) as server:
        proportional = server.memory()
        monkeypatch.setattr(server_process, "smaps_bytes", hidden)
        resident = server.memory()
    assert proportional is not None
    assert resident is not None
    assert 0 < proportional < resident


@pytest.mark.parametrize(("kind", "scheme"), [("SOCK_STREAM", "tcp"), ("SOCK_DGRAM", "udp")])
def test_a_server_that_prints_nothing(kind: str, scheme: str) -> None:
    """Its address is the one that its process listens on."""
    code = (
        f"import socket, time; sock = socket.socket(type=socket.{kind}); "
        f"sock.bind(('127.0.0.1', 0)); {scheme == 'tcp'} and sock.listen(); time.sleep(60)"
    )
    with ServerProcess([sys.executable, "-c", code]) as server:
        assert server.endpoint.scheme == scheme
        with socket.socket(type=getattr(socket, kind)) as sock:
            sock.connect(server.address)


def test_a_process_that_does_not_start() -> None:
    with pytest.raises(NotStartedError, match=r"absent did not start: .*No such file"):
        ServerProcess(["/nowhere/absent"], name="absent")


def test_the_end_of_a_server_process() -> None:
    """Its exit code is known again and again; what it leaves behind is seen, and then killed."""
    with ServerProcess(WITH_A_CHILD.command) as server:
        (child,) = set(server.processes()) - {server.pid}
        assert server.wait(0) is None
        server.signal(signal.SIGKILL)
        assert server.wait() == server.wait() == -signal.SIGKILL
        assert server.processes() == [child]
    wait_until(lambda: not Path(f"/proc/{child}").exists() or state_of(child) == "Z")


def test_ctrl_c_while_a_server_is_started_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that comes with the new process is handled when the process is known."""
    made: list[subprocess.Popen[str]] = []

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        made.append(popen(*arguments, **options))
        signal.raise_signal(signal.SIGINT)
        return made[-1]

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            ServerProcess([sys.executable, "-m", "fastsock", "serve", "tcp://127.0.0.1:0"])
    finally:
        signal.signal(signal.SIGINT, before)
    gc.collect()
    assert [process.returncode for process in made] == [-signal.SIGKILL] * 2  # and the watcher


@pytest.mark.parametrize("stopped", [False, True], ids=["taking turns", "all stopped"])
def test_a_killed_bench_leaves_no_process(stopped: bool) -> None:
    """Nor does one hold the output that the bench had, or a pipeline would not end."""
    options = ["--engines", "fork,epoll,stdlib-threads", "-c", "4", "--window", "30s"]
    with subprocess.Popen(
        [sys.executable, "-m", "fastsock", "bench", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    ) as bench:
        ends: list[int] = []
        try:
            # Itself, three servers with their watchers, and a process for each client of the first.
            wait_until(lambda: len(descendants(bench.pid)) >= 1 + 3 * 2 + 4)
            bench.send_signal(signal.SIGSTOP)  # so that it starts and ends none now
            started = descendants(bench.pid)[1:]
            ends += [os.pidfd_open(pid) for pid in started]
            for pid in started if stopped else ():
                if Path(f"/proc/{pid}/comm").read_text() != "sh\n":
                    os.kill(pid, signal.SIGSTOP)
            bench.kill()
            assert bench.stdout is not None
            bench.stdout.read()
            for end in ends:
                assert select.select([end], [], [], 10)[0]
        finally:
            bench.kill()
            for end in ends:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(end, signal.SIGKILL)
                os.close(end)


def test_a_watcher_takes_no_signal() -> None:
    """Ctrl-C, a closed terminal and SIGTERM do not end it; the end of its pipe does."""
    watcher = server_process.start_watcher()
    try:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGTSTP):
            watcher.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            watcher.wait(0.2)
        assert watcher.stdin is not None
        watcher.stdin.close()
        assert watcher.wait(10) == -signal.SIGKILL
    finally:
        watcher.kill()
        watcher.wait()
