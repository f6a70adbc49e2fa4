"""What the commands write: results to files and to stdout, all else, soon, to stderr.

Files come first. A stdout or a stderr that cannot be written loses no result and changes no exit
code; an output that was asked for by name and cannot be written is exit code 2.
"""

from __future__ import annotations

import errno
import io
import json
import os
import select
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastsock.cli.exits import OK, USAGE
from fastsock.line_writer import draw, flush, say, write_text

if TYPE_CHECKING:
    from rich.progress import Progress

WIDTH = 80  # columns that every output fits

_A_MOMENT = 0.05  # seconds
_LONGEST = 2.0  # seconds; a busy machine may let the thread that writes wait so long


def complain(text: str) -> None:
    """Say what is wrong."""
    tell(f"Error: {text}")


def warn(text: str) -> None:
    """Say what is doubtful."""
    tell(f"warning: {text}")


def tell(text: str) -> None:
    """Say a text in lines that fit; a long word, such as a path, stands whole."""
    say(
        textwrap.fill(
            text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    )


def write_json(document: dict[str, Any], path: str) -> int:
    """Write `document` to `path`, or to stdout when that fails; return an exit code."""
    text = json.dumps(document, indent=2, allow_nan=False)
    if path == "-":
        error = write_result(text)
        if error:
            complain(f"cannot write the result to stdout: {error.strerror}")
        return USAGE if error else OK
    try:
        Path(path).write_text(text + "\n")
    except OSError as failed:
        complain(f"cannot write {path}: {failed.strerror}; the result follows")
        write_result(text)
        return USAGE
    return OK


def write_file(text: str, path: str) -> int:
    """Write text to `path`, or to stdout for ``-``; say why that fails; return an exit code."""
    error: OSError | None = None
    if path == "-":
        error = write_result(text.rstrip("\n"))
    else:
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as failed:
            error = failed
    if error:
        complain(f"cannot write {'to stdout' if path == '-' else path}: {error.strerror}")
    return USAGE if error else OK


def write_result(text: str) -> OSError | None:
    """Write text to stdout; return the error if that fails."""
    finish_lines()  # where both are one terminal, in the order in which they were said
    stream = sys.stdout
    if stream is None:  # descriptor 1 was closed at the start, and may be a socket by now
        return OSError(errno.EBADF, os.strerror(errno.EBADF))
    try:
        write_text(stream, f"{text}\n")
    except OSError as error:
        return error
    return None


def finish_lines() -> None:
    """Wait a moment for what was said to be written; longer only while stderr takes it."""
    waited = 0.0
    while not flush(_A_MOMENT) and waited < _LONGEST and sys.__stderr__ is not None:
        waited += _A_MOMENT
        poll = select.poll()
        poll.register(sys.__stderr__.fileno(), select.POLLOUT)
        if not poll.poll(0):
            return


@contextmanager
def progress_bar(title: str, total: float | None, *, quiet: bool) -> Iterator[Progress | None]:
    """A bar on stderr with one task, on a terminal only. `update(0, refresh=True)` draws it."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    # Without a thread of its own, which would hold a lock while a terminal is held (Ctrl-S).
    drawing = _Drawing()
    with Progress(
        console=Console(file=drawing, force_terminal=True),
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as bar:
        bar.add_task(title, total=total)
        drawing.may_drop = True
        try:
            yield bar
        finally:
            drawing.may_drop = False  # the cursor is shown again, and the bar removed


class _Drawing(io.StringIO):
    """A file whose text is drawn on stderr when it is flushed."""

    may_drop = False  # while stderr is held

    def flush(self) -> None:
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        if text:
            draw(text, may_drop=self.may_drop)


def check_distinct(*paths: str | None) -> None:
    """Refuse before a long run files of which one would overwrite another."""
    files = [Path(path).resolve() for path in paths if path not in (None, "-")]
    for file in files:
        if files.count(file) > 1:
            raise click.UsageError(f"two outputs go to {file}; name two files")


def check_writable(path: str | None) -> str | None:
    """Refuse before a long run a file that could not be written after it."""
    if path is None or path == "-":
        return path
    target = Path(os.path.realpath(path))  # where a link leads
    written = target if target.exists() else target.parent
    if target.is_dir() or not written.exists() or not os.access(written, os.W_OK):
        why = "it is a directory" if target.is_dir() else "its directory is not there"
        if written.exists() and not target.is_dir():
            why = "this user may not"
        raise click.UsageError(f"cannot write {path}: {why}; name another file")
    return path
