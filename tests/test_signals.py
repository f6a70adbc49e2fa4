"""Signals that end a program, whatever it does just then and whatever state it inherited."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from clients import TIMEOUT, connect, connect_to, echo_exactly, has_ended, refuses, wait_until
from implementations import (
    ANY_PORT,
    IMPLEMENTATIONS,
    NATIVE,
    PURE,
    each_in_fresh_process,
    in_fresh_process,
)
from leftovers import children
from load_runs import faults_in
from misbehaving import MisbehavingServer, swallows

import fastsock
from fastsock import Server
from fastsock.interruptible import CancelledError
from fastsock.server import unix_file

HUP, INT, TERM = signal.SIGHUP, signal.SIGINT, signal.SIGTERM
SOON = 2.0  # seconds, on a busy machine
FASTSOCK = (sys.executable, "-m", "fastsock")
each_package = pytest.mark.parametrize("names", [NATIVE, PURE], ids=["native", "pure"])

#: The command with a name server that never answers. Blocked in C, where a signal ends nothing.
SILENT_NAME_SERVER = """
import ctypes, os, socket, sys
def getaddrinfo(*arguments, **options):
    os.write(1, b"asked\\n")
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
socket.getaddrinfo = getaddrinfo
from {module} import main
sys.exit(main())
"""


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


# --- a name server that does not answer ---------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "command", "number", "code"),
    [
        ("fastsock.cli", "serve", INT, 130),
        ("fastsock.cli", "serve", TERM, 0),
        ("fastsock.cli", "serve", HUP, 0),
        ("fastsock.cli", "load", INT, 130),
        ("fastsock.cli", "load", TERM, 143),
        ("fastsock.cli", "load", HUP, 129),
        ("fastsock.pure.__main__", "serve", INT, 130),
        ("fastsock.pure.__main__", "serve", TERM, 0),
        ("fastsock.pure.__main__", "load", INT, 130),
    ],
)
def test_a_signal_during_a_look_up(
    module: str, command: str, number: signal.Signals, code: int
) -> None:
    """Both commands end at once, though the thread that asks stays blocked."""
    script = SILENT_NAME_SERVER.replace("{module}", module)
    with child(sys.executable, "-c", script, command, "tcp://echo.example:7007") as process:
        assert process.stdout.readline() == "asked\n"
        assert_ends(process, number, code=code)
        assert "listening" not in process.stderr.read()


@pytest.mark.parametrize("package", ["native-epoll", "pure-threads"])
def test_stop_during_a_look_up(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """stop() from another thread ends start(), which says so; nothing listens later."""
    asked, answer = slow_name_server(monkeypatch)
    server = IMPLEMENTATIONS[package].server("tcp://echo.example:0")
    with starting(server):
        assert asked.wait(TIMEOUT)
        server.stop()
    answer.set()
    with pytest.raises(RuntimeError, match=r"stopped|once only"):
        server.start()


#: The command where another program holds the lock of the path for longer than any test waits.
PATIENT = """
import sys
from fastsock.server import unix_file
unix_file._LOCK_TIMEOUT = 3600.0
from {module} import main
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["fastsock.cli", "fastsock.pure.__main__"])
@pytest.mark.parametrize(("number", "code"), [(INT, 130), (TERM, 0), (HUP, 0)])
def test_a_signal_during_a_wait_for_the_lock(
    module: str, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """A foreign lock of a Unix path does not keep the command."""
    path = str(tmp_path / "s")
    script = PATIENT.replace("{module}", module)
    with (
        unix_file._lock(path, "here"),
        child(sys.executable, "-c", script, "serve", f"unix://{path}") as process,
    ):
        wait_until(lambda: opened(process.pid, f"{path}.lock"))
        assert_ends(process, number, code=code)
        assert "listening" not in process.stderr.read()
    assert not list(tmp_path.iterdir())


def opened(pid: int, path: str) -> int:
    """How many descriptors that process has of the file."""
    links = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(str(each.readlink()))
    return links.count(path)


@pytest.mark.parametrize("package", ["native-epoll", "pure-threads"])
def test_stop_during_a_wait_for_the_lock(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_file, "_LOCK_TIMEOUT", 3600.0)
    path = str(tmp_path / "s")
    server = IMPLEMENTATIONS[package].server(f"unix://{path}")
    with unix_file._lock(path, "here"), starting(server):
        wait_until(lambda: opened(os.getpid(), f"{path}.lock") == 2)
        server.stop()
    assert not list(tmp_path.iterdir())


@contextmanager
def starting(server: Any) -> Iterator[None]:
    """Call start() in a thread; afterwards it must have been cancelled."""
    errors: list[BaseException] = []

    def start() -> None:
        try:
            server.start()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    yield
    thread.join(TIMEOUT)
    assert [type(error) for error in errors] == [CancelledError]


def slow_name_server(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """One that answers 127.0.0.1 when it is told to; an event when it is asked, one to tell it."""
    asked, answer = threading.Event(), threading.Event()

    def getaddrinfo(*arguments: Any, **options: Any) -> Any:
        asked.set()
        answer.wait(TIMEOUT)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked, answer


def test_the_error_of_a_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of the thread comes out of the call, as it is."""

    def getaddrinfo(*arguments: Any, **options: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ZeroDivisionError):
        fastsock.Endpoint.parse("tcp://echo.example:7").resolve()


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


@each_package
def test_serve_forever_with_a_blocked_mask(names: list[str]) -> None:
    """So it is in a library's main thread, whose mask is put back."""
    each_in_fresh_process(serve_with_a_blocked_mask, names)


def serve_with_a_blocked_mask(name: str) -> None:
    block_all()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    IMPLEMENTATIONS[name].serve(ready=lambda _: os.kill(os.getpid(), TERM))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@each_package
def test_hangup_ends_serve_forever(names: list[str]) -> None:
    """SIGHUP stops as SIGTERM does, but not where it is ignored or has a handler."""
    each_in_fresh_process(serve_until_hangup, names)


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
    signal.signal(HUP, signal.SIG_DFL)


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


@pytest.mark.parametrize("package", ["fastsock", "fastsock.pure"])
@pytest.mark.parametrize("numbers", [(INT, TERM), (INT, HUP), (TERM, INT), (INT, TERM, INT)])
def test_ctrl_c_and_other_signals(numbers: tuple[signal.Signals, ...], package: str) -> None:
    """Exit code 130 after Ctrl-C, whatever comes before or after it."""
    command = (sys.executable, "-m", package, "serve", ANY_PORT, "--drain-timeout", "20")
    with child(*command) as process:
        endpoint = fastsock.Endpoint.parse(process.stderr.readline().split()[2])
        with connect(endpoint) as sock:
            echo_exactly(sock, b"hello")
            process.send_signal(numbers[0])
            wait_until(lambda: refuses(endpoint))
            assert_ends(process, *numbers[1:], code=130)


def test_a_signal_while_the_counters_are_written(tmp_path: Path) -> None:
    """One more signal does not lose them: here they go to a pipe that is not read yet."""
    target = tmp_path / "stats"
    os.mkfifo(target)
    with child(*FASTSOCK, "serve", ANY_PORT, "--json", str(target)) as process:
        endpoint = fastsock.Endpoint.parse(process.stderr.readline().split()[2])
        process.send_signal(INT)
        wait_until(lambda: refuses(endpoint))
        wait_until(lambda: not list(Path(f"/proc/{process.pid}/task").glob("*"))[1:])
        process.send_signal(TERM)
        # Empty if the signal came between its open() and its write(): then it opens it again.
        text = target.read_text() or target.read_text()
        assert json.loads(text)["open"] == 0
        assert process.wait(TIMEOUT) == 130


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
        assert f"valid     NO\n          interrupted by {name}\n" in process.stdout.read()
    report = json.loads(target.read_text())
    assert report["messages"] > 0
    assert faults_in(report) == [f"interrupted by {name}"]


def test_two_signals_end_a_load_at_once() -> None:
    """The first waits for what a silent server has not answered; another one does not."""
    with MisbehavingServer(swallows) as server:
        endpoint = "tcp://{}:{}".format(*server.address)
        options = ("-d", "50s", "--timeout", "50s", "--finish", "half-close")
        with child(*FASTSOCK, "load", endpoint, *options) as process:
            assert server.received.wait(TIMEOUT)
            process.send_signal(TERM)
            assert server.ended.wait(TIMEOUT)  # it has half-closed, and waits
            assert process.poll() is None
            assert_ends(process, INT, code=143)


@pytest.mark.parametrize(("number", "code"), [(INT, 130), (TERM, 143), (HUP, 129)])
def test_bench_ends(number: signal.Signals, code: int) -> None:
    """A comparison that a signal ends leaves no server behind."""
    arguments = ["--engines", "epoll,serial", "-c", "1", "--window", "20s"]
    with child(*FASTSOCK, "bench", *arguments) as process:
        wait_until(lambda: len(children(process.pid)) == 4)  # two servers, and their watchers
        started = children(process.pid)
        assert_ends(process, number, code=code)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


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


MONKEY_PATCHED = """
import os, signal
from {library} import {patch}
{patch}()
import fastsock
with fastsock.Server("tcp://127.0.0.1:0") as server:
    assert not fastsock.load(server.endpoint, messages=10, wait="block").failed
for number in signal.SIGTERM, signal.SIGINT:
    fastsock.serve("tcp://localhost:0", ready=lambda _: os.kill(os.getpid(), number))
"""


@pytest.mark.parametrize(
    ("library", "patch"), [("gevent.monkey", "patch_all"), ("eventlet", "monkey_patch")]
)
def test_a_program_of_coroutines(library: str, patch: str) -> None:
    """What replaces threads, select() and the rest of the standard library leaves all this."""
    if not find_spec(library.partition(".")[0]):
        pytest.skip(f"{library} is not installed")
    script = MONKEY_PATCHED.format(library=library, patch=patch)
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=TIMEOUT)


# --- async --------------------------------------------------------------------------------------


def test_cancelled_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout during the look-up of a name ends the start, and nothing listens later."""
    asked, answer = slow_name_server(monkeypatch)
    server = Server("tcp://echo.example:0")

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                async with server:
                    raise AssertionError("it has started")

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < SOON
    assert asked.is_set()
    answer.set()
    with pytest.raises(RuntimeError, match="this server is stopped"):
        server.start()


@pytest.mark.parametrize("times", [1, 3])
def test_cancelled_while_it_drains(times: int) -> None:
    """A task that is cancelled in its drain, once or more, stops the server at once."""
    server = Server(ANY_PORT, drain_timeout=20.0)

    async def hold(stack: ExitStack) -> None:
        async with server:
            echo_exactly(stack.enter_context(connect(server.endpoint)), b"hello")

    async def main() -> None:
        with ExitStack() as stack:
            task = asyncio.create_task(hold(stack))
            while not server._workers or not refuses(server.endpoint):
                await asyncio.sleep(0.001)
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert refuses(server.endpoint)

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < SOON
    with pytest.raises(RuntimeError, match="this server is stopped"):
        server.start()


def test_many_servers_drain_at_a_time() -> None:
    """Forty servers need one drain's time, though the loop's executor has a few threads."""

    async def hold(stack: ExitStack) -> None:
        async with Server(ANY_PORT, drain_timeout=0.5) as server:
            sock = stack.enter_context(connect(server.endpoint))
            sock.sendall(b"hello")
            while server.stats().bytes_in < 5:
                await asyncio.sleep(0.001)

    async def main() -> None:
        with ExitStack() as stack:
            await asyncio.gather(*(hold(stack) for _ in range(40)))

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 0.5 + SOON


def test_a_second_ctrl_c_ends_a_drain() -> None:
    """In `async with` the first Ctrl-C drains, and the second ends the program at once."""
    with child(sys.executable, "-c", ASYNC_SERVER) as process:
        endpoint = fastsock.Endpoint.parse(process.stdout.readline().strip())
        with connect(endpoint) as sock:
            echo_exactly(sock, b"hello")
            process.send_signal(INT)
            wait_until(lambda: refuses(endpoint))
            echo_exactly(sock, b"still served")
            began = time.monotonic()
            process.send_signal(INT)
            assert has_ended(sock)
            process.wait(TIMEOUT)
            assert time.monotonic() - began < SOON


ASYNC_SERVER = """
import asyncio
import fastsock
async def main():
    async with fastsock.Server("tcp://127.0.0.1:0", drain_timeout=20) as server:
        print(server.endpoint, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


def test_ctrl_c_in_with_ends_the_drain() -> None:
    """Ctrl-C in the drain of a plain `with` leaves nothing open."""
    in_fresh_process(interrupt_with)


def interrupt_with() -> None:
    signal.signal(INT, signal.default_int_handler)
    server = Server(ANY_PORT, drain_timeout=20.0)

    def interrupt() -> None:
        wait_until(lambda: refuses(server.endpoint))
        os.kill(os.getpid(), INT)

    with ExitStack() as stack, pytest.raises(KeyboardInterrupt), server:
        echo_exactly(stack.enter_context(connect(server.endpoint)), b"hello")
        threading.Thread(target=interrupt).start()
    assert server._state == "stopped"
    assert server.stats().open == 0
