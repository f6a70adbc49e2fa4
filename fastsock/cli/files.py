"""The files that ``load`` and ``compare`` write: which go together, and those with the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from fastsock.cli.exits import OK, USAGE
from fastsock.cli.output import check_distinct, check_writable, complain, write_file, write_json
from fastsock.cli.parameters import file_option
from fastsock.client.saved import SERIES_SCHEMA, Saved


@dataclass
class Files:
    """Paths of what a run is to write; None for what it is not."""

    json: str | None
    html: str | None
    hgrm: str | None = None
    hlog: str | None = None
    timeline: str | None = None
    #: Of those that are written while the run goes on.
    code: int = OK
    #: Whether JSON is on stdout, and no text.
    is_stdout_taken: bool = False

    def check(self, mode: str, *, is_series: bool) -> None:
        """Raise ValueError or UsageError where there can be no such file."""
        check_distinct(self.json, self.html, self.hgrm, self.hlog, self.timeline)
        if self.hgrm and mode != "echo":
            raise ValueError(f"hgrm does not go with mode {mode!r}, in which nothing is answered")
        for name in ("hgrm", "hlog", "timeline"):
            if is_series and getattr(self, name):
                raise ValueError(f"{name} does not go with several runs, which would replace it")

    def write_document(
        self, document: dict[str, Any], draw: Callable[[], str] | None = None
    ) -> int:
        """Write a result as JSON and as a page, files before stdout; an exit code.

        `draw` makes the page; without it the document is a run or a series.
        """
        code = OK
        if self.json and self.json != "-":
            code = write_json(document, self.json)
            self.is_stdout_taken = code != OK  # the document went there
        if self.html:
            code = _write_page(draw or (lambda: _page_of(document)), self.html) or code
        if self.json == "-":
            code = write_json(document, "-") or code
            self.is_stdout_taken = True
        return code


def check_drawable(value: str | None) -> str | None:
    """Refuse a page that could not be drawn, or not be written, before all work."""
    if value is not None:
        from fastsock.page import charts  # not at the top: few runs write a page

        try:
            charts.check()
        except ModuleNotFoundError as error:
            raise click.UsageError(str(error)) from None
    return check_writable(value)


html_option = file_option(
    "--html",
    "Write the result as an HTML page to this file. It needs matplotlib.",
    check=check_drawable,
)


def check_replaces_none(output: str | None, results: Sequence[str]) -> None:
    """Refuse a page that would replace a result that is read."""
    if output and output != "-" and any(_same(output, each) for each in results):
        raise click.UsageError(f"{output} is a result, which the page would replace")


def _same(output: str, file: str) -> bool:
    here, there = Path(output), Path(file)
    return here.exists() and there.exists() and here.samefile(there)


def _page_of(document: dict[str, Any]) -> str:
    from fastsock.page import page

    series = document if document["schema"] == SERIES_SCHEMA else None
    runs = tuple(series["runs"]) if series else (document,)
    return page.of(page.runs_of([Saved(document["endpoint"], runs, series)]), series)


def _write_page(draw: Callable[[], str], path: str) -> int:
    try:
        text = draw()
    except Exception as error:  # of matplotlib's installation, say: the result is not lost for it
        complain(f"cannot draw {path}: {error}")
        return USAGE
    return write_file(text, path)
