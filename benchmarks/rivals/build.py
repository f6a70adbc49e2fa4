"""Compiles the C rivals on demand. ``python -m benchmarks.rivals.build`` compiles all of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
BINARIES = SOURCES / "bin"
COMPILERS = ("cc", "gcc")
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
LIBRARIES = {"uring_echo": ("-luring",)}  # of liburing-dev


def compile_rival(name: str) -> Path:
    """Return the binary of ``NAME.c``, compiled first if it is missing or older than its source.

    Raises ValueError if there is no such source, RuntimeError if there is no compiler or it fails.
    """
    source = SOURCES / f"{name}.c"
    if not source.is_file():
        raise ValueError(f"no rival {name!r}: expected one of {', '.join(names())}")
    binary = BINARIES / name
    if binary.exists() and binary.stat().st_mtime >= source.stat().st_mtime:
        return binary

    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise RuntimeError(
            f"cannot compile {source.name}: no C compiler ({' or '.join(COMPILERS)}) on PATH"
        )
    BINARIES.mkdir(exist_ok=True)
    # Renamed into place when done: nobody can start half a binary, and one that runs stays whole.
    unfinished = BINARIES / f"{name}.{os.getpid()}"
    try:
        done = subprocess.run(
            [compiler, *FLAGS, "-o", unfinished, source, *LIBRARIES.get(name, ())],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{compiler} could not compile {source.name}:\n{done.stderr}")
        unfinished.replace(binary)
    finally:
        unfinished.unlink(missing_ok=True)
    return binary


def names() -> list[str]:
    """The rivals written in C."""
    return sorted(source.stem for source in SOURCES.glob("*.c"))


if __name__ == "__main__":
    for rival in names():
        print(compile_rival(rival))
