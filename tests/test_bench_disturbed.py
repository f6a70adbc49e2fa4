"""Windows that other programs disturbed, and what a comparison says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastsock.bench import comparison as compare
from fastsock.bench import text
from fastsock.bench.contenders import NATIVE, RIVAL, TWIN, native
from fastsock.bench.evidence import Evidence, Usage, idle_and_busy
from fastsock.bench.server_process import ServerProcess
from fastsock.cli import bench as command
from fastsock.cli import run
from fastsock.client.report import Finding, Latency, LoadReport

SHORT = ("--windows", "1", "--window", "200ms", "--warmup", "10ms")
QUIET = Evidence(0.0, {}, ())
FLOOR = compare.Interval.of([1.0])
DISTURBED = Evidence(1.0, {}, ("other programs took 1s of the server's CPU in 2s",))


def report_with(*reasons: Finding) -> LoadReport:
    return LoadReport("", {}, 1.0, 100, 6400, Latency(), Latency(), reasons=reasons)


AWAY = Finding("client_away", "the client was away for 0.3 s")
ERRORS = Finding("errors", "connections reset by the server: 1")
SILENT = Finding("no_messages", "no message was answered in the window")
DELAYED = Finding("server_delayed", "the server waited for a CPU for 0.3 s")


@contextmanager
def computing(cpu: int) -> Iterator[None]:
    """Another program that takes what it can of a CPU."""
    with compare.pinned(cpu), subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            with compare.pinned(None):
                yield
        finally:
            other.kill()


@pytest.mark.parametrize(
    ("taken", "cpus", "disturbed"),
    [(0.0, 1, False), (0.055, 1, False), (0.065, 1, True), (0.065, 2, False), (0.13, 2, True)],
)
def test_time_that_others_took(taken: float, cpus: int, disturbed: bool) -> None:
    """More than a tenth of the window, and a tick of 10 ms, for each of the server's CPUs."""
    awake = 0.7 * cpus - 0.1
    before = Usage(at=10.0, cpus=cpus, idle=5.0, busy=8.0, own=3.0)
    after = Usage(at=10.7, cpus=cpus, idle=5.1, busy=8.0 + awake, own=3.0 + awake - taken)
    evidence = Evidence.of(report_with(), 0.5, before, after)
    assert evidence.taken == pytest.approx(taken)
    assert evidence.disturbed == disturbed
    assert evidence.as_dict()["disturbed"] == disturbed
    if disturbed:
        (text,) = evidence.disturbances
        assert text == f"other programs took {taken * 1e3:g}ms of the server's CPU in 700ms"


def test_falling_asleep_is_no_other_program() -> None:
    """A CPU that wakes for each message is neither idle nor busy for a part of the time."""
    before = Usage(at=10.0, cpus=1, idle=5.0, busy=8.0, own=3.0)
    after = Usage(at=11.0, cpus=1, idle=5.4, busy=8.4, own=3.4)
    assert Evidence.of(report_with(), 0.5, before, after).taken == pytest.approx(0.0)


@pytest.mark.parametrize(
    "text", ["", "cpu  1 2 3 4 5\ncpu1 1 2 3 4 5", "cpu0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0"]
)
def test_idle_time_that_is_hidden(text: str, tmp_path: Path) -> None:
    """Some containers have no such file, other CPUs in it, or only zeros: it is not known then.

    The window is judged by what is known.
    """
    stat = tmp_path / "stat"
    assert idle_and_busy({0, 1}, stat)[0] is None
    stat.write_text(text)
    assert idle_and_busy({0, 1}, stat)[0] is None
    usage = Usage(at=10.0, cpus=1, idle=None, busy=0.0, own=3.0)
    evidence = Evidence.of(report_with(), 0.5, usage, usage)
    assert evidence.as_dict()["server_cpu_taken_s"] is None
    assert not evidence.disturbed


def test_the_clients_own_evidence() -> None:
    """A reason about the client is a disturbance; errors are not, nor a delay of the server.

    Threads that share a CPU delay each other: that is no disturbance.
    """
    before = after = Usage(at=10.0, cpus=1, idle=5.0, busy=8.0, own=3.0)
    evidence = Evidence.of(report_with(DELAYED, ERRORS, AWAY), 0.5, before, after)
    assert evidence.disturbances == (str(AWAY),)
    assert evidence.as_dict()["client"] == ["client_away"]
    assert compare.problems_of(report_with(DELAYED, ERRORS, AWAY)) == [str(ERRORS)]


def test_a_client_that_shares_a_cpu_with_the_server_waits_for_it() -> None:
    """That is no disturbance; time that others took of that CPU is, and throttling."""
    usage = Usage(at=10.0, cpus=1, idle=5.0, busy=8.0, own=3.0, shared=True)
    throttled = Finding("throttled", "the client was throttled for 0.3 s")
    evidence = Evidence.of(report_with(AWAY, throttled), 0.5, usage, usage)
    assert evidence.disturbances == (str(throttled),)
    assert evidence.as_dict()["client"] == ["client_away", "throttled"]
    later = replace(usage, at=10.5, busy=8.5)
    assert Evidence.of(report_with(AWAY), 0.5, usage, later).disturbed


def test_an_open_loop_counts_what_was_answered_in_the_window() -> None:
    """Messages that are answered later took no CPU time in it, and so the rate was not kept."""
    late = replace(report_with(), offered=100, messages=100, answered_in_window=20, server_cpu=1e-3)
    result = compare.Result("slow")
    result.add(late, QUIET)
    assert (result.rates, result.cpu_per_echo) == ([20.0], [pytest.approx(50.0)])
    closed = replace(report_with(), messages=100, answered_in_window=20, server_cpu=1e-3)
    result.add(closed, QUIET)
    assert (result.rates[1], result.cpu_per_echo[1]) == (100.0, pytest.approx(10.0))


Turn = tuple[LoadReport, Evidence]


def compared(monkeypatch: pytest.MonkeyPatch, turns: list[Turn]) -> compare.Comparison:
    """A comparison of one server in two rounds whose turns give these reports."""
    monkeypatch.setattr(compare, "run_turn", lambda *_: turns.pop(0))
    return compare.compare([native("epoll")], compare.Case(1), compare.Method(2, 0.05, 0.01))


def test_a_disturbed_window_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is not disturbed; the number is told, and the results have the last one."""
    turns = [(report_with(SILENT, AWAY), DISTURBED), (report_with(), QUIET), (report_with(), QUIET)]
    comparison = compared(monkeypatch, turns)
    (result,) = comparison.as_dict()["results"]
    assert not turns
    assert (result["windows"], result["repeated"], result["problems"]) == (2, 1, [])
    assert [each["disturbed"] for each in result["evidence"]] == [False, False]
    assert "1 disturbed window measured again" in text.notes_of(comparison, "")


def test_windows_are_measured_again_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as were planned, of all servers together. What stays disturbed is a problem."""
    turns = [(report_with(), DISTURBED)] * 4
    (result,) = compared(monkeypatch, turns).as_dict()["results"]
    assert not turns
    assert (result["windows"], result["repeated"]) == (2, 2)
    (problem,) = result["problems"]
    assert problem == f"2 of 2 windows stayed disturbed: {DISTURBED.disturbances[0]}"


def test_errors_are_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else the window has."""
    turns = [(report_with(ERRORS, AWAY), DISTURBED), (report_with(), QUIET)]
    (result,) = compared(monkeypatch, turns).as_dict()["results"]
    assert result["repeated"] == 0
    assert result["problems"][0] == str(ERRORS)
    assert "1 of 2 windows stayed disturbed" in result["problems"][1]


def test_windows_without_answers_have_no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """The document has null, and no NaN; the table has a dash."""
    none = replace(report_with(SILENT), messages=0, bytes=0)
    comparison = compared(monkeypatch, [(none, QUIET)] * 2)
    document = compare.document({"silence": comparison}, compare.Method(2, 0.05, 0.01))
    (result,) = json.loads(json.dumps(document, allow_nan=False))["cases"][0]["results"]
    assert result["p50_us"] is None and result["p99_us"] is None
    row = text.row_of(comparison, comparison.results[0])
    assert (row["rate"], row["p50"], row["p99"]) == ("-", "-", "-")


def test_beside_a_program_on_the_servers_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    """The windows are measured again, in vain; the row says so, and the exit code is 4."""
    server_cpu, _ = compare.cpus_for_both()
    with computing(min(os.sched_getaffinity(0)) if server_cpu is None else server_cpu):
        code = run(["bench", "--engines", "epoll,stdlib-threads", "-c", "4", *SHORT, "--json", "-"])
    assert code == 4
    shown = capsys.readouterr()
    for result in json.loads(shown.out)["cases"][0]["results"]:
        assert result["evidence"][0]["server_cpu_taken_s"] > 0.03
        assert "1 of 1 windows stayed disturbed" in result["problems"][-1]


def test_time_of_ended_processes_is_the_servers_own() -> None:
    """A process for each connection has ended when the time is read: others did not take it."""
    case, method = compare.Case(4, reconnect_every=10, wait="block"), compare.Method(1, 0.2, 0)
    with compare.started(native("fork"), None) as server:
        before = server.cpu_seconds()
        report, _ = compare.run_turn(server, case, method, os.sched_getaffinity(0))
        own = server.cpu_seconds() - before
    assert report.server_cpu
    assert own > 0.8 * report.server_cpu - 0.01  # a tick


@pytest.mark.parametrize("asked", [True, False], ids=["as asked", "the only CPU"])
def test_one_cpu_for_both(asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits by blocking, or it would take the server's CPU; and the table says so."""
    used: set[frozenset[int]] = set()

    def run_window(server: ServerProcess, *arguments: Any) -> LoadReport:
        used.update(frozenset(os.sched_getaffinity(pid)) for pid in (0, server.pid))
        return report_with()

    monkeypatch.setattr(compare, "run_window", run_window)
    first = min(os.sched_getaffinity(0))
    with compare.pinned(None if asked else first):
        method = compare.Method(1, 0.05, 0.01)
        comparison = compare.compare([native("epoll")], compare.Case(2, one_cpu=asked), method)
    assert used == {frozenset({first})}
    case = comparison.as_dict()
    assert (case["one_cpu"], case["case"]["wait"]) == (True, "block")
    told = "server and client share one CPU, so the client waits by blocking"
    assert told in text.notes_of(comparison, "")


def result_of(name: str, rate: float) -> compare.Result:
    memory = compare.Memory(12 << 20, 123 << 20, 1000)
    values = {"rates": [rate] * 9, "p50s": [123.4] * 9, "p99s": [1234.0] * 9}
    return compare.Result(name, memory, cpu_per_echo=[12.3] * 9, **values)


def compared_of(*results: compare.Result) -> compare.Comparison:
    return compare.Comparison(compare.Case(), results, FLOOR, results[0].name)


def shown_of(*results: compare.Result, capsys: pytest.CaptureFixture[str]) -> list[str]:
    command.show("a case", compared_of(*results), {each.name: NATIVE for each in results})
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("name", ["stdlib selectors, unix", "fastsock datagrams, unixgram"])
def test_a_table_fits_80_columns(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With whole names and the interval, whatever else is left out."""
    lines = shown_of(
        result_of("fastsock io_uring", 12345678), result_of(name, 12345), capsys=capsys
    )
    assert max(map(len, lines)) <= 80
    (row,) = (line for line in lines if line.startswith(name))
    assert row.endswith("0.00 (0.00-0.00)")
    assert ("memory" in lines[2]) == ("memory: with all connections open" in lines)


def test_a_long_name_has_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """It is whole, also if it is longer than a line."""
    name = "a rival " * 12
    lines = shown_of(result_of("fastsock epoll", 12345), result_of(name, 24690), capsys=capsys)
    where = lines.index(name)
    assert lines[where + 1].startswith("  ")
    assert "2.00 (2.00-2.00)" in lines[where + 1]
    assert max(len(line) for line in lines if line != name) <= 80


def test_a_wide_terminal_has_all_columns() -> None:
    """What was left out comes back, and no cell is cut."""
    row = dict.fromkeys(text.TITLES, "x" * 16)
    head, _, first = text.table_lines([row], 200)
    assert head.split() == " ".join(text.TITLES).split()
    assert first.split() == ["x" * 16] * len(text.TITLES)


def test_a_server_that_answers_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither 0 nor a latency of nothing is shown, and the table says why."""
    lines = shown_of(result_of("fastsock epoll", 0.0), result_of("other", 10.0), capsys=capsys)
    silent, other = (
        next(line for line in lines if line.startswith(name)).split()
        for name in ("fastsock epoll", "other")
    )
    assert silent[2:6] == ["-"] * 4
    assert silent[-1] == other[-1] == "-"
    assert "-: in most windows of this server or of the reference nothing was answered" in lines


Figures = dict[str, tuple[list[float], list[float]]]  # rates and microseconds of each server
STEADY = [1.0] * 9
WIDE = [0.8, 0.8, *[1.1] * 5, 1.3, 1.3]


def found_of(figures: Figures, problem: str = "") -> list[str]:
    results = [
        compare.Result(name, rates=rates, cpu_per_echo=costs)
        for name, (rates, costs) in figures.items()
    ]
    results[-1].problems += filter(None, [problem])
    groups = {name: {"n": NATIVE, "t": TWIN, "r": RIVAL}[name[0]] for name in figures}
    return [each.removeprefix("found: ") for each in text.found_in(compared_of(*results), groups)]


@pytest.mark.parametrize(
    ("figures", "found"),
    [
        pytest.param(
            {"n1": (STEADY, [3.0] * 9), "n2": (WIDE, [4.0] * 9), "n3": (WIDE, [2.0] * 9)},
            [
                "highest rate: n2 and n3 (rate ratio 1.10); the interval of n1 overlaps with them",
                "least CPU per echo: n3 (2us)",
            ],
            id="of one group",
        ),
        pytest.param(
            {
                "n1": (STEADY, [3.0] * 9),
                "t1": (WIDE, [2.0, *[5.0] * 8]),
                "r1": ([0.5] * 9, [0.0] * 9),
                "r2": ([0.4] * 9, [9.0] * 9),
            },
            [
                "highest rate: t1 (rate ratio 1.10); the interval of n1 overlaps with it; "
                "of the rivals: r1 (rate ratio 0.50)",
                "least CPU per echo: n1 (3us); of the standard library: t1 (5us); "
                "of the rivals: r2 (9us)",
            ],
            id="of three groups, one without a figure of CPU",
        ),
        pytest.param(
            {name: (STEADY, [3.0] * 9) for name in ("n1", "t1", "r1")},
            [
                "highest rate: n1, t1 and r1 (rate ratio 1.00)",
                "least CPU per echo: n1, t1 and r1 (3us)",
            ],
            id="equal",
        ),
        pytest.param(
            {"n1": ([1.0] * 5, [3.0] * 5), "n2": ([9.0] * 5, [1.0] * 5)},
            ["nothing, as it takes at least 6 windows to rank servers"],
            id="few windows",
        ),
        pytest.param({"n1": (STEADY, STEADY), "n2": ([0.0] * 9, STEADY)}, [], id="one answered"),
        pytest.param({"n1": (STEADY, STEADY)}, [], id="one server"),
    ],
)
def test_what_was_found(figures: Figures, found: list[str]) -> None:
    """No server is called the first where the intervals of the windows do not show it."""
    assert found_of(figures) == found


def test_nothing_is_found_where_figures_are_not_valid() -> None:
    """Of any server."""
    figures = {"n1": (STEADY, STEADY), "n2": (WIDE, WIDE)}
    assert found_of(figures, "errors") == ["nothing, as some figures are not valid"]


def test_not_valid_servers_are_one_block(capsys: pytest.CaptureFixture[str]) -> None:
    """With a line for each server, which has all of its reasons."""
    results = [result_of(name, 10.0) for name in ("one", "two", "three")]
    results[0].problems += ["errors", "no answer"]
    results[2].problems += ["errors"]
    command.tell_problems("a case", compared_of(*results))
    assert capsys.readouterr().err.splitlines() == [
        "Error: a case: these figures are not valid:",
        "one: errors; no answer",
        "three: errors",
    ]
