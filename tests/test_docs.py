"""Tests of the pages that users read: links lead somewhere, and experiments show what they say.

A link to lines of code names the definition that it points to, as in
``[`listener.pyx: _bind`](../fastsock/_native/listener.pyx#L91-L95)``, and its lines are exactly
those of that definition. Code moves, and links do not follow; this brings them all up to date:

    python tests/test_docs.py --refresh

And this runs the experiment that is at a line of docs/nine-steps.md, and prints what it did:

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
NAMED = re.compile(r"`([\w.]+): ([\w.]+)`")  # `listener.pyx: _bind`
LINES = re.compile(r"L\d+(-L\d+)?")

#: Python's and Cython's ways to begin a definition, up to its name.
DEFINES = r"(?:async def|def|cpdef|class|cdef)\s(?:[^=(:#]*[\s*])?{name}[(:]"
ASSIGNS = r"{name}(?::[^=]+)? = "


class Link(NamedTuple):
    page: Path
    line: int
    text: str
    file: str
    anchor: str

    @property
    def target(self) -> Path:
        return (self.page.parent / self.file).resolve() if self.file else self.page

    @property
    def to_lines(self) -> bool:
        return LINES.fullmatch(self.anchor) is not None


def links_of(page: Path) -> Iterator[Link]:
    """The links to files of this repository; code samples are passed over."""
    text = page.read_text()
    prose = FENCED.sub(lambda found: "\n" * found[0].count("\n"), text)
    for found in LINK.finditer(prose):
        file, _, anchor = found[2].partition("#")
        if "://" not in found[2]:
            yield Link(page, prose.count("\n", 0, found.start()) + 1, found[1], file, anchor)


LINKS = [link for page in PAGES for link in links_of(page)]
LINE_LINKS = [link for link in LINKS if link.to_lines]


def name_of(link: Link) -> str:
    return f"{link.page.name}:{link.line}:{link.file}#{link.anchor}"


# --- definitions --------------------------------------------------------------------------------


def definition(lines: list[str], name: str) -> tuple[int, int]:
    """First and last line, from 1, of a function, class or constant; "Class.method" looks inside.

    Goes by indentation, which Python and Cython have in common. LookupError unless there is
    exactly one.
    """
    first, last = 1, len(lines)
    for part in name.split("."):
        begins = re.compile(rf"\s*(?:{DEFINES}|{ASSIGNS})".replace("{name}", re.escape(part)))
        found = [n for n in range(first, last + 1) if begins.match(lines[n - 1])]
        if len(found) != 1:
            raise LookupError(f"{part!r} is defined in {len(found)} places")
        first = found[0]
        last = end_of_block(lines, first)
        if part != name.rpartition(".")[2]:
            first += 1
    return first, last


def end_of_block(lines: list[str], first: int) -> int:
    """The last line that belongs to what begins in line `first`."""
    depth = indentation(lines[first - 1])
    last = first
    for number in range(first + 1, len(lines) + 1):
        line = lines[number - 1]
        closes = indentation(line) == depth and line.lstrip().startswith((")", "}", "]"))
        if line.strip() and indentation(line) <= depth and not closes:
            break
        if line.strip():
            last = number
    return last


def indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def right_anchor(link: Link) -> str:
    """The anchor that a link to lines should have; LookupError if its text names nothing there."""
    named = NAMED.fullmatch(link.text)
    if not named:
        raise LookupError(f"[{link.text}] is not of the form `file: definition`")
    if named[1] != link.target.name:
        raise LookupError(f"the text names {named[1]}, the link {link.target.name}")
    first, last = definition(link.target.read_text().splitlines(), named[2])
    return f"L{first}" if first == last else f"L{first}-L{last}"


def refresh() -> int:
    """Write the right lines into every link to lines; returns how many links could not be."""
    failures = 0
    for page in PAGES:
        text = before = page.read_text()
        for link in links_of(page):
            if not link.to_lines:
                continue
            try:
                anchor = right_anchor(link)
            except (LookupError, OSError) as error:
                print(f"{name_of(link)}: {error}", file=sys.stderr)
                failures += 1
                continue
            old, new = (f"[{link.text}]({link.file}#{each})" for each in (link.anchor, anchor))
            text = text.replace(old, new)
        if text != before:
            page.write_text(text)
            print(f"{page.relative_to(ROOT)}: refreshed")
    return failures


# --- links --------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", LINKS, ids=name_of)
def test_links_lead_to_files(link: Link) -> None:
    """What a link points to is there, and inside the repository."""
    assert link.target.exists()
    assert link.target.is_relative_to(ROOT)


@pytest.mark.parametrize("link", LINE_LINKS, ids=name_of)
def test_links_lead_to_the_lines_they_name(link: Link) -> None:
    """The lines are those of the definition; `python tests/test_docs.py --refresh` repairs them."""
    assert link.anchor == right_anchor(link)


@pytest.mark.parametrize(
    "link", [each for each in LINKS if each.anchor and not each.to_lines], ids=name_of
)
def test_links_lead_to_headings(link: Link) -> None:
    """Any other anchor is a heading of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", link.target.read_text()), re.MULTILINE)
    assert link.anchor in {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
    }


def test_there_are_links() -> None:
    """The patterns above still find something."""
    assert len(LINKS) > len(LINE_LINKS) > 40


SAMPLE = """\
cdef class Door:
    def close(self):
        return 1

    cdef int open(self, int wide,
                  int slowly):

        return 2

cdef inline Door *find(Door *door) noexcept nogil:
    return door

LIMIT = 3
NAMES: dict[str, int] = {
    "a": 1,
}
class Window:
    async def close(
        self,
    ) -> None:
        self.LIMIT = find(self)
""".splitlines()


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("Door", (1, 8)),
        ("Door.close", (2, 3)),
        ("open", (5, 8)),
        ("find", (10, 11)),
        ("LIMIT", (13, 13)),
        ("NAMES", (14, 16)),
        ("Window.close", (18, 21)),
    ],
)
def test_definitions_are_found(name: str, lines: tuple[int, int]) -> None:
    """In Python and in Cython, from the line with the name to the last of the block."""
    assert definition(SAMPLE, name) == lines


@pytest.mark.parametrize("name", ["close", "missing", "Door.find", "self"])
def test_doubtful_names_are_refused(name: str) -> None:
    """A name that is not there, or there twice, is no place to point to."""
    with pytest.raises(LookupError):
        definition(SAMPLE, name)


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
        case ["--refresh"]:
            sys.exit(1 if refresh() else 0)
        case ["--experiment", line]:
            sys.exit(1 if experiment(int(line)) else 0)
        case _:
            sys.exit(__doc__)
