"""Exit codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastsock.client.report import LoadReport

OK = 0
FAILED = 1
USAGE = 2
TARGET_MISSED = 3
NOT_VALID = 4
INTERRUPTED = 130


def code_of(report: LoadReport) -> int:
    """The exit code of a run."""
    if report.failed:
        return FAILED
    if not report.valid:
        return NOT_VALID
    return TARGET_MISSED if report.missed else OK
