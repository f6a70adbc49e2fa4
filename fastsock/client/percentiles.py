"""Percentiles that a user names: 50, 99.9, 99.999."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastsock.options import Kind

_DECIMALS = 3
_MOST = 11  # two lines of columns

EXPECTED = f"more than 0 and less than 100, with at most {_DECIMALS} decimals"


def is_percentile(percent: float) -> bool:
    return 0 < percent < 100 and round(percent, _DECIMALS) == percent


def name_of(percent: float) -> str:
    """Such as ``p99.9``."""
    return f"p{percent:g}"


class Percentiles(Kind):
    """Percentiles to show, in their order, each once."""

    metavar = "LIST"
    limits = f"1 to {_MOST} percentiles, {EXPECTED}"

    def check(self, name: str, value: Any) -> tuple[float, ...]:
        if isinstance(value, str | bytes) or not isinstance(value, Iterable):
            raise TypeError(
                f"{name} {value!r} is {type(value).__name__}; expected a list such as [50, 99.9]"
            )
        found: list[float] = []
        for each in value:
            if isinstance(each, bool) or not isinstance(each, int | float):
                raise TypeError(
                    f"{name}: {each!r} is {type(each).__name__}; expected a number such as 99.9"
                )
            if not is_percentile(each):
                helps = "; max is always shown" if each == 100 else ""
                raise ValueError(
                    f"{name}: {_shown(each)} is not a percentile; expected {EXPECTED}{helps}"
                )
            found.append(float(each))
        if not 1 <= len(set(found)) <= _MOST:
            raise ValueError(f"{name}: {len(set(found))} percentiles; expected 1 to {_MOST}")
        return tuple(sorted(set(found)))

    def parse(self, name: str, text: str) -> tuple[float, ...]:
        numbers = []
        for each in text.split(","):
            number = each.strip().removeprefix("p")
            if not (number.isascii() and number.replace(".", "", 1).isdigit()):
                raise ValueError(
                    f"{name} {text[:40]!r} is not a list of percentiles; "
                    "write them with commas, as in 50,99,99.9"
                )
            numbers.append(float(number))
        return self.check(name, numbers)

    def show(self, value: tuple[float, ...]) -> str:
        return ",".join(f"{each:g}" for each in value)


def _shown(number: float) -> str:
    return f"{number:.10g}" if abs(number) < 1e9 else "such a number"
