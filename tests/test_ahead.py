"""Which servers are ahead of fastsock as it comes, judged by the windows of a comparison."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT))
    from benchmarks import ahead
    from benchmarks.ahead import Judged, NotJudged

Document = dict[str, Any]

US, C, UVLOOP = "fastsock epoll", "C epoll", "uvloop Protocol"
PACED = {"rate": 20_000.0}


def result_of(name: str, rates: list[float], costs: list[float]) -> Document:
    figures = {"messages_per_s": rates, "server_cpu_us_per_echo": costs}
    medians = {figure: {"median": statistics.median(each)} for figure, each in figures.items()}
    return {
        "name": name,
        "windows": len(rates),
        "problems": [],
        "per_window": figures,
        **medians,
    }


def case_of(
    servers: dict[str, tuple[float, float]], *, name: str = "a case", windows: int = 15, **load: Any
) -> Document:
    """Each server's rate and CPU per echo, the same in every window."""
    results = [
        result_of(server, [rate] * windows, [cost] * windows)
        for server, (rate, cost) in servers.items()
    ]
    return {"name": name, "case": {"kind": "tcp", **load}, "results": results}


def document_of(*cases: Document) -> Document:
    return {"cases": list(cases)}


def ahead_in(*documents: Document) -> list[tuple[str, str]]:
    """Server and figure."""
    found, _ = ahead.in_each(documents)
    return [(row[0].server, row[0].figure) for row in found]


def left_in(*documents: Document) -> list[NotJudged]:
    _, left = ahead.in_each(documents)
    return left


@pytest.mark.parametrize(("rate", "is_ahead"), [(1.019, False), (1.021, True), (0.5, False)])
def test_a_higher_rate(rate: float, is_ahead: bool) -> None:
    """By more than 2 %; less CPU per echo is no reason where the rates are the servers' own."""
    document = document_of(case_of({US: (1000.0, 4.0), C: (1000.0 * rate, 1.0)}))
    assert ahead_in(document) == [(C, "rate")] * is_ahead


def test_the_lower_quartile_decides() -> None:
    """Round by round: twelve of fifteen rounds are enough, ten are not, whatever their order."""
    for better, expected in ((12, [(C, "rate")]), (10, [])):
        case = case_of({US: (1000.0, 4.0), C: (1000.0, 4.0)})
        ours, theirs = case["results"]
        drift = [1 + (7 * number % 15) / 10 for number in range(15)]
        ours["per_window"]["messages_per_s"] = [1000 * each for each in drift]
        theirs["per_window"]["messages_per_s"] = [
            1000 * each * (1.05 if number < better else 1.0) for number, each in enumerate(drift)
        ]
        assert ahead_in(document_of(case)) == expected


@pytest.mark.parametrize(("cost", "is_ahead"), [(4.4 / 1.09, False), (4.4 / 1.11, True)])
def test_less_cpu_at_the_same_rate(cost: float, is_ahead: bool) -> None:
    """By more than 10 %, in an open loop."""
    document = document_of(case_of({US: (20_000.0, 4.4), C: (20_000.0, cost)}, **PACED))
    assert ahead_in(document) == [(C, "CPU")] * is_ahead


def test_a_server_that_does_not_keep_the_rate() -> None:
    """Its CPU per echo is not compared, and it is named; so is fastsock."""
    slow = document_of(case_of({US: (20_000.0, 4.4), UVLOOP: (15_000.0, 1.0)}, **PACED))
    assert ahead_in(slow) == []
    assert left_in(slow) == [NotJudged("a case", "the server does not keep the rate", UVLOOP)]
    ours = document_of(case_of({US: (15_000.0, 4.4), C: (20_000.0, 1.0)}, **PACED))
    assert ahead_in(ours) == [(C, "rate")]
    assert left_in(ours) == [NotJudged("a case", "fastsock has 0.75 of the rate asked for")]


@pytest.mark.parametrize(
    ("kind", "name", "default"),
    [
        ("udp", "fastsock datagrams, udp", "fastsock datagrams, udp"),
        ("unix", "fastsock epoll, unix", "fastsock epoll, unix"),
        ("tcp", "native epoll, busy main thread", "native epoll, busy main thread"),
    ],
)
def test_fastsock_as_it_comes(kind: str, name: str, default: str) -> None:
    """The default engine of each kind of endpoint; its other engines are compared with it."""
    servers = {"fastsock poll": (1100.0, 1.0), name: (1000.0, 1.0)}
    document = document_of(case_of(servers, kind=kind))
    assert ahead_in(document) == [("fastsock poll", "rate")]
    assert left_in(document_of(case_of({C: (1.0, 1.0)}))) == [
        NotJudged("a case", "fastsock does not take part")
    ]


def test_ahead_in_both_documents() -> None:
    """In one of two alone is chance; a case that one of them lacks is named."""
    first = document_of(
        case_of({US: (1000.0, 4.0), C: (1100.0, 4.0), UVLOOP: (1100.0, 4.0)}),
        case_of({US: (1000.0, 4.0)}, name="another"),
    )
    second = document_of(case_of({US: (1000.0, 4.0), C: (1000.0, 4.0), UVLOOP: (1050.0, 4.0)}))
    assert ahead_in(first, second) == [(UVLOOP, "rate")]
    assert left_in(first, second) == [NotJudged("another", "it is not in every document")]


def test_too_few_windows() -> None:
    """Nor can it be said of results that hold no windows, such as fastsock.bench/3."""
    few = document_of(case_of({US: (1000.0, 4.0), C: (2000.0, 4.0)}, windows=14))
    assert ahead_in(few) == []
    assert left_in(few) == [NotJudged("a case", "14 windows are fewer than 15")]
    old = case_of({US: (1000.0, 4.0), C: (2000.0, 4.0)})
    del old["results"][0]["per_window"]
    assert left_in(document_of(old)) == [
        NotJudged("a case", "the results have no values per window")
    ]


def run_on(folder: Path, monkeypatch: pytest.MonkeyPatch, *documents: Document) -> int:
    paths = []
    for number, document in enumerate(documents):
        paths.append(folder / f"{number}.json")
        paths[-1].write_text(json.dumps(document))
    monkeypatch.setattr(sys, "argv", ["ahead", *map(str, paths)])
    return ahead.main()


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table of 80 columns, and the exit code."""
    servers = {US: (1000.0, 4.0), "native io_uring, busy main thread": (1100.0, 4.0)}
    name = "64 connections, 64 B, beside a busy main thread"
    document = document_of(case_of(servers, name=name), case_of({US: (1.0, 1.0)}, windows=2))
    document["cases"][0]["results"][1]["problems"] = ["errors"]
    assert run_on(tmp_path, monkeypatch, document, document) == 1
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1] == name
    row = "native io_uring, busy main thread rate 1.10 (1.10-1.10) not valid"
    assert " ".join(lines[2].split()) == row
    assert lines[3].split() == ["1.10", "(1.10-1.10)", "not", "valid"]
    assert lines[4] == "Not judged, as 2 windows are fewer than 15: a case."


@pytest.mark.parametrize(("windows", "code"), [(15, 0), (2, 2)])
def test_the_exit_code_where_none_is_ahead(
    windows: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 only if all cases were judged."""
    document = document_of(case_of({US: (1000.0, 4.0), C: (1000.0, 4.0)}, windows=windows))
    assert run_on(tmp_path, monkeypatch, document) == code


def test_the_rows_of_the_page() -> None:
    """One row a server, its rate as a ratio and CPU in microseconds; then what is not judged."""
    cases = (
        case_of({US: (20_000.0, 4.4), C: (21_000.0, 2.25), UVLOOP: (10.0, 1.0)}, **PACED),
        case_of({US: (1000.0, 4.0), C: (1100.0, 4.0)}, name="another"),
    )
    rows = [line for line in ahead.behind_lines(document_of(*cases)) if line][2:]
    assert rows == [
        "| a case | C epoll | 1.05 (1.05-1.05) | 2.25, 4.40 |",
        "| another | C epoll | 1.10 (1.10-1.10) |  |",
        "Not judged, as the server does not keep the rate: a case (uvloop Protocol).",
    ]
    nothing = document_of(case_of({US: (1000.0, 4.0), C: (1000.0, 4.0)}))
    assert list(ahead.behind_lines(nothing)) == [
        "No server is ahead in a row that could be judged."
    ]


def test_a_rate_of_0() -> None:
    """A round without answers of fastsock is left out."""
    case = case_of({US: (1000.0, 4.0), C: (1100.0, 4.0)})
    case["results"][0]["per_window"]["messages_per_s"][0] = 0.0
    (found,) = ahead.judged(document_of(case))
    assert isinstance(found, Judged)
    assert found.median == pytest.approx(1.1)
