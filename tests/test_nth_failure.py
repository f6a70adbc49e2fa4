"""Tests in which the Nth call of a function fails, for every N, on every engine: nth_failure.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from fastsock.server import engines

HERE = Path(__file__).parent
SERVERS = [*engines.WORKERS, "faults", "record", "datagram", "datagram_faults"]
EXPECTED = {  # functions that must have failed at least once
    "epoll": {"accept4", "recv", "send", "epoll_wait", "epoll_ctl", "malloc", "calloc", "mmap64"},
    "poll": {"accept4", "recv", "send", "poll", "malloc", "calloc", "realloc", "mmap64"},
    "threads": {"accept4", "recv", "send", "poll", "malloc", "calloc", "mmap64", "pthread_create"},
    "faults": {"accept4", "recv", "send", "poll", "malloc", "calloc", "mmap64", "pthread_create"},
    "record": {"accept4", "recv", "send", "poll", "malloc", "calloc", "mmap64", "pthread_create"},
    "fork": {"accept4", "recv", "send", "poll", "epoll_wait", "epoll_ctl", "calloc", "mmap64"},
    "serial": {"accept4", "recv", "send", "poll", "malloc", "calloc", "mmap64"},
    "io_uring": {"accept4", "recv", "send", "malloc", "calloc", "mmap64"},
    "datagram": {"recvmmsg", "sendmmsg", "poll", "malloc", "calloc"},
    "datagram_faults": {"recvmmsg", "sendmmsg", "malloc", "calloc"},
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nth_failure.c, compiled."""
    if os.environ.get("LD_PRELOAD"):
        pytest.skip("another library is preloaded, such as a sanitizer, and comes first")
    target = tmp_path_factory.mktemp("shim") / "nth_failure.so"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    source = str(HERE / "nth_failure.c")
    subprocess.run([*compiler, *flags, "-o", str(target), source, "-ldl"], check=True)
    return target


def run_all(server: str, library: Path, *, complete: bool) -> tuple[dict[str, int], float]:
    """All runs of one engine; return the failures injected per function, and the seconds."""
    command = [sys.executable, str(HERE / "nth_failure.py"), server, str(library)]
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    done = subprocess.run(
        [*command, str(int(complete))], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["wrong"] == []
    return result["injected"], result["seconds"]


@pytest.mark.parametrize("server", SERVERS)
def test_the_nth_call_fails(server: str, library: Path, figure: Callable[..., None]) -> None:
    """An error or a short result of any call costs at most the one connection concerned."""
    injected, seconds = run_all(server, library, complete=False)
    assert injected.keys() >= EXPECTED[server]
    figure(f"{sum(injected.values())} failures injected in {seconds:.1f} s")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("server", SERVERS)
def test_the_nth_call_fails_with_every_error(
    server: str, library: Path, figure: Callable[..., None]
) -> None:
    """The same with every error that the manual pages list."""
    injected, seconds = run_all(server, library, complete=True)
    figure(
        f"{sum(injected.values())} failures injected in {seconds:.1f} s: "
        + ", ".join(f"{name} {count}" for name, count in sorted(injected.items()))
    )
