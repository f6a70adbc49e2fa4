"""A service manager is told the state: sd_notify(3), with a socket that plays systemd."""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clients import TIMEOUT, assert_serves, connect, echo_exactly, refuses
from served import ANY_PORT, Served, served

from fastsock.cli.service_manager import ServiceManager


class Manager:
    """What systemd is to a service of ``Type=notify``."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self._sock, self._name = sock, name

    @contextmanager
    def service(self, *arguments: str, **options: Any) -> Iterator[Served]:
        environ = {**os.environ, "NOTIFY_SOCKET": self._name}
        with served(*arguments, env=environ, **options) as server:
            yield server

    def told(self) -> dict[str, str]:
        """The next message, as its variables."""
        pairs = (line.partition("=") for line in self._sock.recv(4096).decode().splitlines())
        return {name: value for name, _, value in pairs}


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = f"@fastsock-notify-{os.getpid()}" if request.param == "abstract" else f"{tmp_path}/n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        sock.settimeout(TIMEOUT)
        yield Manager(sock, name)


def test_ready_and_stopping(manager: Manager) -> None:
    """READY once it can be connected to; STOPPING when the drain begins, not when it ends."""
    with manager.service(ANY_PORT, "--drain-timeout", "20s") as server:
        told = manager.told()
        assert told["READY"] == "1"
        assert told["STATUS"] == f"listening on {server.endpoint} (epoll, 1 worker)"
        with connect(server.endpoint) as sock:
            echo_exactly(sock, b"hello")
            server.process.send_signal(signal.SIGTERM)
            assert manager.told() == {"STOPPING": "1", "STATUS": "stopping"}
            echo_exactly(sock, b"drained")
        server.ended(0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopping_without_a_drain(manager: Manager, number: signal.Signals) -> None:
    with manager.service(ANY_PORT) as server:
        assert "READY" in manager.told()
        server.process.send_signal(number)
        assert "STOPPING" in manager.told()
        server.ended(130 if number == signal.SIGINT else 0)


def test_the_line_with_rates_is_the_status(manager: Manager) -> None:
    """`systemctl status` shows it."""
    arguments = ("--stats-interval", "100ms", "--log-level", "error")
    with manager.service(ANY_PORT, *arguments, endpoints=0) as server:
        assert "READY" in manager.told()
        assert manager.told()["STATUS"].startswith("last ")
        server.process.kill()


@pytest.mark.parametrize("manager", ["abstract"], indirect=True)  # a path may be root's alone
def test_ready_comes_after_the_user_has_changed(manager: Manager) -> None:
    """What is told READY can be sure that the privileges of root are gone."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with manager.service(ANY_PORT, "--user", "nobody") as server:
        assert "READY" in manager.told()
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        assert "\nUid:\t0" not in status
        server.stop()


def test_several_endpoints_are_one_message(manager: Manager) -> None:
    with manager.service(ANY_PORT, "udp://127.0.0.1:0", endpoints=2) as server:
        assert manager.told()["STATUS"].count("listening on ") == 2
        server.stop()


def test_nothing_is_told_of_a_start_that_fails(manager: Manager) -> None:
    """READY never comes; the exit code says it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        with manager.service(endpoint, endpoints=0) as server:
            server.ended(1)
    manager._sock.settimeout(0)
    with pytest.raises(BlockingIOError):
        manager.told()


@pytest.mark.parametrize(
    "name", ["/no/such/socket", "@fastsock-nobody", "vsock:2:1", "relative", "/" + "x" * 200, "@"]
)
def test_a_manager_that_is_not_there(name: str) -> None:
    """The server says so and serves: the manager will end it if it waits for READY."""
    with served(ANY_PORT, env={**os.environ, "NOTIFY_SOCKET": name}) as server:
        server.line_with("was not told: ")
        assert_serves(server.endpoint)
        server.stop()


def test_a_manager_that_does_not_read(manager: Manager) -> None:
    """Its queue is full: the start goes on after a moment, and the end at once."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                sender.sendto(b"X=1", manager._sock.getsockname())
    with manager.service(ANY_PORT, "--stats-interval", "100ms") as server:
        server.line_with("was not told: ")
        assert_serves(server.endpoint)
        server.line_with("last ")
        server.stop()
        assert refuses(server.endpoint)


def test_the_variable_is_removed() -> None:
    """A child must not speak for this process."""
    environ = {"NOTIFY_SOCKET": "@nobody"}
    manager = ServiceManager(environ)
    assert environ == {}
    assert manager.ready("") is not None
    assert ServiceManager({}).ready("") is None


def test_without_descriptors(manager: Manager) -> None:
    """At the limit nothing can be told, and it ends all the same."""
    with manager.service(ANY_PORT) as server:
        assert "READY" in manager.told()
        pid = server.process.pid
        used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, hard))
        server.stop()
