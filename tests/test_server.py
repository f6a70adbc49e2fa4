"""Tests of the native Server and serve(): options, binding, life and death, signals and forks."""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib
import json
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from clients import (
    TIMEOUT,
    assert_serves,
    connect,
    echo_exactly,
    finish_exactly,
    has_ended,
    refuses,
    running,
    wait_until,
)
from implementations import ANY_PORT, GENEROUS, in_fresh_process

from fastsock import Endpoint, Server, ServerStats, engines, serve

ENGINES = ", ".join(engines.NAMES)
NOBODY = 65534  # the user id of nobody


@contextmanager
def taken_port() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def free_port() -> int:
    with taken_port() as port:
        return port


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
        ({"rcvbuf": 1.5}, "rcvbuf 1.5 is float; expected an int"),
        ({"sndbuf": "64k"}, "sndbuf '64k' is str; expected an int"),
        ({"buffer_size": None}, "buffer_size None is NoneType; expected an int"),
        ({"drain_timeout": "1"}, "drain_timeout '1' is str; expected a number of seconds"),
        ({"drain_timeout": True}, "drain_timeout True is bool; expected a number of seconds"),
    ],
    ids=str,
)
def test_option_of_the_wrong_type(options: dict[str, Any], message: str) -> None:
    """Each option of a wrong type is a TypeError that names it and says what is expected."""
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        Server(ANY_PORT, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backlog": 0}, "backlog 0 is out of range; expected 1 to 2147483647"),
        ({"backlog": 2**31}, "backlog 2147483648 is out of range; expected 1 to 2147483647"),
        ({"rcvbuf": -1}, "rcvbuf -1 is out of range; expected 0 to 2147483647"),
        ({"sndbuf": 2**31}, "sndbuf 2147483648 is out of range; expected 0 to 2147483647"),
        ({"buffer_size": 0}, "buffer_size 0 is out of range; expected 1 to 16777216"),
        ({"buffer_size": 2**24 + 1}, "buffer_size 16777217 is out of range; expected 1 to"),
        (
            {"drain_timeout": -0.1},
            "drain_timeout -0.1 is out of range; expected 0 to 86400 seconds",
        ),
        ({"drain_timeout": float("nan")}, "drain_timeout nan is out of range; expected"),
        ({"drain_timeout": float("inf")}, "drain_timeout inf is out of range; expected"),
        ({"engine": "kqueue"}, f"engine 'kqueue' is unknown; expected one of {ENGINES}"),
        ({"engine": ""}, f"engine '' is unknown; expected one of {ENGINES}"),
    ],
    ids=str,
)
def test_option_of_the_wrong_value(options: dict[str, Any], message: str) -> None:
    """Each option out of range is a ValueError of one line that says what is allowed."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.*$") as caught:
        Server(ANY_PORT, **options)
    assert "\n" not in str(caught.value)


def test_engine_that_is_not_there() -> None:
    """An engine asked for by name is never replaced by another: it is refused, with the reason."""
    in_fresh_process(ask_for_an_engine_that_is_not_there)


def ask_for_an_engine_that_is_not_there() -> None:
    sys.modules["fastsock._native.uring"] = None  # type: ignore[assignment]
    importlib.reload(engines)
    with pytest.raises(ValueError, match=r"^engine 'io_uring' is .+") as caught:
        Server(ANY_PORT, engine="io_uring")
    assert "apt-get install liburing-dev" in str(caught.value)
    assert str(caught.value).endswith("usable here: auto, epoll, poll, threads, fork, serial")
    assert "found no liburing" in engines.states()["io_uring"]


def test_auto_says_which_engine() -> None:
    """With "auto" the server says which engine it took, before it runs, and in its counters why."""
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


@pytest.mark.parametrize("drain", ["1", True, -1, float("nan"), 1e9])
def test_stop_with_a_bad_drain(drain: Any) -> None:
    """stop() refuses a bad time, and the server goes on."""
    with Server(ANY_PORT) as server:
        with pytest.raises((TypeError, ValueError), match=r"^drain "):
            server.stop(drain)
        assert_serves(server.endpoint)


# --- binding ------------------------------------------------------------------------------------


def test_port_in_use() -> None:
    """start() raises in its caller, names step and endpoint, and may be tried again later."""
    with taken_port() as port:
        server = Server(("127.0.0.1", port))
        with pytest.raises(OSError, match=f"bind tcp://127.0.0.1:{port}: .*port 0 picks") as caught:
            server.start()
        assert caught.value.errno == errno.EADDRINUSE
    with server:
        assert_serves(server.endpoint)


def test_address_of_another_machine() -> None:
    """An address that is not of this machine cannot be bound (192.0.2.0/24 is nobody's)."""
    with pytest.raises(OSError, match=r"bind tcp://192\.0\.2\.1:0: .*not an address of") as caught:
        Server("tcp://192.0.2.1:0").start()
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_host_that_does_not_exist() -> None:
    """A host name without an address is an OSError that names the endpoint."""
    with pytest.raises(
        socket.gaierror, match=r"^\[Errno -\d\] resolve tcp://no-such-host\.invalid:0: "
    ):
        Server("tcp://no-such-host.invalid:0").start()


def test_privileged_port() -> None:
    """A port that needs a privilege is a PermissionError that says which."""
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first < 2:
        pytest.skip("every port may be bound here (net.ipv4.ip_unprivileged_port_start)")
    in_fresh_process(bind_without_privileges, first - 1)


def bind_without_privileges(port: int) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)  # and with it goes every capability (capabilities(7))
    with pytest.raises(PermissionError, match=rf":{port}: .*\(ports below 1024 need CAP_NET_BIND"):
        Server(("127.0.0.1", port)).start()


def test_second_endpoint_fails() -> None:
    """When one endpoint cannot be bound, those before it are not left bound."""
    port = free_port()
    with taken_port() as taken:
        server = Server(("127.0.0.1", port), ("127.0.0.1", taken))
        with pytest.raises(OSError, match=f"bind tcp://127.0.0.1:{taken}"):
            server.start()
        assert refuses(Endpoint("tcp", "127.0.0.1", port))
        with pytest.raises(RuntimeError, match="not been started"):
            _ = server.endpoints


def test_several_endpoints() -> None:
    """A server serves all of its endpoints, and counts over all."""
    with Server(ANY_PORT, ("127.0.0.1", 0), "tcp://[::1]:0") as server:
        assert len({endpoint.port for endpoint in server.endpoints}) == 3
        assert server.endpoint == server.endpoints[0]
        for endpoint in server.endpoints:
            assert_serves(endpoint)
        wait_until(lambda: server.stats().closed["eof"] == 3)
        assert server.stats().endpoints == tuple(map(str, server.endpoints))
        server.stop()
        assert all(map(refuses, server.endpoints))


def test_ipv6_loopback() -> None:
    """[::1] is served, and is not reached over IPv4."""
    with Server("tcp://[::1]:0") as server:
        assert_serves(server.endpoint)
        assert refuses(Endpoint("tcp", "127.0.0.1", server.endpoint.port))


@pytest.mark.parametrize(
    ("url", "option", "both"),
    [
        ("tcp://[::]:0", True, True),
        ("tcp://[::]:0", False, False),
        ("tcp://[::]:0?dual_stack=1", False, True),
        ("tcp://[::]:0?dual_stack=0", True, False),
    ],
)
def test_dual_stack(url: str, option: bool, both: bool) -> None:
    """[::] takes IPv4 clients when that was asked for, and the endpoint's own word wins."""
    with Server(url, dual_stack=option) as server:
        port = server.endpoint.port
        assert_serves(Endpoint("tcp", "::1", port))
        assert refuses(Endpoint("tcp", "127.0.0.1", port)) != both
        if both:
            assert_serves(Endpoint("tcp", "127.0.0.1", port))


def test_two_servers_share_a_port_only_if_both_want() -> None:
    """reuse_port lets two servers bind one port, and is off by default."""
    with Server(ANY_PORT, reuse_port=True) as first:
        with Server(first.endpoint, reuse_port=True) as second:
            assert second.endpoint == first.endpoint
            for _ in range(20):
                assert_serves(first.endpoint)
        with pytest.raises(OSError, match="bind"):
            Server(first.endpoint).start()


# --- life and death -----------------------------------------------------------------------------


def test_start_twice() -> None:
    """A running server cannot be started again, and goes on."""
    with Server(ANY_PORT) as server:
        with pytest.raises(RuntimeError, match="this server is running; make a new Server"):
            server.start()
        assert_serves(server.endpoint)


@pytest.mark.parametrize("started", [False, True])
def test_restart_after_stop(started: bool) -> None:
    """A stopped server stays stopped, whether or not it ever ran."""
    server = Server(ANY_PORT)
    if started:
        server.start()
    server.stop()
    for start in (server.start, server.serve_forever):
        with pytest.raises(RuntimeError, match="this server is stopped; make a new Server"):
            start()


def test_endpoint_before_start() -> None:
    """Before start() there is no port to tell."""
    server = Server(ANY_PORT)
    with pytest.raises(RuntimeError, match="this server has not been started"):
        _ = server.endpoint
    assert server.stats().accepted == 0


def test_error_in_the_body_stops_the_server() -> None:
    """The context manager stops the server on the way out of an exception, and lets it pass."""
    with pytest.raises(ZeroDivisionError), Server(ANY_PORT) as server:
        1 / 0  # noqa: B018
    assert refuses(server.endpoint)


def test_async_with() -> None:
    """In `async with` the server runs, the event loop goes on, and it is stopped at the end."""

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
    """stop() without a time drains for `drain_timeout` seconds, and so does the context manager."""
    with connect_to(Server(ANY_PORT, drain_timeout=0.3)) as (server, _):
        start = time.monotonic()
        server.stop()
        assert 0.3 <= time.monotonic() - start < 5


@contextmanager
def connect_to(server: Server) -> Iterator[tuple[Server, socket.socket]]:
    """The server, started, and one client that has had an echo."""
    with server, connect(server.endpoint) as sock:
        echo_exactly(sock, b"hello")
        yield server, sock


def test_ctrl_c_during_a_drain() -> None:
    """Ctrl-C in the main thread breaks off stop(), and stop(0) then ends the server."""
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
    """Starting and stopping 200 times leaves no descriptor, no thread, and no memory."""
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


def test_forgotten_server_ends() -> None:
    """A running server that nobody holds any more ends, and its clients see it."""
    server = Server(ANY_PORT)
    server.start()
    endpoint, gone = server.endpoint, weakref.ref(server)
    with connect(endpoint) as sock:
        echo_exactly(sock, b"hello")
        del server
        gc.collect()
        assert gone() is None
        assert has_ended(sock)
        assert refuses(endpoint)


@pytest.mark.parametrize("seed", range(20))
def test_start_and_stop_from_many_threads(seed: int) -> None:
    """8 threads that start and stop one server in any order all return, and it ends stopped."""
    server = Server(ANY_PORT)
    barrier = threading.Barrier(8)
    names = random.Random(seed).choices(["start", "stop", "stats"], k=7)

    def call(name: str) -> None:
        barrier.wait(TIMEOUT)
        with suppress(RuntimeError):  # started twice, or after the stop
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
    """serve_forever() takes over a server that was started before."""
    with Server(ANY_PORT) as server:
        ready = threading.Event()
        with running(lambda: server.serve_forever(ready=lambda _: ready.set())):
            assert ready.wait(TIMEOUT)
            assert_serves(server.endpoint)
            server.stop()


def test_error_in_ready_stops_the_server() -> None:
    """An exception of the callback passes through, with nothing left running."""
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


# --- the listener is taken away -----------------------------------------------------------------


def shut_listener(endpoint: Endpoint) -> None:
    """Do to the listener what another holder of its descriptor can do, and ss -K too."""
    for sock in copies_of_sockets():
        with sock:
            listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if listens and sock.getsockname()[1] == endpoint.port:
                sock.shutdown(socket.SHUT_RDWR)


def copies_of_sockets() -> Iterator[socket.socket]:
    """A second descriptor of every socket of this process, to be closed."""
    for path in list(Path("/proc/self/fd").iterdir()):
        with suppress(FileNotFoundError):
            if str(path.readlink()).startswith("socket:"):
                yield socket.socket(fileno=os.dup(int(path.name)))


def test_shut_listener_ends_serve_forever() -> None:
    """When the listener is shut from outside, serve_forever() raises and names the endpoint."""
    server = Server(ANY_PORT)
    ready = threading.Event()

    def run() -> None:
        with pytest.raises(OSError, match=r"accept tcp://127\.0\.0\.1:\d+: .*listener was shut"):
            server.serve_forever(ready=lambda _: ready.set())

    with running(run):
        assert ready.wait(TIMEOUT)
        shut_listener(server.endpoint)
    assert server.stats().errors == {"EINVAL": 1}


def test_shut_listener_does_not_spin() -> None:
    """Without serve_forever() a server whose listener was shut serves who is in, and is idle."""
    with connect_to(Server(ANY_PORT)) as (server, sock):
        shut_listener(server.endpoint)
        wait_until(lambda: server.stats().errors.get("EINVAL"))
        before = time.process_time()
        threading.Event().wait(0.5)
        assert time.process_time() - before < 0.2
        echo_exactly(sock, b"still here")


# --- beside Python ------------------------------------------------------------------------------


def test_busy_python_does_not_slow_the_server() -> None:
    """Clients get their echoes while the main thread computes and never lets go of the GIL."""
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
    sys.setswitchinterval(100)  # seconds: a thread that needs the GIL would not get it
    with Server(ANY_PORT) as server:
        print(server.endpoint, flush=True)
        while server.stats().closed["eof"] == 0:
            sum(range(1000))


# --- fork ---------------------------------------------------------------------------------------


def test_fork() -> None:
    """A forked child is refused in every method, and harms neither the parent nor its clients."""
    if sys.version_info >= (3, 12):
        # Python warns that threads are not copied; that they are not is what this is about.
        in_fresh_process(fork_quietly)
    else:
        in_fresh_process(fork_beside_a_server)


def fork_quietly() -> None:
    import warnings

    warnings.simplefilter("ignore", DeprecationWarning)
    fork_beside_a_server()


def fork_beside_a_server() -> None:
    with connect_to(Server(ANY_PORT)) as (server, sock):
        from_child, to_parent = os.pipe()
        from_parent, to_child = os.pipe()
        if os.fork() == 0:
            os.write(to_parent, json.dumps(call_everything(server)).encode())
            os.close(to_child)
            os.read(from_parent, 1)  # live on until the parent is done
            os._exit(0)
        said = json.loads(os.read(from_child, 10_000))
        assert len(said) == 4, said
        assert all(re.match(r"this server belongs to process \d+.* Server in", s) for s in said)
        echo_exactly(sock, b"the parent serves on")
        assert_serves(server.endpoint)
        server.stop()
        assert has_ended(sock)  # though the child had a copy of the connection
        with Server(server.endpoint) as another:  # and of the listener
            assert_serves(another.endpoint)
        os.write(to_child, b"x")
        assert os.wait()[1] == 0


def call_everything(server: Server) -> list[str]:
    """What each method says in a forked child."""
    said = []
    methods: list[Callable[[], object]] = [
        server.start,
        server.stop,
        server.stats,
        server.serve_forever,
    ]
    for method in methods:
        try:
            method()
        except RuntimeError as error:
            said.append(str(error))
    return said


def test_fork_and_new_server() -> None:
    """A forked child can make a server of its own, and end without touching the parent's."""
    in_fresh_process(fork_and_serve)


def fork_and_serve() -> None:
    import warnings

    warnings.simplefilter("ignore", DeprecationWarning)
    with connect_to(Server(ANY_PORT)) as (server, sock):
        child = os.fork()
        if child == 0:
            with Server(ANY_PORT) as own:
                assert_serves(own.endpoint)
            del server
            gc.collect()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        finish_exactly(sock, b"the parent serves on")


# --- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_stopped_by(number: signal.Signals) -> None:
    """The server remembers the signal that ended serve_forever()."""
    assert in_fresh_process(serve_until_signal, int(number)).split() == [number.name]


def serve_until_signal(number: int) -> None:
    server = Server(ANY_PORT)
    server.serve_forever(ready=lambda _: signal.raise_signal(number))
    assert server.stopped_by is not None
    print(server.stopped_by.name)


def test_signal_while_starting() -> None:
    """A signal that comes before the endpoints are bound ends serve_forever() too."""
    in_fresh_process(serve_with_a_signal_at_start)


def serve_with_a_signal_at_start() -> None:
    server = Server(ANY_PORT)
    start = server.start

    def start_late() -> None:
        signal.raise_signal(signal.SIGTERM)
        start()

    server.start = start_late  # type: ignore[method-assign]
    server.serve_forever()
    assert server.stopped_by is signal.SIGTERM


def test_serve_returns_the_counters() -> None:
    """serve() takes several endpoints and returns what was counted on all."""
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
