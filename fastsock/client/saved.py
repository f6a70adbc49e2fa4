"""Results in files: runs (fastsock.load/2) and series of runs (fastsock.series/1)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsock.client.document import LOAD_SCHEMA

SERIES_SCHEMA = "fastsock.series/1"

#: Fields of a run without which nothing can be said of it, and their types.
_NEEDED: dict[str, type | tuple[type, ...]] = {
    "endpoint": str,
    "started_at": str,
    "options": dict,
    "duration_s": (int, float),
    "messages": int,
    "messages_per_s": (int, float),
    "latency_us": dict,
    "histograms": dict,
    "errors": dict,
    "valid": bool,
    "reasons": list,
    "host": dict,
}


@dataclass(frozen=True, slots=True)
class Saved:
    """What a file or a directory holds: one run, or several."""

    path: str
    #: The documents of the runs, in the order in which they were made.
    runs: tuple[dict[str, Any], ...]
    #: The document of the series; None for a run, and for a directory.
    series: dict[str, Any] | None = None


def read(path: str) -> Saved:
    """Read a run, a series, or every run of a directory (``*.json``).

    Raises:
        ValueError: it cannot be read, or is no such result; the text says what to do.

    """
    place = Path(path)
    if not place.is_dir():
        return _read_file(place)
    files = sorted(place.glob("*.json"))
    if not files:
        raise ValueError(f"{path} has no result: no file in it ends in .json")
    runs = [run for file in files for run in _read_file(file).runs]
    return Saved(path, tuple(sorted(runs, key=lambda run: str(run["started_at"]))))


def _read_file(path: Path) -> Saved:
    try:
        document = json.loads(
            path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite
        )
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):  # of the text, of its encoding or of its depth
        raise ValueError(
            f"{path} is not a whole JSON document: it is cut short, or no result of fastsock"
        ) from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema == LOAD_SCHEMA:
        return Saved(str(path), (_checked(path, document),))
    if schema == SERIES_SCHEMA:
        runs = document.get("runs")
        if not isinstance(runs, list) or not runs:
            raise ValueError(f"{path} is a series without runs")
        if not _is_confidence(document.get("confidence")):
            raise ValueError(f"{path} is damaged: it has no usable field 'confidence'")
        return Saved(str(path), tuple(_checked(path, run) for run in runs), document)
    raise ValueError(f"{path} {_why_not(schema)}")


def _is_confidence(found: Any) -> bool:
    """Whether all that is told of it can be told, or nothing is."""
    if found is None:
        return True
    try:
        numbers = [found[name] for name in ("level_percent", "within_percent", "most")]
        for interval in (found["rate"], found["p99"]):
            names = ("estimate", "low", "high", "half_width_percent")
            numbers += [interval[name] for name in names] if interval is not None else []
        return isinstance(found["converged"], bool) and all(0 <= each < 1e30 for each in numbers)
    except (TypeError, LookupError):
        return False


def _finite(text: str) -> float:
    """Not NaN and Infinity, which are Python's and not JSON's, nor 1e999, which would be one."""
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number


def _why_not(schema: object) -> str:
    known = f"{LOAD_SCHEMA} or {SERIES_SCHEMA}"
    if not isinstance(schema, str) or not schema.startswith("fastsock."):
        return f"is not a result of fastsock load --json; expected {known}"
    for name, what in (("bench", "servers"), ("compare", "runs")):
        if schema.startswith(f"fastsock.{name}/"):
            return f"is a comparison of {what} ({schema}); expected {known}"
    return f"has the schema {schema!r}, which this version does not know; expected {known}"


def _checked(path: Path, run: object) -> dict[str, Any]:
    if not isinstance(run, dict):
        raise ValueError(f"{path} has a run that is not an object")
    for name, kind in _NEEDED.items():
        if not isinstance(run.get(name), kind):
            raise ValueError(f"{path} is damaged: a run has no usable field {name!r}")
    return run
