"""The page of a comparison: how the two sides differ, then the runs of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape

from fastsock.client.compare import TITLES, VERDICTS, Comparison
from fastsock.client.saved import Saved
from fastsock.page import elements, page
from fastsock.page.run import Run, Target, cut
from fastsock.units import plural


def of(comparison: Comparison, read: Sequence[Saved]) -> str:
    """The page; `read` is what the sides were read from, before and after.

    Raises:
        ValueError: a run is damaged.

    """
    runs = [
        run
        for side, saved in zip(comparison.sides, read, strict=True)
        for run in _runs_of(side, saved)
    ]
    before, after = (plural(len(side.reports), "run") for side in comparison.sides.values())
    where = "; ".join(f"{name}: {cut(side)}" for name, side in comparison.sides.items())
    title = f"{before} before, {after} after"
    return page.of(runs, opening=page.Opening(title, where, _parts(comparison)))


def _runs_of(side: str, saved: Saved) -> Iterator[Run]:
    for number, run in enumerate(page.runs_of([saved]), 1):
        yield replace(run, name=f"{side}, run {number}", group=side)


def _parts(comparison: Comparison) -> Iterator[str]:
    not_valid = [cut(each, 1000) for each in comparison.not_valid]
    missed = sum(not target.met for target in comparison.targets)
    verdicts = [figure.verdict for figure in comparison.figures]
    look = ""
    if not_valid or missed:
        look = "bad"
    elif None in verdicts or ("slower" in verdicts and not comparison.targets):
        look = "doubt"
    yield f'<div class="verdict {look}"><strong>{escape("; ".join(_verdict(comparison)))}</strong>'
    yield elements.bullets(not_valid)
    if comparison.targets:
        yield elements.targets_table(
            Target(each.target, each.text.removeprefix(f"{each.target}: "), each.met)
            for each in comparison.targets
        )
    yield "</div>"
    for note in comparison.notes:
        yield f'<p class="small">Note: {escape(cut(note, 1000))}.</p>'
    rows = []
    for metric, *figures, words in comparison.rows:
        cells = "".join(f'<td class="number">{escape(each)}</td>' for each in figures)
        head = f'<th scope="row" class="words">{metric}</th>'
        rows.append(f'<tr>{head}{cells}<td class="words">{escape(words)}</td></tr>')
    yield elements.scrolled_table("Comparison", TITLES, rows, texts=1)


def _verdict(comparison: Comparison) -> Iterator[str]:
    """The words of the table, each with its figures; then runs and targets that are wrong."""
    for verdict, words in VERDICTS.items():
        metrics = [each.metric for each in comparison.figures if each.verdict == verdict]
        if metrics:
            yield f"{words}: {', '.join(metrics)}"
    not_valid = len(list(comparison.not_valid))
    if not_valid:
        runs = sum(len(side.reports) for side in comparison.sides.values())
        yield f"{not_valid} of {plural(runs, 'run')} not valid"
    if comparison.targets:
        missed = sum(not target.met for target in comparison.targets)
        yield elements.of_targets(len(comparison.targets), missed)
