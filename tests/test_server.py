"""Tests of the native Server and of serve(): options, start and stop, signals."""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.abc
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from clients import (
    TIMEOUT,
    assert_serves,
    connect,
    connect_to,
    echo_exactly,
    has_ended,
    refuses,
    running,
    wait_until,
)
from implementations import ANY_PORT, GENEROUS, in_fresh_process
from leftovers import threads

from fastsock import Endpoint, Server, ServerStats, line_writer, serve
from fastsock.server import engines

ENGINES = ", ".join(engines.NAMES)


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": 1}, "engine 1 is int; expected a str"),
        ({"engine": None}, "engine None is NoneType; expected a str"),
        ({"backlog": "5"}, "backlog '5' is str; expected an int"),
        ({"backlog": True}, "backlog True is bool; expected an int"),
        ({"backlog": 1.0}, "backlog 1.0 is float; expected an int"),
        ({"reuse_port": 1}, "reuse_port 1 is int; expected True or False"),
        ({"dual_stack": None}, "dual_stack None is NoneType; expected True or False"),
        ({"nodelay": "yes"}, "nodelay 'yes' is str; expected True or False"),
        ({"rcvbuf": 1.5}, "rcvbuf 1.5 is float; expected an int of bytes, or a str like '64k'"),
        (
            {"buffer_size": None},
            "buffer_size None is NoneType; expected an int of bytes, or a str like '64k'",
        ),
        (
            {"drain_timeout": True},
            "drain_timeout True is bool; expected a number of seconds, or a str like '500us'",
        ),
        ({"fds": 3}, "fds 3 is int; expected a list of ints, such as [0, 1]"),
        ({"cpus": 0}, "cpus 0 is int; expected a list of ints, such as [0, 1]"),
        ({"cpus": "0,1"}, "cpus '0,1' is str; expected a list of ints, such as [0, 1]"),
        ({"fds": b"\3"}, "fds b'\\x03' is bytes; expected a list of ints, such as [0, 1]"),
        ({"allow": b"::"}, "allow b'::' is bytes; expected a list of ranges such as 10.0.0.0/8"),
    ],
    ids=str,
)
def test_option_of_the_wrong_type(options: dict[str, Any], message: str) -> None:
    """An option of a wrong type is a TypeError that names it and says what is expected."""
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        Server(ANY_PORT, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backlog": 0}, "backlog 0 is out of range; expected 1 to 2147483647"),
        ({"backlog": 2**31}, "backlog 2147483648 is out of range; expected 1 to 2147483647"),
        ({"rcvbuf": -1}, "rcvbuf -1 is out of range; expected 0 to 2147483647"),
        ({"sndbuf": 2**31}, "sndbuf 2147483648 is out of range; expected 0 to 2147483647"),
        ({"buffer_size": 0}, "buffer_size 0 is out of range; expected 1B to 16MiB"),
        ({"buffer_size": 2**24 + 1}, "buffer_size 16777217 is out of range; expected 1B to"),
        ({"drain_timeout": -0.1}, "drain_timeout -0.1s is out of range; expected 0 to 24h"),
        ({"drain_timeout": float("nan")}, "drain_timeout nan is out of range; expected"),
        ({"drain_timeout": float("inf")}, "drain_timeout inf is out of range; expected"),
        ({"sndbuf": "2G"}, "sndbuf 2147483648 is out of range; expected 0 to 2147483647"),
        ({"rcvbuf": "lots"}, "rcvbuf 'lots' is not a size; write a number and one of"),
        (
            {"idle_timeout": "-1s"},
            "idle_timeout '-1s' is not a duration; write a number and",
        ),
        ({"engine": "kqueue"}, f"engine 'kqueue' is unknown; expected one of {ENGINES}"),
        ({"engine": ""}, f"engine '' is unknown; expected one of {ENGINES}"),
    ],
    ids=str,
)
def test_option_of_the_wrong_value(options: dict[str, Any], message: str) -> None:
    """An option out of range is a ValueError of one line that says what is allowed."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.*$") as caught:
        Server(ANY_PORT, **options)
    assert "\n" not in str(caught.value)


def test_engine_that_was_not_built() -> None:
    """An engine that was not built is refused with the reason, not replaced by another one."""
    in_fresh_process(ask_for_an_engine_that_was_not_built)


def ask_for_an_engine_that_was_not_built() -> None:
    sys.modules["fastsock._native.server.uring.uring"] = None  # type: ignore[assignment]
    importlib.reload(engines)
    with pytest.raises(ValueError, match=r"^engine 'io_uring' is .+") as caught:
        Server(ANY_PORT, engine="io_uring")
    assert "apt-get install liburing-dev" in str(caught.value)
    assert str(caught.value).endswith("usable here: auto, epoll, poll, threads, fork, serial")
    assert "found no liburing" in engines.states()["io_uring"]


def test_engine_that_cannot_be_loaded() -> None:
    """An engine whose library is missing is refused with the loader's message."""
    in_fresh_process(ask_for_an_engine_that_cannot_be_loaded)


def ask_for_an_engine_that_cannot_be_loaded() -> None:
    class Loader(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "fastsock._native.server.uring.uring":
                raise ImportError("liburing.so.2: cannot open shared object file")

    sys.modules.pop("fastsock._native.server.uring.uring", None)
    sys.meta_path.insert(0, Loader())
    importlib.reload(engines)
    with pytest.raises(ValueError, match=r"not to be loaded: liburing\.so\.2: cannot open"):
        Server(ANY_PORT, engine="io_uring")


def test_auto_says_which_engine() -> None:
    """With "auto" the server names its engine before it runs, and the counters have the reason."""
    server = Server(ANY_PORT)
    assert server.engine in engines.WORKERS
    assert server.stats().engine == server.engine
    assert f"picks {server.engine}: {server.stats().engine_reason}" == engines.states()["auto"]
    assert Server(ANY_PORT, engine=server.engine).stats().engine_reason == "asked for"


def test_unknown_option() -> None:
    """An option that does not exist is a TypeError that names it."""
    with pytest.raises(TypeError, match="colour"):
        Server(ANY_PORT, colour="red")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("endpoint", "kind"),
    [("tcp://127.0.0.1", ValueError), ("7007", ValueError), (7007, TypeError), (None, TypeError)],
)
def test_bad_endpoint(endpoint: Any, kind: type[Exception]) -> None:
    """A bad endpoint is refused by the constructor."""
    with pytest.raises(kind, match=r"^endpoint .*expected|^endpoint .*write"):
        Server(endpoint)


@pytest.mark.parametrize("drain", ["soon", True, -1, float("nan"), 1e9])
def test_stop_with_a_bad_drain(drain: Any) -> None:
    """stop() refuses a bad `drain`, and the server goes on."""
    with Server(ANY_PORT) as server:
        with pytest.raises((TypeError, ValueError), match=r"^drain "):
            server.stop(drain)
        assert_serves(server.endpoint)


# --- start and stop -----------------------------------------------------------------------------


def test_start_twice() -> None:
    """A running server cannot be started again, and goes on."""
    with Server(ANY_PORT) as server:
        with pytest.raises(RuntimeError, match="this server is running; make a new Server"):
            server.start()
        assert_serves(server.endpoint)


@pytest.mark.parametrize("started", [False, True])
def test_restart_after_stop(started: bool) -> None:
    """A stopped server cannot be started, whether or not it was running."""
    server = Server(ANY_PORT)
    if started:
        server.start()
    server.stop()
    for start in (server.start, server.serve_forever):
        with pytest.raises(RuntimeError, match="this server is stopped; make a new Server"):
            start()


def test_error_in_the_body_stops_the_server() -> None:
    """An exception in the body of `with` stops the server, and is passed on."""
    with pytest.raises(ZeroDivisionError), Server(ANY_PORT) as server:
        1 / 0  # noqa: B018
    assert refuses(server.endpoint)


def test_async_with() -> None:
    """In `async with` the server runs beside the event loop, and is stopped at the end."""

    async def main() -> None:
        async with Server(ANY_PORT) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.endpoint.port)
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"hello"
            writer.close()
            await writer.wait_closed()
        assert refuses(server.endpoint)

    asyncio.run(main())


def test_drain_timeout_is_the_default_of_stop() -> None:
    """stop() without `drain` drains for `drain_timeout` seconds."""
    with connect_to(Server(ANY_PORT, drain_timeout=0.3)) as (server, _):
        start = time.monotonic()
        server.stop()
        assert 0.3 <= time.monotonic() - start < 5


def test_ctrl_c_during_a_drain() -> None:
    """Ctrl-C in the main thread interrupts stop(); stop(0) then ends the server."""
    in_fresh_process(interrupt_a_drain)


def interrupt_a_drain() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with connect_to(Server(ANY_PORT)) as (server, sock):

        def interrupt() -> None:
            wait_until(lambda: refuses(server.endpoint))
            os.kill(os.getpid(), signal.SIGINT)

        with running(interrupt), pytest.raises(KeyboardInterrupt):
            server.stop(drain=60)
        echo_exactly(sock, b"still served")
        server.stop(0)
        assert has_ended(sock)


@pytest.mark.memory
def test_200_servers_leave_nothing() -> None:
    """Starting and stopping 200 times leaves no descriptor, no thread and no memory."""
    for _ in range(20):
        start_and_stop()
    before = resident_bytes()
    for _ in range(200):
        start_and_stop()
    assert resident_bytes() - before < 200 * 16 * 1024


def start_and_stop() -> None:
    with connect_to(Server(ANY_PORT)):
        pass


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_server_ends_with_its_last_reference() -> None:
    """A running server is stopped with its last reference, and its clients see the end."""
    server = Server(ANY_PORT)
    server.start()
    endpoint, reference = server.endpoint, weakref.ref(server)
    with connect(endpoint) as sock:
        echo_exactly(sock, b"hello")
        del server
        gc.collect()
        assert reference() is None
        assert has_ended(sock)
        assert refuses(endpoint)


@pytest.mark.parametrize("seed", range(20))
def test_start_and_stop_from_many_threads(seed: int) -> None:
    """8 threads call start(), stop() and stats() in any order: all return, and it is stopped."""
    server = Server(ANY_PORT)
    barrier = threading.Barrier(8)
    names = random.Random(seed).choices(["start", "stop", "stats"], k=7)

    def call(name: str) -> None:
        barrier.wait(TIMEOUT)
        with suppress(RuntimeError):  # started twice, or after stop()
            getattr(server, name)()

    with ExitStack() as stack:
        for name in [*names, "stop"]:
            stack.enter_context(running(lambda name=name: call(name)))
    with pytest.raises(RuntimeError, match="stopped"):
        server.start()
    assert server.stats().open == 0


def test_stop_while_serve_forever_runs() -> None:
    """stop() from another thread ends serve_forever(), which returns the final counters."""
    server = Server(ANY_PORT)
    ready = threading.Event()
    results: list[ServerStats] = []
    with running(lambda: results.append(server.serve_forever(ready=lambda _: ready.set()))):
        assert ready.wait(TIMEOUT)
        assert_serves(server.endpoint)
        server.stop()
    assert results[0].accepted == 1
    assert server.stopped_by is None


def test_serve_forever_on_a_running_server() -> None:
    """serve_forever() waits for a server that was started before."""
    with Server(ANY_PORT) as server:
        ready = threading.Event()
        with running(lambda: server.serve_forever(ready=lambda _: ready.set())):
            assert ready.wait(TIMEOUT)
            assert_serves(server.endpoint)
            server.stop()


def test_error_in_ready_stops_the_server() -> None:
    """An exception of `ready` is passed on, and the server is stopped."""
    seen: list[Server] = []

    def ready(server: Server) -> None:
        seen.append(server)
        raise ZeroDivisionError

    try:
        with pytest.raises(ZeroDivisionError):
            serve(ANY_PORT, ready=ready)
        assert refuses(seen[0].endpoint)
    finally:
        seen[0].stop()


def test_bound_comes_before_any_thread() -> None:
    """serve() calls `bound` after binding, before any thread; its exception ends the server."""

    def bound(server: Server) -> None:
        assert not refuses(server.endpoint)
        assert threads() == before
        raise LookupError("no such user")

    def ready(server: Server) -> None:
        raise AssertionError("ready() was called")

    before = threads()
    with pytest.raises(LookupError, match="no such user"):
        serve(ANY_PORT, bound=bound, ready=ready)


# --- the listener is shut from outside ----------------------------------------------------------


def shut_listener(endpoint: Endpoint) -> None:
    """Shut the listener down, as another process with its descriptor can, and ss -K (ss(8))."""
    for sock in copies_of_sockets():
        with sock:
            listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if listens and sock.getsockname()[1] == endpoint.port:
                sock.shutdown(socket.SHUT_RDWR)


def copies_of_sockets() -> Iterator[socket.socket]:
    """A second descriptor of every socket of this process; the caller closes them."""
    for path in list(Path("/proc/self/fd").iterdir()):
        with suppress(FileNotFoundError):
            if str(path.readlink()).startswith("socket:"):
                yield socket.socket(fileno=os.dup(int(path.name)))


def test_shut_listener_ends_serve_forever() -> None:
    """serve_forever() raises an error that names the endpoint."""
    server = Server(ANY_PORT)
    ready = threading.Event()

    def run() -> None:
        with pytest.raises(OSError, match=r"accept tcp://127\.0\.0\.1:\d+: .*listener was shut"):
            server.serve_forever(ready=lambda _: ready.set())

    with running(run):
        assert ready.wait(TIMEOUT)
        shut_listener(server.endpoint)
    assert server.stats().errors == {"EINVAL": 1}


@pytest.mark.parametrize("way", ["stats", "stop", "with", "async with"])
def test_shut_listener_is_logged_in_the_background(way: str) -> None:
    """Once, with the text that serve_forever() raises, when the program comes by."""
    lines: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lines.append  # type: ignore[method-assign]
    logging.getLogger("fastsock").addHandler(handler)

    async def serve_async() -> None:
        async with server:
            shut()

    def shut() -> None:
        shut_listener(server.endpoint)
        wait_until(lambda: server._workers[0].counters()["errors"].get("EINVAL"))

    try:
        server = Server(ANY_PORT)
        if way == "async with":
            asyncio.run(serve_async())
        else:
            with server:
                shut()
                if way == "stats":
                    server.stats()
                    wait_until(lambda: lines)
                elif way == "stop":
                    server.stop()
        server.stats()
        assert line_writer.flush(TIMEOUT)
    finally:
        logging.getLogger("fastsock").removeHandler(handler)
    said = [line.getMessage() for line in lines]
    assert said == [f"accept {server.endpoint}: Invalid argument (the listener was shut)"]


def test_serve_forever_after_a_look_at_the_counters() -> None:
    """It raises what was logged before."""
    server = Server(ANY_PORT)
    server.start()
    shut_listener(server.endpoint)
    wait_until(lambda: server.stats().errors.get("EINVAL"))
    with pytest.raises(OSError, match="listener was shut"):
        server.serve_forever()


def test_shut_listener_does_not_spin() -> None:
    """A started server goes on serving its clients, and takes no CPU while they are idle."""
    with connect_to(Server(ANY_PORT)) as (server, sock):
        shut_listener(server.endpoint)
        wait_until(lambda: server.stats().errors.get("EINVAL"))
        before = time.process_time()
        threading.Event().wait(0.5)
        assert time.process_time() - before < 0.2
        echo_exactly(sock, b"still here")


# --- without the GIL ----------------------------------------------------------------------------


def test_busy_python_does_not_slow_the_server() -> None:
    """Clients get their echoes while the main thread computes and never releases the GIL."""
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import test_server as module; "
    command = [sys.executable, "-c", code + "module.serve_and_compute()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        endpoint = Endpoint.parse(process.stdout.readline().strip())
        with connect(endpoint) as sock:
            for _ in range(100):
                echo_exactly(sock, b"ping")
        assert process.wait(GENEROUS) == 0


def serve_and_compute() -> None:
    sys.setswitchinterval(100)  # seconds: no other thread gets the GIL
    with Server(ANY_PORT) as server:
        print(server.endpoint, flush=True)
        while server.stats().closed["eof"] == 0:
            sum(range(1000))


# --- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_stopped_by(number: signal.Signals) -> None:
    """`stopped_by` is the signal that ended serve_forever()."""
    assert in_fresh_process(serve_until_signal, int(number)).split() == [number.name]


def serve_until_signal(number: int) -> None:
    server = Server(ANY_PORT)
    server.serve_forever(ready=lambda _: signal.raise_signal(number))
    assert server.stopped_by is not None
    print(server.stopped_by.name)


def test_signal_while_starting() -> None:
    """A signal before the endpoints are bound ends serve_forever() too."""
    in_fresh_process(serve_with_a_signal_at_start)


def serve_with_a_signal_at_start() -> None:
    server = Server(ANY_PORT)
    start = server.start

    def start_late(**options: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        start(**options)

    server.start = start_late  # type: ignore[method-assign]
    server.serve_forever()
    assert server.stopped_by is signal.SIGTERM


def test_serve_returns_the_counters() -> None:
    """serve() takes several endpoints and returns the counters of all."""
    servers: list[Server] = []
    ready = threading.Event()
    results: list[ServerStats] = []

    def announce(server: Server) -> None:
        servers.append(server)
        ready.set()

    with running(lambda: results.append(serve(ANY_PORT, "tcp://[::1]:0", ready=announce))):
        assert ready.wait(TIMEOUT)
        for endpoint in servers[0].endpoints:
            assert_serves(endpoint)
        servers[0].stop()
    assert (results[0].accepted, results[0].open) == (2, 0)
