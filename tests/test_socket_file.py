"""The file of a Unix socket when something is missing: descriptors, space, /proc, its lock."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from clients import connect, echo_exactly, finish_exactly, wait_until
from implementations import (
    IMPLEMENTATIONS,
    NATIVE,
    PURE,
    each_in_fresh_process,
    in_fresh_process,
)

from fastsock import Endpoint
from fastsock.server import unix_file
from fastsock.server.signals import STOP_SIGNALS

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000  # <sched.h>, <sys/mount.h>
NOBODY = 65534
LONG = 30.0  # seconds; only something that hangs takes so long
ENGINES = list(IMPLEMENTATIONS)
KINDS = ["unix", "unixgram"]
each_package = pytest.mark.parametrize("names", [NATIVE, PURE], ids=["native", "pure"])


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory with a short name; at the end it is empty."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
        assert list(Path(name).iterdir()) == []


@contextmanager
def no_descriptor_left(pid: int = 0) -> Iterator[None]:
    """That process can open no more descriptors meanwhile."""
    if pid:
        used = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
        free = next(number for number in count() if number not in used)
    else:
        free = os.dup(0)  # the lowest that is free, dup(2)
        os.close(free)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        if not pid:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


# --- at the limit of descriptors ----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@each_package
def test_a_stop_at_the_limit_removes_the_file(folder: Path, names: list[str], kind: str) -> None:
    """stop() needs no descriptor that the limit refuses."""
    each_in_fresh_process(stop_at_the_limit, names, f"{kind}://{folder}/s")


def stop_at_the_limit(name: str, url: str) -> None:
    with IMPLEMENTATIONS[name].server(url) as server, no_descriptor_left():
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(0)
        server.stop(0.5)
        assert not os.path.lexists(server.endpoint.path)


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("package", ["fastsock", "fastsock.pure"])
def test_a_signal_at_the_limit_removes_the_file(
    folder: Path, package: str, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", package, "serve", f"unix://{folder}/s"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "listening" in process.stderr.readline()
            with no_descriptor_left(process.pid):
                process.send_signal(number)
                _, log = process.communicate(timeout=LONG)
        finally:
            process.kill()
    assert process.returncode == (130 if number == signal.SIGINT else 0), log


@pytest.mark.parametrize("package", ["fastsock", "fastsock.pure"])
def test_the_file_is_removed_before_the_drain(folder: Path, package: str) -> None:
    """After a signal no new client finds a path that refuses, while the others are served."""
    path = folder / "s"
    command = [sys.executable, "-m", package, "serve", f"unix://{path}", "--drain-timeout", "20"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "listening" in process.stderr.readline()
            with connect(Endpoint("unix", path=str(path))) as sock:
                echo_exactly(sock, b"before")
                process.terminate()
                wait_until(lambda: not path.exists())
                finish_exactly(sock, b"after")
            assert process.wait(LONG) == 0
        finally:
            process.kill()


@each_package
def test_a_start_at_the_limit(folder: Path, names: list[str]) -> None:
    """Whichever descriptor is the one too many, start() fails and leaves nothing, or it serves."""
    each_in_fresh_process(start_at_the_limit, names, f"unix://{folder}/s")


def start_at_the_limit(name: str, url: str) -> None:
    path = Path(url.removeprefix("unix://"))
    make_server = IMPLEMENTATIONS[name].server
    with make_server(url):  # imports what it needs
        pass
    ignored: list[Any] = []
    sys.unraisablehook = ignored.append
    spare: list[int] = []
    while True:
        server = make_server(url)
        with no_descriptor_left_but(spare):
            try:
                server.start()
                break
            except OSError as error:
                said = str(error.strerror)
        assert "Too many open files" in said
        if name.startswith("pure") or said.startswith(("bind", "socket")):
            assert said.endswith("raise the limit of open files, ulimit -n)"), said
        assert not list(path.parent.iterdir())
        spare.append(os.open("/dev/null", os.O_RDONLY))
    with connect(server.endpoint) as sock:
        echo_exactly(sock, b"served")
    server.stop()
    for descriptor in spare:
        os.close(descriptor)
    assert not ignored


@contextmanager
def no_descriptor_left_but(spare: list[int]) -> Iterator[None]:
    try:
        with no_descriptor_left():
            for descriptor in spare:
                os.close(descriptor)
            yield
    finally:
        spare[:] = [os.open("/dev/null", os.O_RDONLY) for _ in spare]


# --- without the lock ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENGINES)
def test_a_stop_while_the_lock_is_held(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock whose holder was suspended does not keep the file."""
    monkeypatch.setattr(unix_file, "_LOCK_TIMEOUT", 3600.0)
    path = folder / "s"
    with (
        IMPLEMENTATIONS[name].server(f"unix://{path}") as server,
        unix_file._lock(str(path), "here"),
    ):
        server.stop()
        assert not path.exists()


def test_another_file_is_left_alone_without_the_lock(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_file, "_LOCK_TIMEOUT", 3600.0)
    path = folder / "s"
    with IMPLEMENTATIONS[ENGINES[0]].server(f"unix://{path}") as server:
        path.unlink()
        path.touch()
        with unix_file._lock(str(path), "here"):
            server.stop()
    path.unlink()


# --- without /proc ------------------------------------------------------------------------------


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to hide /proc")
@pytest.mark.parametrize("way", ["descriptor", "path"])
@pytest.mark.parametrize("name", [ENGINES[0], ENGINES[-1]])
def test_the_rights_without_proc(folder: Path, name: str, way: str) -> None:
    """The rights are exact also where no /proc is mounted, and where fchmodat2() is missing too."""
    in_fresh_process(serve_without_proc, name, str(folder / "s"), way)


def serve_without_proc(name: str, path: str, way: str) -> None:
    hide_proc()
    if way == "path":

        def missing(*arguments: object) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        unix_file._call_libc = missing
    os.umask(0o177)
    with IMPLEMENTATIONS[name].server(f"unix://{path}", unix_mode=0o666):
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o666


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to hide /proc")
def test_a_file_is_given_away_without_proc(folder: Path) -> None:
    in_fresh_process(give_away_without_proc, str(folder / "s"))


def give_away_without_proc(path: str) -> None:
    hide_proc()
    with IMPLEMENTATIONS[ENGINES[0]].server(f"unix://{path}"):
        unix_file.give_away(path, NOBODY, NOBODY)
        assert os.lstat(path).st_uid == os.lstat(path).st_gid == NOBODY


def hide_proc() -> None:
    """Mount an empty file system over /proc, for this process alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        sys.exit(os.strerror(ctypes.get_errno()))
    assert libc.mount(b"none", b"/proc", b"tmpfs", 0, None) == 0
    assert not Path("/proc/self").exists()
