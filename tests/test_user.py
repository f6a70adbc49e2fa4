"""Tests of ``fastsock serve --user``: root binds, another user serves and cannot become root."""

from __future__ import annotations

import ctypes
import os
import pwd
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from clients import TIMEOUT, assert_serves, connect, echo_exactly, wait_until
from implementations import ANY_PORT, Implementation, in_fresh_process
from leftovers import children, threads
from networks import own_network

import fastsock
from fastsock.cli import run, serve  # noqa: F401  imported while its files can be read
from fastsock.cli.user import USER, become
from fastsock.server import unix_file

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")

NOBODY = pwd.getpwnam("nobody")
GROUPS = (1, 2)  # supplementary groups of the process that starts the server; root may have none
CAPABILITIES = ("CapPrm", "CapEff", "CapAmb")  # of /proc/PID/status
NO_SIGNAL = 0  # kill(2) only checks the permission; SIGCONT is always allowed within a session
PR_SET_KEEPCAPS = 8  # <sys/prctl.h>


@pytest.fixture
def low_ports() -> Iterator[None]:
    """A network namespace of its own, where every port below 1024 is free."""
    with own_network():
        yield


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that every user can reach and only root can write to; tmp_path is root's."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@contextmanager
def serving(*arguments: str, lines: int = 1, **options: Any) -> Iterator[tuple[int, list[str]]]:
    """Run ``fastsock serve``; give its pid and its first `lines`. It must exit with 0."""
    command = [sys.executable, "-m", "fastsock", "serve", *arguments]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, extra_groups=GROUPS, **options
    ) as process:
        assert process.stderr is not None
        try:
            yield process.pid, [process.stderr.readline().rstrip() for _ in range(lines)]
            process.terminate()
            assert process.wait(TIMEOUT) == 0, process.stderr.read()
        finally:
            process.kill()


def status(pid: int, thread: str) -> dict[str, str]:
    text = Path(f"/proc/{pid}/task/{thread}/status").read_text()
    return dict(line.split(":", 1) for line in text.splitlines())


def assert_runs_as(uid: int, gid: int, pid: int) -> None:
    """Every thread of the process and its children has these ids, no groups, no capabilities."""
    for process in (pid, *children(pid)):
        for _, thread in threads(process):
            try:
                found = status(process, thread)
            except FileNotFoundError:  # a thread that ended just now
                assert int(thread) != process
                continue
            assert found["Uid"].split() == [str(uid)] * 4
            assert found["Gid"].split() == [str(gid)] * 4
            assert found["Groups"].split() == []
            assert [int(found[name], 16) for name in CAPABILITIES] == [0] * len(CAPABILITIES)


@pytest.mark.native
def test_a_low_port_served_by_nobody(implementation: Implementation, low_ports: None) -> None:
    """Root binds port 7; threads and processes without privileges serve its clients."""
    arguments = ("--engine", implementation.engine, "--user", "nobody")
    with serving("tcp://127.0.0.1:7", *arguments) as (pid, lines):
        assert lines == [f"listening on tcp://127.0.0.1:7 ({implementation.engine}, 1 worker)"]
        with connect(fastsock.Endpoint.parse("tcp://127.0.0.1:7")) as sock:
            echo_exactly(sock, b"probe")
            assert len(threads(pid)) > 1
            assert len(children(pid)) == (implementation.engine == "fork")
            assert_runs_as(NOBODY.pw_uid, NOBODY.pw_gid, pid)


def test_datagrams_on_a_low_port(low_ports: None) -> None:
    """UDP and a second worker run as the user too; user and group may be numbers."""
    asked = ("tcp://127.0.0.1:7", "udp://127.0.0.1:7")
    with serving(*asked, "--workers", "2", "--user", "65000:65001", lines=2) as (pid, _):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(("127.0.0.1", 7))
            sock.send(b"probe")
            assert sock.recv(100) == b"probe"
        wait_until(lambda: len(threads(pid)) == 6)  # the one that wrote the lines has ended
        assert_runs_as(65000, 65001, pid)


def test_an_inherited_listener(low_ports: None) -> None:
    """The user serves a socket that root passed."""
    with (
        socket.create_server(("127.0.0.1", 7)) as listener,
        serving(
            "--fd", str(listener.fileno()), "--user", "nobody", pass_fds=(listener.fileno(),)
        ) as (pid, _),
    ):
        assert_serves(fastsock.Endpoint.parse("tcp://127.0.0.1:7"))
        assert_runs_as(NOBODY.pw_uid, NOBODY.pw_gid, pid)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["unix", "unixgram"])
def test_the_user_owns_the_file(scheme: str, directory: Path) -> None:
    """The user owns the file of a Unix socket, and the server removes it where the user may."""
    path = directory / "echo.sock"
    os.chown(directory, NOBODY.pw_uid, NOBODY.pw_gid)
    with serving(f"{scheme}://{path}", "--user", "nobody") as (_, lines):
        assert lines[0].startswith("listening on ")
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (NOBODY.pw_uid, NOBODY.pw_gid)
        assert stat.S_IMODE(found.st_mode) == 0o600
    assert not any(directory.iterdir())


def test_a_file_that_the_user_cannot_remove(directory: Path) -> None:
    """The server says at the start that the file stays, and the next server replaces it."""
    path = directory / "echo.sock"
    endpoint = f"unix://{path}"
    for _ in range(2):
        with serving(endpoint, "--user", "nobody", lines=2) as (_, lines):
            assert lines == [
                f"{path} stays behind at the end, for the next server to replace: "
                f"nobody may not write to {directory}",
                f"listening on {endpoint} (epoll, 1 worker)",
            ]
            assert_serves(fastsock.Endpoint.parse(endpoint))
        assert [file.name for file in directory.iterdir()] == ["echo.sock"]


def test_an_abstract_name() -> None:
    """A server on an abstract name prints no message about a file."""
    name = f"unix://@fastsock-user-{os.getpid()}"
    with serving(name, "--user", "nobody:daemon") as (_, lines):
        assert lines == [f"listening on {name} (epoll, 1 worker)"]
        assert_serves(fastsock.Endpoint.parse(name))


def test_only_a_socket_is_given_away(directory: Path) -> None:
    """A file that replaced the socket keeps its owner."""
    path, other = directory / "echo.sock", directory / "shadow"
    other.touch()

    def replace(server: fastsock.Server) -> None:
        path.unlink()
        path.symlink_to(other)
        with pytest.raises(OSError, match="it is not the socket that was bound"):
            unix_file.give_away(str(path), NOBODY.pw_uid, NOBODY.pw_gid)
        path.unlink()
        other.rename(path)
        with pytest.raises(OSError, match="it is not the socket that was bound"):
            unix_file.give_away(str(path), NOBODY.pw_uid, NOBODY.pw_gid)

    server = fastsock.Server(f"unix://{path}")
    server.start(bound=replace)
    server.stop()
    assert path.stat().st_uid == 0


def test_a_result_that_the_user_could_not_write(directory: Path) -> None:
    """--json FILE that the user may not write is an error before any client is served."""
    command = [sys.executable, "-m", "fastsock", "serve", ANY_PORT, "--user", "nobody"]
    done = subprocess.run(
        [*command, "--json", str(directory / "stats.json")],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 1
    assert " ".join(done.stderr.split()) == (
        f"Error: cannot write {directory}/stats.json: this user may not; name another file, "
        "as nobody"
    )


# --- the privileges cannot be regained ----------------------------------------------------------


def test_privileges_cannot_be_regained() -> None:
    """After become() every call that needs root's privileges is refused."""
    in_fresh_process(try_to_regain_privileges)


def try_to_regain_privileges() -> None:
    become(USER.convert("nobody", None, None))
    for attempt in (
        lambda: os.setuid(0),
        lambda: os.seteuid(0),
        lambda: os.setresuid(0, 0, 0),
        lambda: os.setgid(0),
        lambda: os.setgroups([0]),
        lambda: Path("/etc/shadow").read_text(),
        lambda: os.kill(os.getppid(), NO_SIGNAL),
    ):
        with pytest.raises(PermissionError):
            attempt()


def test_capabilities_that_would_be_kept() -> None:
    """become() refuses if the process would keep its capabilities (prctl(2), PR_SET_KEEPCAPS)."""
    in_fresh_process(keep_capabilities)


def keep_capabilities() -> None:
    assert ctypes.CDLL(None).prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
    with pytest.raises(PermissionError, match=r"become nobody: .* keeps capabilities"):
        become(USER.convert("nobody", None, None))


def test_without_root() -> None:
    """Without root --user is refused before any port is bound; exit code 1."""
    assert in_fresh_process(serve_as_nobody).split() == [
        *["Error:", "become", "daemon:", "Operation", "not", "permitted"],
        *["(only", "root", "can", "become", "another", "user)"],
        "1",
    ]


def serve_as_nobody() -> None:
    os.setresuid(NOBODY.pw_uid, NOBODY.pw_uid, NOBODY.pw_uid)
    with redirect_stderr(sys.stdout):
        print(run(["serve", "tcp://127.0.0.1:7", "--user", "daemon"]))


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("no-such-user", "user 'no-such-user' is unknown"),
        ("", "user '' is unknown"),
        ("nobody:no-such-group", "group 'no-such-group' is unknown"),
        ("nobody:", "group '' is unknown"),
        ("root", "user 'root' is root"),
        ("0:65534", "user '0' is root"),
        ("64999", "user 64999 is a number without a name; expected 64999:GROUP"),
        ("4294967295:1", "user '4294967295' is unknown"),  # -1: setresuid(2) would change nothing
        ("1:4294967295", "group '4294967295' is unknown"),
    ],
)
def test_not_a_user(user: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A user or group that cannot be used is a usage error, exit code 2."""
    assert run(["serve", ANY_PORT, "--user", user]) == 2
    assert expected in capsys.readouterr().err
