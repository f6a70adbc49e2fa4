"""Tests of Locust with fastsock as its engine: a master and two workers on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
from layers import ROOT
from processes import SIZE, alone, answers, fleet, near, rows, web, write

import fastsock
from fastsock.client import merge, saved
from fastsock.client.document import of as document_of

pytestmark = [pytest.mark.locust, pytest.mark.timeout(60)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.mark.parametrize("load", ["rate = 400", "depth = 2"], ids=["open", "closed"])
def test_all_count_the_same(folder: Path, load: str) -> None:
    """Locust, the report, the merged reports of the workers and the server agree."""
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        write(folder, server.endpoint, load)
        with fleet(folder, "-u", "4", "-r", "2", "-t", "6s") as locust:
            _, log = locust.ended()
        served = server.stats().bytes_in // SIZE
    report, entry = locust.report, locust.entry("Probe echo 64B (us)")
    assert "Traceback" not in log
    assert answers(report) == int(entry["Request Count"]) == served > 1000
    assert int(entry["Failure Count"]) == 0
    assert locust.entry("Aggregated")["Request Count"] == entry["Request Count"]
    for percent in (50, 99, 99.9):
        seen = float(entry[f"{percent}%"])
        assert any(seen == pytest.approx(each, rel=0.001, abs=1) for each in near(report, percent))
    assert int(entry["Max Response Time"]) == round(
        report["latency_us"]["from_intended_send"]["max"]
    )
    jsonschema.validate(report, json.loads((ROOT / "docs" / "load-2.schema.json").read_text()))
    merged = document_of(merge.merge(list(merge.Part.all_of(saved.read(str(folder / "workers"))))))
    for each in (report, merged):
        each.pop("merged")
    assert [reason["code"] for reason in merged.pop("reasons")] == [
        reason["code"] for reason in report.pop("reasons")
    ]
    merged.pop("notes"), report.pop("notes")  # they have the names of files
    assert merged == report


def test_datagrams(folder: Path) -> None:
    with fastsock.Server("udp://127.0.0.1:0") as server:
        write(folder, server.endpoint, "rate = 200")
        alone(folder, "-u", "2", "-r", "2", "-t", "3s", "--fastsock-json", "out.json")
        served = server.stats().bytes_in // SIZE
    report = json.loads((folder / "out.json").read_text())
    assert report["datagrams"]["sent"] == served > 500


def test_the_load_follows_the_users(folder: Path) -> None:
    """Users are spawned and taken away: the rate is that of the users a second later."""
    shape = """
from locust import LoadTestShape

class Down(LoadTestShape):
    def tick(self):
        second = self.get_run_time()
        return (6, 6) if second < 5 else (1, 6) if second < 10 else None
"""
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        write(folder, server.endpoint, "rate = 100")
        with (folder / "locustfile.py").open("a") as file:
            file.write(shape)
        rates = []
        with fleet(folder) as locust:
            before = 0
            while locust.master.poll() is None:
                time.sleep(0.5)
                now = server.stats().bytes_in // SIZE
                rates.append((now - before) * 2)
                before = now
            _, log = locust.ended()
    assert "Traceback" not in log
    # Six users have 600/s and one has 100/s; the time between is short.
    assert sum(450 < each < 750 for each in rates) >= 5, rates
    assert sum(60 < each < 140 for each in rates) >= 5, rates
    assert sum(140 < each < 450 for each in rates) <= 4, rates


def test_a_worker_is_killed(folder: Path) -> None:
    """It is named; what it had reported counts, in Locust and in the report."""
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        write(folder, server.endpoint, "rate = 200")
        with fleet(folder, "-u", "2", "-r", "2", "-t", "13s") as locust:
            until = time.monotonic() + 20
            while server.stats().bytes_in < 1500 * SIZE and time.monotonic() < until:
                time.sleep(0.05)
            locust.workers[0].send_signal(signal.SIGKILL)
            code, _ = locust.ended()
        served = server.stats().bytes_in // SIZE
    report = locust.report
    jsonschema.validate(report, json.loads((ROOT / "docs" / "load-2.schema.json").read_text()))
    assert code == 4
    assert not report["valid"]
    assert "the worker vanished; what it had reported counts" in json.dumps(report["reasons"])
    assert answers(report) == int(locust.entry("Probe echo 64B (us)")["Request Count"])
    assert len(report["merged"]) == 2
    assert served * 0.6 < answers(report) <= served


def test_refused(folder: Path) -> None:
    """Failures are counted by kind, and the report says where they were."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    write(folder, f"127.0.0.1:{port}")
    with fleet(folder, "-u", "2", "-r", "2", "-t", "3s") as locust:
        code, log = locust.ended()
    failures = rows(folder / "stats_failures.csv", "Error")
    count = int(failures["connection: refused"]["Occurrences"])
    assert code == 1
    assert locust.report["errors"]["refused"] == count >= 4
    assert f"connections refused by 127.0.0.1:{port}" in log


def test_target(folder: Path) -> None:
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        write(folder, server.endpoint, "rate = 400")
        arguments = ("--fastsock-target", "p99<1us", "--fastsock-target", "rate>=10")
        with fleet(folder, "-u", "2", "-r", "2", "-t", "3s", *arguments) as locust:
            code, log = locust.ended()
    assert [each["met"] for each in locust.report["targets"]] == [False, True]
    assert code == (3 if locust.report["valid"] else 4)
    assert "target p99<1us: MISSED" in log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_by_a_signal(folder: Path, number: signal.Signals) -> None:
    """The report is whole: the workers have told their last figures."""
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        write(folder, server.endpoint, "rate = 200")
        with fleet(folder, "-u", "2", "-r", "2") as locust:
            until = time.monotonic() + 20
            while server.stats().bytes_in < 500 * SIZE and time.monotonic() < until:
                time.sleep(0.05)
            locust.master.send_signal(number)
            locust.ended()
        served = server.stats().bytes_in // SIZE
    assert answers(locust.report) == served


BAD = {
    "endpoint": ('endpoint = ""', (), "Probe: endpoint is missing"),
    "spelling": ("conections = 3", (), "there is no option conections; did you mean connections?"),
    "duration": ("duration = 3", (), "duration goes not with a user; Locust's --run-time"),
    "type": ('seed = "x"', (), "Probe: seed 'x' is str; expected an int"),
    "threads": ("threads = 0", (), "Probe: threads 0 is out of range"),
    "value": ("depth = 0", (), "Probe: depth 0"),
    "datagrams": ('endpoint = "udp://127.0.0.1:7"; mode = "send"', (), "goes with streams"),
    "target": ("", ("--fastsock-target", "p99=1ms"), "Probe: target 'p99=1ms' is not a target"),
    "name": ('endpoint = "nosuch.invalid:7"', (), "resolve tcp://nosuch.invalid:7"),
    "file": ("", ("--fastsock-json", "/nosuch/x.json"), "/nosuch/x.json: cannot write there"),
}


@pytest.mark.parametrize(("line", "arguments", "text"), BAD.values(), ids=BAD)
def test_bad_input(folder: Path, line: str, arguments: tuple[str, ...], text: str) -> None:
    """It is said in one line before anything is sent."""
    write(folder, "127.0.0.1:7", line)
    code, log = alone(folder, "-t", "5s", *arguments)
    said = [each for each in log.splitlines() if "fastsock.locust: " in each]
    assert code == 2, log
    assert len(said) == 1, log
    assert text in said[0]
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("size = 1000", "size is 64 in Probe and 1000 in Big"),
        ('endpoint = "udp://127.0.0.1:7"', "kind of endpoint is tcp in Probe and udp in Big"),
    ],
    ids=["size", "kind"],
)
def test_two_loads_have_no_common_report(folder: Path, line: str, text: str) -> None:
    write(folder, "127.0.0.1:7")
    with (folder / "locustfile.py").open("a") as file:
        file.write(f"class Big(Probe):\n    {line}\n")
    code, log = alone(folder, "-t", "5s", "--fastsock-json", "out.json")
    assert code == 2
    assert f"one report, of one load: {text}" in log


def test_many_classes(folder: Path) -> None:
    """Each makes load: gevent's own pool has ten threads, and resolves names with them."""
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        write(folder, server.endpoint, "rate = 20")
        with (folder / "locustfile.py").open("a") as file:
            file.writelines(f"class Probe{n}(Probe):\n    pass\n" for n in range(11))
        alone(folder, "-u", "12", "-r", "12", "-t", "4s", "--fastsock-json", "out.json")
    report = json.loads((folder / "out.json").read_text())
    assert len(report["merged"]) == 12
    assert all(each["messages"] for each in report["merged"])


def test_a_report_that_cannot_be_written(folder: Path) -> None:
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        write(folder, server.endpoint, "rate = 20")
        code, log = alone(folder, "-t", "3s", "--fastsock-json", "/dev/full")
    assert code == 1
    assert "cannot write /dev/full: No space left on device" in log


def test_no_test_was_begun(folder: Path) -> None:
    """Ctrl-C on an idle Locust with its page is no failure."""
    write(folder, "127.0.0.1:7")
    with web(folder) as page:
        code, log = page.interrupt()
    assert code == 0, log
    assert "no report" not in log


def test_the_exit_code_is_of_the_last_test(folder: Path) -> None:
    """The first test fails, the second has a server."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    write(folder, f"127.0.0.1:{port}", "rate = 50")
    with web(folder, "--exit-code-on-error", "7") as page:
        page.run(1.5)
        with fastsock.Server(f"tcp://127.0.0.1:{port}"):
            page.run(2)
            code, log = page.interrupt()
    assert code in (0, 4), log


def test_two_loads_at_once(folder: Path) -> None:
    """Without a common report each has its own figures."""
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        write(folder, server.endpoint, "rate = 100")
        with (folder / "locustfile.py").open("a") as file:
            file.write("class Big(Probe):\n    size = 1000\n")
        code, log = alone(folder, "-u", "2", "-r", "2", "-t", "3s")
    assert code in (0, 4)
    assert "Traceback" not in log
    assert log.count("/s, p99 ") == 2, log


OTHER_VERSION = "\nfrom fastsock.locust import load\nload.__version__ = '0.0.9'\n"
TROUBLE = {
    "version": (OTHER_VERSION, "it has fastsock 0.0.9, the master "),
    "name": ("\nProbe.endpoint = 'nosuch.invalid:7'\n", "resolve tcp://nosuch.invalid:7"),
}


@pytest.mark.parametrize(("code", "text"), TROUBLE.values(), ids=TROUBLE)
def test_a_worker_is_not_fit(folder: Path, code: str, text: str) -> None:
    """The master names it, and no test begins."""
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        write(folder, server.endpoint)
        write(folder, server.endpoint, name="other")
        with (folder / "other.py").open("a") as file:
            file.write(code)
        with fleet(folder, "-t", "5s", workers=("locustfile", "other")) as locust:
            ended, log = locust.ended()
        assert server.stats().accepted == 0
    assert ended == 2, log
    assert [each for each in log.splitlines() if text in each and "worker " in each], log
    assert "Traceback" not in log


def test_workers_that_join_are_not_fit(folder: Path) -> None:
    """The master names each and sends it away; the first worker has all the load."""
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        write(folder, server.endpoint, "rate = 100")
        with fleet(folder, "-u", "2", "-r", "2", "-t", "8s", workers=["locustfile"]) as locust:
            until = time.monotonic() + 20
            while server.stats().bytes_in == 0 and time.monotonic() < until:
                time.sleep(0.05)
            for name, (code, _) in TROUBLE.items():
                write(folder, server.endpoint, "rate = 100", name=f"other_{name}")
                with (folder / f"other_{name}.py").open("a") as file:
                    file.write(code)
                locust.join(f"other_{name}")
            _, log = locust.ended()
    for _, text in TROUBLE.values():
        [said] = [each for each in log.splitlines() if text in each]
        assert said.endswith("; it is sent away")
    assert "its load did not end" not in log
    assert locust.report["merged"] is None
    assert locust.report["options"]["connections"] == 4


def test_the_locustfile_of_the_page(folder: Path) -> None:
    page = (ROOT / "docs" / "many-machines.md").read_text()
    users = page.partition("```python\n")[2].partition("```")[0]
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        there = users.replace("127.0.0.1:7007", str(server.endpoint))
        (folder / "locustfile.py").write_text(there)
        _, log = alone(folder, "--users", "2", "--spawn-rate", "2", "--run-time", "3s")
        served = server.stats().bytes_in // SIZE
    assert "Traceback" not in log
    assert served > 3000


def test_it_needs_locust_only_on_request() -> None:
    """The package does not import Locust, which replaces Python's threads."""
    code = "import fastsock, sys; fastsock.load; sys.exit('locust' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20, env=os.environ)
