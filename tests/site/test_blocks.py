"""Every block of a page that is marked `sh` or `python` runs as it stands: ``make docs-test``.

The blocks of a page run one after the other in one bash, in a directory of their own. A `python`
block is a program of its own. If its first line is a comment with the name of a file, it is that
file, which a later `sh` block uses.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from layers import ROOT

pytestmark = [pytest.mark.site, pytest.mark.timeout(180)]

BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w.-]+\.py)\n")
TOP = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")]

#: A command, but for exit codes that a busy machine brings: a target missed, a run not valid.
#: A server is not in the way of signals to it.
COMMAND = """#!/bin/bash
[ "$1" = serve ] && exec {python} -m {name} "$@"
{python} -m {name} "$@" || {{ code=$?; [[ $code = 3 || $code = 4 ]] || exit $code; }}
"""


class Block(NamedTuple):
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that it is, if its first line says so."""
        named = FILE.match(self.text)
        return named[1] if self.language == "python" and named else None


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in BLOCK.finditer(text):
        yield Block(text.count("\n", 0, found.start()) + 2, found[1], found[2])


PAGES = {
    page: blocks
    for page in sorted([*TOP, *ROOT.glob("docs/*.md")])
    if (blocks := list(blocks_of(page)))
}


def script_of(blocks: list[Block], folder: Path) -> str:
    """The program of a page, which tells the line of each block before it."""
    lines = ["set -e", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for block in blocks:
        lines.append(f"echo 'block at line {block.line}' >&2")
        if block.language == "sh":
            lines.append(block.text)
        else:
            name = block.file or f"block{block.line}.py"
            (folder / name).write_text(block.text)
            lines += [] if block.file else [f"python3 {name}"]
    return "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run_as_they_stand(page: Path, tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    work = tmp_path / "work"
    commands.mkdir()
    work.mkdir()
    for name in ("fastsock", "locust"):
        (commands / name).write_text(COMMAND.format(python=sys.executable, name=name))
        (commands / name).chmod(0o755)
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-c", script_of(PAGES[page], work)],
        cwd=work,
        env={**os.environ, "PATH": path, "HOME": str(work), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_file_is_used(page: Path) -> None:
    """A block that is a file is used by an `sh` block after it."""
    blocks = PAGES[page]
    for index, block in enumerate(blocks):
        if block.file:
            later = [each.text for each in blocks[index:] if each.language == "sh"]
            assert any(block.file in text or "pytest" in text for text in later), block.line


def test_there_are_blocks() -> None:
    assert sum(map(len, PAGES.values())) > 20
