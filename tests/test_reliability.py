"""The runner behind docs/reliability.md: it starts, probes, and tells a fault from none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: What the C loop does not do, and its source says so: it is a reference for speed.
FAULTS_OF_THE_C_LOOP = {"descriptor_limit": "dies", "bytes_in_flight": "loses"}


def probe(output: Path, *arguments: str) -> dict[str, Any]:
    """Run it; the results of the first server by probe."""
    command = ["-m", "benchmarks.reliability.run", "--quick", "--output", str(output), *arguments]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    results: dict[str, Any] = document["streams"][0]["results"]
    return results


@pytest.mark.skipif(
    not (shutil.which("cc") or shutil.which("gcc")), reason="no C compiler (cc or gcc) on PATH"
)
def test_probes_find_faults_and_only_faults(tmp_path: Path) -> None:
    """Every probe runs on the C loop: two find what it does not do, the others find nothing."""
    results = probe(tmp_path / "results.json", "--only", "C epoll")
    assert len(results) == 10
    assert {
        name: figures["verdict"] for name, figures in results.items() if figures["verdict"] != "ok"
    } == FAULTS_OF_THE_C_LOOP
    code = (
        "import json, sys; from benchmarks.reliability.table import lines_of; "
        "print('\\n'.join(lines_of(json.load(open(sys.argv[1])))))"
    )
    table = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "results.json")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "| C epoll | 8/10 | descriptor limit: dies" in table


def test_own_servers_can_be_started(tmp_path: Path) -> None:
    """The command of an engine is right, the option for its drain included."""
    arguments = ("--only", "fastsock epoll", "--probe", "bytes_in_flight")
    results = probe(tmp_path / "results.json", *arguments)
    assert results["bytes_in_flight"]["verdict"] == "ok"
    assert results["bytes_in_flight"]["complete"] == 8
