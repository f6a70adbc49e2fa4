"""Tests of what an import does, and what it must not do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from types import ModuleType

import pytest

import fastsock
from fastsock import pure

MODULES = [fastsock, pure]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_public_names_exist(module: ModuleType) -> None:
    """Every name in __all__ is there, once, and what can be called says what it is for."""
    assert len(module.__all__) == len(set(module.__all__))
    for name in module.__all__:
        value = getattr(module, name)
        assert not callable(value) or value.__doc__, name


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_import_makes_no_socket(module: ModuleType, tmp_path: Path) -> None:
    """Importing calls nothing of the network, and no io_uring, which some sandboxes kill for."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    calls = trace(strace, tmp_path / "log", f"import {module.__name__}")
    assert calls == ""
    assert "socket(" in trace(strace, tmp_path / "log", "import socket; socket.socket().close()")


def trace(strace: str, log: Path, code: str) -> str:
    """The network and io_uring system calls that the code makes."""
    what = "trace=%network,io_uring_setup,io_uring_enter,io_uring_register"
    command = [strace, "-f", "-qq", "-e", what, "-e", "signal=none", "-o", str(log)]
    subprocess.run([*command, sys.executable, "-c", code], check=True, timeout=30)
    return log.read_text()


def test_import_starts_nothing() -> None:
    """Importing starts no thread, and leaves the signal handlers as they are."""
    code = """
import signal, os
before = [signal.getsignal(number) for number in range(1, 65)]
import fastsock, fastsock.pure
assert before == [signal.getsignal(number) for number in range(1, 65)]
assert len(os.listdir("/proc/self/task")) == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


BENCH = {"fastsock.bench", "fastsock.cli.bench"}
PAGE = {"fastsock.page", "fastsock.page.page"}
CLIENT = {"fastsock.client"}
LOAD = {"fastsock.cli.load", "fastsock.cli.series"}
SERVE = {"fastsock.server.server", "fastsock.cli.serve", "fastsock.cli.watched"}
LIBRARIES = {"asyncio", "matplotlib", "prometheus_client", "rich"}


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        ("--version", BENCH | PAGE | CLIENT | LOAD | SERVE),
        ("--help", BENCH | PAGE | CLIENT | LOAD | SERVE),
        ("zork", BENCH | PAGE | CLIENT | LOAD | SERVE),
        ("serve 127.0.0.1:0", BENCH | PAGE | CLIENT | LOAD),
        ("info", BENCH | PAGE | CLIENT | LOAD | SERVE),
        ("load unix:/nowhere --quiet", BENCH | PAGE | SERVE),
        ("compare -h", BENCH | PAGE | LOAD | SERVE),
        ("merge -h", BENCH | PAGE | LOAD | SERVE),
        ("report -h", BENCH | LOAD | SERVE),
        ("bench -h", PAGE | LOAD | SERVE),
    ],
)
def test_a_command_imports_what_it_needs(arguments: str, absent: set[str]) -> None:
    """Of the package, what takes part in its work; a library only when it is used."""
    code = """
import atexit, sys
atexit.register(lambda: print("modules", *sys.modules))
from fastsock.__main__ import main
main()
"""
    command = [sys.executable, "-c", code, *arguments.split()]
    with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True) as process:
        if arguments.startswith("serve"):
            assert process.stderr is not None
            assert "listening" in process.stderr.readline()
            process.terminate()
        words = process.communicate(timeout=30)[0].split()
    imported = words[words.index("modules") :]
    assert "fastsock.cli" in imported
    assert not (absent | LIBRARIES) & set(imported)
