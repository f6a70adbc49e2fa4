"""Test of the build: Cython sees which extension modules a changed header concerns."""

from __future__ import annotations

from pathlib import Path

import pytest
from layers import ROOT, imports_of, sources

MODULES = {name: path for name, path in sources(ROOT) if path.suffix == ".pxd"}
EXTENSIONS = [(name, path) for name, path in sources(ROOT) if path.suffix == ".pyx"]


def headers_of(name: str, path: Path) -> set[Path]:
    """The headers that a module cimports, and those that these cimport; its own too."""
    found: set[Path] = set()
    left = [(name, path)]
    if name in MODULES:
        left.append((name, MODULES[name]))
    while left:
        module, source = left.pop()
        if source.suffix == ".pxd":
            found.add(source)
        imported = {each for each, _ in imports_of(ROOT, module, source)} & MODULES.keys()
        left += [(each, MODULES[each]) for each in imported if MODULES[each] not in found]
    return found


@pytest.mark.parametrize(("name", "path"), EXTENSIONS, ids=[name for name, _ in EXTENSIONS])
def test_a_changed_header_rebuilds_what_uses_it(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cython's scan finds every header: a module that it missed would keep an old struct layout."""
    dependencies = pytest.importorskip("Cython.Build.Dependencies", reason="Cython is missing")
    monkeypatch.chdir(ROOT)
    tree = dependencies.create_dependency_tree(quiet=True)
    seen = {Path(each).resolve() for each in tree.all_dependencies(str(path.relative_to(ROOT)))}
    assert headers_of(name, path) <= seen
    assert headers_of(name, path)
