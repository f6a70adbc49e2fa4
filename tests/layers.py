"""The direction of imports: ``python tests/layers.py`` fails on one that points the wrong way.

A module may import what its layer names, in Python and natively, and other modules of its own
layer. ``make lint`` runs this.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: Each layer with the layers that it may import. The longest prefix of a module's name decides.
LAYERS = {
    "fastsock._native": (),
    "fastsock._native.server": ("fastsock._native",),
    "fastsock._native.client": ("fastsock._native",),
    "fastsock": (),
    "fastsock.server": ("fastsock", "fastsock._native.server"),
    "fastsock.client": ("fastsock", "fastsock._native.client"),
    "fastsock.bench": ("fastsock", "fastsock.server", "fastsock.client", "fastsock._native.client"),
    "fastsock.locust": ("fastsock", "fastsock.client", "fastsock._native.client"),
    "fastsock.page": ("fastsock", "fastsock.client"),
    "fastsock.cli": (
        "fastsock",
        "fastsock.server",
        "fastsock.client",
        "fastsock.bench",
        "fastsock.page",
    ),
    "fastsock.pure": ("fastsock", "fastsock.server", "fastsock.client"),
}

#: They load the package on request: `import fastsock` and `python -m fastsock`.
ENTRANCES = ("fastsock/__init__.py", "fastsock/__main__.py")

ENGINES = ("serial", "threads", "fork", "poll", "epoll", "datagram", "uring.uring")

_IMPORT = re.compile(r"^\s*(?:from ([\w.]+) c?import (.+)|c?import ([\w.]+))", re.MULTILINE)


def sources(root: Path) -> Iterator[tuple[str, Path]]:
    """Every module of the package with its dotted name."""
    for folder, package in ((root / "fastsock", "fastsock"), (root / "pysrc", "fastsock.pure")):
        for path in sorted(folder.rglob("*.p[yx]*")):
            inside = path.relative_to(folder)
            linked = inside.parts[0] == "pure"  # a link to pysrc/
            if path.suffix in (".py", ".pyx", ".pxd", ".pyi") and not linked:
                parts = [package, *inside.with_suffix("").parts]
                yield ".".join(part for part in parts if part != "__init__"), path


def imports_of(root: Path, module: str, path: Path) -> Iterator[tuple[str, bool]]:
    """The modules of this package that a file imports; whether as `from package cimport module`."""
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    for found in _IMPORT.finditer(path.read_text()):
        source, names, whole = found.groups()
        name = source or whole
        if name.startswith("."):
            depth = len(name) - len(name.lstrip("."))
            base = package[: len(package) - depth + 1]
            name = ".".join([*base, *filter(None, [name.lstrip(".")])])
        if not name.startswith("fastsock"):
            continue
        cimports = "cimport" in found[0]
        listed = re.findall(r"\w+", names or "")
        inner = [f"{name}.{each}" for each in listed if is_module(root, f"{name}.{each}")]
        for each in inner or [name]:
            yield each, cimports and bool(inner)


def is_module(root: Path, name: str) -> bool:
    stem = root / name.replace(".", "/").replace("fastsock/pure", "pysrc")
    return stem.is_dir() or any(stem.with_suffix(end).exists() for end in (".py", ".pyx", ".pxd"))


def layer_of(module: str) -> str:
    return max((each for each in LAYERS if f"{module}.".startswith(f"{each}.")), key=len)


def faults(root: Path = ROOT) -> Iterator[str]:
    engines = {f"fastsock._native.server.{name}" for name in ENGINES}
    for module, path in sources(root):
        where = path.relative_to(root)
        if str(where) in ENTRANCES:
            continue
        for imported, from_package in imports_of(root, module, path):
            own, other = layer_of(module), layer_of(imported)
            if other != own and other not in LAYERS[own]:
                yield f"{where} imports {imported}: {own} may not import {other}"
            if module in engines and imported in engines - {module}:
                yield f"{where} imports {imported}: no engine imports another"
            if from_package:
                yield f"{where}: write `cimport {imported} as ...`, which Cython's scan sees"


if __name__ == "__main__":
    found = list(faults())
    print("\n".join(found) or "imports point one way")
    sys.exit(bool(found))
