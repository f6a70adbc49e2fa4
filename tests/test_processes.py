"""Tests of servers that are several processes: finding the processes, and their CPU time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from implementations import IMPLEMENTATIONS, ServedProcess

import fastsock
from fastsock._native.client.process_tree import descendants

COMPUTE_FOR_EVER = "(while :; do :; done) & echo $!; wait"
COMPUTE_LATE = "echo $$; sleep 0.2; (while :; do :; done) & wait"
CHILDREN_THAT_COMPUTE = """
echo $$
while :; do
    (i=0; while [ $i -lt 10000 ]; do i=$((i+1)); done)
done
"""


@contextmanager
def shell(script: str) -> Iterator[tuple[int, list[int]]]:
    """A shell that runs `script`: its pid, and the numbers in its first line of output."""
    with subprocess.Popen(
        ["sh", "-c", script], stdout=subprocess.PIPE, text=True, process_group=0
    ) as process:
        assert process.stdout is not None
        try:
            yield process.pid, [int(word) for word in process.stdout.readline().split()]
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_descendants() -> None:
    """The process, its children and theirs, each once, parents first."""
    nested = "sh -c 'sleep 60 & echo $$ $!; wait' & wait"
    with shell(nested) as (pid, (child, grandchild)):
        assert descendants(pid) == [pid, child, grandchild]
        assert descendants(grandchild) == [grandchild]


def test_descendants_of_a_process_that_has_ended() -> None:
    """The list is empty."""
    with subprocess.Popen(["true"]) as gone:
        gone.wait(30)
    assert descendants(gone.pid) == []


@pytest.mark.parametrize("script", [COMPUTE_FOR_EVER, COMPUTE_LATE, CHILDREN_THAT_COMPUTE])
def test_server_cpu_is_that_of_all_its_processes(script: str) -> None:
    """server_cpu includes children, whether they go on, start late or have ended."""
    with fastsock.Server("tcp://127.0.0.1:0") as server, shell(script) as (pid, _):
        report = fastsock.load(
            server.endpoint, duration=0.5, warmup=0.05, wait="block", server_pid=pid
        )
        own = time.clock_gettime(~pid << 3 | 2)  # clock_getcpuclockid(3)
    assert report.server_cpu is not None
    assert report.server_cpu > 2 * own > 0


def test_fork_is_one_process_a_connection() -> None:
    """With the fork engine there is one more process per connection."""
    server = ServedProcess(IMPLEMENTATIONS["native-fork"])
    try:
        alone = len(descendants(server.pid))
        seen: list[int] = []
        fastsock.load(
            server.endpoint,
            connections=5,
            duration=0.5,
            wait="block",
            progress=lambda seconds: seen.append(len(descendants(server.pid))),
        )
        assert max(seen) == alone + 5
    finally:
        server.close()
