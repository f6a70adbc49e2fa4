"""Tests of the result format: reports of real runs, the schema, and its description."""

from __future__ import annotations

import copy
import inspect
import json
import math
import os
import pickle
import queue
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import astuple, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import misbehaving
import pytest
from jsonschema import Draft202012Validator
from misbehaving import MisbehavingServer

import fastsock
from fastsock.cli import load as command
from fastsock.client import hdr, merge, verdict
from fastsock.client.document import LOAD_SCHEMA
from fastsock.client.document_reader import report_of
from fastsock.client.options import LoadOptions
from fastsock.client.report import (
    DATAGRAM_COUNTS,
    LOAD_ERRORS,
    Finding,
    Latency,
    LoadReport,
    Outages,
    TcpStory,
)
from fastsock.units import format_rate

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DOCS / "load-2.schema.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def reports() -> dict[str, LoadReport]:
    """The report of one real run of each sort."""
    found = {}
    with fastsock.Server("tcp://127.0.0.1:0", "udp://127.0.0.1:0") as server:

        def run(**options: Any) -> LoadReport:
            return fastsock.load(server.endpoints[0], wait="block", **options)

        found["closed"] = run(duration=0.1, connections=2)
        found["messages"] = run(messages=50, depth=4, verify=False)
        found["open"] = run(rate=500, duration=0.2, warmup=0)
        found["open with messages"] = run(rate=1000, messages=20, threads=2, connections=3)
        found["poisson"] = run(rate=500, duration=0.1, arrivals="poisson", label="one")
        found["reconnect"] = run(messages=20, on_disconnect="reconnect", finish="half-close")
        found["datagrams"] = fastsock.load(server.endpoints[1], messages=20, wait="block")
        found["server_pid"] = run(duration=0.1, server_pid=os.getpid(), warmup=0)
    with fastsock.Server("tcp://127.0.0.1:0", service="discard") as server:
        found["send"] = fastsock.load(server.endpoint, mode="send", duration=0.1, wait="block")
    with fastsock.Server("tcp://127.0.0.1:0", service="chargen") as server:
        found["receive"] = fastsock.load(server.endpoint, mode="receive", messages=9, wait="block")
    with MisbehavingServer(misbehaving.never_closes) as bad:
        found["no_eof"] = fastsock.load(bad.address, messages=5, wait="block")
    with MisbehavingServer(misbehaving.serves_slowly(64, 0.01)) as bad:
        found["overload"] = fastsock.load(
            bad.address, rate=800, duration=0.3, warmup=0, wait="block"
        )
    with misbehaving.refusing_address() as address:
        found["refused"] = fastsock.load(address, messages=5, wait="block")
    with MisbehavingServer(misbehaving.flips_byte(70)) as bad:
        found["corrupt"] = fastsock.load(bad.address, messages=5, wait="block")
    with MisbehavingServer(misbehaving.stalls_after(70)) as bad:
        found["lost"] = fastsock.load(bad.address, messages=5, wait="block", timeout=0.2)
    return found


#: The names of histograms, and of the distributions that they are.
HISTOGRAMS = {
    "connect": "connect",
    "latency": "from_intended_send",
    "latency_from_send": "from_actual_send",
    "latency_without_away": "from_intended_send_without_away",
    "send_delay": "send_delay",
}

SORTS = (
    "closed",
    "messages",
    "open",
    "open with messages",
    "poisson",
    "reconnect",
    "datagrams",
    "server_pid",
    "send",
    "receive",
    "no_eof",
    "overload",
    "refused",
    "corrupt",
    "lost",
)


def validate(document: Any, schema: dict[str, Any]) -> list[str]:
    return [error.message for error in Draft202012Validator(schema).iter_errors(document)]


def objects_of(schema: Any) -> Iterator[dict[str, Any]]:
    """Every subschema that describes an object, at any depth."""
    if isinstance(schema, dict):
        if schema.get("type") in ("object", ["object", "null"]):
            yield schema
        for value in schema.values():
            yield from objects_of(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from objects_of(value)


def codes_of(schema: dict[str, Any], findings: str) -> set[str]:
    found = schema["properties"][findings]["items"]["properties"]["code"]["enum"]
    assert len(found) == len(set(found))
    return set(found)


def test_the_schema_is_one(schema: dict[str, Any]) -> None:
    """The schema is valid, and has the version that reports have."""
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["properties"]["schema"]["const"] == LOAD_SCHEMA == "fastsock.load/2"


def test_the_schema_is_strict(schema: dict[str, Any]) -> None:
    """Every object of the schema requires and describes each field, and allows no others."""
    found = list(objects_of(schema))
    assert len(found) == 18
    for part in found:
        assert part["additionalProperties"] is False
        if part is not schema["properties"]["histograms"]:  # of the distributions that there are
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
def test_a_document_becomes_its_report(sort: str, reports: dict[str, LoadReport]) -> None:
    """Also with fields of a later version, which are left out."""
    document = json.loads(json.dumps(reports[sort].as_dict()))
    assert report_of(document) == reports[sort]
    document |= {"later": 1, "latency_us": {**document["latency_us"], "later": {"p50": 1}}}
    if document["client"]:
        document["client"]["later"] = 1
    assert str(report_of(document)) == str(reports[sort])


@pytest.mark.parametrize("sort", SORTS)
def test_figures_agree_with_each_other(sort: str, reports: dict[str, LoadReport]) -> None:
    """Rates are counts over the duration, without steady state those of the window itself."""
    report = reports[sort]
    document = report.as_dict()
    assert document["bytes"] == document["messages"] * document["options"]["size"]
    assert document["offered_per_s"] == document["options"]["rate"]
    assert document["valid"] is (document["reasons"] == [])
    assert tuple(document["errors"]) == tuple(report.errors) == LOAD_ERRORS
    assert report.failed is (sort in ("refused", "corrupt", "lost"))
    if document["duration_s"]:
        codes = {reason["code"] for reason in document["reasons"]}
        counted = "answered_in_window" if codes & {"overload", "not_steady"} else "messages"
        assert document["messages_per_s"] == document[counted] / document["duration_s"]
    else:
        assert document["messages_per_s"] == 0
    assert document["bytes_per_s"] == document["messages_per_s"] * document["options"]["size"]
    answered = sort not in ("send", "receive", "refused")
    for start in HISTOGRAMS.values():
        if start.startswith("from_"):
            assert (document["latency_us"][start] is not None) is answered
    assert math.isnan(report.latency.p99) is not answered
    open_loop = document["options"]["rate"] is not None
    assert (document["latency_us"]["send_delay"] is not None) is open_loop
    opened = sort not in ("refused", "datagrams")
    assert (document["latency_us"]["connect"] is not None) is opened
    if open_loop:
        assert document["offered"] == document["messages"] + document["unanswered"]
    else:
        assert document["offered"] is None and document["unanswered"] == 0
        assert document["answered_in_window"] == document["messages"]
    assert (document["outages"] is None) is (sort != "reconnect")
    assert (document["datagrams"] is None) is (sort != "datagrams")
    assert document["label"] == ("one" if sort == "poisson" else None)
    assert document["no_eof"] == (sort == "no_eof")
    assert (document["server_cpu_s"] is None) is (sort != "server_pid")
    assert document["host"]["fastsock"] == fastsock.__version__


@pytest.mark.parametrize("sort", SORTS)
def test_histograms_are_the_distributions(sort: str, reports: dict[str, LoadReport]) -> None:
    """Each histogram of the JSON has the count and the percentiles that the report says."""
    document = json.loads(json.dumps(reports[sort].as_dict()))
    latencies = document["latency_us"]
    assert set(document["histograms"]) == {
        name for name, place in HISTOGRAMS.items() if latencies[place] is not None
    }
    for name, text in document["histograms"].items():
        said = latencies[HISTOGRAMS[name]]
        decoded = hdr.decode(text)
        assert len(decoded) == said["count"]
        for percent in (50, 90, 99, 99.9, 99.99):
            # The text does not have the exact maximum, which limits the percentiles of a report.
            value = min(decoded.percentile(percent) / 1e3, said["max"])
            assert value == said[f"p{percent:g}"], (name, percent)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), "fastsock.load/1"),
        (("endpoint",), "http://127.0.0.1:1"),
        (("messages",), -1),
        (("messages",), 1.5),
        (("duration_s",), -0.1),
        (("duration_s",), None),
        (("client", "busy"), 1.1),
        (("client", "schedstat"), None),
        (("valid",), None),
        (("reasons",), ["why"]),
        (("notes",), [{"code": "unknown", "text": "why"}]),
        (("notes",), [{"code": "no_eof"}]),
        (("started_at",), "yesterday"),
        (("histograms", "latency"), "text"),
        (("histograms", "surprise"), ""),
        (("intervals",), []),
        (("offered_per_s",), 0),
        (("options", "mode"), "both"),
        (("options", "wait"), "sleep"),
        (("options", "messages"), 5),
        (("options", "duration"), None),
        (("options", "progress"), None),
        (("options", "arrivals"), "random"),
        (("options", "finish"), "reset"),
        (("errors", "surprise"), 1),
        (("errors", "reset"), None),
        (("latency_us", "p50"), 1),
        (("latency_us", "from_actual_send", "p50"), "1"),
        (("latency_us", "from_intended_send", "p95"), -1),
        (("latency_us", "from_intended_send", "p100"), 1),
        (("targets",), []),
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


def test_valid_means_no_reasons(reports: dict[str, LoadReport], schema: dict[str, Any]) -> None:
    """A document that is valid and has reasons does not match, nor the opposite."""
    document = reports["closed"].as_dict()
    reason = {"code": "errors", "text": "why"}
    for valid, reasons in ((True, [reason]), (False, [])):
        assert validate({**document, "valid": valid, "reasons": reasons}, schema)
    for valid, reasons in ((False, [reason]), (True, [])):
        assert not validate({**document, "valid": valid, "reasons": reasons}, schema)


def test_the_schema_refuses_a_missing_field(
    reports: dict[str, LoadReport], schema: dict[str, Any]
) -> None:
    """A document without one of the fields does not match."""
    document = reports["closed"].as_dict()
    for name in document:
        assert validate({key: value for key, value in document.items() if key != name}, schema)


def test_the_schema_has_every_option(schema: dict[str, Any]) -> None:
    """The schema's options are those of the library, in its order; the label has its own place."""
    known = list(schema["properties"]["options"]["properties"])
    assert [*known, "label"] == [option.name for option in fields(LoadOptions)]


def test_every_field_is_described(schema: dict[str, Any]) -> None:
    """docs/results.md has a table row for every field of the schema."""
    rows = re.findall(r"^\|([^|]*)\|", (DOCS / "results.md").read_text(), re.MULTILINE)
    described = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    for part in objects_of(schema):
        assert set(part["properties"]) <= described


@pytest.mark.parametrize(("findings", "judge"), [("reasons", "reasons_of"), ("notes", "notes_of")])
def test_every_code_is_described(findings: str, judge: str, schema: dict[str, Any]) -> None:
    """docs/results.md has a table row for every code, and the schema has those of the verdict."""
    source = inspect.getsource(verdict)
    given = set(re.findall(r'Finding\(\s*"(\w+)"', source)) | set(verdict._CAUSES)
    given |= set(re.findall(r'code = "(\w+)"', source))
    of_notes = set(re.findall(r'Finding\("(\w+)"', inspect.getsource(verdict.notes_of)))
    codes = codes_of(schema, findings)
    elsewhere = {"errors", "lost", "corrupt", merge.NOTE}  # by targets, and of merged runs
    assert codes == (of_notes | elsewhere if findings == "notes" else given - of_notes)
    rows = re.findall(r"^\| `(\w+)`[ `\w]* \|", (DOCS / "results.md").read_text(), re.MULTILINE)
    assert codes <= set(rows)


def test_the_examples_of_reasons_are_given(reports: dict[str, LoadReport]) -> None:
    """A reason of each failed run has the code and the text of an example in docs/results.md."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", (DOCS / "results.md").read_text(), re.MULTILINE)
    examples = {
        (code, without_numbers(text))
        for code, row in rows
        for text in re.findall(r"`([^`]+)`", row)
    }
    for sort, codes in {
        "refused": {"errors", "no_messages"},
        "corrupt": {"corrupt"},
        "lost": {"lost"},
        "overload": {"overload"},
    }.items():
        given = {(each.code, without_numbers(each.text)) for each in reports[sort].reasons}
        assert codes <= {code for code, _ in given & examples}, given


def without_numbers(text: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "N", text)


def test_what_the_client_misses_after_the_window_is_no_evidence() -> None:
    """A client that is stopped while it waits for the server's end was not away in the window."""
    pids: queue.Queue[int] = queue.Queue()

    def stops_the_client(server: MisbehavingServer, connection: socket.socket) -> None:
        misbehaving.echoes(server, connection)
        pid = pids.get(timeout=20)
        os.kill(pid, signal.SIGSTOP)
        server.stopping.wait(0.3)  # this long the client is away
        os.kill(pid, signal.SIGCONT)

    with MisbehavingServer(stops_the_client) as bad:
        command = ["load", "tcp://{}:{}".format(*bad.address), "-n", "5", "--wait", "block"]
        with subprocess.Popen(
            [sys.executable, "-m", "fastsock", *command, "--json", "-"], stdout=subprocess.PIPE
        ) as process:
            pids.put(process.pid)
            output, _ = process.communicate(timeout=30)
    document = json.loads(output)
    client = document["client"]
    assert client["longest_s"] <= client["away_s"] + client["delayed_s"] <= document["duration_s"]
    assert document["messages"] == 5


def test_an_empty_report() -> None:
    """A report of 0 seconds has rates of 0."""
    report = LoadReport("tcp://127.0.0.1:1", {}, 0.0, 0, 0, Latency(), Latency())
    assert report.messages_per_s == report.bytes_per_s == 0
    assert report.valid and not report.failed


#: As long as sun_path lets one be (unix(7)), with a space, and in characters of two columns.
LONG = "unix:///" + "directory-" * 10 + "a b.so"
WIDE = "unix:///" + "\u6f22\u5b57" * 17 + " x"


def huge(endpoint: str, mode: str, rate: float | None) -> LoadReport:
    """A report with the largest figures that a run can have, and with everything to say."""
    options = {"mode": mode, "connections": 65536, "size": 1 << 30, "depth": 65536, "rate": rate}
    month = Latency(1 << 60, *[2_592_000_123_456.7] * 8)
    path = endpoint.partition("://")[2]
    return LoadReport(
        endpoint=endpoint,
        options=options,
        duration=2_591_999.9,
        messages=1 << 48,
        answered_in_window=1 << 48,
        bytes=1 << 78,
        latency=month,
        latency_from_send=month,
        connect_latency=month,
        send_delay=month,
        address=path,
        offered_per_s=rate,
        datagrams=dict.fromkeys(DATAGRAM_COUNTS, 1 << 60),
        outages=Outages(1 << 40, 2_591_999.9, 2_591_999.9, 1 << 60),
        tcp=TcpStory(65536, 1 << 60, 2e12, 2e12, 2e12),
        reasons=(
            Finding("errors", f"connections refused by {path}: 1; perhaps it is {'so ' * 40}"),
            Finding("lost", "w" * 75),
        ),
        notes=(Finding("no_eof", "the server did not close it" + ", nor this one" * 9),),
        server_cpu=2e6,
    )


@pytest.mark.parametrize(
    "endpoint", [LONG, WIDE, "tcp://[2001:db8::1]:65535"], ids=["long", "wide", "tcp"]
)
@pytest.mark.parametrize(
    ("mode", "rate"),
    [("echo", None), ("echo", 999e6), ("send", None), ("send", 1e9), ("receive", None)],
)
def test_the_text_has_80_columns(endpoint: str, mode: str, rate: float | None) -> None:
    """No line is wider, but for a name that is: it stands whole on a line of its own."""
    report = huge(endpoint, mode, rate)
    lines = str(report).splitlines()
    path = report.address
    for line in lines:
        assert len(line.encode()) <= 80 or line in (endpoint, f"{path}:"), line
        assert line == line.rstrip()
    assert sum(endpoint in line for line in lines) == 1
    assert sum(path in line for line in lines) == 2
    words = " ".join(" ".join(line[10:] for line in lines if line.startswith(" " * 10)).split())
    assert f"perhaps it is {'so ' * 40}".strip() in words
    assert "w" * 75 in lines
    assert len(repr(report)) < 400


@pytest.mark.parametrize("sort", SORTS)
def test_the_text_of_every_sort(sort: str, reports: dict[str, LoadReport]) -> None:
    """It begins with the endpoint, has each reason, and no line is wider than 80 columns."""
    report = reports[sort]
    text = str(report)
    assert text.startswith(report.endpoint)
    assert "nan" not in text
    assert max(map(len, text.splitlines())) <= 80
    for reason in report.reasons:
        assert reason in " ".join(text.split())
    assert text.endswith("valid     yes") is (report.valid and not report.reasons)


@pytest.mark.parametrize("sort", ["closed", "open", "send", "datagrams"])
def test_the_command_prints_the_text(
    sort: str, reports: dict[str, LoadReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`print(report)` shows what `fastsock load` prints."""
    written: list[str] = []
    monkeypatch.setattr(command, "write_result", written.append)
    command.show(reports[sort], with_figures=True)
    assert written == [str(reports[sort])]


@pytest.mark.parametrize("sort", SORTS)
def test_repr_is_one_line(sort: str, reports: dict[str, LoadReport]) -> None:
    """repr() has the endpoint, the rate, p99 and the verdict, for a prompt and for pytest."""
    report = reports[sort]
    text = repr(report)
    assert text.startswith(f"<fastsock.LoadReport {report.endpoint}: ")
    assert format_rate(report.messages_per_s) in text
    assert (" p99 " in text) is (report.latency.count > 0)
    assert text.endswith("valid>") is report.valid
    assert not report.reasons or f"not valid: {report.reasons[0][:90]}" in text
    assert "\n" not in text and len(text) < 300


def test_errors_have_every_kind(reports: dict[str, LoadReport]) -> None:
    """A kind that did not happen is 0, in a report of the twin and one made by hand too."""
    assert reports["refused"].errors["refused"] == 1
    twin = import_module("fastsock.pure.client")
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        of_twin = twin.load(server.endpoint, messages=5)
    by_hand = LoadReport("", {}, 1.0, 0, 0, Latency(), Latency(), errors={"reset": 2})
    for report in (*reports.values(), of_twin, by_hand):
        assert tuple(report.errors) == LOAD_ERRORS
        assert report.errors["other"] == 0
    assert by_hand.errors["reset"] == 2
    assert not of_twin.failed and by_hand.failed


def test_no_target_is_met_without_answers(reports: dict[str, LoadReport]) -> None:
    """All latencies of a run without answers are not numbers: no comparison holds."""
    twin = import_module("fastsock.pure.client")
    with misbehaving.refusing_address() as address:
        of_twin = twin.load(address, messages=5)
    for report in (reports["refused"], reports["send"], reports["receive"], of_twin):
        for latency in (report.latency, report.latency_from_send, report.latency_without_away):
            assert latency.count == 0
            assert all(math.isnan(value) for value in astuple(latency)[1:-1])
            assert not latency.p99 < 500 and not latency.max < 500
    assert math.isnan(reports["refused"].connect_latency.max)
    assert math.isnan(reports["datagrams"].connect_latency.max)
    assert math.isnan(reports["closed"].send_delay.max)
    json.dumps(of_twin.as_dict(), allow_nan=False)
    assert " - " in str(of_twin)


@pytest.mark.parametrize("sort", SORTS)
def test_a_copy_is_equal(sort: str, reports: dict[str, LoadReport]) -> None:
    """Also a report without any latency, whose figures are NaN, and one through pickle."""
    report = reports[sort]
    for same in (pickle.loads(pickle.dumps(report)), copy.deepcopy(report)):
        assert same == report
        assert hash(same.latency) == hash(report.latency)
        assert [each.code for each in same.reasons] == [each.code for each in report.reasons]


def test_latencies_are_equal_by_their_figures() -> None:
    assert Latency(0, float("nan")) == Latency()
    assert Latency(1, *[2.0] * 8) == Latency(1, *[2.0] * 8) != Latency(1, *[3.0] * 8)
    assert Latency() != Latency(1) != ()


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
    assert str(stats) == "served 1 connection: 640B in, 640B out; errors: none"
    assert repr(stats).startswith("ServerStats(engine=")
