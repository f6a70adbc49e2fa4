"""What pytest shows of the benchmarks: columns that fit a terminal, and what is not valid."""

from __future__ import annotations

import textwrap

import pytest

#: Benchmarks whose figures are not valid, and why; filled by test_echo.py.
NOT_VALID = pytest.StashKey[dict[str, list[str]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOT_VALID] = {}
    try:
        import fastsock._native  # noqa: F401  says whether the extension modules are built
    except ImportError as error:
        raise pytest.UsageError(str(error)) from None
    defaults = {"columns": ["mean", "ops"], "name": "short"}  # a third needs 100 columns
    given = " ".join(config.invocation_params.args)
    for option, value in defaults.items():
        if f"--benchmark-{option}" not in given and hasattr(config.option, f"benchmark_{option}"):
            setattr(config.option, f"benchmark_{option}", value)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    not_valid = terminalreporter.config.stash[NOT_VALID]
    if not_valid:
        terminalreporter.section("not valid", yellow=True)
        terminalreporter.line("Run these again on a quiet machine:")
    for name, reasons in not_valid.items():
        text = f"{name}: {'; '.join(reasons)}"
        for line in textwrap.wrap(text, 80, subsequent_indent="  ", break_long_words=False):
            terminalreporter.line(line)
