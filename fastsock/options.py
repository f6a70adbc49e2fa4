"""How an option is declared: once, as a field of a frozen dataclass of checked values.

The field holds the default, the help and a kind: type, bounds and unit. From it are made the check,
the command-line option, the environment variable, docs/options.md, and what `help()` shows. A wrong
type is a TypeError and a wrong value a ValueError, in one line that says what is expected.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, fields
from functools import cache
from typing import Any, TypeVar, get_args

from fastsock import suggestions, units

MAX_INT = 2**31 - 1
_NUMBER = re.compile("-?[0-9]{1,20}")  # int() takes the digits of every script

_T = TypeVar("_T")


class Kind:
    """What an option may be: type, bounds and unit."""

    #: What stands for a value in a line of usage.
    metavar = ""
    #: The range and the unit, for documentation.
    limits = ""
    #: Whether the command-line option can be given several times, a value each.
    repeatable = False
    #: What stands between several values in an environment variable; None is white space.
    separator: str | None = None

    def check(self, name: str, value: Any) -> Any:
        """Return the checked value of the option `name`; TypeError or ValueError if it is bad."""
        raise NotImplementedError

    def parse(self, name: str, text: str) -> Any:
        """Return the value that `text` stands for, for `check()`; ValueError if it is bad."""
        return self.check(name, text)

    def show(self, value: Any) -> str:
        """Return a checked value in the spelling of the command line."""
        return str(value)


class Count(Kind):
    """A whole number. With `units` text such as ``10k`` is one too."""

    metavar = "N"

    def __init__(self, low: int, high: int, *, units: bool = False) -> None:
        self.low, self.high, self.units = low, high, units
        self.limits = f"{low} to {high}"

    def check(self, name: str, value: Any) -> int:
        if self.units and isinstance(value, str):
            return self.parse(name, value)
        return check_int(name, value, self.low, self.high)

    def parse(self, name: str, text: str) -> int:
        if _NUMBER.fullmatch(text):
            number = int(text)  # a negative one is out of range
        else:
            number = units.parse_count(text, name, units=self.units)
        return check_int(name, number, self.low, self.high)


class Size(Kind):
    """Bytes: an int, or text such as ``64k``."""

    metavar = "SIZE"

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def check(self, name: str, value: Any) -> int:
        if isinstance(value, str):
            value = units.parse_size(value, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong_type(name, value, "an int of bytes, or a str like '64k'")
        if not self.low <= value <= self.high:
            raise ValueError(f"{name} {value} is out of range; expected {self._range}")
        return value

    def show(self, value: int) -> str:
        return _shortest(value, units.format_size, units.parse_size)

    @property
    def _range(self) -> str:
        return f"{self.show(self.low)} to {self.show(self.high)}"

    @property
    def limits(self) -> str:  # type: ignore[override]
        return f"bytes, {self._range}"


class Seconds(Kind):
    """A number of seconds, text such as ``500us``, or one of some words."""

    def __init__(self, low: float, high: float, *, words: tuple[str, ...] = ()) -> None:
        self.low, self.high, self.words = low, high, words
        self.metavar = "|".join(("DURATION", *words))

    def check(self, name: str, value: Any) -> Any:
        bare = not isinstance(value, str) or value[-1:].isdigit()
        if isinstance(value, str):
            if value in self.words:
                return value
            value = units.parse_duration(value, name)
        number = _finite(name, value, "a number of seconds, or a str like '500us'")
        if not self.low <= number <= self.high:
            hint = "; a bare number is seconds" if bare and number > self.high else ""
            raise ValueError(f"{name} {number:g}s is out of range; expected {self._range}{hint}")
        return number

    def show(self, value: float | str) -> str:
        if isinstance(value, str):
            return value
        return _shortest(value, units.format_duration, units.parse_duration)

    @property
    def _range(self) -> str:
        words = "".join(f", or {word}" for word in self.words)
        return f"{self.show(self.low)} to {self.show(self.high)}{words}"

    @property
    def limits(self) -> str:  # type: ignore[override]
        return f"seconds, {self._range}"


class Rate(Kind):
    """Messages per second: a number, or text such as ``10k/s``."""

    metavar = "RATE"

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.limits = f"messages per second, {low:g} to {high:g}"

    def check(self, name: str, value: Any) -> float:
        if isinstance(value, str):
            value = units.parse_rate(value, name)
        number = _finite(name, value, "a number of messages per second, or a str like '10k/s'")
        if not self.low <= number <= self.high:
            expected = f"{self.low:g} to {self.high:g} messages per second"
            raise ValueError(f"{name} {number:g} is out of range; expected {expected}")
        return number

    def show(self, value: float) -> str:
        return _shortest(value, units.format_rate, units.parse_rate)


class Flag(Kind):
    """True or False."""

    limits = "on or off"

    def check(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise _wrong_type(name, value, "True or False")
        return value

    def show(self, value: bool) -> str:
        return "on" if value else "off"


class Choice(Kind):
    """One of the names of a Literal."""

    def __init__(self, literal: Any) -> None:
        self.literal = literal
        self.names: tuple[str, ...] = get_args(literal)
        self.metavar = f"[{'|'.join(self.names)}]"
        self.limits = ", ".join(self.names)

    def check(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise _wrong_type(name, value, "a str")
        if value not in self.names:
            meant = suggestions.near(value, self.names)
            helps = f"did you mean {meant!r}?" if meant else f"expected one of {self.limits}"
            raise ValueError(f"{name} {value!r} is unknown; {helps}")
        return value


class Octal(int):
    """An int that is printed as such as 0o600."""

    def __repr__(self) -> str:
        return f"0o{self:o}"


class FileMode(Kind):
    """The rights of a file: an int, or octal digits on the command line, as chmod(1) takes them."""

    metavar = "MODE"
    limits = "octal, 0 to 777; in Python an int such as 0o600"

    def check(self, name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong_type(name, value, "an int such as 0o600")
        if not 0 <= value <= 0o777:
            octal = 0 < value <= 777 and set(str(value)) <= set("01234567")
            helps = f"write 0o{value}" if octal else "expected 0 to 0o777"
            raise ValueError(f"{name} {value} is out of range; {helps}")
        return value

    def parse(self, name: str, text: str) -> int:
        digits = text.removeprefix("0o").removeprefix("0") or "0"
        if not (len(digits) <= 3 and set(digits) <= set("01234567")):
            raise ValueError(f"{name} {text[:40]!r} is not octal, 0 to 777; write 600, for example")
        return int(digits, 8)

    def show(self, value: int) -> str:
        return f"{value:o}"


class Line(Kind):
    """A line of at most `longest` bytes, without its end."""

    metavar = "LINE"

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.limits = f"at most {longest} bytes; in Python bytes"

    def check(self, name: str, value: Any) -> bytes:
        if isinstance(value, str):
            raise TypeError(f"{name} {value!r} is str; expected bytes: b{value!r}")
        if not isinstance(value, bytes):
            raise _wrong_type(name, value, "bytes")
        if b"\n" in value or b"\r" in value or len(value) > self.longest:
            raise ValueError(
                f"{name} {value[:40]!r} is not one line of at most {self.longest} bytes"
            )
        return value

    def parse(self, name: str, text: str) -> bytes:
        return self.check(name, os.fsencode(text))

    def show(self, value: bytes) -> str:
        return os.fsdecode(value)


class Text(Kind):
    """A line of text for people to read: without control characters."""

    metavar = "TEXT"

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.limits = f"at most {longest} characters"

    def check(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise _wrong_type(name, value, "a str")
        if len(value) > self.longest or not value.isprintable():
            raise ValueError(
                f"{name} {value[:40]!r} is not a line of at most {self.longest} characters "
                "without control characters"
            )
        return value


class Descriptors(Kind):
    """Numbers of open files."""

    metavar = "N"
    repeatable = True
    limits = "descriptors"

    def check(self, name: str, value: Any) -> tuple[int, ...]:
        each = _each(name, value, "a list of ints, such as [0, 1]")
        return tuple(check_int("descriptor", number, 0, MAX_INT) for number in each)

    def parse(self, name: str, text: str) -> int:
        return Count(0, MAX_INT).parse("descriptor", text)


class Cpus(Kind):
    """CPUs that this process may run on; None stands for an empty list."""

    metavar = "LIST"
    limits = "CPUs that the process may run on"

    def check(self, name: str, value: Any) -> tuple[int, ...]:
        each = _each(name, () if value is None else value, "a list of ints, such as [0, 1]")
        cpus = tuple(check_int("cpu", cpu, 0, MAX_INT) for cpu in each)
        usable = os.sched_getaffinity(0) if cpus else set()
        for cpu in cpus:
            if cpu not in usable:
                raise ValueError(f"cpu {cpu} cannot be used; expected some of {sorted(usable)}")
        return cpus

    def parse(self, name: str, text: str) -> tuple[int, ...]:
        return self.check(name, units.parse_numbers(text, name))


class Ranges(Kind):
    """Address ranges (CIDR), as pairs of a 16-byte IPv6 network and its prefix length.

    IPv4 becomes IPv4-mapped IPv6 (RFC 4291 2.5.5.2), which is how a dual-stack socket sees it.
    """

    metavar = "RANGE"
    repeatable = True
    limits = "addresses or ranges of them (CIDR)"

    def check(self, name: str, value: Any) -> tuple[tuple[bytes, int], ...]:
        expected = "a list of ranges such as 10.0.0.0/8"
        return tuple(_range(name, text) for text in _each(name, value, expected))

    def parse(self, name: str, text: str) -> str:
        self.check(name, [text])
        return text


class Addresses(Kind):
    """Addresses of this machine, IPv4 or IPv6 and not both, as their text."""

    metavar = "ADDRESS"
    repeatable = True
    limits = "IPv4 or IPv6 addresses of this machine, not both"

    def check(self, name: str, value: Any) -> tuple[str, ...]:
        expected = "a list of addresses such as 127.0.0.2"
        addresses = tuple(_address(name, text) for text in _each(name, value, expected))
        if len({":" in each for each in addresses}) > 1:
            raise ValueError(f"{name} {', '.join(addresses)}: expected IPv4 or IPv6, not both")
        return addresses

    def parse(self, name: str, text: str) -> str:
        return _address(name, text)


class Option:
    """A declared option: what `option()` was given, and the name of the field."""

    def __init__(
        self,
        name: str,
        default: Any,
        *,
        kind: Kind,
        help: str,
        more: str,
        flags: tuple[str, ...],
        shown: str,
        group: str,
    ) -> None:
        self.name, self.default, self.kind = name, default, kind
        self.help, self.more, self.flags, self.shown = help, more, flags, shown
        self.group = group

    @property
    def shown_default(self) -> str:
        """The default in the spelling of the command line; empty for None and for no value."""
        if self.shown or self.default in (None, (), b""):
            return self.shown
        return self.kind.show(self.default)


def option(
    default: Any,
    kind: Kind,
    *,
    help: str,
    more: str = "",
    flags: tuple[str, ...] = (),
    shown: str = "",
    group: str = "",
) -> Any:
    """A field of a frozen dataclass of options, whose value is what `kind.check()` returns.

    Args:
        default: the value if none is given; None is a value too where it is the default.
        kind: what the option may be.
        help: what it does, in one imperative sentence.
        more: further sentences, for the documentation.
        flags: on the command line: a short one beside ``--name-of-the-field``, or another name.
        shown: the text for a default that depends on other options.
        group: the heading over it and the options after it, in the help and the documentation.

    """
    metadata = {"kind": kind, "help": help, "more": more, "flags": flags, "shown": shown}
    return field(default=default, metadata={**metadata, "group": group})


def declared(options: type) -> tuple[Option, ...]:
    """Every option of a dataclass, in order."""
    return tuple(Option(each.name, each.default, **each.metadata) for each in fields(options))


def check_all(options: Any) -> None:
    """Check every field; for `__post_init__` of a frozen dataclass."""
    for each in fields(options):
        value = getattr(options, each.name)
        if value is not None or each.default is not None:
            checked = each.metadata["kind"].check(each.name, value)
            object.__setattr__(options, each.name, checked)


def from_given(options: type[_T], given: Mapping[str, Any]) -> _T:
    """Make the checked options from what was given by keyword.

    Raises:
        TypeError: no such option, or one of the wrong type.
        ValueError: an option has the wrong value, or does not go with another.

    """
    names = [each.name for each in fields(options)]  # type: ignore[arg-type]
    for name in given:
        if name not in names:
            hyphened = [each.replace("_", "-") for each in names]
            meant, remark = suggestions.for_option(
                name.replace("_", "-"), hyphened, "write it in the endpoint: "
            )
            helps = f"did you mean {meant.replace('-', '_')!r}?" if meant else remark
            helps = helps or f"expected some of {', '.join(names)}"
            raise TypeError(f"option {name!r} is unknown; {helps}")
    return options(**given)


def takes(options: type) -> Callable[[_T], _T]:
    """Show the options that a function or class takes as `**options` in its `help()`.

    They stand in its signature, and in place of ``{options}`` in its docstring.
    """

    def decorate(target: _T) -> _T:
        function: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
        signature = inspect.signature(function)
        parameters = [
            *(each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD),
            *(
                inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default)
                for each in declared(options)
            ),
        ]
        function.__signature__ = signature.replace(parameters=parameters)
        if target.__doc__:  # there is none under python -OO
            target.__doc__ = target.__doc__.replace("{options}", _arguments(options))
        return target

    return decorate


def check_int(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(name, value, "an int")
    if not low <= value <= high:
        raise ValueError(f"{name} {value} is out of range; expected {low} to {high}")
    return value


def _finite(name: str, value: Any, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, value, expected)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} {value} is out of range; expected a finite number")
    return number


def _wrong_type(name: str, value: Any, expected: str) -> TypeError:
    return TypeError(f"{name} {value!r} is {type(value).__name__}; expected {expected}")


def _each(name: str, value: Any, expected: str) -> Iterable[Any]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise _wrong_type(name, value, expected)
    return value


def _range(name: str, text: Any) -> tuple[bytes, int]:
    import ipaddress  # not at the top: most servers have no ranges

    if not isinstance(text, str):
        raise _wrong_type(name, text, "a str")
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{name} {text!r}: {error}; expected a range like 10.0.0.0/8") from None
    packed, bits = network.network_address.packed, network.prefixlen
    if network.version == 4:
        packed, bits = bytes(10) + b"\xff\xff" + packed, bits + 96
    return packed, bits


def _address(name: str, text: Any) -> str:
    import ipaddress

    if not isinstance(text, str):
        raise _wrong_type(name, text, "a str")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(
            f"{name} {text[:80]!r} is no address; expected one such as 127.0.0.2 or ::1"
        ) from None
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{name} {text!r} is not an address of one machine")
    # A socket of AF_INET6 cannot be connected to it where it takes IPv6 alone.
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _shortest(value: float, show: Callable[[float], str], parse: Callable[[str], float]) -> str:
    """The value with its unit if that reads back as the same value, else without."""
    text = show(value) if value else "0"
    return text if parse(text) == value else f"{value:g}" if value % 1 else f"{value:.0f}"


@cache
def _arguments(options: type) -> str:
    """The options for the Args of a docstring, without the indent of their first line."""
    lines = []
    for each in declared(options):
        limits = "" if isinstance(each.kind, Flag) else f"({each.kind.limits})"
        text = " ".join(filter(None, (f"{each.name}: {each.help}", each.more, limits)))
        lines += textwrap.wrap(
            text, 100, initial_indent=" " * 8, subsequent_indent=" " * 12, break_on_hyphens=False
        )
    return "\n".join(lines).lstrip()
