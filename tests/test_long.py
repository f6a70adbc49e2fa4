"""The long runs: each works, in a short form, and one that misses a target says so."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from implementations import usable_engines

import fastsock
from fastsock.client.report import Latency, LoadReport

ROOT = Path(__file__).parent.parent
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT))
    from benchmarks.long import hold, soak
    from benchmarks.long.verdict import Verdict

CHOSEN = ("epoll", "io_uring")  # the default, and the one with buffers of its own


@pytest.mark.slow
@pytest.mark.parametrize("engine", [name for name in usable_engines() if name in CHOSEN])
@pytest.mark.parametrize(
    ("run", "arguments"),
    [
        ("soak", ["12s", "--seed", "1"]),
        ("churn", ["2000"]),
        ("hold", ["500", "--most", "1000", "--seconds", "0.2"]),
        ("hold", ["50", "--most", "100", "--seconds", "0.2", "--stuck"]),
        ("stop", ["12"]),
    ],
)
def test_short_form(run: str, arguments: list[str], engine: str, tmp_path: Path) -> None:
    """It ends by itself and keeps what it found; its exit code says whether all targets are met."""
    command = [sys.executable, "-m", f"benchmarks.long.{run}", *arguments, "--engine", engine]
    done = subprocess.run(
        [*command, "--results", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    (result,) = tmp_path.iterdir()
    document = json.loads(result.read_text())
    missed = [target for target in document["targets"] if not target["met"]]
    assert done.returncode == (1 if missed else 0), done.stderr
    # Times and memory need an idle machine and a long run; everything else holds always.
    assert all(re.search("p99|memory", target["target"]) for target in missed), missed
    assert document["host"]["kernel"]


@pytest.fixture
def unanswered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server; what loads it has no answer."""
    report = LoadReport("tcp://127.0.0.1:1", {}, 1.0, 0, 0, Latency(), Latency())
    monkeypatch.setattr(fastsock, "load", lambda *_, **__: report)
    server = MagicMock(endpoint=report.endpoint, address=("127.0.0.1", 1))
    server.__enter__.return_value = server
    server.__exit__.return_value = None
    return server


def test_soak_without_answers(unanswered: Any) -> None:
    """It is a failure, and no p99 of nothing is kept."""
    found = soak.Found()
    assert math.isnan(soak.steady_p99(unanswered, found, 1.0))
    (failure,) = found.failures
    assert failure.startswith("load tcp://127.0.0.1:1: 0 messages, ")


def test_hold_without_answers(
    unanswered: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A target is missed, and the results are written."""
    monkeypatch.setattr(hold, "FastsockServer", lambda *_, **__: unanswered)
    monkeypatch.setattr(hold, "raise_limit", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["hold", "10", "--most", "10", "--results", str(tmp_path)])
    assert hold.main() == 1
    (target,) = json.loads((tmp_path / "hold-idle.json").read_text())["targets"]
    assert not target["met"]
    assert target["figure"].startswith("the active connections: 0 answers, ")


def test_no_result_has_nan(tmp_path: Path) -> None:
    """JSON has none: it is an error of the run."""
    verdict = Verdict("soak", tmp_path)
    verdict.note(p99=math.nan)
    with pytest.raises(ValueError, match="JSON"):
        verdict.finish()
