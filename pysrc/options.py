"""Checks of options, with messages that say what was expected."""

from __future__ import annotations

import math


def check_int(name: str, value: object) -> int:
    """Return a whole number, at least 1. Raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} {value!r} is {type(value).__name__}; expected an int")
    if value < 1:
        raise ValueError(f"{name} {value} is too small; expected at least 1")
    return value


def check_number(name: str, value: object, *, zero: bool) -> float:
    """Return a finite number above 0; with `zero`, 0 too. Raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} {value!r} is {type(value).__name__}; expected a number")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} {value} is out of range; expected {'0 or ' * zero}more than 0")
    return value


def check_mode(name: str, value: object) -> int:
    """Return the rights of a file, 0 to 0o777. Raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} {value!r} is {type(value).__name__}; expected an int")
    if not 0 <= value <= 0o777:
        raise ValueError(f"{name} {value:#o} is out of range; expected 0 to 0o777")
    return value
