"""Tests of the addresses and ports that a native Server binds."""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from clients import assert_serves, connect, refuses, wait_until
from implementations import ANY_PORT, in_fresh_process
from load_runs import QUIET, faults
from networks import listing, own_network

import fastsock
from fastsock import Endpoint, Server, line_writer, pure
from fastsock.cli import run
from fastsock.server import binding
from fastsock.server.hints import hinted
from fastsock.units import plural

NOBODY = 65534  # the user id of nobody
BOTH = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))  # the addresses of localhost


@contextmanager
def taken_port() -> Iterator[int]:
    """A port that another socket listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_port_in_use() -> None:
    """start() raises with step and endpoint named, and can be called again later."""
    with taken_port() as port:
        server = Server(("127.0.0.1", port))
        with pytest.raises(OSError, match=f"bind tcp://127.0.0.1:{port}: .*port 0 picks") as caught:
            server.start()
        assert caught.value.errno == errno.EADDRINUSE
    with server:
        assert_serves(server.endpoint)


def test_address_of_another_machine() -> None:
    """An address of another machine cannot be bound (192.0.2.0/24 is TEST-NET-1, RFC 5737)."""
    with pytest.raises(OSError, match=r"bind tcp://192\.0\.2\.1:0: .*not an address of") as caught:
        Server("tcp://192.0.2.1:0").start()
    assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("package", [fastsock, pure], ids=["native", "pure"])
@pytest.mark.parametrize(
    ("url", "number", "text"),
    [
        ("tcp://[2001:db8::1]:0", errno.EADDRNOTAVAIL, "`ip address` lists those"),
        ("udp://192.0.2.1:0", errno.EADDRNOTAVAIL, "`ip address` lists those"),
        ("tcp://[fe80::1%4294967295]:0", errno.ENODEV, "`ip link` lists them"),
        ("udp://[fe80::1%4294967295]:0", errno.ENODEV, "`ip link` lists them"),
        ("unix:///none-such/s", errno.ENOENT, "make its directory first"),
        ("unixgram:///etc/passwd/s", errno.ENOTDIR, "is not a directory"),
    ],
)
def test_a_hint_says_what_to_do(package: Any, url: str, number: int, text: str) -> None:
    with pytest.raises(OSError, match=f"^.*bind {re.escape(url)}: .*{text}.*\\)$") as caught:
        package.Server(url).start()
    assert caught.value.errno == number


@pytest.mark.parametrize("package", [fastsock, pure], ids=["native", "pure"])
def test_a_link_local_address_by_name(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server knows no interfaces, so the kernel refuses the address it gives (EINVAL)."""
    found = [(socket.AF_INET6, socket.SOCK_STREAM, 0, "", ("fe80::1", 0, 0, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: found)
    text = r"bind tcp://echo\.test:0: Invalid argument \(.*interface, as in \[fe80::1%eth0\]\)$"
    with pytest.raises(OSError, match=text):
        package.Server("tcp://echo.test:0").start()


@pytest.mark.parametrize("url", ["tcp://127.0.0.1:0", "udp://[::]:9", "unix:///s", "unixgram://@s"])
@pytest.mark.parametrize("step", ["socket", "setsockopt SO_RCVBUF", "bind", "listen", "fchmod"])
def test_every_error_of_a_step_has_one_hint(url: str, step: str) -> None:
    endpoint = Endpoint.parse(url)
    for number in errno.errorcode:
        text = f"{step} {url}: {os.strerror(number)}"
        with pytest.raises(OSError) as caught, hinted(endpoint), hinted(endpoint):
            raise OSError(number, text)
        assert caught.value.errno == number
        assert re.fullmatch(re.escape(text) + r" \([^\n]{8,}\)", caught.value.strerror or "")


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
        pytest.skip("no port is privileged here (net.ipv4.ip_unprivileged_port_start)")
    in_fresh_process(bind_without_privileges, first - 1)


def bind_without_privileges(port: int) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)  # which drops every capability (capabilities(7))
    with pytest.raises(PermissionError, match=rf":{port}: .*\(ports below 1024 need CAP_NET_BIND"):
        Server(("127.0.0.1", port)).start()


def test_second_endpoint_fails() -> None:
    """When one endpoint cannot be bound, the ones bound before it are closed."""
    host = "127.76.0.1"  # no other test listens there
    with taken_port() as taken:
        server = Server((host, taken), ("127.0.0.1", taken))
        with pytest.raises(OSError, match=f"bind tcp://127.0.0.1:{taken}"):
            server.start()
        assert refuses(Endpoint("tcp", host, taken))
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


@pytest.mark.parametrize("engine", ["epoll", "threads"])
@pytest.mark.parametrize(
    "text",
    [
        "tcp://127.0.0.1:0",
        "udp://0.0.0.0:0",
        "tcp://[::1]:0",
        "unix://{}/echo.sock",
        "unix://@fastsock-binding-{}",
        "unixgram://{}/echo.dgram",
        "127.0.0.1:0",
        "localhost:0",
        ":0",
        "[::1]:0",
        "udp://:0",
        "tcp:localhost:0",
        "udp:127.0.0.1:0",
        "unix:{}/echo.sock",
        "unix:@fastsock-binding-{}",
        "unixgram:{}/echo.dgram",
    ],
)
def test_what_people_type_is_served_and_loaded(tmp_path: Path, text: str, engine: Any) -> None:
    text = text.format(tmp_path if "{}/" in text else os.getpid())
    with Server(text, engine=engine) as server:
        target = text if server.endpoint.is_unix else f"{text[:-1]}{server.endpoint.port}"
        assert Endpoint.parse(target) == server.endpoint
        report = fastsock.load(target, connections=2, messages=20, **QUIET)
    assert not faults(report)
    assert report.messages == 20


def addresses_that_serve(endpoint: Endpoint) -> list[str]:
    """Those of BOTH that answer at the port."""
    found = []
    for family, host in BOTH:
        kind = socket.SOCK_STREAM if endpoint.is_stream else socket.SOCK_DGRAM
        with socket.socket(family, kind) as sock:
            sock.settimeout(20)
            try:
                sock.connect((host, endpoint.port))
                sock.send(b"hello")
                assert sock.recv(9) == b"hello"
            except ConnectionRefusedError:
                continue
        found.append(host)
    return found


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
@pytest.mark.parametrize("engine", ["epoll", "threads"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_name_is_served_at_all_its_addresses(
    monkeypatch: pytest.MonkeyPatch, scheme: str, engine: Any, workers: int
) -> None:
    """They have one port and stay one endpoint; each has all the workers of an endpoint."""
    listing(monkeypatch, *BOTH)
    with Server(f"{scheme}://localhost:0", ANY_PORT, engine=engine, workers=workers) as server:
        first, second = server.endpoints
        assert (first.scheme, first.host, second.host) == (scheme, "localhost", "127.0.0.1")
        how = f"{engine if scheme == 'tcp' else 'datagrams'}, {plural(workers, 'worker')}"
        assert f"{first} ({how} per address)" in repr(server)
        assert addresses_that_serve(first) == ["127.0.0.1", "::1"]
        assert_serves(second)
        assert len(server.stats().accepted_per_worker) == workers * 3
        server.stop()
        assert addresses_that_serve(first) == []
        with Server(first, engine=engine, reuse_port=True), Server(first, reuse_port=True):
            assert addresses_that_serve(first) == ["127.0.0.1", "::1"]


@pytest.mark.parametrize("served", ["tcp://127.0.0.1:0", "tcp://[::1]:0"])
@pytest.mark.parametrize("addresses", [BOTH, BOTH[::-1]])
def test_a_name_is_loaded_where_it_is_served(
    monkeypatch: pytest.MonkeyPatch, served: str, addresses: tuple[tuple[int, str], ...]
) -> None:
    """A server of one family is found by the name of both."""
    listing(monkeypatch, *addresses)
    with Server(served) as server:
        port = server.endpoint.port
        report = fastsock.load(f"localhost:{port}", connections=2, messages=20, **QUIET)
    assert not faults(report)
    assert report.messages == 20


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
@pytest.mark.parametrize("host", ["2001:db8::1", "192.0.2.1"])
def test_an_address_of_another_machine_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, scheme: str, host: str
) -> None:
    """As long as another one can be bound, with a warning; else the error is that of the first."""
    absent = Endpoint(scheme, host, 0).resolve()
    listing(monkeypatch, (absent.family, host), BOTH[0])
    with Server(f"{scheme}://echo.test:0") as server:
        assert addresses_that_serve(server.endpoint) == ["127.0.0.1"]
        assert repr(server).endswith("1 worker), running>")
    line_writer.flush(20)
    text = f"address left out: bind {scheme}://echo.test:0 ({absent}): Cannot assign requested addr"
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    assert caplog.messages[0].startswith(text)
    listing(monkeypatch, (absent.family, host), (socket.AF_INET, "198.51.100.1"))
    text = f"bind {scheme}://echo.test:0 ({absent}): Cannot assign requested address (not an addr"
    with pytest.raises(OSError, match=re.escape(text)) as caught:
        Server(f"{scheme}://echo.test:0").start()
    assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("addresses", [BOTH, BOTH[::-1]])
def test_ipv6_switched_off(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    addresses: tuple[tuple[int, str], ...],
) -> None:
    """Then localhost is 127.0.0.1 alone, which is nothing to warn about."""
    listing(monkeypatch, *addresses)
    with own_network():
        Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
        with Server("localhost:0") as server:
            assert_serves(Endpoint("tcp", "127.0.0.1", server.endpoint.port))
    line_writer.flush(20)
    assert "left out" not in caplog.text


def test_a_protocol_that_the_kernel_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ipv6.disable=1 on the kernel's command line."""
    listing(monkeypatch, *BOTH[::-1])
    make = binding.Listener

    def without_ipv6(family: int, *arguments: Any, **options: Any) -> Any:
        # No kernel has a family of this number; it fails at socket(2).
        return make(255 if family == socket.AF_INET6 else family, *arguments, **options)

    monkeypatch.setattr(binding, "Listener", without_ipv6)
    with Server("localhost:0") as server:
        assert addresses_that_serve(server.endpoint) == ["127.0.0.1"]


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_the_port_is_free_at_every_address(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """Port 0 is picked again while the port of the first address is in use at another one."""
    listing(monkeypatch, *BOTH)
    name = "Listener" if scheme == "tcp" else "DatagramSocket"
    make = getattr(binding, name)
    kind = socket.SOCK_STREAM if scheme == "tcp" else socket.SOCK_DGRAM
    ports: list[int] = []
    with ExitStack() as stack:

        def taken_before(family: int, host: str, port: int, *arguments: Any, **options: Any) -> Any:
            if family == socket.AF_INET6 and len(ports) < most:
                ports.append(port)
                other = stack.enter_context(socket.socket(family, kind))
                other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                other.bind((host, port))
                if scheme == "tcp":
                    other.listen()
            return make(family, host, port, *arguments, **options)

        monkeypatch.setattr(binding, name, taken_before)
        most = 5
        with Server(f"{scheme}://localhost:0", workers=2) as server:
            assert len(ports) == 5
            assert server.endpoint.port not in ports
            assert addresses_that_serve(server.endpoint) == ["127.0.0.1", "::1"]
        most = 1000
        with pytest.raises(OSError, match=r"localhost:0 \(\[::1\]:\d+\): .*no port") as caught:
            Server(f"{scheme}://localhost:0").start()
        assert caught.value.errno == errno.EADDRINUSE
        assert len(ports) < 100
        for port in ports:
            with socket.socket(socket.AF_INET, kind) as sock:
                sock.bind(("127.0.0.1", port))


def test_a_port_in_use_at_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that was asked for is not picked again, and nothing stays bound."""
    listing(monkeypatch, *BOTH[::-1])
    with taken_port() as port:
        server = Server(ANY_PORT, f"localhost:{port}")
        text = rf"bind tcp://localhost:{port} \(127\.0\.0\.1:{port}\): .*in use"
        with pytest.raises(OSError, match=text):
            server.start()
        assert refuses(Endpoint("tcp", "::1", port))


def test_connections_are_shared_by_what_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of an address never has a share of 0, which would be no limit."""
    listing(monkeypatch, *BOTH)
    with taken_port() as port:
        pass
    server = Server(f"localhost:{port}", max_connections=3, workers=2)
    text = r"max_connections 3 is shared by 4 workers \(localhost has 2 addresses\); .* 4$"
    with pytest.raises(ValueError, match=text):
        server.start()
    assert refuses(Endpoint("tcp", "127.0.0.1", port))
    with Server("localhost:0", max_connections=2) as two, ExitStack() as stack:
        for _, host in BOTH:
            sock = stack.enter_context(connect(Endpoint("tcp", host, two.endpoint.port)))
            sock.sendall(b"?")
            assert sock.recv(1) == b"?"
            waiting = stack.enter_context(connect(Endpoint("tcp", host, two.endpoint.port)))
            waiting.sendall(b"?")
        assert two.stats().accepted == 2
    Server("unix://@one", workers=2, max_connections=1)  # has one worker


def test_the_command_says_that_connections_are_shared(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is an error of usage, although the addresses are known only at the start."""
    listing(monkeypatch, *BOTH)
    assert run(["serve", "localhost:0", "--max-connections", "1"]) == 2
    text = "Error: --max-connections 1 is shared by 2 workers (localhost has 2 addresses); expected"
    assert " ".join(capfd.readouterr().err.split()).startswith(text)


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
    """[::] serves IPv4 if `dual_stack` is set; the endpoint's query overrides the option."""
    with Server(url, dual_stack=option) as server:
        port = server.endpoint.port
        assert_serves(Endpoint("tcp", "::1", port))
        assert refuses(Endpoint("tcp", "127.0.0.1", port)) != both
        if both:
            assert_serves(Endpoint("tcp", "127.0.0.1", port))


@pytest.mark.parametrize("package", [fastsock, pure], ids=["native", "pure"])
@pytest.mark.parametrize("query", ["", "?dual_stack=1"])
def test_a_mapped_address(package: Any, query: str) -> None:
    """An IPv4-mapped address serves IPv4 at that address, by tcp and by udp."""
    with package.Server(f"tcp://[::ffff:127.0.0.1]:0{query}") as server:
        assert_serves(Endpoint("tcp", "127.0.0.1", server.endpoint.port))
        assert_serves(server.endpoint)
        assert refuses(Endpoint("tcp", "::1", server.endpoint.port))
    with (
        package.Server(f"udp://[::ffff:127.0.0.1]:0{query}") as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(20)
        sock.sendto(b"hello", ("127.0.0.1", server.endpoint.port))
        assert sock.recvfrom(9) == (b"hello", ("127.0.0.1", server.endpoint.port))
        report = fastsock.load(server.endpoint, connections=1, messages=10)
        assert not faults(report)


def test_two_servers_share_a_port_only_if_both_set_reuse_port() -> None:
    """reuse_port lets two servers bind one port, and is off by default."""
    with Server(ANY_PORT, reuse_port=True) as first:
        with Server(first.endpoint, reuse_port=True) as second:
            assert second.endpoint == first.endpoint
            for _ in range(20):
                assert_serves(first.endpoint)
        with pytest.raises(OSError, match="bind"):
            Server(first.endpoint).start()


def test_workers_share_their_port_with_no_second_server() -> None:
    """Several workers need SO_REUSEPORT; a server that was not told to share is refused."""
    with Server(ANY_PORT, workers=3) as first:
        for workers in (1, 3):
            with pytest.raises(OSError, match=r"bind .*another socket is bound to it") as caught:
                Server(first.endpoint, workers=workers).start()
            assert caught.value.errno == errno.EADDRINUSE
        with ExitStack() as stack:
            for _ in range(60):
                sock = stack.enter_context(connect(first.endpoint))
                sock.sendall(b"?")
                assert sock.recv(1) == b"?"
            assert min(first.stats().accepted_per_worker) > 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("tcp://0.0.0.0:0", "tcp://127.0.0.1:{}"),
        ("tcp://127.0.0.1:0", "tcp://0.0.0.0:{}"),
        ("tcp://[::]:0?dual_stack=1", "tcp://127.0.0.1:{}"),
        ("tcp://127.0.0.1:0", "tcp://[::]:{}?dual_stack=1"),
    ],
)
def test_a_port_is_not_shared_by_another_address(first: str, second: str) -> None:
    """A wildcard and an address of it are the same port, whichever server has which."""
    used = pytest.raises(OSError, match="another socket is bound to it")
    with Server(first, workers=2) as server, used:
        Server(second.format(server.endpoint.port), workers=2).start()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_restart_with_workers_after_time_wait(workers: int) -> None:
    """Connections that the server closed first do not keep the port."""
    with Server(ANY_PORT, workers=workers) as server, ExitStack() as stack:
        clients = [stack.enter_context(connect(server.endpoint)) for _ in range(10)]
        for sock in clients:
            sock.sendall(b"?")
            assert sock.recv(1) == b"?"
        server.stop()
    for again in (1, 3):
        with Server(server.endpoint, workers=again) as next_one:
            assert_serves(next_one.endpoint)


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_servers_that_start_together_do_not_share(scheme: str) -> None:
    """Two servers with several workers never both start on one port, however their calls meet."""
    for _ in range(50):
        with taken_port() as port:
            pass
        # No other test binds to this address.
        servers = [Server(f"{scheme}://127.76.0.2:{port}", workers=2) for _ in range(2)]
        barrier = threading.Barrier(len(servers))

        def start(server: Server, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait(20)
            try:
                server.start()
            except OSError as error:
                assert error.errno == errno.EADDRINUSE
                return False
            return True

        with ThreadPoolExecutor(len(servers)) as pool:
            started = list(pool.map(start, servers))
        for server in servers:
            server.stop()
        assert sum(started) == 1


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_a_port_is_picked_that_no_socket_shares(scheme: str) -> None:
    """With reuse_port, port 0 is not the port of another socket that allows sharing."""
    kind = socket.SOCK_STREAM if scheme == "tcp" else socket.SOCK_DGRAM
    with ExitStack() as stack:
        taken = set()
        for _ in range(600):
            sock = stack.enter_context(socket.socket(socket.AF_INET, kind))
            sock.bind(("127.0.0.1", 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if scheme == "tcp":
                sock.listen()
            taken.add(sock.getsockname()[1])
        for _ in range(200):
            with Server(f"{scheme}://127.0.0.1:0", reuse_port=True) as server:
                assert server.endpoint.port not in taken
                with Server(server.endpoint, reuse_port=True) as second:
                    assert second.endpoint == server.endpoint
