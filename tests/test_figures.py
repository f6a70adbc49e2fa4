"""Figures in the pages are those of the results: quoted in prose, and in generated parts."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastsock.server import engines

ROOT = Path(__file__).resolve().parent.parent
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT))
    from benchmarks import engines_page, figures, table
    from benchmarks.figures import FIGURES, Figure
    from benchmarks.page import with_generated
    from benchmarks.reliability import table as reliability
    from benchmarks.reliability.run import RELIABILITY
    from benchmarks.run import COMPARISON

Lines = Callable[[dict[str, Any]], Iterator[str]]

#: Page, results, and lines and name of the part.
GENERATED: list[tuple[Path, Path, Lines, str]] = [
    (table.PAGE, COMPARISON, table.behind_lines, table.BEHIND),
    (table.PAGE, COMPARISON, table.lines_of, ""),
    (table.README, COMPARISON, table.readme_lines, ""),
    (reliability.PAGE, RELIABILITY, reliability.lines_of, ""),
    *((engines_page.PAGE, COMPARISON, lines, part) for part, lines in engines_page.PARTS.items()),
]


def name_of(figure: Figure) -> str:
    return f"{figure.page}: {figure.text[:40]}"


@pytest.mark.parametrize("figure", FIGURES, ids=name_of)
def test_a_quoted_figure_is_that_of_the_results(figure: Figure) -> None:
    """The text stands once in the page, with these numbers; else: python -m benchmarks.figures."""
    match = figures.only_match(figure, (ROOT / figure.page).read_text())
    assert match.groups() == figure.values()


def test_figures_are_rewritten() -> None:
    """The numbers alone change, also where a line ends between them."""
    (figure, *_) = FIGURES
    page = (ROOT / figure.page).read_text()
    match = figures.only_match(figure, page)
    start, end = match.span(len(figure.values()))
    assert figures.updated(figure.page, f"{page[:start]}99.9{page[end:]}") == page


def test_a_figure_that_is_not_found() -> None:
    """The page and the text are named."""
    with pytest.raises(SystemExit, match=r"README.md: 0 matches of 'no such text #'"):
        figures.only_match(Figure("README.md", "no such text #", tuple), "some such text 1")


def test_a_figure_of_a_server_that_answered_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The case and the server are named."""
    monkeypatch.setattr(figures, "result", lambda case, server: {"p99_us": None})
    with pytest.raises(SystemExit, match="a case, a server: no p99_us"):
        figures.median("a case", "a server", "p99_us")


@pytest.mark.parametrize("case", [figures.ONE, figures.MANY, figures.CROWD])
def test_the_reason_for_auto_holds(case: str) -> None:
    """`fastsock info` says that it is within 10 % of the best engine in these cases."""
    assert "within 10 % of the best engine at 1 to 1000 busy connections" in engines.AUTO_REASON
    ratios = [figures.ratio(case, f"fastsock {name}") for name in ("epoll", "poll", "io_uring")]
    assert figures.ratio(case, f"fastsock {engines.AUTO}") > 0.9 * max(ratios)


@pytest.mark.parametrize(
    ("page", "source", "lines_of", "part"),
    GENERATED,
    ids=[f"{page.name}: {part}" for page, _, _, part in GENERATED],
)
def test_generated_parts_are_current(page: Path, source: Path, lines_of: Lines, part: str) -> None:
    """Else: python -m benchmarks.table, benchmarks.engines_page or benchmarks.reliability.table."""
    lines = lines_of(json.loads(source.read_text()))
    assert page.read_text() == with_generated(page, source, lines, part)


def test_pictures_of_engines_are_current() -> None:
    """Else: python docs/pictures/engine_pictures.py."""
    pictures = ROOT / "docs" / "pictures"
    drawn = runpy.run_path(str(pictures / "engine_pictures.py"))["PICTURES"]
    assert drawn.keys() == {path.name for path in pictures.glob("engine-*.svg")}
    for name, draw in drawn.items():
        assert (pictures / name).read_text() == draw(), name
