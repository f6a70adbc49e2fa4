"""What the tests of believable numbers saw, as JSON records; docs/believable.md is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "build" / "believable"


def record(name: str, **facts: Any) -> None:
    """Write build/believable/NAME.json, with what was disturbed, what was expected and seen."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps({"name": name, **facts}, indent=1) + "\n")
