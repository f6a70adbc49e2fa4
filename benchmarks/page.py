"""Pages that have a part generated from measured results."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
END = "<!-- end of the generated part -->"


def with_generated(page: Path, results: Path, lines: Iterable[str], part: str = "") -> str:
    """The page's text with `lines` between the two markers; the text around is written by hand.

    `part` is the name of the generated part, in a page that has several from the same results.
    """
    name = f", {part}" if part else ""
    begin = f"<!-- generated from {results.resolve().relative_to(ROOT)}{name} -->"
    generated = "\n".join((begin, "", *lines, "", END))
    between = re.compile(f"{re.escape(begin)}.*?{re.escape(END)}", re.DOTALL)
    text, replaced = between.subn(lambda match: generated, page.read_text())
    if replaced != 1:
        raise SystemExit(f"{page} does not hold one pair of markers: {begin} {END}")
    return text


def write_generated(page: Path, results: Path, lines: Iterable[str], part: str = "") -> None:
    """Replace the generated part of the page."""
    page.write_text(with_generated(page, results, lines, part))
    print(page)
