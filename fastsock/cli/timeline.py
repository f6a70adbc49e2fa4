"""What ``fastsock load`` writes while a run goes on: a line for each interval."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fastsock.cli.output import complain
from fastsock.client.document import row_of
from fastsock.client.report import Interval


class LineFile:
    """A file that gets lines while a run lasts; one that cannot be written does not end the run."""

    def __init__(self, path: str, file: IO[str]) -> None:
        self._path, self._file = path, file
        self.failed = False

    def write(self, line: str) -> None:
        if self.failed:
            return
        try:
            self._file.write(f"{line}\n")
            self._file.flush()
        except OSError as error:
            self.failed = True
            complain(f"cannot write {self._path}: {error.strerror}; the run goes on")

    def write_interval(self, row: Interval) -> None:
        self.write(json.dumps(row_of(row), allow_nan=False))


@contextmanager
def line_file(path: str) -> Iterator[LineFile]:
    """Open a file for lines. Raises OSError."""
    file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115, closing it may fail
    try:
        yield LineFile(path, file)
    finally:
        with suppress(OSError):  # of a line that could not be written, and was told
            file.close()
