"""Tests of the result format: reports of real runs, the schema, and its description."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import misbehaving
import pytest
from jsonschema import Draft202012Validator
from misbehaving import MisbehavingServer

import fastsock
from fastsock.client.options import LoadOptions
from fastsock.client.report import LOAD_ERRORS, LOAD_SCHEMA, Latency, LoadReport

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DOCS / "load-1.schema.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def reports() -> dict[str, LoadReport]:
    """The report of one real run of each sort."""
    found = {}
    with fastsock.Server("tcp://127.0.0.1:0") as server:

        def run(**options: Any) -> LoadReport:
            return fastsock.load(server.endpoint, wait="block", **options)

        found["closed"] = run(duration=0.1, connections=2)
        found["messages"] = run(messages=50, depth=4, verify=False)
        found["open"] = run(rate=500, duration=0.2, warmup=0)
        found["open with messages"] = run(rate=1000, messages=20, threads=2, connections=3)
        found["server_pid"] = run(duration=0.1, server_pid=os.getpid(), warmup=0)
    with fastsock.Server("tcp://127.0.0.1:0", service="discard") as server:
        found["send"] = fastsock.load(server.endpoint, mode="send", duration=0.1, wait="block")
    with fastsock.Server("tcp://127.0.0.1:0", service="chargen") as server:
        found["receive"] = fastsock.load(server.endpoint, mode="receive", messages=9, wait="block")
    with misbehaving.refusing_address() as address:
        found["refused"] = fastsock.load(address, messages=5, wait="block")
    with MisbehavingServer(misbehaving.flips_byte(70)) as bad:
        found["corrupt"] = fastsock.load(bad.address, messages=5, wait="block")
    with MisbehavingServer(misbehaving.stalls_after(70)) as bad:
        found["lost"] = fastsock.load(bad.address, messages=5, wait="block", timeout=0.2)
    return found


SORTS = (
    "closed",
    "messages",
    "open",
    "open with messages",
    "server_pid",
    "send",
    "receive",
    "refused",
    "corrupt",
    "lost",
)


def validate(document: Any, schema: dict[str, Any]) -> list[str]:
    return [error.message for error in Draft202012Validator(schema).iter_errors(document)]


def objects_of(schema: Any) -> Iterator[dict[str, Any]]:
    """Every subschema that describes an object, at any depth."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for value in schema.values():
            yield from objects_of(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from objects_of(value)


def test_the_schema_is_one(schema: dict[str, Any]) -> None:
    """The schema is valid, and has the version that reports have."""
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["properties"]["schema"]["const"] == LOAD_SCHEMA == "fastsock.load/1"


def test_the_schema_is_strict(schema: dict[str, Any]) -> None:
    """Every object of the schema requires and describes each field, and allows no others."""
    found = list(objects_of(schema))
    assert len(found) == 6
    for part in found:
        assert part["additionalProperties"] is False
        assert sorted(part["required"]) == sorted(part["properties"])
        assert all("description" in p or "$ref" in p for p in part["properties"].values())


@pytest.mark.parametrize("sort", SORTS)
def test_reports_match_the_schema(
    sort: str, reports: dict[str, LoadReport], schema: dict[str, Any]
) -> None:
    """The report of every sort of run matches the schema."""
    assert validate(reports[sort].as_dict(), schema) == []


@pytest.mark.parametrize("sort", SORTS)
def test_reports_survive_json(sort: str, reports: dict[str, LoadReport]) -> None:
    """A report is unchanged after strict JSON: it has no NaN, no infinity and no other type."""
    document = reports[sort].as_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document


@pytest.mark.parametrize("sort", SORTS)
def test_figures_agree_with_each_other(sort: str, reports: dict[str, LoadReport]) -> None:
    """Rates are counts divided by the duration; `valid` means that there are no reasons."""
    report = reports[sort]
    document = report.as_dict()
    assert document["bytes"] == document["messages"] * document["options"]["size"]
    assert document["offered_per_s"] == document["options"]["rate"]
    assert document["valid"] is (document["reasons"] == [])
    assert set(document["errors"]) == set(LOAD_ERRORS)
    assert report.failed is (sort in ("refused", "corrupt", "lost"))
    if document["duration_s"]:
        assert document["messages_per_s"] == document["messages"] / document["duration_s"]
        assert document["bytes_per_s"] == document["bytes"] / document["duration_s"]
    else:
        assert document["messages_per_s"] == document["bytes_per_s"] == 0
    answered = sort not in ("send", "receive")
    for start in ("from_intended_send", "from_actual_send"):
        assert (document["latency_us"][start] is not None) is answered
    assert math.isnan(report.latency.p99) is not answered
    open_loop = document["options"]["rate"] is not None
    assert (document["latency_us"]["send_delay"] is not None) is open_loop
    assert (document["server_cpu_s"] is None) is (sort != "server_pid")
    assert document["host"]["fastsock"] == fastsock.__version__


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), "fastsock.load/2"),
        (("endpoint",), "http://127.0.0.1:1"),
        (("messages",), -1),
        (("messages",), 1.5),
        (("duration_s",), -0.1),
        (("duration_s",), None),
        (("client_busy",), 1.1),
        (("valid",), False),
        (("reasons",), ["why"]),
        (("offered_per_s",), 0),
        (("options", "mode"), "both"),
        (("options", "wait"), "sleep"),
        (("options", "messages"), 5),
        (("options", "duration"), None),
        (("options", "progress"), None),
        (("errors", "surprise"), 1),
        (("errors", "reset"), None),
        (("latency_us", "p50"), 1),
        (("latency_us", "from_actual_send", "p50"), "1"),
        (("latency_us", "from_intended_send", "p95"), 1),
        (("host", "cpus"), 0),
        (("note",), "hello"),
    ],
)
def test_the_schema_refuses(
    path: tuple[str, ...],
    value: Any,
    reports: dict[str, LoadReport],
    schema: dict[str, Any],
) -> None:
    """A document with a wrong value or an unknown field, at any level, does not match."""
    document = copy.deepcopy(reports["messages" if path[-1] == "duration" else "closed"].as_dict())
    if path[-1] == "duration":
        document["options"]["messages"] = None
    place = document
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    assert validate(document, schema)


def test_the_schema_refuses_a_missing_field(
    reports: dict[str, LoadReport], schema: dict[str, Any]
) -> None:
    """A document without one of the fields does not match."""
    document = reports["closed"].as_dict()
    for name in document:
        assert validate({key: value for key, value in document.items() if key != name}, schema)


def test_the_schema_has_every_option(schema: dict[str, Any]) -> None:
    """The schema's options are those of the library, in its order."""
    known = list(schema["properties"]["options"]["properties"])
    assert known == [option.name for option in fields(LoadOptions)]


def test_every_field_is_described(schema: dict[str, Any]) -> None:
    """docs/results.md has a table row for every field of the schema."""
    rows = re.findall(r"^\|([^|]*)\|", (DOCS / "results.md").read_text(), re.MULTILINE)
    described = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    for part in objects_of(schema):
        assert set(part["properties"]) <= described


def test_every_reason_is_described(reports: dict[str, LoadReport]) -> None:
    """docs/results.md has the text of the reasons that these runs gave."""
    text = (DOCS / "results.md").read_text()
    assert "no message was answered in the window" in reports["refused"].reasons
    assert "connections refused: 1" in reports["refused"].reasons
    for words in ("no message was answered in the window", "connections refused: N"):
        assert f"`{words}`" in text
    assert any(reason.endswith("bytes lost") for reason in reports["lost"].reasons)
    assert any(reason.endswith("bytes corrupt") for reason in reports["corrupt"].reasons)
    assert "`N bytes lost`" in text and "`N bytes corrupt`" in text


def test_an_empty_report() -> None:
    """A report of 0 seconds has rates of 0."""
    report = LoadReport("tcp://127.0.0.1:1", {}, 0.0, 0, 0, Latency(), Latency())
    assert report.messages_per_s == report.bytes_per_s == 0
    assert report.valid and not report.failed


def test_reports_are_frozen(reports: dict[str, LoadReport]) -> None:
    """A report cannot be changed."""
    with pytest.raises(AttributeError):
        reports["closed"].messages = 1  # type: ignore[misc]


def test_server_stats_are_json() -> None:
    """ServerStats.as_dict() is plain JSON, with a field for every counter."""
    with fastsock.Server("tcp://127.0.0.1:0", "tcp://127.0.0.1:0") as server:
        fastsock.load(server.endpoint, messages=10, wait="block")
        stats = server.stats()
    document = stats.as_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert list(document) == [counter.name for counter in fields(fastsock.ServerStats)]
    assert document["bytes_in"] == document["bytes_out"] == 640
    assert len(document["endpoints"]) == 2
