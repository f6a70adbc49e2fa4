"""The pytest-benchmark suite: what its figures mean."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(
    importlib.util.find_spec("pytest_benchmark") is None, reason="pytest-benchmark is not installed"
)
def test_mean_is_seconds_per_message(tmp_path: Path) -> None:
    """OPS is messages per second; extra info has validity, and the table names whole servers."""
    target = tmp_path / "benchmarks.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    chosen = ["benchmarks", "-k", "connect_echo_close and fastsock and poll"]  # and epoll
    shown = subprocess.run(
        [*command, *chosen, f"--benchmark-json={target}"],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        # Beside tests of other processes pytest-benchmark would measure nothing.
        env={name: value for name, value in os.environ.items() if "XDIST" not in name},
        text=True,
        timeout=50,
    ).stdout
    benchmarks = json.loads(target.read_text())["benchmarks"]
    assert [each["name"] for each in benchmarks] == ["fastsock epoll", "fastsock poll"]
    for benchmark in benchmarks:
        stats, extra = benchmark["stats"], benchmark["extra_info"]
        assert 1e-6 < stats["mean"] < 0.05  # the round of 1000 messages takes longer
        assert stats["ops"] == pytest.approx(1 / stats["mean"])
        assert stats["ops"] <= extra["messages_per_s"]  # of the best round
        assert stats["max"] >= 0.999 / extra["messages_per_s"]
        assert extra["valid"] == (not extra["reasons"])
        assert extra["valid"] == (f"[{benchmark['name']}]: " not in shown)
        assert f"\n{benchmark['name']} " in shown
    assert all(len(line) <= 80 or line.startswith("  Outliers: ") for line in shown.splitlines())
