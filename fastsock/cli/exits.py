"""Exit codes, and from the exceptions of bad options to click's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

OK = 0
FAILED = 1
USAGE = 2
NOT_VALID = 4
INTERRUPTED = 130


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn the library's error about a bad option into a usage error, exit code 2."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        raise click.UsageError(str(error)) from None
