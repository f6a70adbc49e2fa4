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


# --- links --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link of a page: see `mistake_in`."""
    mistakes = ((link, mistake_in(link)) for link in links_of(page))
    found = [
        f"{page.name}:{link.line}: {link.file}#{link.anchor}: {why}"
        for link, why in mistakes
        if why
    ]
    assert not found, "\n".join(found)


def mistake_in(link: Link) -> str:
    """Empty where the link points to a file of the repository, and to what it names in it.

    An anchor is a heading of a page. A text that names a file and a definition is right in both.
    """
    if not link.target.exists():
        return "no such file"
    if not link.target.is_relative_to(ROOT):
        return "outside of the repository"
    if link.anchor and link.anchor not in anchors_of(link.target):
        return "no such heading"
    if not (named := NAMED.fullmatch(link.text)):
        return ""
    file, name = named.groups()
    if file != link.target.name:
        return f"the text says {file}"
    try:
        line_of(name, link.target.read_text())
    except ValueError as error:
        return f"{error} there"
    return ""


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_the_site_shows_every_line(page: Path) -> None:
    """A line that begins with % is a comment of MyST, and the site leaves it out."""
    assert not re.findall(r"^ {0,3}%.*", FENCED.sub("", page.read_text()), re.MULTILINE)


def test_there_are_links() -> None:
    """The patterns above still find something."""
    links = [link for page in PAGES for link in links_of(page)]
    assert len(links) > len([link for link in links if NAMED.fullmatch(link.text)]) > 20


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("[x](nowhere.md)", "no such file"),
        ("[x](../..)", "outside of the repository"),
        ("[x](options.md#absent)", "no such heading"),
        ("[`a.pyx: Server`](../fastsock/server/server.py)", "the text says a.pyx"),
        ("[`server.py: zork`](../fastsock/server/server.py)", "zork is not defined there"),
        ("[`server.py: Server.stop`](../fastsock/server/server.py)", ""),
        ("[x](options.md#server)", ""),
    ],
)
def test_a_mistake_in_a_link(text: str, mistake: str) -> None:
    found = LINK.search(text)
    assert found is not None
    file, _, anchor = found[2].partition("#")
    assert mistake_in(Link(ROOT / "docs" / "a.md", 1, found[1], file, anchor)) == mistake


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
