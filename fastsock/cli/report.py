"""``fastsock report``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from fastsock.cli.command import Command, GroupedOption
from fastsock.cli.exits import OK
from fastsock.cli.files import check_drawable, check_replaces_none
from fastsock.cli.output import write_file, write_result
from fastsock.client import saved
from fastsock.client.document_reader import reports_of
from fastsock.client.text import columns_of
from fastsock.page import page
from fastsock.page.run import Run

_TITLES = ("rate", "p50", "p99", "p99.9", "errors", "valid")
_WIDTHS = (8, 8, 8, 8, 7, 7)
_NAME = 28  # columns


@click.command(cls=Command, example="fastsock report before.json after.json -o report.html")
@click.argument("files", nargs=-1, metavar="RUN.json...")
@click.option(
    "-o",
    "--output",
    "output",
    cls=GroupedOption,
    group="Output",
    type=click.Path(allow_dash=True),
    metavar="FILE",
    help="Write an HTML page to this file; - is stdout. It is one file without a script, and "
    "needs matplotlib.",
    callback=lambda context, parameter, value: check_drawable(value),
)
def report(files: tuple[str, ...], output: str | None) -> int:
    """Show the runs that fastsock load --json wrote: one as text, several as a table, or a page.

    RUN.json is a run, a series of runs, or a directory of both. The exit code says whether they
    could be read and the page be written, not whether they are valid.
    """
    if not files:
        raise click.UsageError("report needs a result, as in: fastsock report RUN.json")
    check_replaces_none(output, files)
    try:
        read = [saved.read(file) for file in files]
        runs = page.runs_of(read)
        reports = [report for each in read for _, report in reports_of(each)]
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if output is None:
        write_result(str(reports[0]) if len(reports) == 1 else "\n".join(table(runs)))
        return OK
    return write_file(page.of(runs, read[0].series if len(read) == 1 else None), output)


def table(runs: Sequence[Run]) -> Iterator[str]:
    """A line for each run; a long name stands on a line of its own."""
    yield _line("run", _TITLES)
    for run in runs:
        name = run.name
        if columns_of(name) > _NAME:
            yield name
            name = ""
        yield _line(name, run.cells())


def _line(name: str, cells: Sequence[str]) -> str:
    room = " " * (_NAME - columns_of(name))
    figures = (f" {cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
    return f"{name}{room}{''.join(figures)}"
