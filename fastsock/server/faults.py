"""Faults of a server: what it does wrong on request, as in ``reset_peer:after=4k,probability=0.1``.

KIND, or KIND:PARAMETER=VALUE,PARAMETER=VALUE. The words are toxiproxy's where it has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastsock import suggestions, units
from fastsock.options import Count, Kind, Seconds, Size

if TYPE_CHECKING:
    from fastsock.endpoint import Endpoint

NEVER = 2**63 - 1  # bytes or ns, in numbers()
_LONGEST = 200  # characters; a longer one would not be read


class _Probability(Kind):
    def check(self, name: str, value: Any) -> float:
        try:
            probability = float(value)
        except ValueError:
            probability = math.nan
        if not 0 <= probability <= 1:
            raise ValueError(f"{name} {value} is no probability; expected 0 to 1, as 0.1")
        return probability


class _ByteRate(Kind):
    def check(self, name: str, value: Any) -> float:
        rate = units.parse_rate(value, name)
        if not 1 <= rate <= 1e12:
            raise ValueError(f"{name} {value} is out of range; expected 1/s to 1e12/s, in bytes")
        return rate


@dataclass(frozen=True, slots=True)
class _Parameter:
    kind: Kind
    example: str
    #: None: without a value of its own it has none.
    default: float | None = None
    required: bool = False


_BYTES = Size(0, 1 << 40)
_TIME = Seconds(0, 86400)

_DELAY = _Parameter(_TIME, "100ms", required=True)
_LATENCY = {"delay": _DELAY, "jitter": _Parameter(_TIME, "10ms", 0.0)}
_CUT = {"after": _Parameter(_BYTES, "4k"), "after_time": _Parameter(_TIME, "2s")}
_PROBABILITY = {"probability": _Parameter(_Probability(), "0.1", 1.0)}

_STREAM: dict[str, dict[str, _Parameter]] = {
    "latency": _LATENCY,
    "bandwidth": {"rate": _Parameter(_ByteRate(), "64k/s", required=True)},
    "slicer": {
        "size": _Parameter(Size(1, 1 << 30), "64", required=True),
        "delay": _Parameter(_TIME, "1ms", 0.0),
    },
    "limit_data": {"bytes": _Parameter(_BYTES, "4k", required=True)},
    "reset_peer": _CUT,
    "timeout": _CUT,
    "slow_close": {"delay": _DELAY},
    "corrupt": {},
    "duplicate": {},
    "drop": {},
    "no_read": _CUT,
    "half_close": _CUT,
    "refuse": {},
    "accept_delay": {"delay": _DELAY},
}
_DATAGRAM: dict[str, dict[str, _Parameter]] = {
    "latency": _LATENCY,
    "corrupt": {},
    "duplicate": {},
    "loss": {},
    "reorder": {
        "gap": _Parameter(Count(1, 1000, units=True), "3", 1),
        "delay": _Parameter(_TIME, "10ms", 0.01),
    },
    "truncate": {"size": _Parameter(Size(0, 65535), "64", required=True)},
}

STREAM_KINDS = tuple(_STREAM)
DATAGRAM_KINDS = tuple(_DATAGRAM)
#: Every kind, in the order of the enum in fastsock/_native/server/counters.pxd.
KINDS = tuple(_STREAM | _DATAGRAM)

_PARAMETERS = {name: {**own, **_PROBABILITY} for name, own in (_STREAM | _DATAGRAM).items()}

#: Words of other tools, in lower case.
_MEANT = {
    **dict.fromkeys(("delay", "lag", "slow"), "latency"),
    **dict.fromkeys(("throttle", "rate", "rate_limit"), "bandwidth"),
    **dict.fromkeys(("slice", "fragment", "chop"), "slicer"),
    **dict.fromkeys(("limit", "close", "eof", "fin"), "limit_data"),
    **dict.fromkeys(("reset", "rst", "abort", "disconnect"), "reset_peer"),
    **dict.fromkeys(("stall", "hang", "silent", "blackhole"), "timeout"),
    **dict.fromkeys(("corruption", "bit_flip", "garble"), "corrupt"),
    **dict.fromkeys(("dup", "duplication", "repeat"), "duplicate"),
    **dict.fromkeys(("zero_window", "stop_reading"), "no_read"),
    **dict.fromkeys(("shutdown", "shut_wr"), "half_close"),
    **dict.fromkeys(("down", "reject"), "refuse"),
    **dict.fromkeys(("backlog", "slow_accept"), "accept_delay"),
    **dict.fromkeys(("packet_loss", "lose", "lost"), "loss"),
    **dict.fromkeys(("reordering", "shuffle"), "reorder"),
}
#: Words for parameters; the first one that the kind has is meant.
_SAME = {
    "at": ("after", "bytes"),
    "bandwidth": ("rate",),
    "bytes": ("after", "size"),
    "chance": ("probability",),
    "duration": ("delay", "after_time"),
    "latency": ("delay",),
    "limit": ("bytes",),
    "p": ("probability",),
    "percent": ("probability",),
    "size": ("bytes",),
    "speed": ("rate",),
    "time": ("delay", "after_time"),
    "timeout": ("after_time",),
    "toxicity": ("probability",),
}


class Fault(str):
    """A fault as it was written, without spaces, taken apart.

    `parameters` has every parameter that has a value, by default too: bytes, seconds, bytes per
    second, and the probability.
    """

    __slots__ = ("kind", "parameters")
    kind: str
    parameters: Mapping[str, float]

    def __new__(cls, text: str, name: str = "fault") -> Fault:
        """Raise ValueError if the text is no fault; the error begins with `name`."""
        written = "".join(text.split())
        if len(written) > _LONGEST:
            raise ValueError(
                f"{name} {text[:40]!r}... is too long; write one fault, as in reset_peer:after=4k"
            )
        self = super().__new__(cls, written)
        self.kind, self.parameters = _parse(written, f"{name} {written!r}")
        return self

    def __getnewargs__(self) -> tuple[str]:
        return (str(self),)

    def numbers(self) -> tuple[int, float, int, int, int, int, int, float]:
        """The fault as native code takes it.

        That is: its place in `KINDS`; the probability; the bytes and the ns after which it acts, or
        NEVER (`bytes` of limit_data is the former); size, or the gap; delay and jitter in ns; rate
        in bytes per second.
        """
        given = self.parameters
        after_time = given.get("after_time")
        after = given.get("after", given.get("bytes", 0 if after_time is None else NEVER))
        return (
            KINDS.index(self.kind),
            float(given["probability"]),
            int(after),
            NEVER if after_time is None else _ns(after_time),
            int(given.get("size", given.get("gap", 0))),
            _ns(given.get("delay", 0)),
            _ns(given.get("jitter", 0)),
            float(given.get("rate", 0)),
        )


class Faults(Kind):
    """A list of faults. None is not the same as an empty one, which can be changed later."""

    metavar = "FAULT"
    repeatable = True
    limits = (
        "KIND or KIND:PARAMETER=VALUE,PARAMETER=VALUE; streams: "
        f"{', '.join(STREAM_KINDS)}; datagrams: {', '.join(DATAGRAM_KINDS)}"
    )

    def check(self, name: str, value: Any) -> tuple[Fault, ...]:
        if isinstance(value, str | bytes) or not isinstance(value, Iterable):
            raise TypeError(
                f"{name} {value!r} is {type(value).__name__}; "
                "expected a list such as ['reset_peer:after=4k']"
            )
        found = []
        for each in value:
            if not isinstance(each, str):
                raise TypeError(
                    f"fault {each!r} is {type(each).__name__}; "
                    "expected a str such as 'reset_peer:after=4k'"
                )
            found.append(Fault(each))
        return tuple(found)

    def parse(self, name: str, text: str) -> Fault:
        return Fault(text, name)


def check_endpoints(faults: Iterable[Fault], endpoints: Iterable[Endpoint]) -> None:
    """Raise ValueError for a fault that none of the endpoints can have."""
    streams = {each.is_stream for each in endpoints}
    for fault in faults:
        if (True in streams and fault.kind in _STREAM) or (
            False in streams and fault.kind in _DATAGRAM
        ):
            continue
        its, here, kinds = "streams", "datagrams", DATAGRAM_KINDS
        if fault.kind not in _STREAM:
            its, here, kinds = "datagrams", "streams", STREAM_KINDS
        raise ValueError(
            f"fault {str(fault)!r} is for {its}; those of {here} are {', '.join(kinds)}"
        )


# --- the grammar --------------------------------------------------------------------------------


def _parse(text: str, name: str) -> tuple[str, dict[str, float]]:
    """Kind and parameters."""
    kind, colon, rest = text.partition(":")
    if kind not in _PARAMETERS:
        near = kind.lower().replace("-", "_")
        meant = _MEANT.get(near) or suggestions.near(near, KINDS)
        helps = f"did you mean {meant}?" if meant else f"expected one of {', '.join(KINDS)}"
        raise ValueError(f"{name}: {kind!r} is no fault; {helps}")
    known = _PARAMETERS[kind]
    given: dict[str, float] = {}
    for part in rest.split(",") if colon else ():
        parameter, equals, value = part.partition("=")
        if parameter not in known:
            raise ValueError(f"{name}: {_unknown(kind, parameter, bool(equals))}")
        if not value:
            example = f"{parameter}={known[parameter].example}"
            raise ValueError(f"{name}: {parameter} has no value; write {example}")
        if parameter in given:
            raise ValueError(f"{name}: {parameter} is given twice")
        given[parameter] = known[parameter].kind.check(f"{name}: {parameter}", value)
    _check_whole(kind, given, name)
    defaults = {each: known[each].default for each in known}
    return kind, {each: value for each, value in {**defaults, **given}.items() if value is not None}


def _check_whole(kind: str, given: Mapping[str, float], name: str) -> None:
    """What one parameter alone does not tell."""
    for parameter, declared in _PARAMETERS[kind].items():
        if declared.required and parameter not in given:
            example = f"{kind}:{parameter}={declared.example}"
            raise ValueError(f"{name}: {parameter} is missing; write {example}")
    if kind == "reset_peer" and not given.keys() & _CUT.keys():
        raise ValueError(f"{name}: after or after_time is missing; write {kind}:after=4k")
    if given.get("jitter", 0) > given.get("delay", 0):
        raise ValueError(f"{name}: jitter is longer than delay; expected at most the delay")


def _unknown(kind: str, parameter: str, has_value: bool) -> str:
    """What is wrong with a parameter that the kind does not have."""
    known = _PARAMETERS[kind]
    first = next(iter(known))
    if not parameter:
        return f"a parameter is missing; write {kind}:{first}={known[first].example}"
    if not has_value and parameter[0].isdigit():
        fitting = (each for each in known if _fits(known[each].kind, parameter))
        return f"{parameter!r} has no name; did you mean {next(fitting, first)}={parameter}?"
    same = (each for each in _SAME.get(parameter.lower(), ()) if each in known)
    meant = next(same, "") or suggestions.near(parameter, known)
    helps = f"did you mean {meant}?" if meant else f"expected some of {', '.join(known)}"
    return f"{kind} has no parameter {parameter!r}; {helps}"


def _fits(kind: Kind, value: str) -> bool:
    try:
        kind.check("", value)
    except ValueError:
        return False
    return True


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
