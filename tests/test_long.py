"""The long runs: each works, in a short form, and one that misses a target says so."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from implementations import usable_engines

ROOT = Path(__file__).parent.parent
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
