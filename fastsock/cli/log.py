"""What ``fastsock serve`` says while it runs: plain lines, or records with time and level."""

from __future__ import annotations

import json
import logging
import time
from typing import Any, Literal

from fastsock.cli.output import complain, tell, warn
from fastsock.line_writer import say, write_stderr

Level = Literal["info", "warning", "error"]
Format = Literal["plain", "text", "json"]

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Log(logging.Handler):
    """Lines for stderr, and the handler of what the library logs; `with` adds it to its logger.

    Plain lines are as the other commands have them, without a time: journald and containers add
    theirs. ``text`` is ``2026-01-31T23:59:59.123Z WARNING what happened``. ``json`` is one object a
    line with "time", "level" and "message", and what else is told of an event by name. The time is
    UTC (RFC 3339).
    """

    def __init__(self, level: str, form: str) -> None:
        super().__init__(_LEVELS[level])
        self._form = form
        self._logger = logging.getLogger("fastsock")

    def __enter__(self) -> Log:
        self._before = self._logger.level
        self._logger.setLevel(max(self.level, logging.WARNING))  # the command says its own INFO
        if self._form != "plain":
            self._logger.addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._before)

    def info(self, text: str, *, wrap: bool = False, **facts: Any) -> None:
        self._put(logging.INFO, text, tell if wrap else say, facts)

    def warning(self, text: str) -> None:
        self._put(logging.WARNING, text, warn, {})

    def error(self, text: str) -> None:
        self._put(logging.ERROR, text, complain, {})

    def _put(self, level: int, text: str, plain: Any, facts: dict[str, Any]) -> None:
        if level < self.level:
            return
        if self._form == "plain":
            plain(text)
        else:
            say(self._line(level, text, time.time(), facts))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record of the library, in the thread that line_writer has for it."""
        write_stderr(self._line(record.levelno, record.getMessage(), record.created, {}))

    def _line(self, level: int, text: str, seconds: float, facts: dict[str, Any]) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        stamp = f"{stamp}.{int(seconds % 1 * 1000):03}Z"
        name = logging.getLevelName(level)
        if self._form == "json":
            record = {"time": stamp, "level": name.lower(), "message": text, **facts}
            return json.dumps(record, allow_nan=False)
        return f"{stamp} {name} {text}"
