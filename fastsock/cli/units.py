"""Human units for the command line: sizes, rates and durations, read and printed.

What is printed can be typed back: ``64KiB``, ``10k/s``, ``500us``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    # Generic in newer releases of click only, so it is not subscripted at run time.
    _NumberType = click.ParamType[float]
    _IntType = click.ParamType[int]
else:
    _NumberType = _IntType = click.ParamType

__all__ = [
    "DURATION",
    "FILE_MODE",
    "RATE",
    "SIZE",
    "format_bits",
    "format_duration",
    "format_rate",
    "format_size",
    "numbers",
    "parse_duration",
    "parse_rate",
    "parse_size",
]

_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?) ?([^0-9 ]*)")
_FILE_MODE = re.compile("0?[0-7]{1,3}")
_MAX_SIZE = 2**63 - 1  # ssize_t, which recv(2) and send(2) return


@dataclass(frozen=True, slots=True)
class _Units:
    """A family of units; of the spellings of one factor, the first is the printed one."""

    kind: str
    factors: dict[str, int]
    example: str


_SIZES = _Units(
    kind="size",
    factors={
        "B": 1,
        "KiB": 1024,
        "MiB": 1024**2,
        "GiB": 1024**3,
        "": 1,
        "k": 1024,
        "K": 1024,
        "M": 1024**2,
        "G": 1024**3,
    },
    example="64k",
)
_RATES = _Units(
    kind="rate",
    factors={"/s": 1, "k/s": 1000, "M/s": 1000**2, "": 1, "k": 1000, "M": 1000**2},
    example="10k/s",
)
# As network throughput is given everywhere: in bits, and decimal.
_BIT_RATES = _Units(
    kind="bit rate",
    factors={"bit/s": 1, "kbit/s": 10**3, "Mbit/s": 10**6, "Gbit/s": 10**9},
    example="10Gbit/s",
)
# In microseconds: 300 * 1e-6 is not 0.0003, while 300 / 1e6 is rounded once and right.
_MICROSECONDS = 1_000_000
_DURATIONS = _Units(
    kind="duration",
    factors={
        "us": 1,
        "ms": 1000,
        "s": _MICROSECONDS,
        "min": 60 * _MICROSECONDS,
        "h": 3600 * _MICROSECONDS,
        "m": 60 * _MICROSECONDS,
        "": _MICROSECONDS,
    },
    example="500us",
)


def parse_size(text: str) -> int:
    """Return a size in bytes; units are binary, so ``64k`` is 65536.

    A fraction of a larger unit is rounded to whole bytes.

    Raises:
        ValueError: not a size, a fraction of one byte, or more than 2**63 - 1 bytes.

    """
    number, factor = _split(text, _SIZES)
    if factor == 1 and number != int(number):
        raise ValueError(f"size {_quote(text)} is not a whole number of bytes")
    size = round(number * factor)
    if size > _MAX_SIZE:
        raise ValueError(f"size {_quote(text)} is too large; expected at most {_MAX_SIZE} bytes")
    return size


def parse_rate(text: str) -> float:
    """Return a rate in messages per second; units are decimal, so ``10k/s`` is 10000.0.

    Raises:
        ValueError: not a rate.

    """
    number, factor = _split(text, _RATES)
    return float(number * factor)


def parse_duration(text: str) -> float:
    """Return a duration in seconds; a number without a unit is seconds, and ``m`` is minutes.

    Raises:
        ValueError: not a duration.

    """
    number, factor = _split(text, _DURATIONS)
    return number * factor / _MICROSECONDS


def format_size(size: float) -> str:
    """Return bytes as text with three significant digits: ``64KiB``.

    Raises:
        ValueError: negative or not finite.

    """
    return _join(size, size, _SIZES)


def format_rate(rate: float) -> str:
    """Return messages per second as text with three significant digits: ``10k/s``.

    Raises:
        ValueError: negative or not finite.

    """
    return _join(rate, rate, _RATES)


def format_bits(rate: float) -> str:
    """Return bits per second as text with three significant digits: ``9.41Gbit/s``.

    Raises:
        ValueError: negative or not finite.

    """
    return _join(rate, rate, _BIT_RATES)


def format_duration(seconds: float) -> str:
    """Return seconds as text with three significant digits: ``500us``.

    Raises:
        ValueError: negative or not finite.

    """
    return _join(seconds, seconds * _MICROSECONDS, _DURATIONS)


def _split(text: str, units: _Units) -> tuple[int | float, int]:
    match = _AMOUNT.fullmatch(text.strip())
    if match is None or match[2] not in units.factors:
        names = ", ".join(unit for unit in units.factors if unit)
        raise ValueError(
            f"{units.kind} {_quote(text)} is not a number of at least 0 with one of the units "
            f"{names}, as in {units.example}"
        )
    digits, factor = match[1], units.factors[match[2]]
    # float would round a byte count above 2**53, int refuses thousands of digits.
    number = int(digits) if digits.isdigit() and len(digits) < 20 else float(digits)
    if not math.isfinite(float(number) * factor):
        raise ValueError(f"{units.kind} {_quote(text)} is too large for a float")
    return number, factor


def _join(value: float, amount: float, units: _Units) -> str:
    if not 0 <= amount < math.inf:
        raise ValueError(f"{units.kind} {value} is not a finite number of at least 0")
    printed: dict[int, str] = {}
    for unit, factor in units.factors.items():
        printed.setdefault(factor, unit)
    digits = ""
    for factor in sorted(printed, reverse=True):
        digits = _three_digits(amount / factor)
        # Judged after rounding, or 999.9us would print as 1000us.
        if float(digits) >= 1:
            break
    return digits + printed[factor]


def _three_digits(number: float) -> str:
    # "g" alone would turn 1020 into 1.02e+03.
    if number >= 999.5:
        return f"{number:.0f}"
    return f"{number:.3g}"


def _quote(text: str) -> str:
    quoted = repr(text[:80])
    return quoted if len(quoted) <= 80 and len(text) <= 80 else f"{quoted[:77]}..."


class _UnitType(_NumberType):
    """A click parameter in human units; numbers, such as defaults, pass through."""

    def __init__(self, units: _Units, parse: Callable[[str], float]) -> None:
        self.name = units.kind
        self._parse = parse

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, int | float):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE = _UnitType(_SIZES, parse_size)
RATE = _UnitType(_RATES, parse_rate)
DURATION = _UnitType(_DURATIONS, parse_duration)


class _FileMode(_IntType):
    """A click parameter for the rights of a file, in octal as chmod(1) takes them."""

    name = "mode"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if not _FILE_MODE.fullmatch(value):
            self.fail(f"mode {_quote(value)} is not octal, 0 to 777, as in 600", param, ctx)
        return int(value, 8)


FILE_MODE = _FileMode()


def numbers(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> list[int] | None:
    """``0,1`` to [0, 1]: the callback of an option that takes a list of numbers."""
    try:
        return None if value is None else [int(number) for number in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers like 0,1") from None
