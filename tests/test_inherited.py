"""Inherited sockets: served on, passed on, never shut down, never removed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from clients import (
    TIMEOUT,
    assert_serves,
    connect,
    echo_exactly,
    finish_exactly,
    half_close,
    receive_all,
    running,
    skip_if_rights_always_pass,
)
from implementations import Implementation
from networks import ip, own_network

import fastsock
import fastsock.pure
from fastsock.pure.control import Phase
from fastsock.server import inherited

FASTSOCK = (sys.executable, "-m", "fastsock")
#: What a service manager does between fork() and exec().
ACTIVATE = """\
import os, sys
numbers, names, *command = sys.argv[1:]
high = [os.dup2(int(fd), 100 + i) for i, fd in enumerate(numbers.split(","))]
for i, fd in enumerate(high):
    os.dup2(fd, 3 + i)
os.closerange(100, 200)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(high)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as made:
        yield made


def endpoint_of(listener: socket.socket) -> fastsock.Endpoint:
    return fastsock.Endpoint.parse(listener.getsockname())


# --- served on ----------------------------------------------------------------------------------


def test_serves_on_a_listener_and_leaves_it_open(
    implementation: Implementation, listener: socket.socket
) -> None:
    """The endpoint is the socket's own, and after the stop its maker can go on accepting."""
    with implementation.server(fds=[listener.fileno()]) as server:
        assert server.endpoint == endpoint_of(listener)
        assert_serves(server.endpoint)
    with connect(endpoint_of(listener)), listener.accept()[0]:
        pass


@pytest.mark.parametrize("package", [fastsock, fastsock.pure], ids=["native", "pure"])
@pytest.mark.parametrize("dual_stack", [False, True])
def test_ipv6(package: Any, dual_stack: bool) -> None:
    """An IPv6 listener is known by its address, and whether it takes IPv4 is asked."""
    with socket.create_server(
        ("::", 0), family=socket.AF_INET6, dualstack_ipv6=dual_stack
    ) as listener:
        port = listener.getsockname()[1]
        query = "?dual_stack=1" if dual_stack else ""
        with package.Server(fds=[listener.fileno()]) as server:
            assert str(server.endpoint) == f"tcp://[::]:{port}{query}"
            with socket.create_connection(("::1", port), TIMEOUT) as sock:
                echo_exactly(sock, b"hello")


@pytest.mark.parametrize("package", [fastsock, fastsock.pure], ids=["native", "pure"])
@pytest.mark.parametrize("abstract", [False, True])
def test_unix_paths_stay(package: Any, abstract: bool, tmp_path: Path) -> None:
    """A Unix listener is served on, and its file is there afterwards."""
    path = f"@fastsock-{os.getpid()}" if abstract else str(tmp_path / "echo.sock")
    name = path.replace("@", "\0", 1) if abstract else path
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        with package.Server(fds=[listener.fileno()]) as server:
            assert str(server.endpoint) == f"unix://{path}"
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(TIMEOUT)
                sock.connect(name)
                finish_exactly(sock, b"hello")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(name)


@pytest.mark.parametrize("package", [fastsock, fastsock.pure], ids=["native", "pure"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_datagrams(package: Any, host: str) -> None:
    """A UDP socket is answered on; it stays blocking, and its maker's to read afterwards."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        made.bind((host, 0))
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(TIMEOUT)
            client.connect(made.getsockname())
            with package.Server(fds=[made.fileno()]) as server:
                assert server.endpoint.scheme == "udp"
                client.send(b"hello")
                assert client.recv(100) == b"hello"
            client.send(b"for the next")
            made.settimeout(TIMEOUT)
            assert made.recv(100) == b"for the next"


@pytest.mark.parametrize("package", [fastsock, fastsock.pure], ids=["native", "pure"])
@pytest.mark.parametrize(
    ("bound", "asked"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.5"),
        ("::1", "::1"),
        ("::", "::1"),
        ("::", "127.0.0.5"),
    ],
)
def test_datagrams_that_came_before_the_server(package: Any, bound: str, asked: str) -> None:
    """What was queued before any option was set is answered, from the address that was asked."""
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with (
        socket.socket(family, socket.SOCK_DGRAM) as made,
        socket.socket(socket.AF_INET6 if ":" in asked else socket.AF_INET, socket.SOCK_DGRAM) as (
            client
        ),
    ):
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind((bound, 0))
        client.settimeout(TIMEOUT)
        client.connect((asked, made.getsockname()[1]))
        for number in range(5):
            client.send(b"before %d" % number)
        with package.Server(fds=[made.fileno()]) as server:
            for number in range(5):
                assert client.recv(100) == b"before %d" % number
            client.send(b"after")
            assert client.recv(100) == b"after"
        assert sum(server.stats().dropped.values()) == 0


@pytest.mark.parametrize("package", [fastsock, fastsock.pure], ids=["native", "pure"])
@pytest.mark.parametrize("how", [socket.SHUT_RDWR, socket.SHUT_RD])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_datagram_socket_that_is_shut_down(
    package: Any, family: socket.AddressFamily, how: int
) -> None:
    """Another holder can do that; it stays readable then, with nothing to receive."""
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0) if family == socket.AF_INET else f"\0fastsock-{os.getpid()}")
        server = package.Server(fds=[made.fileno()])
        server.start()
        with suppress(OSError):  # ENOTCONN, and yet it is done
            made.shutdown(how)
        with pytest.raises(OSError, match=r"recvm+sg .*Invalid argument"):
            server.serve_forever()


@pytest.mark.parametrize("package", [fastsock, fastsock.pure], ids=["native", "pure"])
@pytest.mark.parametrize("target", ["127.255.255.255", "255.255.255.255", "224.0.0.1"])
def test_broadcasts_that_came_before_the_server(package: Any, target: str) -> None:
    """Of those too, what was sent to everyone is not answered, nor what may be an answer."""
    with (
        own_network(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        ip("route", "add", "default", "dev", "lo")
        made.bind(("0.0.0.0", 0))
        port = made.getsockname()[1]
        client.settimeout(TIMEOUT)
        client.bind(("127.0.0.1", 0))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        client.sendto(b"everyone", (target, port))
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 200)
        client.sendto(b"an answer", ("127.0.0.1", port))
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64)
        client.sendto(b"last", ("127.0.0.1", port))
        with package.Server(fds=[made.fileno()]) as server:
            assert client.recv(100) == b"last"
        stats = server.stats()
        assert stats.datagrams_in - stats.datagrams_out == sum(stats.dropped.values()) >= 1
        assert stats.datagrams_out == 1


def test_a_datagram_socket_stays_blocking() -> None:
    """No call of the datagram engine needs O_NONBLOCK, so what the maker set is left alone."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        with fastsock.Server(fds=[made.fileno()]):
            assert os.get_blocking(made.fileno())


def test_beside_endpoints_of_its_own(listener: socket.socket) -> None:
    """Inherited sockets come last, each with one worker, and share the limit."""
    with fastsock.Server(
        "tcp://127.0.0.1:0", fds=[listener.fileno()], workers=2, max_connections=3
    ) as server:
        assert server.endpoints[1] == endpoint_of(listener)
        assert len(server.stats().accepted_per_worker) == 3
        for endpoint in server.endpoints:
            assert_serves(endpoint)


@pytest.mark.parametrize("nodelay", [True, False])
def test_nodelay_reaches_what_is_accepted(listener: socket.socket, nodelay: bool) -> None:
    """TCP_NODELAY is set as asked: accepted sockets take it from their listener."""
    with fastsock.Server(fds=[listener.fileno()], nodelay=nodelay):
        assert bool(listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) == nodelay


def test_the_descriptor_may_be_closed_while_serving() -> None:
    """The server has a duplicate; the caller's descriptor is the caller's."""
    listener = socket.create_server(("127.0.0.1", 0))
    with fastsock.Server(fds=[listener.fileno()]) as server:
        listener.close()
        assert_serves(server.endpoint)


def test_a_descriptor_closed_before_the_start(listener: socket.socket) -> None:
    """What was right when the server was made, and is not when it starts, is an error then."""
    server = fastsock.Server(fds=[listener.fileno()])
    listener.close()
    with pytest.raises(OSError, match=r"inherit descriptor \d+: Bad file descriptor"):
        server.start()


def test_a_start_that_fails_leaves_the_listener_alone(listener: socket.socket) -> None:
    """Nothing of it stays open when another endpoint cannot be bound."""
    with (
        fastsock.Server("tcp://127.0.0.1:0") as other,
        pytest.raises(OSError, match="Address already in use"),
    ):
        fastsock.Server(other.endpoint, fds=[listener.fileno()]).start()
    with connect(endpoint_of(listener)), listener.accept()[0]:
        pass


# --- handed on ----------------------------------------------------------------------------------


def test_a_stop_with_a_queue_fails_nobody(
    implementation: Implementation, serve_process: Any, listener: socket.socket
) -> None:
    """A client in the backlog at a stop is served, now or by the next server on the socket."""
    fds = [listener.fileno()]
    server = serve_process(fds=fds, drain_timeout=20.0)
    server.pause()
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server.endpoint)) for _ in range(20)]
        for sock in clients:
            sock.sendall(b"hello")
            half_close(sock)
        server.signal(signal.SIGTERM)
        server.resume()
        accepted = server.finish()["stats"]["accepted"]
        with implementation.server(fds=fds) as heir:
            for sock in clients:
                assert receive_all(sock) == b"hello"
            assert accepted + heir.stats().accepted == 20


@pytest.mark.native
def test_a_stop_leaves_the_queue_alone(
    implementation: Implementation, listener: socket.socket
) -> None:
    """What waits when a stop is asked for is not taken in, not even when there is time for it."""
    fds = [listener.fileno()]
    with implementation.server(fds=fds, max_connections=1) as old, ExitStack() as stack:
        staying = stack.enter_context(connect(old.endpoint))
        echo_exactly(staying, b"the only one")
        waiting = [stack.enter_context(connect(old.endpoint)) for _ in range(5)]
        for sock in waiting:
            sock.sendall(b"hello")
        old._request_stop(old._deadline(TIMEOUT))
        echo_exactly(staying, b"still the only one")
        half_close(staying)
        old.stop(TIMEOUT)
        assert old.stats().accepted == 1
        with implementation.server(fds=fds):
            for sock in waiting:
                half_close(sock)
                assert receive_all(sock) == b"hello"


def test_the_twin_leaves_the_queue_alone(listener: socket.socket) -> None:
    """So does the twin's serial engine, where the other clients wait for one."""
    with fastsock.pure.Server(fds=[listener.fileno()], engine="serial") as old:
        with connect(old.endpoint) as staying, connect(old.endpoint):
            echo_exactly(staying, b"the only one")
            old._control.advance(Phase.DRAINING)
        old.stop(TIMEOUT)
        assert old.stats().accepted == 1
    listener.accept()[0].close()


@pytest.mark.many_clients
def test_a_drain_beside_the_next(implementation: Implementation, listener: socket.socket) -> None:
    """While one drains, the next on the same socket takes every new client."""
    with implementation.server(fds=[listener.fileno()]) as old:
        endpoint = old.endpoint
        with connect(endpoint) as staying:
            echo_exactly(staying, b"old")
            with (
                running(lambda: old.stop(TIMEOUT)),
                implementation.server(fds=[listener.fileno()]) as new,
            ):
                for _ in range(50):
                    assert_serves(endpoint)
                echo_exactly(staying, b"still old")
                half_close(staying)
                assert receive_all(staying) == b""
                assert old.stats().accepted + new.stats().accepted == 51


def restart_under_load(
    engine: str, listener: socket.socket, seconds: float, pause: float
) -> tuple[Any, int]:
    """Replace ``fastsock serve`` again and again under 2,000 connects a second.

    Each server has ended before the next one starts: the listener alone spans the gap. Returns the
    load client's report and the number of restarts.
    """
    over = threading.Event()
    restarts = 0
    arguments = ("--engine", engine, "--fd", str(listener.fileno()))

    def restart() -> None:
        nonlocal restarts
        while True:
            with serving(arguments, pass_fds=(listener.fileno(),)):
                if over.wait(pause):
                    return
            restarts += 1

    with running(restart):
        try:
            report = fastsock.load(
                endpoint_of(listener),
                connections=16,
                rate=2000,
                duration=seconds,
                warmup=0,
                reconnect_every=1,
                wait="block",
                timeout=TIMEOUT,
            )
        finally:
            over.set()
    return report, restarts


@contextmanager
def serving(
    arguments: tuple[str, ...], *, activate: str = "", names: str = "", **options: Any
) -> Iterator[list[str]]:
    """Run ``fastsock serve``; give the lines it announces. At the end it drains and exits 0."""
    command = [*FASTSOCK, "serve", "--drain-timeout", "20s", *arguments]
    if activate:
        command = [sys.executable, "-c", ACTIVATE, activate, names, *command]
    expected = max(activate.count(",") + 1, 1)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options) as process:
        assert process.stderr is not None
        try:
            yield [process.stderr.readline().rstrip() for _ in range(expected)]
            process.terminate()
            assert process.wait(TIMEOUT) == 0, process.stderr.read()
        finally:
            process.kill()


@pytest.mark.native("epoll", "io_uring")
@pytest.mark.parametrize(
    ("seconds", "pause", "at_least"),
    [
        pytest.param(3.0, 0.3, 2, id="short"),
        pytest.param(40.0, 1.0, 10, id="long", marks=[pytest.mark.slow]),
    ],
)
def test_a_restart_under_load_fails_nobody(
    implementation: Implementation,
    seconds: float,
    pause: float,
    at_least: int,
    listener: socket.socket,
) -> None:
    """Servers come and go on one listener, and every connection is made, echoed and ended."""
    report, restarts = restart_under_load(implementation.engine, listener, seconds, pause)
    print(f"{restarts} restarts, {report.messages} connections, errors {report.errors}")
    assert restarts >= at_least
    assert not any(report.errors.values()), report.errors
    assert report.lost_bytes == report.corrupt_bytes == 0


# --- the environment and the command line -------------------------------------------------------


def variables(**given: str) -> dict[str, str]:
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0", "HOME": "/", **given}


def test_another_process_was_meant() -> None:
    """The variables of another process are taken away, and mean nothing."""
    environ = variables(LISTEN_PID=str(os.getppid()), LISTEN_FDS="1", LISTEN_FDNAMES="web")
    assert inherited.listen_fds(environ) == {}
    assert environ == {"HOME": "/"}


def test_no_variables() -> None:
    """Without them nothing is inherited."""
    assert inherited.listen_fds({}) == {}


@pytest.mark.parametrize("count", ["", "-1", "one", "1.0", "²"])
def test_a_bad_number_of_descriptors(count: str) -> None:
    """A count that is none is an error, and gone all the same."""
    environ = variables(LISTEN_FDS=count)
    with pytest.raises(ValueError, match="is not a number of descriptors"):
        inherited.listen_fds(environ)
    assert environ == {"HOME": "/"}


def test_fewer_descriptors_than_promised() -> None:
    """A descriptor that is not open is an error that names it."""
    with pytest.raises(ValueError, match=r"descriptor \d+: Bad file descriptor"):
        inherited.listen_fds(variables(LISTEN_FDS="100000"))


def test_socket_activation(listener: socket.socket) -> None:
    """fastsock serve takes what a service manager passes, by name, and nothing else."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        numbers = f"{udp.fileno()},{listener.fileno()}"
        passed = (udp.fileno(), listener.fileno())
        with serving((), activate=numbers, names="dgram:web", pass_fds=passed) as lines:
            endpoint = endpoint_of(listener)
            host, port = udp.getsockname()
            assert lines == [
                f"listening on udp://{host}:{port} (datagrams, 1 worker, descriptor 3 dgram)",
                f"listening on {endpoint} (epoll, 1 worker, descriptor 4 web)",
            ]
            assert_serves(endpoint)


def test_fd_on_the_command_line(listener: socket.socket) -> None:
    """--fd serves on a descriptor; without an ENDPOINT on nothing else."""
    arguments = ("--fd", str(listener.fileno()))
    with serving(arguments, pass_fds=(listener.fileno(),)) as lines:
        endpoint = endpoint_of(listener)
        assert lines == [
            f"listening on {endpoint} (epoll, 1 worker, descriptor {listener.fileno()})"
        ]
        assert_serves(endpoint)


def test_variables_of_another_process_on_the_command_line() -> None:
    """They are ignored, as when a shell between passed them on."""
    environ = {**os.environ, "LISTEN_PID": "1", "LISTEN_FDS": "1"}
    with serving(("tcp://127.0.0.1:0",), env=environ) as lines:
        assert lines[0].endswith("(epoll, 1 worker)")


@pytest.mark.parametrize(
    ("fd", "code", "expected"),
    [
        ("0", 2, "descriptor 0 is a stream socket that does not listen"),
        ("77", 1, "inherit descriptor 77: Bad file descriptor"),
        ("-1", 2, "descriptor -1 is out of range"),
        ("x", 2, "descriptor 'x' is not a whole number"),
    ],
)
def test_a_bad_fd_on_the_command_line(fd: str, code: int, expected: str) -> None:
    """One line on stderr, and the exit code of a usage error or of a failure."""
    one, other = socket.socketpair()
    with one, other:
        command = [*FASTSOCK, "serve", "--fd", fd]
        done = subprocess.run(command, stdin=one, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == code, done.stderr
    assert expected in done.stderr


# --- what cannot be served on -------------------------------------------------------------------


def bad_sockets() -> dict[str, tuple[socket.socket, str]]:
    not_listening = socket.socket()
    not_listening.bind(("127.0.0.1", 0))
    return {
        "not listening": (not_listening, "is a stream socket that does not listen"),
        "without a name": (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
            "is a socket that is not bound to a name",
        ),
        "not bound": (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            "is a socket that is not bound to a port",
        ),
        "seqpacket": (
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET),
            "is a socket of AF_UNIX and SOCK_SEQPACKET; expected a tcp, udp, unix or unixgram one",
        ),
        "netlink": (
            socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM),
            "is a socket of AF_NETLINK and SOCK_DGRAM; expected a tcp, udp, unix or unixgram one",
        ),
    }


@pytest.mark.parametrize("package", [fastsock, fastsock.pure], ids=["native", "pure"])
@pytest.mark.parametrize("name", bad_sockets())
def test_sockets_that_cannot_be_served_on(package: Any, name: str) -> None:
    """Each is refused when the server is made, by a line that names the descriptor."""
    made = bad_sockets()
    with ExitStack() as stack:
        for sock, _ in made.values():
            stack.enter_context(closing(sock))
        sock, expected = made[name]
        with pytest.raises(ValueError, match=f"descriptor {sock.fileno()} {expected}"):
            package.Server(fds=[sock.fileno()])


@pytest.mark.parametrize("package", [fastsock, fastsock.pure], ids=["native", "pure"])
def test_descriptors_that_are_no_sockets(package: Any) -> None:
    """A file is none, and neither is a number that nothing has."""
    with (
        Path("/dev/null").open() as file,
        pytest.raises(OSError, match="Socket operation on non-socket"),
    ):
        package.Server(fds=[file.fileno()])
    with pytest.raises(OSError, match="inherit descriptor 99999: Bad file descriptor"):
        package.Server(fds=[99999])


@pytest.mark.parametrize(
    ("fds", "error"), [([True], TypeError), (["3"], TypeError), ([-1], ValueError)], ids=repr
)
def test_bad_descriptors(fds: list[Any], error: type[Exception]) -> None:
    """The type and the range are checked before any system call."""
    with pytest.raises(error, match="descriptor"):
        fastsock.Server(fds=fds)


@pytest.mark.parametrize("package", [fastsock, fastsock.pure], ids=["native", "pure"])
def test_unix_datagrams(package: Any, tmp_path: Path) -> None:
    """A Unix datagram socket is answered on, takes no open files, and its file stays."""
    path = str(tmp_path / "echo.dgram")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client,
    ):
        made.bind(path)
        client.bind("")  # the kernel picks an abstract name
        client.settimeout(TIMEOUT)
        client.connect(path)
        with package.Server(fds=[made.fileno()]) as server:
            assert str(server.endpoint) == f"unixgram://{path}"
            client.send(b"hello")
            assert client.recv(100) == b"hello"
        assert Path(path).is_socket()
        skip_if_rights_always_pass()
        with pytest.raises(PermissionError):
            socket.send_fds(client, [b"probe"], [client.fileno()])


def test_options_of_streams_do_not_go_with_datagrams() -> None:
    """An inherited UDP socket takes the options that a udp endpoint takes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        with pytest.raises(ValueError, match="idle_timeout goes with streams"):
            fastsock.Server(fds=[made.fileno()], idle_timeout=1.0)


def test_the_twin_serves_one(listener: socket.socket) -> None:
    """It has one endpoint or one descriptor."""
    fd = listener.fileno()
    for arguments, fds in ((("tcp://127.0.0.1:0",), [fd]), ((), [fd, fd])):
        with pytest.raises(ValueError, match="one descriptor in its place"):
            fastsock.pure.Server(*arguments, fds=fds)
