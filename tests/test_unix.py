"""Tests of unix:// endpoints: when a path is taken or replaced, its rights and its removal.

What streams have in common is in test_contract.py, which also runs on Unix sockets.
"""

from __future__ import annotations

import errno
import gc
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clients import assert_serves, connect, skip_if_rights_always_pass
from implementations import IMPLEMENTATIONS, Implementation
from load_runs import faults

import fastsock
from fastsock import pure
from fastsock.server import unix_file

LONG = 30.0  # seconds; only something that hangs takes so long
NOBODY = 65534
ROUNDS = 100

MakeServer = Callable[..., Any]
Load = Callable[..., fastsock.LoadReport]


# One module binds and removes the path for every engine: one native engine and one twin will do.
@pytest.fixture(params=["native-epoll", "pure-threads"])
def server_at(request: pytest.FixtureRequest) -> MakeServer:
    """A function that makes a server, not started."""
    return IMPLEMENTATIONS[request.param].server


@pytest.fixture(params=[fastsock.load, pure.load], ids=["native", "pure"])
def load(request: pytest.FixtureRequest) -> Load:
    found: Load = request.param
    return found


@pytest.fixture
def path() -> Iterator[Path]:
    """A free path; at the end no lock file is beside it."""
    # Not tmp_path: with a long test name it is longer than a Unix path may be.
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder, "echo.sock")
        assert not list(Path(folder).glob("*.lock"))


def unix(name: Path | str) -> fastsock.Endpoint:
    return fastsock.Endpoint("unix", path=str(name))


def url(path: Path) -> str:
    return str(unix(path))


def abstract_name() -> str:
    return f"@fastsock-test-{os.getpid()}"


def echo(name: Path | str) -> None:
    """A client at that path or abstract name gets its bytes back, and then the end."""
    assert_serves(unix(name))


def make_stale(path: Path) -> int:
    """Leave the file of a socket that is closed; return its inode number."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
    return path.lstat().st_ino


def address_in_use(server: Any) -> OSError:
    """The error of a start that finds its address in use."""
    with pytest.raises(OSError) as caught:
        server.start()
    assert caught.value.errno == errno.EADDRINUSE
    return caught.value


# --- the path -----------------------------------------------------------------------------------


def test_serves_and_removes_its_path(implementation: Implementation, path: Path) -> None:
    """The endpoint prints as asked, clients get their bytes, and no file is left."""
    with implementation.server(url(path)) as server:
        assert str(server.endpoint) == url(path)
        assert stat.S_ISSOCK(path.lstat().st_mode)
        echo(path)
    assert server.stats().accepted == 1
    assert not path.exists()


def test_a_stale_socket_is_replaced(server_at: MakeServer, path: Path) -> None:
    """What a killed server left behind does not stop the next."""
    make_stale(path)
    with server_at(url(path)):
        echo(path)
    assert not path.exists()


def test_a_stale_datagram_socket_is_replaced(server_at: MakeServer, path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
    with server_at(url(path)):
        echo(path)


def test_a_live_socket_is_not_stolen(server_at: MakeServer, path: Path) -> None:
    """The second server fails; the first keeps its file, goes on, and sees no extra client."""
    with server_at(url(path)) as first:
        text = str(address_in_use(server_at(url(path))))
        assert f"bind {url(path)}: Address already in use (another socket is bound to it)" in text
        echo(path)
    assert first.stats().accepted == 1
    assert not path.exists()


def test_a_live_socket_with_a_full_queue_is_not_stolen(server_at: MakeServer, path: Path) -> None:
    """connect() cannot succeed, and must neither block nor count as refused."""
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        address_in_use(server_at(url(path)))
        assert path.exists()


def test_a_socket_that_does_not_listen_yet_is_not_stolen(server_at: MakeServer, path: Path) -> None:
    """Between its bind() and its listen() a server refuses connections, as a stale socket does."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        address_in_use(server_at(url(path)))
        assert path.exists()


def test_a_live_datagram_socket_is_not_stolen(server_at: MakeServer, path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        inode = path.lstat().st_ino
        address_in_use(server_at(url(path)))
        assert path.lstat().st_ino == inode


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "dangling symlink", "fifo"])
def test_what_is_not_a_socket_is_left_alone(server_at: MakeServer, path: Path, kind: str) -> None:
    """A link is not followed either, not even one to a stale socket."""
    target = path.with_name("target")
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        if kind == "symlink":
            make_stale(target)
        path.symlink_to(target)
    before = path.lstat()
    assert "is not a socket, and is left alone" in str(address_in_use(server_at(url(path))))
    assert os.path.samestat(path.lstat(), before)
    assert kind != "file" or path.read_text() == "precious"
    assert target.exists() is (kind == "symlink")


def test_a_missing_directory(server_at: MakeServer, path: Path) -> None:
    """The error names the step and the endpoint."""
    missing = path.parent / "missing" / "echo.sock"
    with pytest.raises(FileNotFoundError, match=f"bind {url(missing)}: No such file or directory"):
        server_at(url(missing)).start()


@pytest.mark.parametrize("size", [107, 108])
def test_the_longest_path(server_at: MakeServer, path: Path, size: int) -> None:
    """107 bytes work; one more is refused before any system call."""
    longest = Path(str(path).ljust(size, "x"))
    if size > 107:
        with pytest.raises(ValueError, match="expected at most 107"):
            server_at(url(longest))
        return
    with server_at(url(longest)):
        echo(longest)
    assert not longest.exists()


def test_a_path_that_is_not_ascii(server_at: MakeServer, path: Path) -> None:
    name = path.with_name("über \udcff.sock")
    with server_at(url(name)):
        echo(name)
    assert not name.exists()


def test_a_path_removed_before_the_stop(server_at: MakeServer, path: Path) -> None:
    with server_at(url(path)):
        path.unlink()
    assert not path.exists()


def test_a_directory_removed_before_the_stop(server_at: MakeServer, path: Path) -> None:
    folder = path.with_name("folder")
    folder.mkdir()
    with server_at(url(folder / "s")):
        (folder / "s").unlink()
        folder.rmdir()


def test_a_path_replaced_before_the_stop_is_left_alone(server_at: MakeServer, path: Path) -> None:
    """The file there is no longer the server's own."""
    with server_at(url(path)):
        path.unlink()
        inode = make_stale(path)
    assert path.lstat().st_ino == inode


def test_a_second_server_takes_over_a_removed_path(server_at: MakeServer, path: Path) -> None:
    """The first one's stop does not take the second one's file away."""
    first, second = server_at(url(path)), server_at(url(path))
    with first:
        path.unlink()
        second.start()
    try:
        echo(path)
    finally:
        second.stop()
    assert not path.exists()


def test_starts_and_stops(server_at: MakeServer, path: Path) -> None:
    for _ in range(ROUNDS):
        with server_at(url(path)):
            assert path.exists()
        assert not path.exists()


# --- rights -------------------------------------------------------------------------------------


@pytest.fixture(params=[0o000, 0o022, 0o177, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("mode", [None, 0o600, 0o660, 0o666, 0o777, 0o000], ids=repr)
def test_the_rights_are_exact(
    server_at: MakeServer, path: Path, umask: int, mode: int | None
) -> None:
    """0600 unless asked otherwise, whatever the umask, which stays as it was."""
    options = {} if mode is None else {"unix_mode": mode}
    with server_at(url(path), **options):
        assert stat.S_IMODE(path.lstat().st_mode) == (0o600 if mode is None else mode)
        assert os.umask(umask) == umask


@pytest.mark.parametrize("package", [fastsock, pure], ids=["native", "pure"])
def test_never_wider_rights(package: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right after listen(), before any chmod(), the file has no right that was not asked for."""
    seen = []

    def look(file: str, mode: int) -> Any:
        seen.append(stat.S_IMODE(os.lstat(file).st_mode))
        return original(file, mode)

    original = unix_file.SocketFile
    monkeypatch.setattr(unix_file, "SocketFile", look)
    before = os.umask(0)
    try:
        with package.Server(url(path), unix_mode=0o640):
            pass
    finally:
        os.umask(before)
    assert seen == [0o640]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("mode", [0o600, 0o666], ids=oct)
def test_another_user(server_at: MakeServer, path: Path, mode: int) -> None:
    """A user without the right to write to the file cannot connect."""
    path.parent.chmod(0o755)
    # It drops its rights itself: another user may not be allowed to run this interpreter.
    code = (
        "import os, socket; "
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); "
        f"socket.socket(socket.AF_UNIX).connect({str(path)!r})"
    )
    with server_at(url(path), unix_mode=mode):
        done = subprocess.run(
            [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=LONG
        )
    assert (done.returncode == 0) is (mode == 0o666), done.stderr
    assert mode == 0o666 or "PermissionError" in done.stderr


@pytest.mark.parametrize("mode", [-1, 0o1000, True, "600", 6.0, None])
def test_a_bad_mode(server_at: MakeServer, mode: object) -> None:
    with pytest.raises((TypeError, ValueError), match="unix_mode"):
        server_at("unix:///run/echo.sock", unix_mode=mode)


def test_open_files_are_refused(implementation: Implementation, path: Path) -> None:
    """A client could make the server wait in close() of a file that it sent."""
    skip_if_rights_always_pass()
    with implementation.server(url(path)) as server, connect(server.endpoint) as sock:
        with pytest.raises(PermissionError):
            socket.send_fds(sock, [b"probe"], [sock.fileno()])
        sock.sendall(b"probe")
        assert sock.recv(5, socket.MSG_WAITALL) == b"probe"


# --- abstract names -----------------------------------------------------------------------------


def test_an_abstract_name(server_at: MakeServer) -> None:
    """It is served, in use while it is, free afterwards, and makes no file."""
    name = abstract_name()
    for _ in range(2):
        with server_at(f"unix://{name}") as server:
            assert str(server.endpoint) == f"unix://{name}"
            echo(name)
            address_in_use(server_at(f"unix://{name}"))
            echo(name)
    with pytest.raises(ConnectionRefusedError):
        connect(unix(name))


def test_the_longest_abstract_name(server_at: MakeServer) -> None:
    name = abstract_name().ljust(108, "x")
    with server_at(f"unix://{name}"):
        echo(name)


# --- several servers, and processes -------------------------------------------------------------

RACER = """
import sys
import fastsock
from fastsock import pure
package = {"fastsock": fastsock, "pure": pure}[sys.argv[1]]
for line in sys.stdin:
    if line == "start\\n":
        server = package.Server(sys.argv[2])
        try:
            server.start()
            print("won", flush=True)
        except OSError as error:
            print(error.errno, flush=True)
    else:
        server.stop()
        print("stopped", flush=True)
"""


class Racer:
    """A process that starts and stops a server when told."""

    def __init__(self, package: str, endpoint: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", RACER, package, endpoint],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate(timeout=LONG)


@pytest.mark.parametrize("first", ["stale", "free"])
def test_servers_race_for_a_path(path: Path, first: str) -> None:
    """One server gets the path and can be reached; each of the others fails with EADDRINUSE."""
    racers = [Racer(package, url(path)) for package in ("fastsock", "pure") * 2]
    try:
        for _ in range(ROUNDS):
            if first == "stale":
                make_stale(path)
            for racer in racers:
                racer.tell("start")
            answers = [racer.answer() for racer in racers]
            assert sorted(answers) == [str(errno.EADDRINUSE)] * 3 + ["won"]
            echo(path)
            for racer in racers:
                racer.tell("stop")
            assert [racer.answer() for racer in racers] == ["stopped"] * 4
            assert not path.exists()
    finally:
        for racer in racers:
            racer.close()


def test_one_thread_holds_the_lock(path: Path) -> None:
    """Also when the lock's file is removed and made again between opening and locking it."""
    inside: list[int] = []
    most: list[int] = []

    def enter(number: int) -> None:
        for _ in range(ROUNDS):
            with unix_file._lock(str(path), "here"):
                inside.append(number)
                os.sched_yield()  # another thread could enter here
                most.append(len(inside))
                inside.remove(number)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert len(most) == 8 * ROUNDS
    assert set(most) == {1}


def test_a_lock_that_is_not_released(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start does not hang on it: the path is in use."""
    monkeypatch.setattr(unix_file, "_LOCK_TIMEOUT", 0.05)
    with unix_file._lock(str(path), "here"):
        text = str(address_in_use(fastsock.Server(url(path))))
    assert f"{path}.lock" in text


def test_the_command_line(path: Path) -> None:
    """serve says where it listens, gives the rights asked for, and removes the path at the end."""
    command = [sys.executable, "-m", "fastsock", "serve", url(path), "--unix-mode", "640"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline().startswith(f"listening on {url(path)} (")
            assert stat.S_IMODE(path.lstat().st_mode) == 0o640
            echo(path)
            process.terminate()
            assert process.wait(LONG) == 0
        finally:
            process.kill()
    assert not path.exists()


def test_a_killed_server_leaves_a_stale_socket(path: Path) -> None:
    """The next one replaces it, lock file or not."""
    code = (
        "import os, signal, sys, fastsock; "
        "server = fastsock.Server(sys.argv[1]); server.start(); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, url(path)], timeout=LONG)
    assert path.exists()
    path.with_name("echo.sock.lock").touch()  # of one that was killed while it started
    with fastsock.Server(url(path)):
        echo(path)


@pytest.mark.parametrize("package", ["fastsock", "pure"])
@pytest.mark.parametrize("ending", ["os._exit(0)", "sys.exit(0)", "del server; gc.collect()"])
def test_a_forked_child_leaves_the_path_alone(path: Path, package: str, ending: str) -> None:
    """However the child ends. The parent removes it, though it ends without a stop()."""
    code = (
        "import gc, os, sys, warnings, fastsock\n"
        "from fastsock import pure\n"
        "warnings.simplefilter('ignore')\n"  # of a fork with threads
        f"server = {package}.Server(sys.argv[1])\n"
        "server.start()\n"
        "child = os.fork()\n"
        "if not child:\n"
        f"    {ending}\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print(os.path.exists(sys.argv[1][7:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, url(path)], capture_output=True, text=True, timeout=LONG
    )
    assert (done.stdout, done.stderr) == ("True\n", "")
    assert not path.exists()


def test_a_forgotten_server_removes_its_path(path: Path) -> None:
    server = fastsock.Server(url(path))
    server.start()
    assert path.exists()
    del server
    gc.collect()
    assert not path.exists()


def test_a_start_that_fails_later_leaves_nothing(path: Path) -> None:
    """The second endpoint cannot be bound: the path of the first is free again."""
    taken = path.with_name("taken")
    taken.touch()
    address_in_use(fastsock.Server(url(path), "tcp://127.0.0.1:0", url(taken)))
    assert not path.exists()
    with fastsock.Server(url(path)):
        echo(path)


def test_unix_and_tcp_together(path: Path) -> None:
    with fastsock.Server(url(path), "tcp://127.0.0.1:0", f"unix://{abstract_name()}") as server:
        for endpoint in server.endpoints:
            assert not faults(fastsock.load(endpoint, messages=10, timeout=LONG))
        assert server.stats().accepted == 3


# --- load ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["path", "abstract"])
def test_a_load_run_is_valid(load: Load, path: Path, name: str) -> None:
    endpoint = url(path) if name == "path" else f"unix://{abstract_name()}"
    with fastsock.Server(endpoint):
        report = load(endpoint, connections=8, depth=4, size=1000, messages=800, timeout=LONG)
    assert not faults(report)
    assert report.messages == 800
    assert report.endpoint == endpoint


def test_a_load_run_waits_for_a_full_queue(load: Load, path: Path) -> None:
    """A Unix connect() is not queued by the kernel when the backlog is full."""
    with fastsock.Server(url(path), backlog=1):
        report = load(url(path), connections=300, messages=300, timeout=LONG)
    assert not faults(report)
    assert not sum(report.errors.values())


def test_a_queue_that_stays_full_is_a_timeout(load: Load, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        report = load(url(path), connections=4, messages=4, timeout=0.1)
    assert {kind for kind, count in report.errors.items() if count} <= {"timeout", "reset"}
    assert report.errors["timeout"] >= 3


@pytest.mark.parametrize("there", ["nothing", "stale"])
def test_refused_where_no_socket_listens(load: Load, path: Path, there: str) -> None:
    """A path without a file and one with a stale socket both count as refused connections."""
    if there == "stale":
        make_stale(path)
    report = load(url(path), connections=2, messages=2)
    assert {kind: count for kind, count in report.errors.items() if count} == {"refused": 2}
    assert not report.valid
