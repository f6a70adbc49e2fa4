"""Tests of the pages that users read: links lead somewhere, and experiments show what they say.

A link to code names the file and a definition in it, as in
``[`listener.pyx: _bind`](../fastsock/_native/server/listener.pyx)``.

This runs the experiment that is at a line of docs/nine-steps.md, and prints what it did:

    python tests/test_docs.py --experiment 60
"""

from __future__ import annotations

import doctest
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP = ("README", "CONTRIBUTING", "SECURITY")
PAGES = sorted([*(ROOT / f"{name}.md" for name in TOP), *ROOT.glob("docs/*.md")])
EXPERIMENTS = ROOT / "docs" / "nine-steps.md"

LINK = re.compile(r"\[([^\]]*)\]\(([^()\s]+)\)")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

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


# --- experiments --------------------------------------------------------------------------------


def sessions(page: Path) -> list[tuple[int, str]]:
    """The interpreter sessions of a page, with the line of each."""
    text = page.read_text()
    return [
        (text.count("\n", 0, found.start()) + 2, found[2])
        for found in FENCED.finditer(text)
        if found[1] == "pycon"
    ]


PREAMBLE, *SESSIONS = sessions(EXPERIMENTS)


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("session", SESSIONS, ids=lambda each: f"line {each[0]}")
def test_experiments_show_what_they_say(session: tuple[int, str]) -> None:
    """Each runs after the preamble alone, in a process of its own, and prints what the page says.

    Of its own, because experiments lower limits, change signals and stop the process.
    """
    line, text = session
    if "AF_INET6" in text and not has_ipv6():
        pytest.skip("no IPv6 on loopback")
    if "reuse_port" in text and Path("/proc/sys/net/ipv4/tcp_migrate_req").read_text() != "0\n":
        pytest.skip("net.ipv4.tcp_migrate_req is on")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--experiment", str(line)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def experiment(line: int) -> int:
    """Run the preamble and the session at `line`; returns how many examples failed."""
    start, text = max(each for each in SESSIONS if each[0] <= max(line, SESSIONS[0][0]))
    names: dict[str, object] = {}
    failed = 0
    for source, verbose in ((PREAMBLE[1], False), (text, True)):
        test = doctest.DocTestParser().get_doctest(source, names, f"line {start}", None, start)
        failed += doctest.DocTestRunner(verbose=verbose).run(test, clear_globs=False).failed
        names = test.globs
    return failed


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--experiment", line]:
            sys.exit(1 if experiment(int(line)) else 0)
        case _:
            sys.exit(__doc__)
