"""The build: one list of extension modules, one dict of Cython directives, switches by environment.

FASTSOCK_CFLAGS   extra compiler flags, e.g. "-O3" or "-fsanitize=address,undefined -g";
                  -DFASTSOCK_CHECK adds the checks of fastsock/_native/server/debug.pxd
FASTSOCK_ABI3=0   build for this interpreter only, not for every CPython from 3.11 on

Without liburing, which pkg-config looks for, only the io_uring engine is left out. Without a tool
that it needs, the build ends with one line that names the package to install.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from setuptools import Distribution, Extension, find_packages, setup

# What pip installs first, unless it is told --no-build-isolation: [("setuptools", ">=77"), ...].
REQUIRES = re.findall(
    r'"(\w+)(\S+)"', re.search(r"(?m)^requires = .*", Path("pyproject.toml").read_text())[0]
)

# These commands compile. The others, sdist and egg_info among them, need neither Cython nor a
# compiler; pip asks for egg_info several times.
COMPILING = {"build", "build_ext", "bdist_egg", "bdist_wheel", "develop", "editable_wheel"}
COMPILING |= {"install"}
COMPILES = bool(COMPILING & set(sys.argv))

ENGINES = ["epoll", "poll", "threads", "fork", "serial", "datagram", "datagram_faults"]
MODULES = [
    f"server.{name}"
    for name in ["listener", "datagram_socket", "faults", "records", "worker", *ENGINES]
]
MODULES += [
    f"client.{name}" for name in ["histogram", "stream", "datagram", "floor", "process_tree"]
]
URING = "server.uring.uring"

DIRECTIVES = {
    "language_level": 3,
    "freethreading_compatible": True,
    "binding": True,
    "embedsignature": True,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
}

# Where one of these is in a flag or a configuration file, headers may lie in other folders.
HEADERS_ELSEWHERE = ("-I", "-isystem", "-idirafter", "-iquote", "include", "sysroot", "-specs")

CPUS = len(os.sched_getaffinity(0))

# -O3 was measured against -O2 and gained nothing (docs/benchmarks.md).
CFLAGS = ["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
# The interpreter's own flags have -g, which makes the modules four times as large.
CFLAGS += ["-g0", *shlex.split(os.environ.get("FASTSOCK_CFLAGS", ""))]

# A free-threaded interpreter has no stable ABI that Cython can target yet.
free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
abi3 = os.environ.get("FASTSOCK_ABI3", "1") == "1" and not free_threaded
macros = [("_GNU_SOURCE", "1")]
if abi3:
    macros.append(("Py_LIMITED_API", "0x030B0000"))


def unfit(name: str, wanted: str) -> str | None:
    """What is wrong with the version of an installed package, and what to type."""
    install = f"pip install '{name}{wanted}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is missing: {install}"
    numbers = [int(each) for each in re.findall(r"\d+", version)[:2]]
    for sign, bound in re.findall(r"(>=|<)([\d.]+)", wanted):
        if (numbers >= [int(each) for each in bound.split(".")]) != (sign == ">="):
            return f"{name} {version} does not fit: {install}"
    return None


def missing_tool() -> str | None:
    """The compiler or header that surely is missing, and what to type.

    Whatever else is wrong, the compiler itself says it.
    """
    given = os.environ.get("CC", sysconfig.get_config_var("CC") or "cc")
    if not given.strip():
        return "CC is empty: unset CC"
    compiler = shlex.split(given)[0]
    usual = Path(compiler).name in ("cc", "gcc", f"{platform.machine()}-linux-gnu-gcc")
    if shutil.which(compiler) is None:
        install = "apt-get install gcc libc6-dev" if usual else "install it, or set CC=gcc"
        return f"the C compiler {compiler} is missing: {install}"
    variables = [os.environ.get(f"{each}FLAGS", "") for each in ("C", "CPP", "FASTSOCK_C")]
    variables.append(sysconfig.get_config_var("CFLAGS") or "")
    files = (Path(each).read_text() for each in Distribution().find_config_files())
    text = "\n".join([*sys.argv, given, *variables, *files])
    if not usual or any(each in text for each in HEADERS_ELSEWHERE):
        return None

    def is_missing(header: str) -> bool:
        # No flags of the user's: -MMD would write a file, and -Werror fail for another reason.
        paths = [*map(sysconfig.get_path, ("include", "platinclude")), f"{sys.prefix}/include"]
        done = subprocess.run(
            [compiler, *(f"-I{path}" for path in paths), "-E", "-"],
            input=f"#include <{header}>\n",
            text=True,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C"},
        )
        return bool(re.search(rf"\b{header}\b.*(No such file|not found)", done.stderr))

    if is_missing("errno.h"):
        return "the headers of the C library are missing: apt-get install libc6-dev"
    if not is_missing("Python.h"):
        return None
    version = "{}.{}".format(*sys.version_info)
    text = f"the headers of Python {version} (Python.h) are missing: "
    if sys.base_prefix != "/usr":
        return f"{text}{sys.base_prefix} has none; use an interpreter that has them"
    usual = Path("/usr/bin/python3").resolve().name == f"python{version}"
    return f"{text}apt-get install {'python3-dev' if usual else f'python{version}-dev'}"


def pkg_config(*arguments: str) -> list[str] | None:
    """What pkg-config prints, or None if it is missing or does not know the package."""
    try:
        done = subprocess.run(["pkg-config", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return None if done.returncode else shlex.split(done.stdout)


def uring_extension() -> list[Extension]:
    # 2.3 is the first with io_uring_prep_recv_multishot().
    shared = pkg_config("--cflags", "--libs", "liburing >= 2.3")
    if shared is None:
        print("liburing >= 2.3 not found: building without the io_uring engine")
        return []
    # Link the archive if there is one, so that a wheel needs no library of its machine.
    archive = Path("".join(pkg_config("--variable=libdir", "liburing") or []), "liburing.a")
    if archive.exists():
        shared = [str(archive) if flag == "-luring" else flag for flag in shared]
    made = extension(URING)
    made.extra_compile_args += [flag for flag in shared if flag.startswith("-I")]
    made.extra_link_args += [flag for flag in shared if not flag.startswith("-I")]
    return [made]


def extension(module: str) -> Extension:
    return Extension(
        f"fastsock._native.{module}",
        [f"fastsock/_native/{module.replace('.', '/')}.pyx"],
        define_macros=macros,
        extra_compile_args=[*CFLAGS],
        extra_link_args=shlex.split(os.environ.get("FASTSOCK_LDFLAGS", "")),
        libraries=["pthread"],
        py_limited_api=abi3,
    )


def compiled() -> list[Extension]:
    """The extension modules; no C file is shipped, so they are always made from the .pyx."""
    from Cython.Build import cythonize

    return cythonize(
        [extension(module) for module in MODULES] + uring_extension(),
        build_dir="build/cython",
        compiler_directives=DIRECTIVES,
        nthreads=CPUS,
        quiet="--quiet" in sys.argv,
    )


problem = unfit(*REQUIRES[0])  # with an older setuptools not even the metadata can be read
if COMPILES:
    with suppress(OSError, ValueError):  # as of a quote that is not closed
        problem = problem or unfit(*REQUIRES[1]) or missing_tool()
if problem:
    raise SystemExit(f"fastsock: {problem}")

options = {"build_ext": {"parallel": CPUS}}
if abi3:
    options["bdist_wheel"] = {"py_limited_api": "cp311"}
if {"build_ext", "editable_wheel"} & set(sys.argv) and "strict" not in sys.argv:
    # Both compile for this directory, so they share the results. By default `pip install -e` would
    # compile everything in a temporary directory, each time.
    options["build_ext"].update(build_lib="build/inplace", build_temp="build/inplace")

setup(
    # Found without the link fastsock/pure, which an sdist does not have.
    packages=[*find_packages(include=["fastsock*"], exclude=["fastsock.pure"]), "fastsock.pure"],
    package_dir={"fastsock.pure": "pysrc"},
    include_package_data=False,  # the sources of the extensions go into the sdist only
    package_data={"fastsock": ["py.typed", "_native/**/*.pyi"]},
    ext_modules=compiled() if COMPILES else [],
    options=options,
)
