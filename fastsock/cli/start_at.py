"""When a load begins: ``--start-at``."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from fastsock.options import Kind
from fastsock.units import format_duration, parse_duration

_LONGEST = 86400.0  # seconds; a time that is further away is a wrong one


class StartAt(Kind):
    """A time, as time.time() has it."""

    metavar = "TIME"

    def parse(self, name: str, text: str) -> float:
        now = time.time()
        at = now + parse_duration(text[1:], name) if text.startswith("+") else _time_of(text, name)
        if at < now:
            raise ValueError(f"{name} {text!r} is over since {format_duration(now - at)}")
        if at > now + _LONGEST:
            raise ValueError(f"{name} {text!r} is more than a day away")
        return at


def _time_of(text: str, name: str) -> float:
    """Of a time in ISO 8601, in UTC if it names no zone; without a date it is today's."""
    for prefix in ("", f"{datetime.now(UTC):%Y-%m-%d}T"):
        try:
            found = datetime.fromisoformat(prefix + text)
        except ValueError:
            continue
        if ":" in text:
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    raise ValueError(
        f"{name} {text!r} is not a time; expected +5s, 14:30:00 or 2026-01-31T14:30:00 (UTC)"
    )
