"""Signals that end a program, whatever it does just then and whatever state it inherited."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clients import TIMEOUT, connect, connect_to, echo_exactly, has_ended, refuses, wait_until
from implementations import ANY_PORT, IMPLEMENTATIONS, Implementation, in_fresh_process
from misbehaving import MisbehavingServer, swallows

import fastsock
from fastsock import Server

HUP, INT, TERM = signal.SIGHUP, signal.SIGINT, signal.SIGTERM
SOON = 2.0  # seconds, on a busy machine
FASTSOCK = (sys.executable, "-m", "fastsock")

@contextmanager
def child(*command: str, **options: Any) -> Iterator[Any]:
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def assert_ends(process: Any, *numbers: signal.Signals, code: int) -> None:
    began = time.monotonic()
    for number in numbers:
        process.send_signal(number)
    assert process.wait(TIMEOUT) == code, process.stderr.read()
    assert time.monotonic() - began < SOON


# --- inherited state ----------------------------------------------------------------------------


def block_all() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def ignore_hangups() -> None:
    signal.signal(HUP, signal.SIG_IGN)


@pytest.mark.parametrize(("number", "code"), [(INT, 130), (TERM, 0), (HUP, 0)])
def test_serve_with_a_blocked_mask(number: signal.Signals, code: int) -> None:
    """Signals that the parent has blocked end the command."""
    with child(*FASTSOCK, "serve", ANY_PORT, preexec_fn=block_all) as process:
        assert process.stderr.readline().startswith("listening on ")
        assert_ends(process, number, code=code)


def test_serve_forever_with_a_blocked_mask(implementation: Implementation) -> None:
    """So it is in a library's main thread, whose mask is put back."""
    in_fresh_process(serve_with_a_blocked_mask, implementation.name)


def serve_with_a_blocked_mask(name: str) -> None:
    block_all()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    IMPLEMENTATIONS[name].serve(ready=lambda _: os.kill(os.getpid(), TERM))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_hangup_ends_serve_forever(implementation: Implementation) -> None:
    """SIGHUP stops as SIGTERM does, but not where it is ignored or has a handler."""
    in_fresh_process(serve_until_hangup, implementation.name)


def serve_until_hangup(name: str) -> None:
    IMPLEMENTATIONS[name].serve(ready=lambda _: os.kill(os.getpid(), HUP))
    assert signal.getsignal(HUP) is signal.SIG_DFL
    own: list[int] = []
    for handler in (signal.SIG_IGN, lambda number, frame: own.append(number)):
        signal.signal(HUP, handler)

        def ready(server: Any) -> None:
            os.kill(os.getpid(), HUP)
            with connect(server.endpoint) as sock:
                echo_exactly(sock, b"still served")
            os.kill(os.getpid(), TERM)

        IMPLEMENTATIONS[name].serve(ready=ready)
    assert own == [HUP]


def test_serve_under_nohup() -> None:
    """An ignored SIGHUP is survived by the command."""
    with child(*FASTSOCK, "serve", ANY_PORT, preexec_fn=ignore_hangups) as process:
        endpoint = fastsock.Endpoint.parse(process.stderr.readline().split()[2])
        process.send_signal(HUP)
        with connect(endpoint) as sock:
            echo_exactly(sock, b"still served")
        assert_ends(process, TERM, code=0)


@pytest.mark.parametrize("number", [INT, TERM, HUP])
def test_a_unix_file_is_removed(number: signal.Signals, tmp_path: Path) -> None:
    """The file of a Unix socket is removed, whichever signal ends the command."""
    with child(*FASTSOCK, "serve", f"unix://{tmp_path}/echo.sock") as process:
        assert process.stderr.readline().startswith("listening on ")
        assert_ends(process, number, code=130 if number is INT else 0)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("numbers", [(INT, TERM), (INT, HUP), (TERM, INT), (INT, TERM, INT)])
def test_ctrl_c_and_other_signals(numbers: tuple[signal.Signals, ...]) -> None:
    """Exit code 130 after Ctrl-C, whatever comes before or after it."""
    with child(*FASTSOCK, "serve", ANY_PORT, "--drain-timeout", "20s") as process:
        endpoint = fastsock.Endpoint.parse(process.stderr.readline().split()[2])
        with connect(endpoint) as sock:
            echo_exactly(sock, b"hello")
            process.send_signal(numbers[0])
            wait_until(lambda: refuses(endpoint))
            assert_ends(process, *numbers[1:], code=130)


@pytest.mark.parametrize("mask", [None, block_all], ids=["", "blocked"])
@pytest.mark.parametrize(
    ("number", "code", "name"), [(INT, 130, "Ctrl-C"), (TERM, 143, "SIGTERM"), (HUP, 129, "SIGHUP")]
)
def test_load_ends_with_a_report(
    server: Server, number: signal.Signals, code: int, name: str, mask: Any, tmp_path: Path
) -> None:
    """A run that a signal ends says what was measured, and exits as shells expect."""
    target = tmp_path / "run.json"
    arguments = [str(server.endpoint), "-d", "60s", "--warmup", "0s", "--wait", "block"]
    with child(*FASTSOCK, "load", *arguments, "--json", str(target), preexec_fn=mask) as process:
        wait_until(lambda: server.stats().bytes_in > 64_000)
        assert_ends(process, number, code=code)
        assert f"valid     NO: interrupted by {name}" in process.stdout.read()
    report = json.loads(target.read_text())
    assert report["messages"] > 0
    assert report["reasons"] == [f"interrupted by {name}"]


def test_two_signals_end_a_load_at_once() -> None:
    """The first waits for what a silent server has not answered; another one does not."""
    with MisbehavingServer(swallows) as server:
        endpoint = "tcp://{}:{}".format(*server.address)
        with child(*FASTSOCK, "load", endpoint, "-d", "50s", "--timeout", "50s") as process:
            assert server.received.wait(TIMEOUT)
            process.send_signal(TERM)
            assert server.ended.wait(TIMEOUT)  # it has half-closed, and waits
            assert process.poll() is None
            assert_ends(process, INT, code=143)


def test_load_leaves_signals_of_a_program_alone(server: Server) -> None:
    """In a library SIGTERM and SIGHUP keep what the program does with them."""
    own: list[int] = []
    before = {number: signal.signal(number, lambda n, f: own.append(n)) for number in (TERM, HUP)}
    try:

        def progress(seconds: float) -> None:
            signal.raise_signal(TERM if len(own) % 2 else HUP)

        options: Any = {"duration": 0.5, "warmup": 0, "wait": "block"}
        assert not any(
            "by" in r for r in fastsock.load(server.endpoint, progress=progress, **options).reasons
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert set(own) == {TERM, HUP}


def test_stop_without_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """eventlet.monkey_patch() removes select.poll; a server can still be stopped."""
    with connect_to(Server(ANY_PORT)) as (server, sock):
        echo_exactly(sock, b"hello")
        monkeypatch.delattr("select.poll")
        server.stop(0.05)
        monkeypatch.undo()
        assert has_ended(sock)


def test_serve_without_poll() -> None:
    """So does a signal end it."""
    in_fresh_process(serve_without_poll)


def serve_without_poll() -> None:
    import select

    del select.poll
    stats = fastsock.serve(ANY_PORT, ready=lambda _: os.kill(os.getpid(), TERM))
    assert stats.open == 0
