"""``fastsock merge``."""

from __future__ import annotations

import click

from fastsock.cli.command import Command, GroupedOption, file_errors
from fastsock.cli.exits import FAILED, OK, code_of
from fastsock.cli.output import complain, write_json, write_result
from fastsock.cli.parameters import json_option
from fastsock.client import merge as merging
from fastsock.client import saved


@click.command(
    cls=Command,
    example="fastsock merge a.json b.json --json both.json",
)
@click.argument("files", metavar="RUN.json...", nargs=-1, required=True)
@click.option(
    "--not-at-once",
    cls=GroupedOption,
    group="Runs",
    is_flag=True,
    help="Merge also runs that were not at the same time.",
)
@json_option
def merge(files: tuple[str, ...], not_at_once: bool, json_path: str | None) -> int:
    """Merge load runs that several machines made at the same time into one.

    Each RUN.json is a result of fastsock load --json. Histograms are added exactly, so that the
    percentiles are those of all answers; rates, counts and connections are summed.
    """
    with file_errors():
        parts = [part for file in files for part in merging.Part.all_of(saved.read(file))]
        if len(parts) < 2:
            raise ValueError(f"merge needs at least two runs; {files[0]} has one")
    try:
        with file_errors():
            report = merging.merge(parts, at_once=not not_at_once)
    except merging.NotMergeableError as error:
        for reason in error.reasons:
            complain(reason)
        return FAILED
    code = write_json(report.as_dict(), json_path) if json_path else OK
    if json_path != "-" and code == OK:
        write_result(str(report))
    return code or code_of(report)
