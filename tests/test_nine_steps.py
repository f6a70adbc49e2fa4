"""Tests of pysrc/nine_steps.py, the textbook server, run as its readers run it: as a program.

Those of test_contract.py that need nothing but a server's endpoint run on it too.
"""

from __future__ import annotations

import ast
import random
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from clients import (
    assert_same,
    assert_serves,
    connect,
    echo_exactly,
    finish_exactly,
    nothing_comes,
    random_chunks,
    receive_all,
    receive_exactly,
    refuses,
    reset,
    running,
    sending,
    stall,
    wait_until,
)
from test_contract import (  # noqa: F401 - run here on the textbook server
    test_echoes_every_byte_in_order,
    test_half_close_gets_everything_back,
    test_half_close_of_an_empty_connection,
    test_many_clients_at_once_never_get_each_others_bytes,
)

from fastsock import Endpoint
from fastsock.bench.server_process import Process
from fastsock.pure import nine_steps

FILE = Path(__file__).resolve().parent.parent / "pysrc" / "nine_steps.py"
LINES_MAX = 100
MIB = 1 << 20

Serve = Callable[..., "Textbook"]


class Textbook(Process):
    """The program, listening; its standard error and output are in log()."""

    def __init__(self, address: str = "0", *, under: tuple[str, ...] = ()) -> None:
        super().__init__([*under, sys.executable, "-I", str(FILE), address])
        try:
            wait_until(lambda: "\n" in self.log() or not self.running(), "a line")
            said = re.match(r"listening on (\S+)\n", self.log())
            assert said, self.log()
        except BaseException:
            self.close()
            raise
        self.endpoint = Endpoint.parse(f"tcp://{said[1]}")

    def end(self, number: signal.Signals) -> int | None:
        self.signal(number)
        return self.wait()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A function that starts the program; at the end it has written no error."""
    with ExitStack() as stack:
        servers = []

        def start(*arguments: str, under: tuple[str, ...] = ()) -> Textbook:
            servers.append(stack.enter_context(Textbook(*arguments, under=under)))
            return servers[-1]

        yield start
        assert [server.log().splitlines()[1:] for server in servers] == [[]] * len(servers)


# --- bytes --------------------------------------------------------------------------------------


def test_slow_reader_gets_everything(serve: Serve) -> None:
    """8 MiB reach a client with a small window that reads only when the server sends no more."""
    server = serve()
    chunks = random_chunks(1, 8 * MIB, MIB)
    with connect(server.endpoint, rcvbuf=4096, sndbuf=4096) as sock:
        with sending(sock, chunks, then_half_close=True):
            time.sleep(0.5)
            first = receive_exactly(sock, 3)
            received = first + receive_all(sock)
        assert_same(received, b"".join(chunks))


class Sparing(socket.socket):
    """A socket whose send() takes a part, as send(2) may."""

    def send(self, data: memoryview) -> int:  # type: ignore[override]
        return super().send(data[: random.randint(1, 1000)])


def test_short_sends_are_resumed() -> None:
    """Where each send() takes at most 1000 bytes, every byte comes back."""
    client, end = socket.socketpair()
    server = Sparing(fileno=end.detach())
    with client, running(lambda: nine_steps.echo(server)):
        finish_exactly(client, *random_chunks(2, MIB, 64 * 1024))
    assert server.fileno() == -1  # step 8


def test_clients_that_never_read_do_not_disturb_others(serve: Serve) -> None:
    server = serve()
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(server.endpoint, rcvbuf=4096)) for _ in range(5)]
        stall(lambda: 0, *socks)
        assert_serves(server.endpoint)


def test_messages_do_not_wait_for_acknowledgements() -> None:
    """An accepted socket has TCP_NODELAY."""
    with (
        nine_steps.open_listener("127.0.0.1:0") as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# --- abrupt ends --------------------------------------------------------------------------------


def test_a_reset_ends_its_own_connection_only(serve: Serve) -> None:
    """Clients that reset at 100 moments, before accept too, leave no thread and no descriptor."""
    server = serve()
    rng = random.Random(3)
    before = (server.descriptors(), server.threads())
    with connect(server.endpoint) as other:
        echo_exactly(other, b"before")
        for _ in range(100):
            sock = connect(server.endpoint)
            if size := rng.choice((0, rng.randrange(100_000))):
                sock.setblocking(False)
                sock.send(rng.randbytes(size))
            reset(sock)
        echo_exactly(other, b"after")
    wait_until(lambda: (server.descriptors(), server.threads()) == before)
    assert_serves(server.endpoint)


@pytest.mark.parametrize("limit", [0, 3])
def test_the_descriptor_limit(serve: Serve, limit: int) -> None:
    """At the limit it takes no CPU, serves what is open, and later the clients that waited."""
    server = serve()
    with ExitStack() as stack, connect(server.endpoint) as early:
        echo_exactly(early, b"early")
        server.leave_descriptors(limit)
        socks = [stack.enter_context(connect(server.endpoint)) for _ in range(10)]
        before = server.cpu_seconds()
        for _ in range(10):
            echo_exactly(early, b"ping")
            nothing_comes(early, 0.1)
        assert server.cpu_seconds() - before < 0.2
        early.close()
        for sock in socks:  # each that closes makes room for one that waits
            finish_exactly(sock, b"patience")
            sock.close()


def test_no_thread_can_be_made(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client without a thread is closed, and no other."""

    def fail(thread: object) -> None:
        stopped_by.append(signal.SIGTERM)
        raise RuntimeError("can't start new thread")

    stopped_by: list[int] = []
    monkeypatch.setattr(nine_steps.threading.Thread, "start", fail)
    with (
        nine_steps.open_listener("127.0.0.1:0") as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        nine_steps.accept_clients(listener, stopped_by)
        assert client.recv(1) == b""


@pytest.mark.parametrize("error", ["ECONNABORTED", "EPROTO", "EINTR", "EMFILE", "ENOMEM"])
def test_accept_fails(serve: Serve, tmp_path: Path, error: str) -> None:
    """Failures of accept that pass end nothing."""
    server = serve("0", under=injecting(tmp_path / "log", f"error={error}:when=1..3"))
    for _ in range(3):
        assert_serves(server.endpoint)
    assert "(INJECTED)" in (tmp_path / "log").read_text()


def test_accept_fails_for_good(tmp_path: Path) -> None:
    """A call that is forbidden ends the server with the error."""
    with Textbook(under=injecting(tmp_path / "log", "error=EPERM:when=1+")) as server:
        assert server.wait() == 1
        assert server.log().endswith(": [Errno 1] Operation not permitted\n")


def injecting(log: Path, fault: str) -> tuple[str, ...]:
    """strace(1), which makes accept4() fail."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    tracing = ("-e", "trace=accept4", "-e", f"inject=accept4:{fault}", "-e", "signal=none")
    return (strace, "-f", "-qq", "-o", str(log), *tracing)


# --- the end ------------------------------------------------------------------------------------

ENDS = [(signal.SIGINT, 130), (signal.SIGTERM, 0)]


@pytest.mark.parametrize(("number", "code"), ENDS)
def test_a_signal_ends_it(serve: Serve, number: signal.Signals, code: int) -> None:
    """At once, with a client open; the port can be bound at once, also with TIME_WAIT there."""
    server = serve()
    with connect(server.endpoint) as sock:
        echo_exactly(sock, b"open")
        assert server.end(number) == code
        assert receive_all(sock) == b""
    assert refuses(server.endpoint)
    again = serve(f"127.0.0.1:{server.endpoint.port}")
    assert_serves(again.endpoint)
    assert again.end(number) == code


@pytest.mark.parametrize("moment", range(5))
def test_a_signal_at_any_moment_ends_it(serve: Serve, moment: int) -> None:
    """Also while clients come, which keep accept() from blocking."""
    server = serve()
    for _ in range(moment):
        connect(server.endpoint).close()
    assert server.end(signal.SIGINT) == 130


def test_a_signal_at_the_descriptor_limit_ends_it(serve: Serve) -> None:
    server = serve()
    server.leave_descriptors(0)
    with connect(server.endpoint), connect(server.endpoint):
        time.sleep(0.3)
        assert server.end(signal.SIGTERM) == 0


# --- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "host"),
    [("0", "127.0.0.1"), (":0", "127.0.0.1"), ("127.0.0.2:0", "127.0.0.2"), ("[::1]:0", "::1")],
)
def test_an_address(serve: Serve, address: str, host: str) -> None:
    server = serve(address)
    assert server.endpoint.host == host
    assert_serves(server.endpoint)


@pytest.mark.parametrize("address", ["127.0.0.1:70000", "192.0.2.1:0", "TAKEN"])
def test_a_bad_address(serve: Serve, address: str) -> None:
    """One line says what is wrong, and the exit code is 1."""
    if address == "TAKEN":
        address = f"127.0.0.1:{serve().endpoint.port}"
    with Process([sys.executable, str(FILE), address]) as process:
        assert process.wait() == 1
        assert re.fullmatch(r"nine_steps.py: .+\n", process.log())


@pytest.mark.parametrize(
    "arguments", [["-h"], [""], ["foo"], ["127.0.0.1:x"], ["127.0.0.1:"], ["-1"], ["0", "0"]]
)
def test_wrong_arguments(arguments: list[str]) -> None:
    with Process([sys.executable, str(FILE), *arguments]) as process:
        assert process.wait() == 1
        assert process.log() == "usage: python3 nine_steps.py [PORT | HOST:PORT]\n"


def test_as_a_module(serve: Serve) -> None:
    """``python -m fastsock.pure.nine_steps`` is the same program."""
    with Process([sys.executable, "-m", "fastsock.pure.nine_steps", "0"]) as process:
        wait_until(lambda: process.log().startswith("listening on 127.0.0.1:"))
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


# --- the text -----------------------------------------------------------------------------------


def test_it_fits_two_screens() -> None:
    assert len(FILE.read_text().splitlines()) <= LINES_MAX


def test_the_steps_are_numbered() -> None:
    """Each of the nine once, in order, and each before the call that the page names for it."""
    text = FILE.read_text()
    steps = re.split(r"^ *# (\d)\. ", text, flags=re.MULTILINE)
    assert steps[1::2] == list("123456789")
    calls = ("socket.socket", "setsockopt", "bind", "listen", "accept", "recv_into", "send")
    for call, step in zip((*calls, "close", "close"), steps[2::2], strict=True):
        code = re.sub(r"#.*", "", step)
        assert re.search(rf"\b{call}\(", code), call


def test_it_imports_the_standard_library_alone() -> None:
    """So the file can be copied: with ``-I``, above, it finds nothing beside it either."""
    for node in ast.walk(ast.parse(FILE.read_text())):
        if isinstance(node, ast.Import):
            assert {each.name for each in node.names} <= sys.stdlib_module_names
        assert not isinstance(node, ast.ImportFrom)
