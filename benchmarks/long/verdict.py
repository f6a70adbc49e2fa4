"""What a long run found: figures, targets met or missed, a JSON file, an exit code."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.run import RESULTS, commit
from fastsock.host import host_facts
from fastsock.server.engines import WORKERS


class Verdict:
    """Collects the figures of one run and whether each target was met."""

    def __init__(self, name: str, results: Path, **options: Any) -> None:
        self._name = name
        self._results = results
        self._options = options
        self._figures: dict[str, Any] = {}
        self._targets: list[dict[str, Any]] = []
        self._start = time.monotonic()

    def note(self, **figures: Any) -> None:
        self._figures.update(figures)

    def require(self, met: bool, target: str, figure: Any) -> None:
        """A target, in words, and the figure that it was compared with."""
        self._targets.append({"target": target, "figure": figure, "met": bool(met)})

    def finish(self) -> int:
        """Print everything, keep it as JSON; return the exit code."""
        document = {
            "run": self._name,
            "commit": commit(),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": host_facts(),
            "options": self._options,
            "took_s": round(time.monotonic() - self._start, 1),
            "figures": self._figures,
            "targets": self._targets,
        }
        path = self._results / f"{self._name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
        for name, figure in self._figures.items():
            if not isinstance(figure, list | dict):
                print(f"{name:32} {rounded(figure)}")
        for target in self._targets:
            print(
                f"{'met' if target['met'] else 'MISSED':6} {target['target']}: {target['figure']}"
            )
        print(path)
        return 0 if all(target["met"] for target in self._targets) else 1


def parser(description: str | None, engine: str = "epoll") -> argparse.ArgumentParser:
    """With the options that every long run has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--engine", choices=sorted({*WORKERS, engine}), default=engine)
    made.add_argument("--results", type=Path, default=RESULTS, help="directory of the JSON file")
    return made


def rounded(figure: Any) -> Any:
    return round(figure, 3) if isinstance(figure, float) else figure


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Least squares: by how much the values grow in a unit of time; 0 for less than two."""
    if len(times) < 2:
        return 0.0
    return statistics.linear_regression(times, values).slope


def say(text: str) -> None:
    """Progress: on a line of its own, on a terminal only."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)
