"""Where a name is defined in a file of Python or Cython: a block, or an assignment."""

from __future__ import annotations

import re

#: The text of a link to a definition, as `listener.pyx: _bind`.
NAMED = re.compile(r"`?([\w.]+): ([\w.]+)`?")

_BLOCK = r"(?:async def|def|cpdef|class|cdef)\s(?:[^=(:#\n]*[\s*])?{name}[(:]"
_DEFINES = rf"^\s*(?:{_BLOCK}|{{name}}(?::[^=\n]+)? = )"


def line_of(name: str, code: str) -> int:
    """The line of the last part of a dotted name, each part after the one before; ValueError."""
    at = 0
    for part in name.split("."):
        pattern = re.compile(_DEFINES.replace("{name}", re.escape(part)), re.MULTILINE)
        found = pattern.search(code, at)
        if found is None:
            raise ValueError(f"{part} is not defined")
        at = found.end()
    return code.count("\n", 0, at) + 1
