"""``fastsock compare``."""

from __future__ import annotations

import click

from fastsock.cli.command import Command, GroupedOption, file_errors
from fastsock.cli.exits import FAILED, NOT_VALID, OK, TARGET_MISSED
from fastsock.cli.files import Files, check_replaces_none, html_option
from fastsock.cli.output import check_distinct, complain, write_result
from fastsock.cli.parameters import KindType, json_option
from fastsock.client import compare as comparison
from fastsock.client import saved
from fastsock.client.compare import Side, Target
from fastsock.options import Kind


class ChangeTarget(Kind):
    """``p99<+5%``: what a change must keep."""

    metavar = "METRIC<+N%"
    repeatable = True
    separator = ","

    def parse(self, name: str, text: str) -> Target:
        return Target.parse(text, name)


@click.command(
    cls=Command,
    example="fastsock compare before.json after.json\n"
    "fastsock compare before/ after/ --target 'p99<+5%' --target 'rate>-5%'",
)
@click.argument("before", metavar="BEFORE")
@click.argument("after", metavar="AFTER")
@click.option(
    "--target",
    "targets",
    cls=GroupedOption,
    group="Targets",
    type=KindType(ChangeTarget(), "--target"),
    multiple=True,
    help="Require this of the change of rate, p50, p90, p99 or p99.9, or exit with code 3 "
    "(repeatable).",
)
@json_option
@html_option
def compare(
    before: str,
    after: str,
    targets: tuple[Target, ...],
    json_path: str | None,
    html_path: str | None,
) -> int:
    """Compare load runs: by how much the rate and the latency differ.

    BEFORE and AFTER are results of fastsock load --json: a run, a series, or a directory of runs.
    At least three runs a side show a difference, or that none is seen, with a 99 % interval.
    A target is judged by the change that is shown, which is 0 where no difference is.
    """
    check_distinct(json_path, html_path)
    check_replaces_none(html_path, (before, after))
    with file_errors():
        read = [saved.read(path) for path in (before, after)]
        first, second = map(Side.of, read)
    if reasons := comparison.why_not(first, second):
        for reason in reasons:
            complain(reason)
        return FAILED
    result = comparison.compare(first, second, targets)

    def draw() -> str:
        from fastsock.page import comparison as page  # not at the top: few comparisons write one

        return page.of(result, read)

    files = Files(json_path, html_path)
    code = files.write_document(result.as_dict(), draw)
    if not files.is_stdout_taken:
        write_result(str(result))
    if code:
        return code
    if not result.valid:
        return NOT_VALID
    return OK if result.met else TARGET_MISSED
