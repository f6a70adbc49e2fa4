"""Checks of option values: a wrong type is a TypeError, a wrong value a ValueError, in one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field, fields
from typing import Any

#: What busy_poll="auto" of a server and wait="auto" of a client stand for, in microseconds: KVM's
#: cap for the same rule (Documentation/virt/kvm/halt-polling.rst).
AUTO_BUSY_POLL = 200


def option(default: Any, check: Callable[..., Any], *bounds: Any) -> Any:
    """A field of a dataclass of options, whose value is what `check(name, value, *bounds)` returns.

    None, where it is the default, is a value too.
    """
    return field(default=default, metadata={"check": check, "bounds": bounds})


def check_each(options: Any) -> None:
    """Check every field that was made by `option()`; for `__post_init__` of a frozen dataclass."""
    for each in fields(options):
        value = getattr(options, each.name)
        if "check" in each.metadata and (value is not None or each.default is not None):
            check, bounds = each.metadata["check"], each.metadata["bounds"]
            object.__setattr__(options, each.name, check(each.name, value, *bounds))


def check_int(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} {value!r} is {type(value).__name__}; expected an int")
    if not low <= value <= high:
        raise ValueError(f"{name} {value} is out of range; expected {low} to {high}")
    return value


def check_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} {value!r} is {type(value).__name__}; expected True or False")
    return value


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} {value!r} is {type(value).__name__}; expected a str")
    if value not in choices:
        raise ValueError(f"{name} {value!r} is unknown; expected one of {', '.join(choices)}")
    return value


def check_ranges(name: str, value: Any) -> tuple[tuple[bytes, int], ...]:
    """Address ranges (CIDR) as pairs of a 16-byte IPv6 network and its prefix length.

    IPv4 becomes IPv4-mapped IPv6 (RFC 4291 2.5.5.2), as which a dual-stack socket sees it too.
    """
    import ipaddress  # not at the top: most servers have no ranges

    if isinstance(value, str):
        raise TypeError(f"{name} {value!r} is str; expected a list of ranges such as 10.0.0.0/8")
    ranges = []
    for text in value:
        if not isinstance(text, str):
            raise TypeError(f"{name} {text!r} is {type(text).__name__}; expected a str")
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            raise ValueError(
                f"{name} {text!r}: {error}; expected a range like 10.0.0.0/8"
            ) from None
        packed, bits = network.network_address.packed, network.prefixlen
        if network.version == 4:
            packed, bits = bytes(10) + b"\xff\xff" + packed, bits + 96
        ranges.append((packed, bits))
    return tuple(ranges)


def check_number(name: str, value: Any, low: float, high: float, unit: str) -> float:
    """A finite number from `low` to `high`, both allowed, as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} {value!r} is {type(value).__name__}; expected a number of {unit}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or not low <= number <= high:
        raise ValueError(f"{name} {value} is out of range; expected {low:g} to {high:g} {unit}")
    return number
