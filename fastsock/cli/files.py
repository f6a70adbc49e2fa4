"""The files that ``fastsock load`` writes: which go together, and those that end with a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from fastsock.cli.exits import OK, USAGE
from fastsock.cli.output import check_distinct, check_writable, complain, write_file, write_json
from fastsock.client.saved import SERIES_SCHEMA, Saved


@dataclass
class Files:
    """Paths of what a run is to write; None for what it is not."""

    json: str | None
    html: str | None
    hgrm: str | None
    hlog: str | None
    timeline: str | None
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

    def write_document(self, document: dict[str, Any]) -> int:
        """Write a run or a series as JSON and as a page, files before stdout; an exit code."""
        code = OK
        if self.json and self.json != "-":
            code = write_json(document, self.json)
            self.is_stdout_taken = code != OK  # the document went there
        if self.html:
            code = _draw(document, self.html) or code
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


def _draw(document: dict[str, Any], path: str) -> int:
    series = document if document["schema"] == SERIES_SCHEMA else None
    runs = tuple(series["runs"]) if series else (document,)
    try:
        from fastsock.page import page

        text = page.of(page.runs_of([Saved(document["endpoint"], runs, series)]), series)
    except Exception as error:  # of matplotlib's installation, say: the result is not lost for it
        complain(f"cannot draw {path}: {error}")
        return USAGE
    return write_file(text, path)
