"""Comparing runs: how often a difference is claimed, what is refused, targets and exit codes."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import fastsock
from fastsock.cli import run
from fastsock.client import compare, student_t
from fastsock.client.compare import Side, Target, figure_of
from fastsock.client.saved import read

Document = dict[str, Any]
Written = Callable[..., str]


@pytest.fixture(scope="module")
def real() -> Document:
    """One real run, made to be valid: the machine may be busy."""
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        report = fastsock.load(server.endpoint, messages=1500, wait="block")
    return report.as_dict() | {"valid": True, "reasons": []}


@pytest.fixture
def written(real: Document, tmp_path: Path) -> Written:
    """Writes a series of runs whose figures are those of `real` times each of `factors`."""

    def write(name: str, factors: list[float], **changes: Any) -> str:
        path = tmp_path / name
        document = {"schema": "fastsock.series/1", "runs": [scaled(real, f) for f in factors]}
        for each in document["runs"]:
            change(each, changes)
        path.write_text(json.dumps(document))
        return str(path)

    return write


def scaled(real: Document, factor: float) -> Document:
    """A run that took `factor` times as long for everything."""
    document = copy.deepcopy(real)
    document["duration_s"] *= factor
    for name, value in document["latency_us"]["from_intended_send"].items():
        if name != "count":
            document["latency_us"]["from_intended_send"][name] = value * factor
    return document


def change(document: Document, changes: Document) -> None:
    """Set fields; `options_size` is the size in the options."""
    for name, value in changes.items():
        part, _, inner = name.partition("_")
        if part in ("options", "host"):
            document[part][inner] = value
        else:
            document[name] = value


STEADY = [1.0, 1.01, 0.99, 1.005, 0.995]
SLOWER = [each * 1.1 for each in STEADY]
NOT_VALID = {"valid": False, "reasons": [{"code": "client_away", "text": "the client was away"}]}


# --- Student's t --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probability", "degrees", "expected"),
    [  # NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2, and scipy.stats.t.ppf
        (0.975, 1, 12.7062047364),
        (0.995, 1, 63.6567411629),
        (0.975, 2, 4.30265272991),
        (0.995, 2, 9.92484320092),
        (0.995, 5, 4.03214298356),
        (0.975, 9, 2.26215716274),
        (0.995, 18, 2.87844047271),
        (0.95, 30, 1.69726088659),
        (0.995, 100, 2.62589052),
        (0.975, 1e7, 1.95996422),
        (0.5, 4, 0.0),
    ],
)
def test_quantiles(probability: float, degrees: float, expected: float) -> None:
    assert student_t.quantile(probability, degrees) == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_a_quantile_between_whole_degrees() -> None:
    below, between, above = (student_t.quantile(0.995, each) for each in (4, 4.5, 5))
    assert below > between > above
    for probability, degrees in ((0.4, 3), (1.0, 3), (0.9, 0)):
        with pytest.raises(ValueError, match="no quantile"):
            student_t.quantile(probability, degrees)


def test_an_interval_by_hand() -> None:
    """Welch's interval of two sides whose logarithms are 0, 1, 2 and 1, 3, 5."""
    before, after = ([math.exp(each) for each in side] for side in ((0, 1, 2), (1, 3, 5)))
    degrees = (1 / 3 + 4 / 3) ** 2 / ((1 / 3) ** 2 / 2 + (4 / 3) ** 2 / 2)
    half = student_t.quantile(0.995, degrees) * math.sqrt(5 / 3)
    found = student_t.of_ratio(before, after, 0.99)
    assert found.estimate == pytest.approx(math.exp(2))
    assert found.high == pytest.approx(math.exp(2 + half))
    assert found.low == pytest.approx(math.exp(2 - half))


def test_equal_figures_have_the_width_of_their_step() -> None:
    """Percentiles that fall into neighbouring steps of the histogram do not differ."""
    assert figure_of("p50", [8.0] * 5, [8.064] * 5).verdict == "no_difference"
    assert figure_of("p50", [8.0] * 5, [8.2] * 5).verdict == "slower"
    assert figure_of("rate", [1000.0] * 3, [1000.0] * 3).verdict == "no_difference"


def test_figures_far_apart_are_no_overflow() -> None:
    far = figure_of("p99", [1e-300, 1e300, 1.0], [1e300, 1e-300, 1.0])
    assert far.verdict == "no_difference"
    assert far.interval_percent is not None and all(map(math.isfinite, far.interval_percent))
    assert figure_of("rate", [0.0] * 3, [5.0] * 3).change_percent is None


# --- how often it is right ----------------------------------------------------------------------


def runs_of(random: Random, factor: float, deviation: float) -> dict[str, list[float]]:
    """Ten runs. Within a run the noise goes on from one part to the next; runs are independent."""
    sides: dict[str, list[float]] = {metric: [] for metric in compare.METRICS}
    for _ in range(10):
        noise, total = 0.0, 0.0
        for _ in range(50):
            noise = 0.9 * noise + random.gauss(0, 0.01)
            total += noise
        common = random.gauss(0, deviation) + total / 50
        for metric in sides:
            own = random.gauss(0, deviation / 4) + common
            change = 1 / factor if metric == "rate" else factor
            sides[metric].append(50.0 * change * math.exp(own))
    return sides


def claims(trials: int, factor: float) -> int:
    """In how many comparisons a difference of any figure was claimed."""
    random, found = Random(15), 0
    for _ in range(trials):
        before, after = runs_of(random, 1.0, 0.03), runs_of(random, factor, 0.03)
        verdicts = {figure_of(each, before[each], after[each]).verdict for each in before}
        assert "slower" in verdicts or "faster" in verdicts or verdicts == {"no_difference"}
        found += verdicts != {"no_difference"}
    return found


def test_equal_servers_are_told_apart_in_at_most_a_tenth() -> None:
    assert claims(200, 1.0) <= 20


def test_a_difference_of_a_tenth_is_found() -> None:
    assert claims(200, 1.1) >= 180


# --- the command --------------------------------------------------------------------------------


def test_a_slower_server(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = written("before.json", STEADY), written("after.json", SLOWER)
    assert run(["compare", before, after]) == 0
    text = capsys.readouterr().out
    rows = {line.split()[0]: line for line in text.splitlines()}
    for metric in ("rate", "p50", "p90", "p99"):
        assert rows[metric].endswith("AFTER is slower")
    assert "p99.9" not in rows  # fewer than ten answers above it
    assert "+10.0%" in rows["p50"] and "-9.1%" in rows["rate"]
    assert max(map(len, text.splitlines())) <= 80
    assert run(["compare", after, before]) == 0
    text = capsys.readouterr().out
    assert "is slower" not in text and text.count("AFTER is faster") == 4
    assert run(["compare", before, before]) == 0
    assert capsys.readouterr().out.count("no difference shown") == 4


@pytest.mark.parametrize(
    ("change", "interval", "shown"),
    [
        (-98.2, (-98.5, -97.84), "-98.2% -98.5% to -97.8%"),
        (899.9, (650, 899.94), "+899.9% +650.0% to +899.9%"),
        (899.96, (650, 1100), "10 times +650.0% to 12 times"),
        (5400, (4800, 6200), "55 times 49 to 63 times"),
        (549_900, (98_900, 9.96e6), "5.5k times 990 to 100k times"),
        (1e14, (-99.99, 4e33), "1e+12 times -100.0% to 4e+31 times"),
    ],
)
def test_large_changes_are_readable(
    change: float, interval: tuple[float, float], shown: str, written: Written
) -> None:
    """Columns have a space between them, and lines 80 columns."""
    side = Side.of(read(written("side.json", STEADY)))
    figure = compare.Figure("p99.9", 99.95, 999_950.0, change, interval, "no_difference")
    text = str(compare.Comparison(side, side, (figure,), (), ()))
    row = " ".join(text.splitlines()[-1].split())
    assert row == f"p99.9 100us 1s {shown} no difference shown"
    assert len(text.splitlines()[-1]) <= 80


def test_a_large_change_in_a_target(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = written("before.json", [1.0] * 3), written("after.json", [55.0] * 3)
    assert run(["compare", before, after, "--target", "p99<+5%"]) == 3
    assert "target    p99<+5%: 55 times: MISSED" in capsys.readouterr().out


def test_fewer_than_three_runs_claim_nothing(
    written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = written("before.json", STEADY[:2]), written("after.json", SLOWER)
    assert run(["compare", before, after, "--json", "-"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert all(each["verdict"] is each["interval_percent"] is None for each in figures)
    assert all(each["change_percent"] is not None for each in figures)
    assert run(["compare", before, after]) == 0
    text = capsys.readouterr().out
    assert "no claim" in text and "is slower" not in text
    assert run(["compare", before, after, "--target", "p99<+50%"]) == 3
    assert "not known: fewer than 3 runs a side: MISSED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "factors", "code"),
    [
        ("p99<+5%", SLOWER, 3),
        ("p99<=+5%", SLOWER, 3),
        ("p99 < +11%", SLOWER, 0),
        ("rate>-5%", SLOWER, 3),
        ("rate>-10%", SLOWER, 0),
        ("p50>+5%", SLOWER, 0),
        ("p50<-5%", SLOWER, 3),
        ("p99<+5%", STEADY, 0),
        ("p99<=+0%", STEADY, 0),
        ("p99<+0%", STEADY, 3),  # it asks for an improvement
        ("p99<-5%", STEADY, 3),
        ("p99<+5%", [0.6, 1.1, 1.0, 1.9, 1.1], 0),  # 17 % more, which may be chance
        ("p99.9<+5%", STEADY, 3),  # not known
    ],
)
def test_targets(
    target: str,
    factors: list[float],
    code: int,
    written: Written,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The change that is shown decides; no difference shown is a change of 0."""
    before, after = written("before.json", STEADY), written("after.json", factors)
    file = str(Path(before).parent / "result.json")
    assert run(["compare", before, after, "--target", target, "--json", file]) == code
    text = " ".join(capsys.readouterr().out.split())
    assert text.endswith("MISSED" if code else "met")
    (judged,) = json.loads(Path(file).read_text())["targets"]
    assert judged["met"] is (code == 0)
    assert judged["target"] == target


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p99<5%", "did you mean 'p99<+5%'?"),
        ("p99<+5", "did you mean 'p99<+5%'?"),
        ("p95<+5%", "unknown metric 'p95'; expected one of rate, p50"),
        ("rates<+5%", "unknown metric 'rates'; did you mean rate?"),
        ("retransmits<+5%", "expected one of rate, p50, p90, p99, p99.9"),
        ("p99==+5%", "write <, <=, > or >="),
        ("p99<1ms", "is not a target of a change"),
        ("p99", "is not a target of a change"),
        ("p99<+nan%", "is not a target of a change"),
        ("", "is not a target of a change"),
    ],
)
def test_targets_that_are_none(
    text: str, said: str, written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written("before.json", STEADY)
    assert run(["compare", before, before, "--target", text]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_target_has_a_sign() -> None:
    target = Target.parse(" rate >= -2.5 % ")
    assert (target.metric, target.operator, target.limit_percent) == ("rate", ">=", -2.5)


def test_a_run_that_is_not_valid(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    """Its side is named with the reason; the figures are shown; it goes before a target."""
    before, after = written("before.json", STEADY), written("after.json", SLOWER, **NOT_VALID)
    assert run(["compare", before, after, "--target", "p99<+5%"]) == 4
    text = " ".join(capsys.readouterr().out.split())
    assert "AFTER is slower" in text
    assert "valid NO: after, run 1, started" in text and "the client was away" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options_size": 128}, "size differs: 64 before, 128 after"),
        ({"options_connections": 2}, "connections differs: 1 before, 2 after"),
        ({"options_depth": 2}, "depth differs"),
        ({"options_rate": 100.0}, "rate differs: none before, 100.0 after"),
        ({"options_stages": "30s@1k"}, "stages differs: none before, 30s@1k after"),
        ({"options_mode": "send"}, "mode differs: echo before, send after"),
        ({"options_arrivals": "poisson"}, "arrivals differs"),
        ({"options_threads": 2}, "threads differs"),
        ({"options_reconnect_every": 1}, "reconnect_every differs"),
        ({"endpoint": "unix:///run/x"}, "kind of endpoint differs: tcp before, unix after"),
    ],
)
def test_what_is_not_comparable(
    changes: Document, said: str, written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = written("before.json", STEADY), written("after.json", STEADY, **changes)
    assert run(["compare", before, after]) == 1
    output = capsys.readouterr()
    assert said in " ".join(output.err.split())
    assert output.out == ""


def test_each_reason_has_a_line(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    before = written("before.json", STEADY)
    after = written("after.json", STEADY, options_size=1, options_depth=3)
    assert run(["compare", before, after]) == 1
    assert capsys.readouterr().err.count("Error: ") == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"host_cpu": "abacus"}, "CPU differs"),
        ({"host_cpus": 3}, "number of CPUs differs"),
        ({"host_kernel": "2.4"}, "kernel differs"),
        ({"host_fastsock": "0.0.1"}, "fastsock differs"),
        ({"options_wait": "spin"}, "wait differs: block before, spin after"),
    ],
)
def test_what_is_told(
    changes: Document, said: str, written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = written("before.json", STEADY), written("after.json", STEADY, **changes)
    assert run(["compare", before, after]) == 0
    assert f"note {said}" in " ".join(capsys.readouterr().out.split())


def test_directories(
    real: Document, written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory of runs and a series is a side; a broken file in it is named."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.json").write_text(json.dumps(real))
    written("folder/series.json", STEADY)
    assert len(Side.of(read(str(folder))).reports) == 7
    assert run(["compare", str(folder), str(folder)]) == 0
    (folder / "broken.json").write_text(json.dumps(real)[:500])
    capsys.readouterr()
    assert run(["compare", str(folder), str(folder)]) == 2
    assert "broken.json is not a whole JSON document" in " ".join(capsys.readouterr().err.split())


def test_runs_of_one_side_that_differ(
    real: Document, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for size in (64, 128):
        document = copy.deepcopy(real) | {"started_at": f"2026-01-01T00:00:00.{size:03}Z"}
        document["options"]["size"] = size
        (tmp_path / f"{size}.json").write_text(json.dumps(document))
    assert run(["compare", str(tmp_path), str(tmp_path)]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("differ in size: 64, 128") == 1


def test_runs_one_way_have_a_rate_only(
    written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    none = dict.fromkeys(("from_intended_send", "from_actual_send", "connect", "send_delay"))
    path = written("one.json", STEADY, options_mode="send", latency_us=none, histograms={})
    assert run(["compare", path, path, "--target", "p99<+5%", "--json", "-"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert [each["metric"] for each in document["figures"]] == ["rate"]


def test_no_message_and_no_time(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    """A rate of 0 has no logarithm: nothing is claimed, and no target on it is met."""
    path = written("none.json", STEADY, messages=0, duration_s=0)
    assert run(["compare", path, path, "--target", "rate>-99%"]) == 3
    assert "not known: a run has no rate" in " ".join(capsys.readouterr().out.split())
    path = written("much.json", STEADY, messages=1 << 99, bytes=1 << 99)
    assert run(["compare", path, path]) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"messages": -1}, "'messages' is not usable"),
        ({"duration_s": math.nan}, "is not a whole JSON document"),
        ({"duration_s": math.inf}, "is not a whole JSON document"),
        ({"errors": {"reset": "many"}}, "'errors' is not usable"),
        ({"messages": 10**400}, "'messages' is not usable"),
        ({"datagrams": {}}, "'datagrams' is not usable"),
        ({"merged": [{"file": "a"}]}, "'merged' is not usable"),
        ({"options_size": "64"}, "'options' is not usable"),
        ({"options_mode": "both"}, "'options' is not usable"),
        ({"tcp": {"connections": 1}}, "'tcp' is not usable"),
        ({"client": 5}, "'client' is not usable"),
        ({"client": {"busy": None}}, "'client' is not usable"),
        ({"reasons": [5], "valid": False}, "'reasons' is not usable"),
        ({"valid": False}, "'valid' does not agree with 'reasons'"),
        ({"latency_us": {"from_intended_send": {"count": 5}}}, "is not usable"),
        ({"latency_us": {"from_intended_send": 5}}, "is not usable"),
    ],
)
def test_damaged_runs(
    changes: Document, said: str, written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written("damaged.json", STEADY, **changes)
    assert run(["compare", path, path]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_number_that_is_too_large_is_damage(
    written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(written("large.json", STEADY))
    path.write_text(re.sub(r'"duration_s": [\d.]+', '"duration_s": 9e999', path.read_text()))
    assert run(["compare", str(path), str(path)]) == 2
    assert "is not a whole JSON document" in " ".join(capsys.readouterr().err.split())


def test_usage(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    path = written("a.json", STEADY)
    for arguments, said in (
        ([], "compare needs BEFORE and AFTER"),
        ([path], "compare needs BEFORE and AFTER"),
        ([path, path, path], "compare takes BEFORE and AFTER, not also"),
        ([path, "/nowhere.json"], "cannot read /nowhere.json"),
        ([path, path, "--json", "/nowhere/x.json"], "cannot write /nowhere/x.json"),
        ([path, path, "--html", "/nowhere/x.html"], "cannot write /nowhere/x.html"),
        ([path, path, "--html", "-"], "--html - is not a file"),
        ([path, path, "--html", path], "is a result, which the page would replace"),
        ([path, path, "--html", f"{path}.x", "--json", f"{path}.x"], "two outputs go to"),
    ):
        assert run(["compare", *arguments]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert run(["diff"]) == 2
    assert "did you mean fastsock compare?" in capsys.readouterr().err


def numbers_of(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from numbers_of(each)
    elif isinstance(value, int | float):
        yield value


def test_the_document(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    """It has no NaN, and what docs/results.md says."""
    before, after = written("before.json", STEADY), written("after.json", SLOWER, label="new")
    arguments = ["compare", before, after, "--target", "p50<+1%", "--json", "-"]
    assert run(arguments) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "fastsock.compare/1"
    assert all(map(math.isfinite, numbers_of(document)))
    assert document["before"]["runs"] == document["after"]["runs"] == 5
    assert document["after"]["labels"] == ["new"]
    assert document["valid"] is True
    page = (Path(__file__).parent.parent / "docs" / "results.md").read_text()
    parts = (document, document["before"], document["figures"][0], document["targets"][0])
    for part in parts:
        assert not {name for name in part if f"`{name}`" not in page}
