"""The JSON form of a LoadReport: the public format ``fastsock.load/2`` (docs/results.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

from fastsock.client.evidence import ClientEvidence
from fastsock.client.percentiles import name_of
from fastsock.client.report import (
    FIXED,
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

LOAD_SCHEMA = "fastsock.load/2"

_Record = TypeVar("_Record", Latency, Outages, TargetResult, TcpStory, ClientEvidence)

#: The distributions: fields of LoadReport, and their names in ``latency_us``.
LATENCIES = {
    "latency": "from_intended_send",
    "latency_without_away": "from_intended_send_without_away",
    "latency_from_send": "from_actual_send",
    "connect_latency": "connect",
    "send_delay": "send_delay",
}
_PERCENTILES = {"p99_9": "p99.9", "p99_99": "p99.99"}


def of(report: LoadReport) -> dict[str, Any]:
    """The report as a document. It has no NaN, which JSON does not know."""
    return {
        "schema": LOAD_SCHEMA,
        "label": report.label,
        "started_at": report.started_at,
        "endpoint": report.endpoint,
        "address": report.address,
        "options": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in report.options.items()
            if key != "label"
        },
        "duration_s": report.duration,
        "messages": report.messages,
        "bytes": report.bytes,
        "offered": report.offered,
        "unanswered": report.unanswered,
        "answered_in_window": report.answered_in_window,
        "messages_per_s": report.messages_per_s,
        "bytes_per_s": report.bytes_per_s,
        "offered_per_s": report.offered_per_s,
        "latency_us": {
            place: _distribution(getattr(report, name)) for name, place in LATENCIES.items()
        },
        "histograms": dict(report.histograms),
        "errors": dict(report.errors),
        "lost_bytes": report.lost_bytes,
        "corrupt_bytes": report.corrupt_bytes,
        "no_eof": report.no_eof,
        "datagrams": None if report.datagrams is None else dict(report.datagrams),
        "outages": report.outages and asdict(report.outages),
        "tcp": report.tcp and asdict(report.tcp),
        "valid": report.valid,
        "reasons": _findings(report.reasons),
        "notes": _findings(report.notes),
        "client": asdict(report.client) if report.client.known else None,
        "server_cpu_s": report.server_cpu,
        "intervals": report.intervals and _intervals(report.intervals),
        "stages": None if report.stages is None else [_stage(each) for each in report.stages],
        "targets": report.targets and [asdict(each) for each in report.targets],
        "merged": [dict(each) for each in report.merged] or None,
        "host": dict(report.host),
    }


def _intervals(intervals: Intervals) -> dict[str, Any]:
    return {
        "interval_s": intervals.interval_s,
        "joined": intervals.joined,
        "rows": [row_of(each) for each in intervals.rows],
    }


def row_of(row: Interval) -> dict[str, Any]:
    latency = row.latency
    return {
        "start_s": round(row.start, 9),
        "end_s": round(row.end, 9),
        "messages": row.messages,
        "errors": row.errors,
        "outstanding": row.outstanding,
        "p50": latency.p50 if latency.count else None,
        "p99": latency.p99 if latency.count else None,
        "max": latency.max if latency.count else None,
        "after_window": row.after_window,
    }


def _stage(stage: StageFigures) -> dict[str, Any]:
    return {
        "stage": stage.stage,
        "start_s": stage.start,
        "end_s": stage.end,
        "rate_from": stage.rate_from,
        "rate_to": stage.rate_to,
        "offered": stage.offered,
        "messages": stage.messages,
        "messages_per_s": stage.messages_per_s,
        "latency_us": _distribution(stage.latency),
    }


def _distribution(latency: Latency) -> dict[str, float | int] | None:
    """None if nothing was recorded."""
    found = {_PERCENTILES.get(name, name): value for name, value in asdict(latency).items()}
    found |= {name_of(percent): value for percent, value in found.pop("others")}
    return found if latency.count else None


def _findings(findings: Iterable[Finding]) -> list[dict[str, str]]:
    return [{"code": each.code, "text": each.text} for each in findings]


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
    found["options"] = {**found["options"], "label": document.get("label")}
    report = LoadReport(**found)
    if report.valid is not document.get("valid"):
        raise ValueError("'valid' does not agree with 'reasons'")
    return report


def _latency(found: dict[str, Any] | None) -> Latency:
    if found is None:
        return Latency()
    names = {name: field for field, name in _PERCENTILES.items()}
    fixed = {names.get(name, name): value for name, value in found.items()}
    others = tuple(
        (float(name.removeprefix("p")), _number(value))
        for name, value in found.items()
        if name.startswith("p") and float(name.removeprefix("p")) not in FIXED
    )
    return replace(_record(Latency, {**fixed, "others": ()}), others=others)


def _record(kind: type[_Record], found: dict[str, Any]) -> _Record:
    """A record of numbers; each of its fields must be there."""
    names = [each.name for each in fields(kind)]
    for name in names:
        if isinstance(found[name], int | float) and not math.isfinite(found[name]):
            raise ValueError(name)
    return kind(**{name: found[name] for name in names})


def _optional(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda found: None if found is None else read(found)


def _of(kind: type[_Record]) -> Callable[[Any], Any]:
    return lambda found: _record(kind, found)


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise TypeError
    return found


def _number(found: Any) -> float:
    """A finite number of at least 0."""
    if not 0 <= found < math.inf:
        raise ValueError
    return float(found)


def _count(found: Any) -> int:
    if int(found) != found or found < 0:
        raise ValueError
    return int(found)


def _counts(found: Any) -> dict[str, int]:
    return {name: _count(value) for name, value in found.items()}


def _read_findings(found: Any) -> tuple[Finding, ...]:
    return tuple(Finding(_text(each["code"]), _text(each["text"])) for each in found)


def _read_intervals(found: Any) -> Intervals:
    rows = (
        Interval(
            start=_number(row["start_s"]),
            end=_number(row["end_s"]),
            messages=_count(row["messages"]),
            errors=_count(row["errors"]),
            outstanding=_count(row["outstanding"]),
            latency=Latency()
            if row["p50"] is None
            else Latency(row["messages"], p50=row["p50"], p99=row["p99"], max=row["max"]),
            after_window=bool(row["after_window"]),
        )
        for row in found["rows"]
    )
    return Intervals(_number(found["interval_s"]), _count(found["joined"]), tuple(rows))


def _read_stages(found: Any) -> tuple[StageFigures, ...]:
    names = {"start": "start_s", "end": "end_s"}
    return tuple(
        StageFigures(
            **{
                each.name: stage[names.get(each.name, each.name)]
                for each in fields(StageFigures)
                if each.name != "latency"
            },
            latency=_latency(stage["latency_us"]),
        )
        for stage in found
    )


def _read_targets(found: Any) -> tuple[TargetResult, ...]:
    return tuple(_record(TargetResult, each) for each in found)


#: Fields of LoadReport, where they are in the document, and how they are read.
_READERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "endpoint": ("endpoint", _text),
    "started_at": ("started_at", _text),
    "address": ("address", _text),
    "options": ("options", dict),
    "duration": ("duration_s", _number),
    "messages": ("messages", _count),
    "bytes": ("bytes", _count),
    "offered": ("offered", _optional(_count)),
    "offered_per_s": ("offered_per_s", _optional(_number)),
    "answered_in_window": ("answered_in_window", _count),
    "histograms": ("histograms", dict),
    "errors": ("errors", _counts),
    "lost_bytes": ("lost_bytes", _count),
    "corrupt_bytes": ("corrupt_bytes", _count),
    "no_eof": ("no_eof", _count),
    "datagrams": ("datagrams", _optional(_counts)),
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
    "merged": ("merged", lambda found: tuple(map(dict, found or ()))),
    "host": ("host", dict),
}
