"""Stages of an open loop: ``10s@1k, 30s@1k..10k, 20s@10k``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fastsock.options import Kind, Rate, Seconds

MAX_STAGES = 100

_EXAMPLE = "10s@1k, 30s@1k..10k"
_DURATION = Seconds(0.001, 30 * 86400.0)
_RATE = Rate(0.001, 1e9)


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the window, in seconds, with the rate at its beginning and at its end."""

    duration: float
    rate_from: float
    rate_to: float

    @property
    def messages(self) -> float:
        return self.duration * (self.rate_from + self.rate_to) / 2

    @property
    def is_constant(self) -> bool:
        return self.rate_from == self.rate_to

    def __str__(self) -> str:
        """As it can be typed."""
        rates = dict.fromkeys((self.rate_from, self.rate_to))
        return f"{_DURATION.show(self.duration)}@{'..'.join(map(_RATE.show, rates))}"


class Stages(Kind):
    """Stages with commas between them, or a list of such text."""

    metavar = "STAGES"
    limits = f"DURATION@RATE or DURATION@RATE..RATE, at most {MAX_STAGES} with commas"

    def check(self, name: str, value: Any) -> tuple[Stage, ...]:
        if not isinstance(value, str):
            if isinstance(value, bytes) or not isinstance(value, Iterable):
                raise TypeError(
                    f"{name} {value!r} is {type(value).__name__}; "
                    f"expected a str such as {_EXAMPLE!r}, or a list of stages"
                )
            value = ",".join(map(str, value))
        stages = tuple(_stage(name, text.strip()) for text in value.split(","))
        if len(stages) > MAX_STAGES:
            raise ValueError(f"{name} has {len(stages)} stages; expected at most {MAX_STAGES}")
        _DURATION.check(name, sum(stage.duration for stage in stages))
        return stages


def _stage(name: str, text: str) -> Stage:
    duration, at, rates = text.partition("@")
    if not (duration and at and rates):
        raise ValueError(
            f"{name}: {text[:40]!r} is not DURATION@RATE or DURATION@RATE..RATE, as in {_EXAMPLE}"
        )
    first, dots, last = rates.partition("..")
    if last.startswith(".") or ("-" in rates and not dots):
        meant = f"{duration}@{'..'.join(filter(None, re.split('[.]{2,}|-', rates)))}"
        raise ValueError(f"{name}: {text[:40]!r} is not a stage; did you mean {meant[:40]}?")
    what = f"{name} {text[:40]!r}:"
    return Stage(
        _DURATION.check(f"{what} duration", duration.strip()),
        _RATE.check(f"{what} rate", first.strip()),
        _RATE.check(f"{what} rate", (last if dots else first).strip()),
    )
