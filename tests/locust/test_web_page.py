"""Locust's page in Chromium: its values are those of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chromium import chromium
from clients import wait_until
from processes import answers, free_port, near, web, write

import fastsock

pytestmark = [
    pytest.mark.locust,
    pytest.mark.timeout(60),
    # Playwright leaves its event loop and transports to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

ENTRY = "Probe echo 64B (us)"
#: Columns of the page, with percentiles of the report.
PERCENTILES = {"Median (ms)": 50, "95%ile (ms)": 95, "99%ile (ms)": 99}


def table(page: Any) -> dict[str, dict[str, str]]:
    """The rows of the page's statistics, by name."""
    page.wait_for_selector(f"td:text-is('{ENTRY}')")
    names = page.locator("table thead th").all_inner_texts()
    found = [row.locator("td").all_inner_texts() for row in page.locator("tbody tr").all()]
    return {row["Name"]: row for row in (dict(zip(names, each, strict=True)) for each in found)}


def test_the_page_shows_the_figures_of_the_report(tmp_path: Path) -> None:
    port = free_port()
    ports = ("--master-bind-port", port, "--master-port", port)
    with fastsock.Server("tcp://127.0.0.1:0") as server, chromium() as browser:
        write(tmp_path, server.endpoint, "rate = 300")
        arguments = ("--processes", "2", *ports, "--fastsock-json", "fleet.json")
        with web(tmp_path, *arguments) as locust:
            page = browser.new_page()
            locust.start_with(workers=2, users=2)
            page.goto(locust.url)
            during = table(page)
            later = int(during[ENTRY]["# Requests"]) + 600
            wait_until(lambda: server.stats().bytes_in > later * 64)
            locust.stop()

            def shows_all() -> bool:
                """Locust's server keeps what it has answered for two seconds."""
                page.reload()
                return table(page)[ENTRY]["# Requests"] == str(server.stats().bytes_in // 64)

            wait_until(shows_all, longest=0.5)
            after = table(page)
            locust.interrupt()
    report = json.loads((tmp_path / "fleet.json").read_text())
    latency = report["latency_us"]["from_intended_send"]
    row, connect = after[ENTRY], report["latency_us"]["connect"]
    assert int(row["# Requests"]) == answers(report) > 500
    assert int(row["# Fails"]) == 0
    assert int(row["Min (ms)"]) == round(latency["min"])
    assert int(row["Max (ms)"]) == round(latency["max"])
    assert float(row["Average (ms)"]) == pytest.approx(latency["mean"], abs=0.5)
    for column, percent in PERCENTILES.items():
        seen = float(row[column])
        assert any(seen == pytest.approx(each, rel=0.001, abs=1) for each in near(report, percent))
    assert after["Probe connect (us)"]["# Requests"] == str(connect["count"])
    assert int(after["Probe connect (us)"]["Max (ms)"]) == round(connect["max"])
    # What was there while the run went on is a part of it.
    assert 0 < int(during[ENTRY]["# Requests"]) < int(row["# Requests"])
    assert int(during[ENTRY]["Min (ms)"]) >= int(row["Min (ms)"])
    assert int(during[ENTRY]["Max (ms)"]) <= int(row["Max (ms)"])
