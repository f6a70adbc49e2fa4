"""Exit codes, and the way from an exception to one."""

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
    """Turn what the library says of a bad option into a usage error, exit code 2."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        raise click.UsageError(str(error)) from None
