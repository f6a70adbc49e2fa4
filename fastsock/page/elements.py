"""The parts that pages are made of: headings, tables, figures with keys; all text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from fastsock.page import charts
from fastsock.page.run import Run, Target, cut
from fastsock.units import plural


def escaped(value: object) -> str:
    return escape(str(value))


def header(title: str, where: str) -> str:
    return f'<header><h1>{escaped(title)}</h1><p class="small">{escaped(where)}</p></header>'


def footer(documents: Sequence[Mapping[str, Any]]) -> str:
    made = {cut(document["host"].get("fastsock"), 40) for document in documents}
    return (
        f'<footer class="small">Measured by fastsock {escaped(", ".join(sorted(made)))}.</footer>'
    )


def of_targets(number: int, missed: int) -> str:
    if missed:
        return f"{missed} of {plural(number, 'target')} missed"
    return "its target is met" if number == 1 else f"all {number} targets are met"


def targets_table(targets: Iterable[Target]) -> str:
    rows = "".join(
        f'<tr><td class="{"met" if each.met else "missed"}">'
        f"{'met' if each.met else 'missed'}</td><td>{escaped(each.target)}</td>"
        f'<td class="number">{escaped(each.seen)}</td></tr>'
        for each in targets
    )
    return f'<table class="targets" aria-label="Targets">{rows}</table>'


def bullets(texts: Iterable[str]) -> str:
    items = "".join(f"<li>{escaped(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def figure(picture: str, key: str, caption: str) -> str:
    told = f"<figcaption>{escaped(caption)}</figcaption>" if caption else ""
    return f"<figure>\n{picture}{key}{told}</figure>"


def swatch(number: int) -> str:
    color, dashed = charts.look(number)
    return f'<span class="swatch{" dashed" * dashed}" style="border-color: var(--{color})"></span>'


def parts_key(run: Run) -> str:
    items = "".join(
        f'<li><span class="swatch" style="border-color: var(--{color})"></span>{name}</li>'
        for name in charts.parts_of([run], alone=True)
        for color in (charts.PART_COLORS[name],)
    )
    return f'<ul class="key">{items}</ul>'


def key_of(names: Sequence[str]) -> str:
    items = "".join(f"<li>{swatch(at)}{escaped(name)}</li>" for at, name in enumerate(names))
    return f'<ul class="key">{items}</ul>'


def details(title: str, body: str) -> str:
    return f"<details><summary>{escaped(title)}</summary>{body}</details>"


def facts(facts: Iterable[tuple[str, str]]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escaped(title)}</th><td>{escaped(value)}</td></tr>'
        for title, value in facts
    )
    return f'<table class="facts">{rows}</table>' if rows else ""


def table(name: str, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of a name and of numbers."""
    return scrolled_table(
        name,
        titles,
        [
            f"<tr><td>{escaped(first)}</td>"
            + "".join(f'<td class="number">{escaped(cell)}</td>' for cell in cells)
            + "</tr>"
            for first, *cells in rows
        ],
    )


def scrolled_table(name: str, titles: Sequence[str], rows: Sequence[str], texts: int = 0) -> str:
    """A table that is scrolled sideways by itself where it is too wide.

    The first column and the last `texts` are text.
    """
    look = [' class="number"' * (0 < at < len(titles) - texts) for at in range(len(titles))]
    head = "".join(
        f'<th scope="col"{each}>{escaped(title)}</th>'
        for each, title in zip(look, titles, strict=True)
    )
    facts = ' class="facts"' if len(titles) == 2 else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table{facts}>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
