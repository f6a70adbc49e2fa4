"""The JSON form of a LoadReport: the public format ``fastsock.load/2`` (docs/results.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from fastsock.client.percentiles import name_of
from fastsock.client.report import (
    Finding,
    Interval,
    Intervals,
    Latency,
    LoadReport,
    StageFigures,
)

LOAD_SCHEMA = "fastsock.load/2"


#: The distributions: fields of LoadReport, and their names in ``latency_us``.
LATENCIES = {
    "latency": "from_intended_send",
    "latency_without_away": "from_intended_send_without_away",
    "latency_from_send": "from_actual_send",
    "connect_latency": "connect",
    "send_delay": "send_delay",
}
#: The same fields, and the names of their histograms.
HISTOGRAMS = {name: name.removesuffix("_latency") for name in LATENCIES}
PERCENTILE_FIELDS = {"p99_9": "p99.9", "p99_99": "p99.99"}


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
        "p50": _known(latency.p50),
        "p99": _known(latency.p99),
        "max": _known(latency.max),
        "after_window": row.after_window,
    }


def _known(value: float) -> float | None:
    """None for NaN: nothing was answered, or it cannot be known of merged runs."""
    return None if math.isnan(value) else value


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
    found = {PERCENTILE_FIELDS.get(name, name): value for name, value in asdict(latency).items()}
    found |= {name_of(percent): value for percent, value in found.pop("others")}
    return found if latency.count else None


def _findings(findings: Iterable[Finding]) -> list[dict[str, str]]:
    return [{"code": each.code, "text": each.text} for each in findings]
