"""Tests of the check of import directions: it sees each kind of wrong import."""

from __future__ import annotations

from pathlib import Path

import pytest
from layers import faults


def test_this_package_has_no_wrong_import() -> None:
    """Imports point one way."""
    assert list(faults()) == []


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("fastsock/client/a.py", "from fastsock.server import b", "may not import fastsock.server"),
        ("fastsock/server/b.py", "import fastsock.client.a", "may not import fastsock.client"),
        ("fastsock/host.py", "    from fastsock.client import a", "may not import fastsock.client"),
        ("fastsock/bench/c.py", "from fastsock.cli import d", "may not import fastsock.cli"),
        ("pysrc/e.py", "from ..cli import d", "may not import fastsock.cli"),
        (
            "fastsock/_native/client/f.pyx",
            "cimport fastsock._native.server.g as g",
            "may not import fastsock._native.server",
        ),
        (
            "fastsock/_native/server/epoll.pyx",
            "cimport fastsock._native.server.poll as poll",
            "no engine imports another",
        ),
        (
            "fastsock/_native/server/g.pxd",
            "from fastsock._native cimport posix",
            "cimport fastsock",
        ),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, file: str, line: str, fault: str) -> None:
    """Each file below imports nothing but what the case adds."""
    for name in (
        "fastsock/client/a.py",
        "fastsock/server/b.py",
        "fastsock/cli/d.py",
        "fastsock/_native/posix.pxd",
        "fastsock/_native/server/poll.pyx",
        "fastsock/_native/server/g.pxd",
        file,
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{line}\n" if name == file else "")
    (found,) = faults(tmp_path)
    assert found.startswith(file)
    assert fault in found
