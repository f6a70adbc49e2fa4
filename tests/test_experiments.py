"""Tests of docs/experiments: each program prints what docs/nine-steps.md shows below it."""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "nine-steps.md"
FOLDER = PAGE.parent / "experiments"
PROGRAMS = sorted(FOLDER.glob("*.py"))
SHOWN = re.compile(r"^```\{literalinclude\} experiments/(.+)$", re.MULTILINE)

MIGRATES = Path("/proc/sys/net/ipv4/tcp_migrate_req")
LINES_MAX, COLUMNS_MAX = 35, 72  # of a file, so that it fits the page


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_prints_what_the_page_shows(program: Path) -> None:
    """In a process of its own: experiments lower limits, change signals and stop the process."""
    if program.stem == "ipv6_and_ipv4" and not has_ipv6():
        pytest.skip("no IPv6 on loopback")
    if program.stem == "closed_worker" and MIGRATES.exists() and MIGRATES.read_text() != "0\n":
        pytest.skip("net.ipv4.tcp_migrate_req is on")
    run = subprocess.run(
        [sys.executable, "-I", program], capture_output=True, text=True, timeout=50
    )
    assert (run.stdout, run.stderr, run.returncode) == (
        program.with_suffix(".txt").read_text(),
        "",
        0,
    )


def test_page_shows_every_experiment() -> None:
    """Once, followed by its output; no other output is there."""
    shown = SHOWN.findall(PAGE.read_text())
    programs = shown[::2]
    assert sorted(programs) == [program.name for program in PROGRAMS]
    assert shown[1::2] == [f"{Path(program).stem}.txt" for program in programs]
    assert sorted(shown[1::2]) == sorted(output.name for output in FOLDER.glob("*.txt"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_stands_alone_and_fits_the_page(program: Path) -> None:
    """The standard library alone, each name imported by name; short enough for a phone."""
    text = program.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.module in sys.stdlib_module_names
            assert "*" not in {each.name for each in node.names}
        elif isinstance(node, ast.Import):
            assert {each.name for each in node.names} <= sys.stdlib_module_names
    lines = [*text.splitlines(), *program.with_suffix(".txt").read_text().splitlines()]
    assert len(text.splitlines()) <= LINES_MAX
    assert max(map(len, lines)) <= COLUMNS_MAX
