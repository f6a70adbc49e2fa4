"""Human units: sizes, rates, durations and counts, read and printed.

What is printed can be typed back: ``64KiB``, ``10k/s``, ``500us``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

_DIGITS = "[0-9](?:_?[0-9])*"
_AMOUNT = re.compile(
    rf"((?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][+-]?[0-9]+)?) ?([^0-9 ]*)"
)
_MAX_SIZE = 2**63 - 1  # ssize_t, which recv(2) and send(2) return


@dataclass(frozen=True, slots=True)
class _Units:
    """The units of one quantity; of several names of one factor, the first is the printed one."""

    quantity: str
    factors: dict[str, int]
    example: str
    #: Other spellings, in lower case, and the unit that they mean.
    meant: dict[str, str] = field(default_factory=dict)


_NUMBERS = _Units(quantity="whole number", factors={"": 1}, example="64")
_COUNTS = _Units(
    quantity="count",
    factors={"": 1, "k": 1000, "M": 1000**2, "G": 1000**3},
    example="10k",
)
_SIZES = _Units(
    quantity="size",
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
    meant={"kb": "KiB", "mb": "MiB", "gb": "GiB", "bytes": "B", "byte": "B", "ki": "KiB"},
)
_RATES = _Units(
    quantity="rate",
    factors={"/s": 1, "k/s": 1000, "M/s": 1000**2, "": 1, "k": 1000, "M": 1000**2},
    example="10k/s",
    meant=dict.fromkeys(("rps", "qps", "/sec", "hz", "msg/s", "req/s"), "/s"),
)
# As network throughput is given everywhere: in bits, and decimal.
_BIT_RATES = _Units(
    quantity="bit rate",
    factors={"bit/s": 1, "kbit/s": 10**3, "Mbit/s": 10**6, "Gbit/s": 10**9},
    example="10Gbit/s",
)
# In microseconds: 300 * 1e-6 is not 0.0003, while 300 / 1e6 is rounded once and right.
_MICROSECONDS = 1_000_000
_DURATIONS = _Units(
    quantity="duration",
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
    meant={
        **dict.fromkeys(("sec", "secs", "second", "seconds"), "s"),
        **dict.fromkeys(("msec", "millis", "msecs"), "ms"),
        **dict.fromkeys(("usec", "\u00b5s", "\u03bcs", "micros"), "us"),
        **dict.fromkeys(("mins", "minute", "minutes"), "min"),
        **dict.fromkeys(("hr", "hour", "hours"), "h"),
    },
)


def parse_count(text: str, name: str = "count", *, units: bool = True) -> int:
    """Return a whole number; units are decimal, so ``10k`` is 10000.

    Raises:
        ValueError: not a whole number of at least 0; the text begins with `name`, here and below.

    """
    return _whole(text, name, _COUNTS if units else _NUMBERS)


def parse_size(text: str, name: str = "size") -> int:
    """Return a size in bytes; units are binary, so ``64k`` is 65536.

    A fraction of a larger unit is rounded to whole bytes.

    Raises:
        ValueError: not a size, a fraction of one byte, or more than 2**63 - 1 bytes.

    """
    size = _whole(text, name, _SIZES)
    if size > _MAX_SIZE:
        raise ValueError(f"{name} {_quote(text)} is too large; expected at most {_MAX_SIZE} bytes")
    return size


def parse_rate(text: str, name: str = "rate") -> float:
    """Return a rate in messages per second; units are decimal, so ``10k/s`` is 10000.0.

    Raises:
        ValueError: not a rate.

    """
    number, factor = _split(text, name, _RATES)
    return float(number * factor)


def parse_duration(text: str, name: str = "duration") -> float:
    """Return a duration in seconds; a number without a unit is seconds, and ``m`` is minutes.

    Raises:
        ValueError: not a duration.

    """
    number, factor = _split(text, name, _DURATIONS)
    return number * factor / _MICROSECONDS


def parse_numbers(text: str, name: str = "numbers", *, example: str = "0,1") -> list[int]:
    """Return the numbers of a list such as ``0,1``; the error shows the `example`.

    Raises:
        ValueError: not such a list.

    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(
            f"{name} {_quote(text)} is not a list of numbers; "
            f"write them with commas, as in {example}"
        ) from None


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


def plural(count: int, noun: str) -> str:
    """Return ``1 connection`` or ``2 connections``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _whole(text: str, name: str, units: _Units) -> int:
    number, factor = _split(text, name, units)
    if factor == 1 and number != int(number):
        of_bytes = " of bytes" if units is _SIZES else ""
        raise ValueError(
            f"{name} {_quote(text)} is not a whole number{of_bytes}; write {max(1, round(number))}"
        )
    return round(number * factor)


def _split(text: str, name: str, units: _Units) -> tuple[int | float, int]:
    match = _AMOUNT.fullmatch(text.strip())
    if match is None or match[2] not in units.factors:
        amount, unit = match.groups() if match else ("", "")
        raise ValueError(
            f"{name} {_quote(text)} is not a {units.quantity}; {_hint(amount, unit, units)}"
        )
    digits, factor = match[1].replace("_", ""), units.factors[match[2]]
    # float would round a byte count above 2**53, int refuses thousands of digits.
    number = int(digits) if digits.isdigit() and len(digits) < 20 else float(digits)
    if not math.isfinite(float(number) * factor):
        raise ValueError(f"{name} {_quote(text)} is too large for a float")
    return number, factor


def _hint(amount: str, unit: str, units: _Units) -> str:
    """What to write instead of an amount with an unknown unit, or of something else."""
    if units is _NUMBERS and unit in _COUNTS.factors and unit:
        number = float(amount.replace("_", "")) * _COUNTS.factors[unit]
        return f"write it without a unit, as in {number:.0f}" if number < _MAX_SIZE else "too large"
    import difflib  # not at the top: only a mistake needs it

    known = {each.lower(): each for each in units.factors}
    near = difflib.get_close_matches(unit.lower(), known, 1, 0.75)
    meant = units.meant.get(unit.lower()) or (known[near[0]] if near and unit else "")
    if meant:
        return f"did you mean {amount}{meant}?"
    printed = {factor: each for each, factor in reversed(units.factors.items()) if each}
    names = ", ".join(sorted(printed.values(), key=lambda each: units.factors[each]))
    return f"write a number{' and one of ' * bool(names)}{names}, as in {units.example}"


def _join(value: float, amount: float, units: _Units) -> str:
    if not 0 <= amount < math.inf:
        raise ValueError(f"{units.quantity} {value} is not a finite number of at least 0")
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
