"""From a document of a run (``fastsock.load/2``) to its LoadReport."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from typing import Any, TypeVar, get_args

from fastsock.client.document import LATENCIES, PERCENTILE_FIELDS
from fastsock.client.evidence import ClientEvidence
from fastsock.client.options import Mode
from fastsock.client.percentiles import Percentiles
from fastsock.client.report import (
    DATAGRAM_COUNTS,
    FIXED,
    LOAD_ERRORS,
    Finding,
    Interval,
    Intervals,
    Latency,
    LoadReport,
    Outages,
    StageFigures,
    TargetResult,
    TcpStory,
)
from fastsock.client.saved import Saved
from fastsock.client.stages import Stages
from fastsock.client.targets import Targets

_Record = TypeVar("_Record", Latency, Outages, TcpStory, ClientEvidence)

#: No number of a run is as large; sums and squares of smaller ones are floats.
_LIMIT = 1 << 100


def report_of(document: dict[str, Any]) -> LoadReport:
    """The report whose document it is. Fields that this version does not know are left out.

    Raises:
        ValueError: a field that every run has is missing, or cannot be what it is.

    """
    found: dict[str, Any] = {}
    for name, (place, read) in _READERS.items():
        try:
            found[name] = read(document.get(place))
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError):
            raise ValueError(f"the field {place!r} is not usable") from None
    for name, place in LATENCIES.items():
        try:
            found[name] = _latency(document["latency_us"].get(place))
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError):
            raise ValueError(f"the distribution {place!r} is not usable") from None
    found["options"]["label"] = found.pop("label")
    report = LoadReport(**found)
    stages = ", ".join(each.stage for each in report.stages or ())
    if stages and stages != report.options.get("stages"):
        raise ValueError("'stages' does not agree with 'options'")
    if report.valid is not document.get("valid"):
        raise ValueError("'valid' does not agree with 'reasons'")
    return report


def reports_of(saved: Saved) -> Iterator[tuple[str, LoadReport]]:
    """Name and report of each run of a file or a directory; ValueError if one is damaged."""
    for number, document in enumerate(saved.runs, 1):
        name = saved.path if len(saved.runs) == 1 else f"{saved.path} (run {number})"
        try:
            report = report_of(document)
        except ValueError as error:
            raise ValueError(f"{name} is damaged: {error}") from None
        yield name, report


def _latency(found: dict[str, Any] | None) -> Latency:
    if found is None:
        return Latency()
    names = {name: field for field, name in PERCENTILE_FIELDS.items()}
    values = {names.get(name, name): value for name, value in found.items()}
    others = tuple(
        (float(name.removeprefix("p")), _number(value))
        for name, value in found.items()
        if name.startswith("p") and float(name.removeprefix("p")) not in FIXED
    )
    return replace(_record(Latency, values, without="others"), others=others)


def _record(kind: type[_Record], found: dict[str, Any], *, without: str = "") -> _Record:
    """A record of numbers; each of its fields must be there."""
    wanted = [each for each in fields(kind) if each.name != without]
    for each in wanted:
        value = found[each.name]
        if value is None and "None" in str(each.type):
            continue
        if not -_LIMIT < value < _LIMIT:
            raise ValueError(each.name)
    return kind(**{each.name: found[each.name] for each in wanted})


def _optional(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda found: None if found is None else read(found)


def _of(kind: type[_Record]) -> Callable[[Any], Any]:
    return lambda found: _record(kind, found)


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise TypeError
    return found


def _number(found: Any) -> float:
    if not 0 <= found < _LIMIT:
        raise ValueError
    return float(found)


def _count(found: Any) -> int:
    if int(found) != found or not 0 <= found < _LIMIT:
        raise ValueError
    return int(found)


def _counts(names: Iterable[str]) -> Callable[[Any], Any]:
    return lambda found: {name: _count(found[name]) for name in names}


def _options(found: Any) -> dict[str, Any]:
    """The options; those that are computed with are checked."""
    for name in ("connections", "size", "depth", "threads"):
        _count(found.get(name, 1))
    for name in ("rate", "duration", "warmup", "messages"):
        _optional(_number)(found.get(name))
    if found.get("mode", "echo") not in get_args(Mode):
        raise ValueError
    options = {
        name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
    }
    if options.get("stages"):
        Stages().check("stages", options["stages"])
    if options.get("targets"):
        options["targets"] = Targets().check("targets", options["targets"])
    if options.get("percentiles"):
        options["percentiles"] = Percentiles().check("percentiles", options["percentiles"])
    return options


def _rows(found: Any) -> tuple[dict[str, Any], ...]:
    for row in found or ():
        _text(row["file"])
        _number(row["messages_per_s"])
    return tuple(map(dict, found or ()))


def _read_findings(found: Any) -> tuple[Finding, ...]:
    return tuple(Finding(_text(each["code"]), _text(each["text"])) for each in found)


def _read_intervals(found: Any) -> Intervals:
    return Intervals(
        _number(found["interval_s"]), _count(found["joined"]), tuple(map(_read_row, found["rows"]))
    )


def _read_row(row: Any) -> Interval:
    messages, latency = _count(row["messages"]), Latency()
    if row["max"] is not None:  # of merged runs it alone is known
        p50, p99 = (
            math.nan if row[name] is None else _number(row[name]) for name in ("p50", "p99")
        )
        latency = Latency(messages, p50=p50, p99=p99, max=_number(row["max"]))
    return Interval(
        start=_number(row["start_s"]),
        end=_number(row["end_s"]),
        messages=messages,
        errors=_count(row["errors"]),
        outstanding=_count(row["outstanding"]),
        latency=latency,
        after_window=bool(row["after_window"]),
    )


def _read_stages(found: Any) -> tuple[StageFigures, ...]:
    return tuple(map(_read_stage, found))


def _read_stage(stage: Any) -> StageFigures:
    start, end, rate_from, rate_to = (
        _number(stage[name]) for name in ("start_s", "end_s", "rate_from", "rate_to")
    )
    if start >= end:
        raise ValueError
    return StageFigures(
        stage=_text(stage["stage"]),
        start=start,
        end=end,
        rate_from=rate_from,
        rate_to=rate_to,
        offered=_count(stage["offered"]),
        messages=_count(stage["messages"]),
        latency=_latency(stage["latency_us"]),
    )


def _read_targets(found: Any) -> tuple[TargetResult, ...]:
    return tuple(
        TargetResult(
            **{name: _text(each[name]) for name in ("target", "metric", "operator", "text")},
            limit=_number(each["limit"]),
            seen=None if each["seen"] is None else _number(each["seen"]),
            met=bool(each["met"]),
        )
        for each in found
    )


#: Fields of LoadReport, where they are in the document, and how they are read.
_READERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "endpoint": ("endpoint", _text),
    "started_at": ("started_at", _text),
    "address": ("address", _text),
    "options": ("options", _options),
    "label": ("label", _optional(_text)),  # one of the options in LoadReport
    "duration": ("duration_s", _number),
    "messages": ("messages", _count),
    "bytes": ("bytes", _count),
    "offered": ("offered", _optional(_count)),
    "offered_per_s": ("offered_per_s", _optional(_number)),
    "answered_in_window": ("answered_in_window", _count),
    "histograms": ("histograms", dict),
    "errors": ("errors", _counts(LOAD_ERRORS)),
    "lost_bytes": ("lost_bytes", _count),
    "corrupt_bytes": ("corrupt_bytes", _count),
    "no_eof": ("no_eof", _count),
    "datagrams": ("datagrams", _optional(_counts(DATAGRAM_COUNTS))),
    "outages": ("outages", _optional(_of(Outages))),
    "tcp": ("tcp", _optional(_of(TcpStory))),
    "reasons": ("reasons", _read_findings),
    "notes": ("notes", _read_findings),
    "client": (
        "client",
        lambda found: _record(ClientEvidence, found) if found else ClientEvidence(),
    ),
    "server_cpu": ("server_cpu_s", _optional(_number)),
    "intervals": ("intervals", _optional(_read_intervals)),
    "stages": ("stages", _optional(_read_stages)),
    "targets": ("targets", _optional(_read_targets)),
    "merged": ("merged", _rows),
    "host": ("host", dict),
}
