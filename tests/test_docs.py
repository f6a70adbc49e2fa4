"""Tests of the pages that users read: links lead somewhere, and the README's examples run.

A link to code names the file and a definition in it, as in
``[`listener.pyx: _bind`](../fastsock/_native/server/listener.pyx)``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP = ("README", "CONTRIBUTING", "SECURITY")
PAGES = sorted([*(ROOT / f"{name}.md" for name in TOP), *ROOT.glob("docs/*.md")])

LINK = re.compile(r"\[([^\]]*)\]\(([^()\s]+)\)")
FENCED = re.compile(r"^```(.*)\n((?s:.*?))^```$", re.MULTILINE)

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "docs"))
    from definitions import NAMED, line_of


class Link(NamedTuple):
    page: Path
    line: int
    text: str
    file: str
    anchor: str

    @property
    def target(self) -> Path:
        return (self.page.parent / self.file).resolve() if self.file else self.page


def links_of(page: Path) -> Iterator[Link]:
    """The links to files of this repository; code samples are passed over."""
    text = page.read_text()
    prose = FENCED.sub(lambda found: "\n" * found[0].count("\n"), text)
    for found in LINK.finditer(prose):
        file, _, anchor = found[2].partition("#")
        if "://" not in found[2]:
            yield Link(page, prose.count("\n", 0, found.start()) + 1, found[1], file, anchor)


LINKS = [link for page in PAGES for link in links_of(page)]
CODE_LINKS = [link for link in LINKS if NAMED.fullmatch(link.text)]


def name_of(link: Link) -> str:
    return f"{link.page.name}:{link.line}:{link.file}#{link.anchor}"


# --- links --------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", LINKS, ids=name_of)
def test_links_lead_to_files(link: Link) -> None:
    """What a link points to is there, and inside the repository."""
    assert link.target.exists()
    assert link.target.is_relative_to(ROOT)


@pytest.mark.parametrize("link", CODE_LINKS, ids=name_of)
def test_links_lead_to_what_they_name(link: Link) -> None:
    """The link's text names the file and something that is defined in it."""
    file, name = NAMED.fullmatch(link.text).groups()  # type: ignore[union-attr]
    assert file == link.target.name
    assert line_of(name, link.target.read_text()) > 0


@pytest.mark.parametrize("link", [each for each in LINKS if each.anchor], ids=name_of)
def test_links_lead_to_headings(link: Link) -> None:
    """An anchor is a heading of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", link.target.read_text()), re.MULTILINE)
    assert link.anchor in {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
    }


def test_there_are_links() -> None:
    """The patterns above still find something."""
    assert len(LINKS) > len(CODE_LINKS) > 20


# --- examples ---------------------------------------------------------------------------------

EXAMPLES = [
    found[2] for found in FENCED.finditer((ROOT / "README.md").read_text()) if found[1] == "python"
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.split("\n")[0])
def test_examples_of_the_readme(example: str) -> None:
    """Each runs as it stands; `make lint` checks their types."""
    run = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, timeout=30
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 2
