"""Targets of a load run: the grammar, what is refused, what is seen, and the exit codes."""

from __future__ import annotations

import copy
import json
import pickle
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import misbehaving
import pytest
from clients import wait_until
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from load_runs import SERVED
from misbehaving import MisbehavingServer

import fastsock
from fastsock._native.client.histogram import Histogram
from fastsock.cli import run
from fastsock.cli.exits import code_of
from fastsock.client.options import LoadOptions
from fastsock.client.report import Finding, Latency, LoadReport
from fastsock.client.target_results import results_of
from fastsock.client.targets import Target
from fastsock.endpoint import Endpoint

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "load-2.schema.json").read_text())
MET, MISSED = 0, 3


@pytest.mark.parametrize(
    ("text", "metric", "operator", "limit"),
    [
        ("p99<1ms", "p99", "<", 0.001),
        ("  p99\t<= 1 ms ", "p99", "<=", 0.001),
        ("p99.90>1us", "p99.9", ">", 1e-6),
        ("p0.5>=1", "p0.5", ">=", 1.0),
        ("sent.p50==2min", "sent.p50", "==", 120.0),
        ("connect.max<.5s", "connect.max", "<", 0.5),
        ("delay.mean<1e3us", "delay.mean", "<", 0.001),
        ("min<1_000us", "min", "<", 0.001),
        ("rate>=10k/s", "rate", ">=", 10_000.0),
        ("errors==0", "errors", "==", 0),
        ("errors<1k", "errors", "<", 1000),
        ("lost<0.1%", "lost", "<", 0.001),
        ("errors<=100 %", "errors", "<=", 1.0),
        ("corrupt<=1", "corrupt", "<=", 1),
        ("retransmits<5", "retransmits", "<", 5),
    ],
)
def test_a_target_is_taken_apart(text: str, metric: str, operator: str, limit: float) -> None:
    target = Target(text)
    assert (target.metric, target.operator, target.limit) == (metric, operator, limit)
    assert re.search(r"\s", target) is None
    for same in (Target(target), pickle.loads(pickle.dumps(target)), copy.deepcopy(target)):
        assert (same, same.limit, same.is_share) == (target, target.limit, "%" in text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("p99=<1ms", "did you mean p99<=1ms?"),
        ("p99=>1ms", "did you mean p99>=1ms?"),
        ("p99=1ms", "did you mean p99<=1ms?"),
        ("errors=0", "did you mean errors==0?"),
        ("rate=10k", "did you mean rate>=10k?"),
        ("p99\u22641ms", "did you mean p99<=1ms?"),
        ("p99 1ms", "did you mean p99<=1ms?"),
        ("p99: 1ms", "did you mean p99<=1ms?"),
        ("latency<1ms", "did you mean p99<1ms?"),
        ("latency.p99<1ms", "did you mean p99<1ms?"),
        ("p999<1ms", "did you mean p99.9<1ms?"),
        ("p99_9<1ms", "did you mean p99.9<1ms?"),
        ("P99<1ms", "did you mean p99<1ms?"),
        ("99th<1ms", "did you mean p99<1ms?"),
        ("p(99)<1", "did you mean p99<1?"),
        ("p100<1ms", "did you mean max<1ms?"),
        ("avg<1ms", "did you mean mean<1ms?"),
        ("connect<1ms", "did you mean connect.p99<1ms?"),
        ("send_delay.p99<1ms", "did you mean delay.p99<1ms?"),
        ("rps>1k", "did you mean rate>1k?"),
        ("error<1", "did you mean errors<1?"),
        ("http_req_failed<1%", "did you mean errors<1%?"),
        ("p99<1mss", "limit '1mss' is not a duration; did you mean 1ms?"),
        ("p99<1\u00b5s", "did you mean 1us?"),
        ("p99<1 0ms", "is not a duration"),
        ("p99<-1ms", "is not a duration"),
        ("p99<nan", "is not a duration"),
        ("p99<1e400", "too large"),
        ("p99<1%", "is a share, which p99 has not"),
        ("corrupt<1%", "is a share, which corrupt has not"),
        ("errors<101%", "expected 0% to 100%"),
        ("errors<0.5", "write 1"),
        ("p\u0669\u0669<1ms", "at most 3 decimals"),
        ("zorp<1", "the metrics are p50 to"),
        ("p99<1ms,p50<2ms", "write one comparison in each target"),
        ("p99<1ms && p50<2ms", "write one comparison in each target"),
        ("1ms<p99<2ms", "write one comparison in each target"),
        ("p99!=1ms", "write METRIC OPERATOR VALUE"),
        ("p99", "write METRIC OPERATOR VALUE"),
        ("p99<", "write METRIC OPERATOR VALUE"),
        ("<1ms", "write METRIC OPERATOR VALUE"),
        ("", "write METRIC OPERATOR VALUE"),
        ("\ud800<1", "is no metric"),
        ("\u6f22" * 5000, "too long"),
        ("p99<" + "9" * 5000, "too long"),
    ],
    ids=lambda text: ascii(text)[:30],
)
def test_what_is_no_target(text: str, says: str) -> None:
    """One line that quotes the target, says what is wrong, and suggests a target that is one."""
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        LoadOptions(targets=[text])  # type: ignore[arg-type]
    error = str(caught.value)
    assert error.isprintable() and len(error) < 300
    assert error.startswith("target ")
    if (meant := re.search(r"did you mean ([^ ]*[<>=][^ ]*)\?$", error)) is not None:
        Target(meant[1])


@given(st.text(max_size=30) | st.text("p9.1<>= m%srat", max_size=12))
def test_any_text_is_a_target_or_refused(text: str) -> None:
    try:
        target = Target(text)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert Target(target) == target


@pytest.mark.parametrize("each", [1, None, b"p99<1ms", ["p99<1ms"]])
def test_a_target_is_text(each: Any) -> None:
    with pytest.raises(TypeError, match=r"^target .*expected a str such as 'p99<1ms'$"):
        LoadOptions(targets=[each])


@pytest.mark.parametrize("name", ["target", "slo", "thresholds"])
def test_other_names_of_the_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TypeError, match="did you mean 'targets'"):
        fastsock.load("127.0.0.1:1", **{name: ["p99<1ms"]})
    if name != "target":
        assert run(["load", "127.0.0.1:1", f"--{name}", "p99<1ms"]) == 2
        assert "did you mean --target?" in capsys.readouterr().err


def test_a_target_given_twice_is_one() -> None:
    options = LoadOptions(targets=["p99<1ms", "p50<1ms", " p99 < 1 ms"])  # type: ignore[arg-type]
    assert options.targets == ("p99<1ms", "p50<1ms")


@pytest.mark.parametrize(
    ("endpoint", "options", "target", "why"),
    [
        ("tcp://h:1", {}, "delay.p99<1", "without a rate"),
        ("tcp://h:1", {"mode": "send"}, "p99<1", "mode 'send' nothing is answered"),
        ("tcp://h:1", {"mode": "receive"}, "sent.max<1", "mode 'receive' nothing is answered"),
        ("tcp://h:1", {"mode": "receive"}, "lost==0", "what is lost is not known"),
        ("tcp://h:1", {"mode": "send"}, "corrupt==0", "nothing comes back to compare"),
        ("tcp://h:1", {"verify": False}, "corrupt==0", "nothing is compared without verify"),
        ("tcp://h:1", {}, "lost<1%", "a share goes with datagrams"),
        ("unix:/s", {}, "retransmits==0", "only TCP retransmits"),
        ("udp://h:1", {}, "retransmits==0", "only TCP retransmits"),
        ("udp://h:1", {}, "connect.p99<1", "does not connect"),
        ("unixgram:/s", {}, "connect.max<1", "does not connect"),
    ],
)
def test_what_a_run_does_not_have(
    endpoint: str,
    options: dict[str, Any],
    target: str,
    why: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is refused before the run, in Python and by the command."""
    with pytest.raises(ValueError, match=re.escape(why)):
        fastsock.load(endpoint, targets=[target], **options)
    flags = {"mode": ["--mode"], "verify": ["--no-verify"]}
    given = [part for name in options for part in flags[name]]
    given += [options["mode"]] if "mode" in options else []
    assert run(["load", endpoint, "--target", target, *given]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert why in " ".join(err.split())


@pytest.mark.parametrize(
    ("endpoint", "options", "target"),
    [
        ("tcp://h:1", {"rate": 1}, "delay.p99<1"),
        ("tcp://h:1", {"mode": "send", "rate": 1}, "delay.p99<1"),
        ("tcp://h:1", {"mode": "receive"}, "corrupt==0"),
        ("tcp://h:1", {"mode": "send"}, "connect.max<1"),
        ("tcp://h:1", {}, "errors<1%"),
        ("unix:/s", {}, "connect.p99<1"),
        ("udp://h:1", {}, "lost<1%"),
    ],
)
def test_what_a_run_has(endpoint: str, options: dict[str, Any], target: str) -> None:
    LoadOptions(targets=[target], **options).check_target(  # type: ignore[arg-type]
        Endpoint.parse(endpoint)
    )


# --- runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "code", "says"),
    [
        ("p50<10s", MET, "p50<10s: met, "),
        ("p50 < 10", MET, "p50<10: met, "),
        ("p99>0us", MET, "p99>0us: met, "),
        ("p99<1us", MISSED, "p99<1us: MISSED, "),
        ("p99.9<10s", MISSED, "p99.9<10s: MISSED, too few values, 1 above it"),
        ("mean<=10s", MET, "mean<=10s: met, "),
        ("max<1us", MISSED, "max<1us: MISSED, "),
        ("min>=1us", MET, "min>=1us: met, "),
        ("sent.p90<10s", MET, "sent.p90<10s: met, "),
        ("connect.max<10s", MET, "connect.max<10s: met, "),
        ("connect.p50<10s", MISSED, "connect.p50<10s: MISSED, too few values, 0 above it"),
        ("rate>1", MET, "rate>1: met, "),
        ("rate>1M", MISSED, "rate>1M: MISSED, "),
        ("errors==0", MET, "errors==0: met, 0"),
        ("errors<1%", MET, "errors<1%: met, 0%"),
        ("errors>0", MISSED, "errors>0: MISSED, 0"),
        ("lost==0", MET, "lost==0: met, 0"),
        ("corrupt==0", MET, "corrupt==0: met, 0"),
        ("p99=<1ms", 2, "did you mean p99<=1ms?"),
        ("latency<1ms", 2, "did you mean p99<1ms?"),
        ("p999<1ms", 2, "did you mean p99.9<1ms?"),
        ("p99<1mss", 2, "did you mean 1ms?"),
        ("rps>1k", 2, "did you mean rate>1k?"),
        ("delay.p99<1ms", 2, "without a rate"),
        ("lost<1%", 2, "a share goes with datagrams"),
        ("p99", 2, "write METRIC OPERATOR VALUE"),
    ],
)
def test_targets_of_the_command(
    target: str,
    code: int,
    says: str,
    server: fastsock.Server,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each with its exit code and its line; on a busy machine a run may not be valid."""
    command = ["load", str(server.endpoint), "-n", "1000", "--wait", "block", "--target", target]
    assert run(command) in (code, 2 if code == 2 else 4)
    out, err = capsys.readouterr()
    if code == 2:
        assert out == "" and says in " ".join(err.split())
        return
    (line,) = [line for line in out.splitlines() if line.startswith("target ")]
    assert line.startswith(f"target    {says}")
    assert max(map(len, out.splitlines())) <= 80


def test_the_result_of_each_target(server: fastsock.Server) -> None:
    """In Python and in the JSON, in their order, from whole histograms of all threads."""
    texts = ["p95<1us", "max<100s", "rate>1", "errors==0", "p99.9<1s"]
    report = fastsock.load(
        server.endpoint, messages=2000, connections=2, threads=2, wait="block", targets=texts
    )
    assert report.targets is not None
    p95, longest, rate, errors, p99_9 = report.targets
    assert [each.target for each in report.targets] == texts
    assert [each.met for each in report.targets] == [False, True, True, True, False]
    assert report.missed == (p95, p99_9)
    assert p95.seen is not None and report.latency.p50 <= p95.seen * 1e6 <= report.latency.p99
    assert longest.seen == report.latency.max / 1e6
    assert rate.seen == report.messages_per_s
    assert errors.seen == 0 and errors.text == "errors==0: 0"
    assert p99_9.seen is None
    assert re.search(r", (valid|.*), 2 targets missed>$", repr(report))
    document = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert not list(Draft202012Validator(SCHEMA).iter_errors(document))
    assert document["options"]["targets"] == texts
    assert document["targets"][0] == {
        "target": "p95<1us",
        "metric": "p95",
        "operator": "<",
        "limit": 1e-6,
        "seen": p95.seen,
        "met": False,
        "text": p95.text,
    }
    assert pickle.loads(pickle.dumps(report)) == report


def test_without_targets(server: fastsock.Server) -> None:
    report = fastsock.load(server.endpoint, messages=5, wait="block")
    assert report.targets is None and report.missed == ()
    assert report.as_dict()["targets"] is None


@pytest.mark.parametrize(
    ("met", "reasons", "errors", "code"),
    [
        (True, (), {}, 0),
        (False, (), {}, 3),
        (False, (Finding("client_away", "why"),), {}, 4),
        (True, (Finding("client_away", "why"),), {}, 4),
        (False, (Finding("errors", "why"),), {"reset": 1}, 1),
    ],
)
def test_the_first_exit_code_that_applies(
    met: bool, reasons: tuple[Finding, ...], errors: dict[str, int], code: int
) -> None:
    report = LoadReport("", {}, 1.0, 100, 100, Latency(), Latency(), errors=errors, reasons=reasons)
    (result,) = results_of([Target(f"rate{'>' if met else '<'}1")], report, {}) or ()
    report = replace(report, targets=(result,))
    assert code_of(report) == code


def histogram(*values: int) -> Histogram:
    made = Histogram()
    for value in values:
        made.record(value)
    return made


@pytest.mark.parametrize(
    ("target", "seen", "says"),
    [
        ("max<=1ms", 1_000_000, "met, 1ms"),
        ("max==1ms", 1_000_000, "met, 1ms"),
        ("max<1ms", 1_000_000, "MISSED, 1ms"),
        ("max<1ms", 1_000_400, "MISSED, 1ms"),
        ("max<=1ms", 1_000_400, "MISSED, 1000.400us"),
        ("max<1ms", 999_999, "met, 999.999us"),
        ("max<1ms", 0, "met, 0us"),
        ("max<1h", 10**12, "met, 10min"),
    ],
)
def test_what_is_shown_tells_the_same_as_the_verdict(target: str, seen: int, says: str) -> None:
    """A figure is not rounded to the other side of its limit."""
    latency = histogram(seen)
    report = LoadReport("", {}, 1.0, 1, 1, Latency.of(latency), Latency())
    (result,) = results_of([Target(target)], report, {"latency": latency}) or ()
    assert str(result) == f"{target}: {says}"


@pytest.mark.parametrize(
    ("lost", "sent", "target", "says"),
    [
        (1, 100, "lost<1%", "MISSED, 1%"),
        (1, 101, "lost<1%", "met, 0.99%"),
        (9_999, 1_000_000, "lost<1%", "met, 0.999900%"),
        (1, 10**9, "lost==0%", "MISSED, 0.000000%"),
        (1, 10**7, "lost<1%", "met, 0.000010%"),
        (0, 0, "lost<1%", "MISSED, nothing was measured"),
        (3, 10, "lost<=3", "met, 3"),
    ],
)
def test_the_share_of_lost_datagrams(lost: int, sent: int, target: str, says: str) -> None:
    report = LoadReport(
        "", {}, 1.0, 1, 1, Latency(), Latency(), datagrams={"lost": lost, "sent": sent}
    )
    (result,) = results_of([Target(target)], report, {}) or ()
    assert str(result) == f"{target}: {says}"


def test_a_target_decides_on_lost_datagrams() -> None:
    """With a target on lost datagrams many of them are a note, and no reason."""

    def drops(number: int, payload: bytes) -> list[bytes]:
        return [payload] if number % 4 else []

    with misbehaving.datagram_server(drops) as endpoint:
        options: dict[str, Any] = {"messages": 40, "wait": "block", "loss_timeout": 0.05}
        plain = fastsock.load(endpoint, **options)
        lenient, strict = (
            fastsock.load(endpoint, targets=[target], **options)
            for target in ("lost<50%", "lost<1%")
        )
    assert "lost" in {each.code for each in plain.reasons}
    for report, met in ((lenient, True), (strict, False)):
        assert "lost" not in {each.code for each in report.reasons}
        assert "lost" in {each.code for each in report.notes}
        assert report.targets is not None and report.targets[0].met is met
        assert not list(Draft202012Validator(SCHEMA).iter_errors(report.as_dict()))


@pytest.mark.parametrize(
    ("targets", "failed", "left"),
    [
        ([], True, {"errors", "lost", "corrupt"}),
        (["errors<=1"], True, {"lost", "corrupt"}),
        (["corrupt<=1", "lost<1k"], True, {"errors"}),
        (["errors<=1", "corrupt<=1", "lost<1k"], False, set()),
        (["p99<1s"], True, {"errors", "lost", "corrupt"}),
    ],
)
def test_a_target_decides_instead_of_the_failure(
    targets: list[str], failed: bool, left: set[str]
) -> None:
    """Each for its own kind; what happened is a note then."""
    with MisbehavingServer(misbehaving.flips_byte(64 * 50)) as bad:
        report = fastsock.load(bad.address, messages=100, targets=targets, wait="block")
        command = ["load", "{}:{}".format(*bad.address), "-n", "100", "--wait", "block"]
        code = run([*command, *(part for each in targets for part in ("--target", each))])
    kinds = {"errors", "lost", "corrupt"}
    assert {each.code for each in report.reasons} & kinds == left
    assert {each.code for each in report.notes} & kinds == kinds - left
    assert report.failed is failed
    assert (code == 1) is failed
    assert report.errors["mismatch"] == report.corrupt_bytes == 1
    assert not list(Draft202012Validator(SCHEMA).iter_errors(report.as_dict()))


def test_a_run_without_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """Every target on latency is missed, and the line says so; the exit code is the failure's."""
    with misbehaving.refusing_address() as (host, port):
        command = ["load", f"{host}:{port}", "-n", "5", "--target", "p99<1s", "--target", "max>0us"]
        assert run(command) == 1
        said = " ".join(capsys.readouterr().err.split())
        assert "target p99<1s: MISSED, nothing was measured" in said
        assert "target max>0us: MISSED, nothing was measured" in said
        # Nothing was answered, which is not valid; the refusal itself was to be expected.
        assert run([*command[:4], "--target", "errors<=100%"]) == 4
        report = fastsock.load((host, port), messages=5, targets=["rate>1", "retransmits==0"])
    assert report.targets is not None
    assert [each.met for each in report.targets] == [False, False]
    assert not list(Draft202012Validator(SCHEMA).iter_errors(report.as_dict()))


def test_a_hundred_targets(server: fastsock.Server, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"p{number / 10:g}<{number}s" for number in range(1, 101)]
    flags = [part for text in texts for part in ("--target", text)]
    assert run(["load", str(server.endpoint), "-n", "1000", *flags]) in SERVED
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1].rstrip(":") for line in lines if line.startswith("target ")] == texts
    assert max(map(len, lines)) <= 80


def test_targets_of_the_environment(
    server: fastsock.Server,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Commas stand between them, so that spaces may stand in them."""
    monkeypatch.setenv("FASTSOCK_LOAD_TARGET", "p50 < 10s, errors == 0")
    assert run(["load", str(server.endpoint), "-n", "1000"]) in SERVED
    assert re.search(
        r"^target    p50<10s: met, .*\ntarget    errors==0: met, 0$",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    monkeypatch.setenv("FASTSOCK_LOAD_TARGET", "p50=<10s")
    assert run(["load", str(server.endpoint), "-n", "1000"]) == 2
    assert "FASTSOCK_LOAD_TARGET 'p50=<10s'" in capsys.readouterr().err


def test_json_on_stdout_with_a_missed_target(
    server: fastsock.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["load", str(server.endpoint), "-n", "1000", "--json", "-", "--target", "max<1us"]
    assert run(command) in (3, 4)
    out, err = capsys.readouterr()
    assert json.loads(out)["targets"][0]["met"] is False
    assert " target max<1us: MISSED, " in " ".join(err.split())


def test_a_closed_stdout_changes_no_exit_code(server: fastsock.Server) -> None:
    command = [sys.executable, "-m", "fastsock", "load", str(server.endpoint), "-n", "1000"]
    command += ["--wait", "block", "--target", "max<1us"]
    for closed in ("exec >&-; ", "", "exec >/dev/full; "):
        done = subprocess.run(
            ["sh", "-c", f'{closed}exec "$@"', "sh", *command], stderr=subprocess.PIPE, text=True
        )
        assert done.returncode in (3, 4)
        assert done.stderr == ""


def test_interrupted_whatever_the_targets(server: fastsock.Server) -> None:
    """The code is 130, and the report has the targets of what was measured."""
    command = [sys.executable, "-m", "fastsock", "load", str(server.endpoint), "-d", "30s"]
    command += ["--wait", "block", "--target", "max<1us", "--target", "errors==0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: server.stats().bytes_in > 0)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert re.search(r"\btarget +max<1us: MISSED, ", out + err)
    # In the warm-up nothing was measured, and there is no report but one line of what was missed.
    assert "target    errors==0: met, 0" in out or "no message was answered" in err


# --- percentiles --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([50], (50.0,)),
        ([99.999, 50, 99.999, 95.0], (50.0, 95.0, 99.999)),
        (range(1, 12), tuple(map(float, range(1, 12)))),
    ],
)
def test_percentiles_are_in_order(given: Any, expected: tuple[float, ...]) -> None:
    assert LoadOptions(percentiles=given).percentiles == expected


@pytest.mark.parametrize("text", ["", "50,", "fifty", "50 99", "1e1", "\u0665", "50;99", "nan"])
def test_bad_percentiles(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["load", "127.0.0.1:1", "--percentiles", text]) == 2
    assert "write them with commas, as in 50,99,99.9" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("text", ["100", "0", "99.9999", "1,2,3,4,5,6,7,8,9,10,11,12"])
def test_percentiles_out_of_range(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["load", "127.0.0.1:1", "--percentiles", text]) == 2
    assert "--percentiles: " in capsys.readouterr().err


def test_percentiles_that_were_asked_for(server: fastsock.Server) -> None:
    """They are shown, with a second line for more than four, and are in the JSON and in Python."""
    report = fastsock.load(
        server.endpoint,
        messages=2000,
        wait="block",
        percentiles=[25, 50, 75, 95, 99, 99.5, 99.999],
        rate=20_000,
    )
    lines = str(report).splitlines()
    start = next(number for number, line in enumerate(lines) if " p25 " in line)
    first, second = lines[start].split(), lines[start + 5].split()  # four distributions each
    assert first == ["min", "mean", "p25", "p50", "p75", "p95", "max"]
    assert second == ["p99", "p99.5", "p99.999"]
    assert max(map(len, lines)) <= 80
    document = report.as_dict()
    assert document["options"]["percentiles"] == [25, 50, 75, 95, 99, 99.5, 99.999]
    assert not list(Draft202012Validator(SCHEMA).iter_errors(document))
    for name in ("from_intended_send", "from_actual_send", "connect", "send_delay"):
        figures = document["latency_us"][name]
        assert {"p25", "p50", "p75", "p90", "p95", "p99", "p99.5", "p99.999"} <= set(figures)
        values = [figures[f"p{each}"] for each in ("25", "50", "75", "90", "95", "99", "99.999")]
        assert values == sorted(values)
    assert report.latency.at(95) == document["latency_us"]["from_intended_send"]["p95"]
    assert report.latency.at(50) == report.latency.p50
    assert report.latency.at(12) != report.latency.at(12)  # NaN


def test_the_columns_of_one_percentile(server: fastsock.Server) -> None:
    report = fastsock.load(server.endpoint, messages=50, wait="block", percentiles=[50])
    assert str(report).splitlines()[2].split() == ["min", "mean", "p50", "max"]
    assert "p95" not in report.as_dict()["latency_us"]["from_intended_send"]
