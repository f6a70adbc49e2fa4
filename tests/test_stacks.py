"""Thread-local storage of other libraries lies on the stacks of the server's threads too."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest
from clients import assert_serves
from implementations import Implementation, ServedProcess

pytestmark = pytest.mark.native

#: As a profiler or an allocator has that is loaded at the start: static, so it is on every stack.
STORAGE = """\
static __thread char storage[96 * 1024] __attribute__((tls_model("initial-exec")));
char *touch(void) { return storage; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with 96 KiB of thread-local storage."""
    directory = tmp_path_factory.mktemp("storage")
    source, target = directory / "storage.c", directory / "storage.so"
    source.write_text(STORAGE)
    compiler = (sysconfig.get_config_var("CC") or "cc").split()
    subprocess.run([*compiler, "-shared", "-fPIC", "-o", str(target), str(source)], check=True)
    return target


def test_large_thread_local_storage(implementation: Implementation, library: Path) -> None:
    """Every engine starts its threads and serves beside it."""
    preloaded = f"LD_PRELOAD={os.environ.get('LD_PRELOAD', '')} {library}"
    server = ServedProcess(implementation, under=("env", preloaded))
    try:
        for _ in range(3):
            assert_serves(server.endpoint)
        assert server.stats()["accept_pauses"] == 0
    finally:
        server.close()
