"""Compiles the rivals in C and Go on demand.

``python -m benchmarks.rivals.build [NAME...]`` compiles those, or all that can be compiled here.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
BINARIES = SOURCES / "bin"
COMPILERS = ("cc", "gcc")
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
#: By program: the library as pkg-config calls it, and the Debian package that has it.
LIBRARIES = {"uring_echo": ("liburing", "liburing-dev"), "uv_echo": ("libuv", "libuv1-dev")}


def compile_rival(name: str) -> Path:
    """Return the binary of ``NAME.c`` or ``NAME.go``, compiled first if older than its source.

    Raises ValueError if there is no such source, RuntimeError if what it needs is missing or the
    compiler fails.
    """
    source = source_of(name)
    binary = BINARIES / name
    if binary.exists() and binary.stat().st_mtime >= source.stat().st_mtime:
        return binary
    if lacking := missing(name):
        raise RuntimeError(f"cannot compile {source.name}: first {lacking}")
    BINARIES.mkdir(exist_ok=True)
    # Renamed into place when done: half a binary is never started, and one that runs stays whole.
    unfinished = BINARIES / f"{name}.{os.getpid()}"
    try:
        done = subprocess.run(command(source, unfinished), capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{source.name} could not be compiled:\n{done.stderr}")
        unfinished.replace(binary)
    finally:
        unfinished.unlink(missing_ok=True)
    return binary


def missing(name: str) -> str:
    """The command that installs what compiling it needs; empty if all is here."""
    if source_of(name).suffix == ".go":
        return "" if shutil.which("go") else "apt-get install golang-go"
    packages = [] if compiler() else ["gcc", "libc6-dev"]
    if name in LIBRARIES:
        library, package = LIBRARIES[name]
        if not shutil.which("pkg-config"):
            packages += ["pkg-config", package]
        elif subprocess.run(["pkg-config", "--exists", library]).returncode != 0:
            packages.append(package)
    return f"apt-get install {' '.join(packages)}" if packages else ""


def command(source: Path, output: Path) -> list[str | Path]:
    if source.suffix == ".go":
        return ["go", "build", "-o", output, source]
    flags: list[str] = []
    if source.stem in LIBRARIES:
        ask = ["pkg-config", "--cflags", "--libs", LIBRARIES[source.stem][0]]
        flags = shlex.split(subprocess.run(ask, capture_output=True, text=True, check=True).stdout)
    return [compiler(), *FLAGS, "-o", output, source, *flags]


def compiler() -> str:
    """Where the C compiler is; empty if there is none."""
    return next(filter(None, map(shutil.which, COMPILERS)), "")


def source_of(name: str) -> Path:
    for suffix in (".c", ".go"):
        source = SOURCES / f"{name}{suffix}"
        if source.is_file():
            return source
    raise ValueError(f"no rival {name!r}: expected one of {', '.join(names())}")


def names() -> list[str]:
    """The rivals that are compiled."""
    return sorted(source.stem for source in SOURCES.iterdir() if source.suffix in (".c", ".go"))


def main(chosen: list[str]) -> None:
    for name in chosen or names():
        lacking = missing(name)
        if lacking and not chosen:
            print(f"without {name}: {lacking}", file=sys.stderr)
        else:
            print(compile_rival(name))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f"{error}") from None
