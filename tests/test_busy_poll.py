"""Tests of busy-polling: polls while waits are short or a trial finds that it pays; is exact."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clients import TIMEOUT, connect, echo_exactly, finish_exactly, random_chunks, wait_until
from implementations import Implementation, ServedProcess
from load_runs import loading

import fastsock
from fastsock.server.options import ServerOptions

Serve = Callable[..., Any]
ServeProcess = Callable[..., ServedProcess]

LONGEST = 0.01  # seconds
WAITS_IN_ONE_PLACE = pytest.mark.native("epoll", "poll", "serial", "io_uring")


@WAITS_IN_ONE_PLACE
def test_polls_without_blocking_while_waits_are_short(
    serve_process: ServeProcess, tmp_path: Path
) -> None:
    assert polls(serve_process, tmp_path / "without", busy_poll=0) == 0
    assert polls(serve_process, tmp_path / "with", busy_poll=LONGEST) > 0


def polls(serve_process: ServeProcess, log: Path, **options: Any) -> int:
    """How often a server polled without waiting while it echoed 100 messages."""
    calls = "trace=/^(epoll_wait|poll|io_uring_enter)$"
    server = serve_process(under=("strace", "-f", "-qq", "-o", str(log), "-e", calls), **options)
    with connect(server.endpoint) as sock:
        for _ in range(100):
            echo_exactly(sock, b"short")
    server.close()
    return len(re.findall(r"(?:epoll_wait|poll|io_uring_enter)\(.*, \d+, 0\b", log.read_text()))


@pytest.mark.native("epoll")  # one is enough: datagrams have an engine of their own
def test_polls_for_datagrams_too(serve_process: ServeProcess, tmp_path: Path) -> None:
    # The last one of a server looks whether the queue is empty.
    assert receives_without_waiting(serve_process, tmp_path / "without", busy_poll=0) <= 1
    assert receives_without_waiting(serve_process, tmp_path / "with", busy_poll=LONGEST) > 1


def receives_without_waiting(serve_process: ServeProcess, log: Path, **options: Any) -> int:
    """How often a server asked for datagrams without waiting, while it answered 100 of them."""
    server = serve_process(
        under=("strace", "-f", "-qq", "-o", str(log), "-e", "trace=recvmmsg"),
        endpoint="udp://127.0.0.1:0",
        **options,
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect((server.endpoint.host, server.endpoint.port))
        for number in range(100):
            sock.send(b"%d" % number)
            assert sock.recv(100) == b"%d" % number
    server.close()
    # Of a batch: the call at the start, which shows that it is allowed, asks for none.
    return len(re.findall(r", [1-9]\d*, MSG_DONTWAIT", log.read_text()))


@WAITS_IN_ONE_PLACE
@pytest.mark.parametrize("busy_poll", [LONGEST, "auto"])
def test_blocks_when_nothing_comes(serve_process: ServeProcess, busy_poll: float | str) -> None:
    server = serve_process(busy_poll=busy_poll)
    with connect(server.endpoint) as sock:
        for _ in range(100):
            echo_exactly(sock, b"short")
        wait_until(lambda: cpu_share(server) < 0.02)


def cpu_share(server: ServedProcess) -> float:
    began, before = time.monotonic(), server.cpu_seconds()
    time.sleep(0.1)
    return (server.cpu_seconds() - before) / (time.monotonic() - began)


@pytest.mark.native("epoll")  # one is enough: all engines wait by the same rule
@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"])
def test_a_trial_decides_by_its_figures(endpoint: str) -> None:
    found: dict[int, dict[str, Any]] = {}
    with (
        fastsock.Server(endpoint) as server,
        loading(str(server.endpoint), duration=60, warmup=0),
    ):
        wait_until(lambda: found_by_trial(server, found) >= 3)
    right = [pays(each) or not each["polling"] for each in found.values()]
    # A look may come in the middle of the change.
    assert sum(right) >= len(right) - 1


def found_by_trial(server: Any, found: dict[int, dict[str, Any]]) -> int:
    (now,) = server.stats().busy_poll
    if now["trials"]:
        found.setdefault(now["trials"], now)
    return len(found)


def pays(found: dict[str, Any]) -> bool:
    """Whether polling raised the rate, or cost no more CPU time at the same rate."""
    blocking, polling = found["blocking"], found["busy_polling"]
    rate = polling["bytes_per_s"] / blocking["bytes_per_s"]
    cost = polling["cpu_us_per_kib"] / blocking["cpu_us_per_kib"]
    return rate > 1.10 or (rate >= 0.99 and cost <= 1.02)


@WAITS_IN_ONE_PLACE
def test_makes_no_trial_where_little_comes(serve: Serve) -> None:
    server = serve()
    report = fastsock.load(server.endpoint, rate=500, messages=200)
    assert report.messages == 200
    assert [each["trials"] for each in server.stats().busy_poll] == [0]


@pytest.mark.native("epoll")
@pytest.mark.parametrize("busy_poll", [0, "50us"])
def test_without_a_trial_there_are_no_figures(serve: Serve, busy_poll: float | str) -> None:
    assert serve(busy_poll=busy_poll).stats().busy_poll == ()


@WAITS_IN_ONE_PLACE
def test_loses_nothing(serve: Serve) -> None:
    server = serve(busy_poll="auto")
    with connect(server.endpoint) as sock:
        for chunk in random_chunks(seed=5, total=1 << 20, largest=1 << 16):
            echo_exactly(sock, chunk)
    with connect(server.endpoint) as sock:
        finish_exactly(sock, b"all of it" * 10_000)


@WAITS_IN_ONE_PLACE
def test_stops_while_it_polls(implementation: Implementation) -> None:
    with implementation.server(busy_poll=LONGEST) as server, connect(server.endpoint) as sock:
        echo_exactly(sock, b"short")
        server.stop()
        assert server.stats().open == 0


@pytest.mark.native("threads", "fork")
def test_refused_where_each_connection_waits_by_itself(implementation: Implementation) -> None:
    with pytest.raises(ValueError, match="busy_poll 5e-05 is not for engine"):
        implementation.server(busy_poll="50us")
    implementation.server(busy_poll="auto")


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("always", ValueError, "busy_poll 'always' is not a duration"),
        (-1, ValueError, "expected 0 to 10ms"),
        (200, ValueError, "expected 0 to 10ms"),
        ("11ms", ValueError, "expected 0 to 10ms"),
        (True, TypeError, "expected a number of seconds"),
    ],
)
def test_refuses_other_values(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fastsock.Server(busy_poll=value)


@pytest.mark.parametrize(
    ("quota", "workers", "chosen"), [(None, 9, "auto"), (1.5, 1, 0), (2.0, 1, "auto"), (2.0, 2, 0)]
)
def test_a_cpu_quota_leaves_no_room_for_polling(
    quota: float | None, workers: int, chosen: float | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastsock.cgroup.cpu_quota", lambda: quota)
    assert ServerOptions(workers=workers).busy_poll == chosen
    assert ServerOptions(workers=workers, busy_poll="50us").busy_poll == 50e-6
