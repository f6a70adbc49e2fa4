"""load_async() and `async with Server`: beside an event loop, cancelled, and outside asyncio."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import misbehaving
import pytest
from clients import TIMEOUT, refuses, wait_until
from implementations import ANY_PORT, in_fresh_process
from leftovers import everything

import fastsock
from fastsock import Server, load, load_async, pure

SOON = 2.0  # seconds, on a busy machine; a run that is not ended lasts for a minute
LONG: dict[str, Any] = {"duration": 60, "wait": "block"}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(ANY_PORT) as running:
        yield running


def test_the_loop_goes_on_meanwhile(server: Server) -> None:
    """A report comes back, as from load(), and other tasks run until then."""
    turns: list[float] = []
    seconds: list[float] = []

    async def count() -> None:
        while True:
            turns.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def main() -> fastsock.LoadReport:
        counting = asyncio.create_task(count())
        report = await load_async(
            server.endpoint, duration=0.3, progress=seconds.append, label="one", wait="block"
        )
        counting.cancel()
        return report

    report = asyncio.run(main())
    assert report.messages > 0 and report.label == "one"
    assert len(turns) > 3
    assert seconds


def test_several_at_a_time(server: Server) -> None:
    """Each has threads of its own: 40 runs take no longer than one."""

    async def main() -> list[fastsock.LoadReport]:
        options: dict[str, Any] = {"rate": 20, "duration": 0.5, "warmup": 0, "wait": "block"}
        runs = (load_async(server.endpoint, **options) for _ in range(40))
        return await asyncio.gather(*runs)

    start = time.monotonic()
    reports = asyncio.run(main())
    assert time.monotonic() - start < 10
    assert all(report.messages for report in reports)


@pytest.mark.parametrize("after", [0, 0.001, 0.2], ids=["at once", "connecting", "running"])
@pytest.mark.parametrize("options", [{}, {"rate": 1000}, {"threads": 2}, {"wait": "spin"}])
def test_a_cancelled_run_ends(options: dict[str, Any], after: float, server: Server) -> None:
    """The task raises CancelledError within milliseconds; no thread and no socket is left."""

    async def main() -> None:
        before = everything()
        run = load_async(server.endpoint, connections=10, **LONG | options)
        task = asyncio.create_task(run)
        await asyncio.sleep(after)
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - start < SOON
        wait_until(lambda: everything() <= before)  # the server has closed its ends too
        assert "fastsock-async" not in [thread.name for thread in threading.enumerate()]

    asyncio.run(main())


def test_a_run_without_answers_is_cancelled() -> None:
    """Also while no byte comes, and while connections are not accepted."""

    async def main(address: tuple[str, int]) -> None:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await load_async(address, connections=4, timeout=60, **LONG)
        assert time.monotonic() - start < SOON

    with misbehaving.MisbehavingServer(misbehaving.stalls_after(0)) as bad:
        asyncio.run(main(bad.address))
    with misbehaving.full_address() as address:
        asyncio.run(main(address))


def test_a_name_that_is_looked_up_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """getaddrinfo(3) takes as long as the name server takes."""
    answered = threading.Event()

    def slow(*_: Any, **__: Any) -> Any:
        answered.wait(TIMEOUT)
        raise socket.gaierror("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", slow)

    async def main() -> None:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await load_async("tcp://slow.example:7")
        assert time.monotonic() - start < SOON

    try:
        asyncio.run(main())
    finally:
        answered.set()


def test_a_coroutine_that_is_thrown_away(server: Server) -> None:
    """It ends its run, where the loop has ended before it."""

    async def main() -> Coroutine[Any, Any, fastsock.LoadReport]:
        run = load_async(server.endpoint, **LONG)
        run.send(None)  # as the loop does, which knows nothing of it
        await asyncio.sleep(0.2)
        return run

    run = asyncio.run(main())
    assert server.stats().open == 1
    run.close()
    wait_until(lambda: server.stats().open == 0)


@pytest.mark.parametrize("way", ["stopped", "interrupted"])
def test_a_closed_loop_ends_its_run(server: Server, way: str) -> None:
    """Also without the end of its task, as after Ctrl-C out of run_until_complete()."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(load_async(server.endpoint, connections=10, **LONG))
    if way == "stopped":
        loop.call_later(0.3, loop.stop)
        loop.run_forever()
    else:
        loop.call_later(0.3, signal.raise_signal, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
    assert server.stats().open == 10
    close_and_await_the_end(loop)
    wait_until(lambda: server.stats().open == 0)
    assert not task.done()  # it was still there, so that its end was not what ended the run


def close_and_await_the_end(loop: asyncio.AbstractEventLoop) -> None:
    start = time.monotonic()
    loop.close()
    wait_until(lambda: "fastsock-async" not in [each.name for each in threading.enumerate()])
    assert time.monotonic() - start < SOON


def test_a_closed_loop_ends_a_run_that_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a name is looked up, and while connections are not accepted."""
    answered = threading.Event()

    def load_at(target: Any) -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(load_async(target, timeout=60, **LONG))
        loop.call_later(0.2, loop.stop)
        loop.run_forever()
        assert not task.done()
        close_and_await_the_end(loop)
        assert not task.done()

    with misbehaving.full_address() as address:
        load_at(address)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(TIMEOUT))
    try:
        load_at("tcp://slow.example:7")
    finally:
        answered.set()


@pytest.mark.parametrize("package", [fastsock, pure], ids=["native", "pure"])
def test_a_server_is_no_endpoint(package: Any) -> None:
    """The error says which of its attributes is one, before the server's start too."""
    server = package.Server(ANY_PORT)
    with pytest.raises(TypeError, match=r"Server .* is Server; write server\.endpoint$"):
        load(server)
    with pytest.raises(TypeError, match=r"Server .* is Server; write server\.endpoint$"):
        asyncio.run(load_async(server))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"size": "big"}, ValueError),
        ({"depth": "2"}, TypeError),
        ({"colour": "red"}, TypeError),
        ({"server_pid": 1 << 22}, OSError),
    ],
)
def test_errors_are_those_of_load(
    options: dict[str, Any], error: type[Exception], server: Server
) -> None:
    with pytest.raises(error) as of_load:
        load(server.endpoint, **options)
    with pytest.raises(error) as of_async:
        asyncio.run(load_async(server.endpoint, **options))
    assert str(of_async.value) == str(of_load.value)


def test_a_failing_progress_ends_the_run(server: Server) -> None:
    def fails(seconds: float) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(load_async(server.endpoint, progress=fails, **LONG))


def test_ctrl_c_under_asyncio_run(server: Server) -> None:
    """It cancels the main task, which ends the run; the program ends as by Ctrl-C."""
    code = (
        "import asyncio, sys, fastsock\n"
        "async def main():\n"
        "    try:\n"
        "        await fastsock.load_async(sys.argv[1], duration=60, wait='block',\n"
        "            progress=lambda seconds: print('runs', flush=True))\n"
        "    except asyncio.CancelledError:\n"
        "        print('cancelled', flush=True)\n"
        "        raise\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(server.endpoint)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        start = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT)
        assert time.monotonic() - start < SOON
    assert "cancelled" in out
    assert err.endswith("KeyboardInterrupt\n")
    assert process.returncode == -signal.SIGINT


def test_the_signature_has_every_option() -> None:
    """help(load_async) shows the options, as help(load) does."""
    parameters = inspect.signature(load_async).parameters
    assert list(parameters) == list(inspect.signature(load).parameters)
    assert inspect.iscoroutinefunction(load_async)
    assert load_async.__doc__ and "connections: Open this many" in load_async.__doc__


# --- outside asyncio ----------------------------------------------------------------------------


async def serve_in_it() -> None:
    async with Server(ANY_PORT):
        raise AssertionError("served")


async def load_in_it() -> None:
    await load_async("tcp://127.0.0.1:1")


def drive_by_hand(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    function().send(None)


def run_by_trio(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    trio = pytest.importorskip("trio")
    trio.run(function)


def run_by_a_guest(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """trio inside the loop of asyncio: there is a loop, and the task is none of its."""
    trio = pytest.importorskip("trio")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        trio.lowlevel.start_guest_run(
            function,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
        )
        (await done).unwrap()

    asyncio.run(main())


@pytest.mark.parametrize("run", [drive_by_hand, run_by_trio, run_by_a_guest])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (serve_in_it, "`async with` of a Server needs asyncio; write `with`"),
        (
            load_in_it,
            r"load_async\(\) needs asyncio; in trio write await trio\.to_thread\.run_sync\(",
        ),
    ],
)
def test_outside_asyncio(
    function: Callable[[], Coroutine[Any, Any, None]], message: str, run: Callable[..., None]
) -> None:
    """A RuntimeError says that it needs asyncio, and what to write instead."""
    with pytest.raises(RuntimeError, match=message):
        run(function)


def test_what_the_errors_say_works() -> None:
    """In trio: `with` for a server, and load() in a thread."""
    pytest.importorskip("trio")
    in_fresh_process(serve_and_load_in_trio)  # a thread of trio's stays for a while


def serve_and_load_in_trio() -> None:
    import trio

    async def main() -> fastsock.LoadReport:
        with Server(ANY_PORT) as server:

            def run() -> fastsock.LoadReport:
                return load(server.endpoint, messages=10, wait="block")

            report: fastsock.LoadReport = await trio.to_thread.run_sync(run)
        assert refuses(server.endpoint)
        return report

    assert trio.run(main).messages == 10
