"""``fastsock info``."""

from __future__ import annotations

import textwrap

import click

from fastsock.cli.command import Command
from fastsock.cli.exits import OK
from fastsock.cli.output import WIDTH, write_json, write_result
from fastsock.cli.parameters import json_option
from fastsock.host import host_facts
from fastsock.server import engines


@click.command(cls=Command, example="fastsock info --json machine.json")
@json_option
def info(json_path: str | None) -> int:
    """Show the version, the machine, and which engines can be used."""
    facts = {"host": host_facts(), "engines": engines.states()}
    if json_path:
        return write_json(facts, json_path)
    lines = []
    for title, table in facts.items():
        width = max(map(len, table))
        lines.append(title)
        for name, value in table.items():
            text = "-" if value is None else str(value)
            lines += textwrap.wrap(
                text,
                WIDTH,
                initial_indent=f"  {name:{width}} ",
                subsequent_indent=" " * (width + 3),
            )
    write_result("\n".join(lines))
    return OK
