"""Documents of runs for the tests of the page: real ones, and what is added to them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import fastsock
from fastsock._native.client.histogram import Histogram
from fastsock.client.hdr import encode

Document = dict[str, Any]

LATENCY = {
    "count": 500,
    "min": 20.5,
    "mean": 50.0,
    "p50": 41.0,
    "p90": 60.0,
    "p99": 155.0,
    "p99.9": 2410.0,
    "p99.99": 4000.0,
    "max": 4200.0,
}


def real_runs() -> dict[str, Document]:
    """Short runs of several kinds."""
    quiet: dict[str, Any] = {"wait": "block", "timeout": 1.0}
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        where = server.endpoint
        opened = fastsock.load(where, duration=0.5, rate=2000, connections=4, label="open", **quiet)
        closed = fastsock.load(where, messages=2000, connections=2, label="closed", **quiet)
    with fastsock.Server("tcp://127.0.0.1:0", service="discard") as server:
        sent = fastsock.load(server.endpoint, mode="send", duration=0.2, label="sent", **quiet)
    with fastsock.Server("udp://127.0.0.1:0") as server:
        datagrams = fastsock.load(server.endpoint, messages=200, label="datagrams", **quiet)
    refused = fastsock.load("unix://@fastsock-test-page-nothing", messages=10, label="refused")
    runs = {
        "open": opened,
        "closed": closed,
        "sent": sent,
        "datagrams": datagrams,
        "refused": refused,
    }
    return {name: run.as_dict() for name, run in runs.items()}


def row(start: float, end: float, messages: int, **more: Any) -> Document:
    values = {"errors": 0, "outstanding": 2, "p50": 41.2, "p99": 80.1, "max": 300.5}
    return {
        "start_s": start,
        "end_s": end,
        "messages": messages,
        **values,
        "after_window": False,
        **more,
    }


def stage(text: str, start: float, end: float, first: float, last: float) -> Document:
    count = round((end - start) * (first + last) / 2)
    return {
        "stage": text,
        "start_s": start,
        "end_s": end,
        "rate_from": first,
        "rate_to": last,
        "offered": count,
        "messages": count,
        "messages_per_s": count / (end - start),
        "latency_us": LATENCY,
    }


def target(text: str, seen: str, *, met: bool) -> Document:
    return {
        "target": text,
        "metric": "p99",
        "operator": "<",
        "limit": 0.001,
        "seen": 0.00123,
        "met": met,
        "text": f"{text}: {seen}",
    }


def judged(document: Document, *reasons: str) -> Document:
    """The run with these reasons why it is not valid; without any it is valid."""
    found = [{"code": "errors", "text": each} for each in reasons]
    return {**copy.deepcopy(document), "valid": not reasons, "reasons": found}


def staged(document: Document) -> Document:
    """A valid run with intervals, a stall in one of them, stages and targets."""
    rows = []
    for second in range(60):
        rate = 1000 if second < 10 else min(10000, 1000 + 300 * (second - 10))
        stalled = {"p99": 120_000.0, "max": 300_500.0} if second == 33 else {}
        rows.append(row(second, second + 1, rate, p50=40 + rate / 400, **stalled))
    rows.append(row(60, 60.2, 3, p50=900.0, p99=1500.0, max=1600.0, after_window=True))
    return {
        **judged(document),
        "options": {
            **document["options"],
            "rate": None,
            "stages": "10s@1k, 30s@1k..10k, 20s@10k",
        },
        "label": "Echo through haproxy, ramp to 10k/s",
        "duration_s": 60.0,
        "intervals": {"interval_s": 1.0, "joined": 1, "rows": rows},
        "stages": [
            stage("10s@1k", 0, 10, 1000, 1000),
            stage("30s@1k..10k", 10, 40, 1000, 10000),
            stage("20s@10k", 40, 60, 10000, 10000),
        ],
        "targets": [
            target("p99<1ms", "1.23ms", met=False),
            target("rate>=5k", "5.1k/s", met=True),
        ],
    }


def failed(document: Document) -> Document:
    """A run of `staged` with errors, which is not valid."""
    run = judged(staged(document), "connections reset by the server: 16", "the client was away")
    for each in run["intervals"]["rows"][30:36]:
        each["errors"] = 3
    run["errors"]["reset"] = 16
    return {**run, "label": "failed"}


def with_latencies(document: Document, nanoseconds: Sequence[int]) -> Document:
    """The run with these latencies instead of its own."""
    histogram = Histogram()
    for value in nanoseconds:
        histogram.record(value)
    summary = histogram.summary_us()
    summary = {name.replace("_", "."): value for name, value in summary.items()}
    fields = ("from_intended_send", "from_actual_send", "from_intended_send_without_away")
    names = ("latency", "latency_from_send", "latency_without_away")
    run = copy.deepcopy(document)
    run["latency_us"] |= dict.fromkeys(fields, summary)
    run["histograms"] |= dict.fromkeys(names, encode(histogram))
    return run


def series(runs: Sequence[Document], kind: str = "repeat", **more: Any) -> Document:
    return {
        "schema": "fastsock.series/1",
        "label": None,
        "kind": kind,
        "started_at": runs[0]["started_at"],
        "endpoint": runs[0]["endpoint"],
        "runs": list(runs),
        "confidence": None,
        "find_max": None,
        **more,
    }
