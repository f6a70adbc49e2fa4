"""The build: one list of extension modules, one dict of Cython directives, switches by environment.

FASTSOCK_CFLAGS   extra compiler flags, e.g. "-O3" or "-fsanitize=address,undefined -g";
                  -DFASTSOCK_CHECK adds the checks of fastsock/_native/server/debug.pxd
FASTSOCK_ABI3=0   build for this interpreter only, not for every CPython from 3.11 on

Without liburing, which pkg-config looks for, only the io_uring engine is left out.
"""

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

ENGINES = ["epoll", "poll", "threads", "fork", "serial", "datagram"]
MODULES = [f"server.{name}" for name in ["listener", "datagram_socket", "worker", *ENGINES]]
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

CPUS = len(os.sched_getaffinity(0))

# -O3 was measured against -O2 and gained nothing (docs/benchmarks.md).
CFLAGS = ["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
CFLAGS += shlex.split(os.environ.get("FASTSOCK_CFLAGS", ""))

# A free-threaded interpreter has no stable ABI that Cython can target yet.
free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
abi3 = os.environ.get("FASTSOCK_ABI3", "1") == "1" and not free_threaded
macros = [("_GNU_SOURCE", "1")]
if abi3:
    macros.append(("Py_LIMITED_API", "0x030B0000"))


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


setup(
    packages=[*find_packages(include=["fastsock", "fastsock.*"]), "fastsock.pure"],
    package_dir={"fastsock.pure": "pysrc"},
    include_package_data=False,  # the sources of the extensions go into the sdist only
    package_data={"fastsock": ["py.typed", "_native/**/*.pyi"]},
    # No C file is shipped: cythonize() always compiles from the .pyx.
    ext_modules=cythonize(
        [extension(module) for module in MODULES] + uring_extension(),
        build_dir="build/cython",
        compiler_directives=DIRECTIVES,
        nthreads=CPUS,
    ),
    options={
        "build_ext": {"parallel": CPUS},
        **({"bdist_wheel": {"py_limited_api": "cp311"}} if abi3 else {}),
    },
)
