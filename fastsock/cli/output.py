"""Writing results as JSON to a file or to stdout: a file that fails loses no result."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from fastsock.cli.exits import FAILED, OK

json_option = click.option(
    "--json",
    "json_path",
    metavar="FILE",
    help="Write the result as JSON to this file; - is stdout.",
    callback=lambda context, parameter, value: check_writable(value),
)


def write_json(document: dict[str, Any], path: str) -> int:
    """Write `document` to `path`, or to stdout when that fails; return an exit code."""
    text = json.dumps(document, indent=2)
    if path == "-":
        click.echo(text)
        return OK
    try:
        Path(path).write_text(text + "\n")
    except OSError as error:
        click.echo(f"Error: cannot write {path}: {error.strerror}; the result follows", err=True)
        click.echo(text)
        return FAILED
    return OK


def check_writable(path: str | None) -> str | None:
    """Refuse before a long run a file that could not be written after it."""
    if path is None or path == "-":
        return path
    target = Path(path)
    written = target if target.exists() else target.parent
    if target.is_dir() or not written.exists() or not os.access(written, os.W_OK):
        raise click.BadParameter(f"cannot write {path}: expected a file in a writable directory")
    return path
