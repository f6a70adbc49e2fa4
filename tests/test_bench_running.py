"""bench with servers that run already, and with commands that get a free port."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import misbehaving
import pytest
from clients import wait_until
from misbehaving import MisbehavingServer

import fastsock
from fastsock.bench import comparison as compare
from fastsock.bench import server_process
from fastsock.bench.contenders import Contender, free_endpoint, native
from fastsock.bench.running_server import RunningServer, check_process, first_listening
from fastsock.bench.server_process import NotStartedError, ServerProcess, listen_at
from fastsock.cli import run
from fastsock.endpoint import Endpoint

METHOD = compare.Method(2, 0.1, 0.01)
TURN = ["--windows", "1", "--window", "100ms", "--warmup", "10ms", "-q"]
SHORT = ["--engines", "epoll", "-c", "2", *TURN]
ENGINES = {"tcp": "epoll", "udp": "datagrams", "unix": "epoll", "unixgram": "datagrams"}
DONE = (0, 4)  # on a busy machine a window may be disturbed

#: Serves, and writes the signals that it gets to a file.
WATCHFUL = """
import signal, sys
import fastsock
noted = open(sys.argv[1], "w", buffering=1)
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, lambda number, frame: print(number, file=noted))
with fastsock.Server("tcp://127.0.0.1:0") as server:
    print(server.endpoint, flush=True)
    while True:
        signal.pause()
"""

#: Echoes on the port that it gets twice: one client after the other.
LISTENS = """
import socket, sys
first, second = sys.argv[1:3]
assert first == second
kind = socket.SOCK_DGRAM if "udp" in sys.argv else socket.SOCK_STREAM
family = socket.AF_INET6 if "ipv6" in sys.argv else socket.AF_INET
sock = socket.socket(family, kind)
if "ipv6" in sys.argv:
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, "only" in sys.argv)
sock.bind(("", int(first)))
if kind == socket.SOCK_DGRAM:
    while True:
        sock.sendto(*sock.recvfrom(65536))
sock.listen()
while True:
    connection, _ = sock.accept()
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.close()
"""


def listening(*words: str, scheme: str = "tcp") -> Contender:
    command = (sys.executable, "-c", LISTENS, "{port}", "{port}", *words)
    return Contender("port", command).on(scheme)


@contextmanager
def process(code: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A program, and the first line that it prints."""
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None
            yield started, started.stdout.readline().strip()
        finally:
            started.kill()


SLEEPS = "import time; print(flush=True); time.sleep(600)"
SERVES = 'import time; import fastsock\nwith fastsock.Server("tcp://127.0.0.1:0") as server:\n'
SERVES += "    print(server.endpoint, flush=True)\n    time.sleep(600)"


def at(endpoint: Any, pid: int | None = None) -> Contender:
    return Contender("there", (), endpoint=Endpoint.parse(endpoint), pid=pid)


def faults(result: compare.Result) -> list[str]:
    """The problems that are not the machine's: on a busy one a window may have no message."""
    return [each for each in result.problems if not each.startswith("no message")]


def connections_failed(result: dict[str, Any]) -> bool:
    return any(problem.startswith("connections ") for problem in result["problems"])


def compared(
    *servers: Contender, progress: Callable[[str], object] = lambda text: None, count: int = 2
) -> dict[str, compare.Result]:
    case = compare.Case(count, kind="tcp")
    done = compare.compare(servers, case, METHOD, progress=progress)
    return {each.name: each for each in done.results}


# --- a server that runs already -----------------------------------------------------------------


def test_it_takes_turns_and_is_never_signalled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its address alone, and with its process; and it runs on."""
    noted = tmp_path / "signals"
    with process(WATCHFUL, str(noted)) as (server, endpoint):
        port = endpoint.rpartition(":")[2]
        rivals = [f"alone=127.0.0.1:{port}", f"known={endpoint},pid={server.pid}"]
        options = [word for rival in rivals for word in ("--rival", rival)]
        target = tmp_path / "bench.json"
        assert run(["bench", *SHORT, *options, "--json", str(target)]) in DONE
        assert server.poll() is None
        assert Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T"
        assert fastsock.load(endpoint, messages=10, wait="block").messages == 10
        assert noted.read_text() == ""
        server.send_signal(signal.SIGUSR1)
        wait_until(lambda: bool(noted.read_text()))  # it would have noted one
    native_one, alone, known = json.loads(target.read_text())["cases"][0]["results"]
    assert [each["stopped_between_turns"] for each in (native_one, alone, known)] == [
        True,
        False,
        False,
    ]
    assert alone["server_cpu_us_per_echo"] is None
    assert alone["per_window"]["server_cpu_us_per_echo"] == []
    assert alone["memory_bytes"] is None
    assert known["server_cpu_us_per_echo"] is not None
    assert known["memory_bytes"]["connected"] > 1 << 20
    assert not connections_failed(alone)
    assert alone["evidence"][0]["server_cpu_taken_s"] is None
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    said = "not stopped while the others had their turns, nor kept on one CPU: alone and known"
    assert said in " ".join(shown.split())
    (row,) = (line for line in shown.splitlines() if line.startswith("alone"))
    assert row.split()[4:7] == ["unknown"] * 3


@pytest.mark.parametrize("kind", ["udp", "unix", "unixgram"])
def test_on_every_kind(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with fastsock.Server(free_endpoint(kind)) as server:
        options = ["--kind", kind, *SHORT, "--engines", ENGINES[kind], "--json", "-"]
        assert run(["bench", *options, "--rival", f"there={server.endpoint}"]) in DONE
    results = json.loads(capsys.readouterr().out)["cases"][0]["results"]
    assert results[-1]["name"] == "there"
    assert not connections_failed(results[-1])


def test_the_address_of_a_name_that_is_listened_on() -> None:
    """Where localhost has two addresses, and the server one."""
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        port = server.endpoint.port
        assert first_listening(Endpoint("tcp", "localhost", port)) == server.endpoint
        (result,) = compared(at(f"localhost:{port}")).values()
    assert not faults(result)


@pytest.mark.parametrize("kind", ["tcp", "udp", "unix", "unixgram"])
def test_one_that_refuses(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Is one line with its name, before any turn."""
    with misbehaving.refusing_address() as (_, port):
        endpoint = f"{kind}://127.0.0.1:{port}" if "u" not in kind else free_endpoint(kind)
        if kind == "udp":
            endpoint = str(server_process.free_endpoint("udp"))
        options = ["--kind", kind, *SHORT, "--engines", ENGINES[kind]]
        assert run(["bench", *options, "--rival", f"gone={endpoint}"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"gone: nothing listens on {endpoint}: Connection refused" in said


def test_a_silent_udp_server_is_no_refusal() -> None:
    """A datagram may be lost; the window tells how many were."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        endpoint = Endpoint("udp", *sock.getsockname())
        assert first_listening(endpoint) == endpoint


def test_one_that_vanishes_midway() -> None:
    """The others' results are kept, and the one that is gone says so."""
    with process(SERVES) as (server, endpoint):

        def kill_it(text: str) -> None:
            if text.startswith("round 2/2"):
                server.kill()
                server.wait()

        results = compared(native("epoll"), at(endpoint, server.pid), progress=kill_it)
    gone = results["there"]
    assert len(gone.rates) == 2
    assert gone.rates[1] == 0
    assert len(gone.cpu_per_echo) == 1
    assert any("refused" in problem for problem in gone.problems)
    assert any(f"process {server.pid} has ended" in problem for problem in gone.problems)
    assert len(results["fastsock epoll"].rates) == 2
    assert not faults(results["fastsock epoll"])


def test_a_route_that_vanishes_midway(monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket can be connected then, which is an error of the library; here it is a problem."""
    windows = []
    run_as_it_is = compare.run_window

    def run_window(server: Any, *arguments: Any) -> Any:
        windows.append(server.name)
        if windows.count("there") > 1 and server.name == "there":
            raise OSError(101, "connect: Network is unreachable")
        return run_as_it_is(server, *arguments)

    monkeypatch.setattr(compare, "run_window", run_window)
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        results = compared(native("epoll"), at(server.endpoint))
    assert faults(results["there"]) == ["connect: Network is unreachable"]
    assert results["there"].rates[1] == 0
    assert len(results["fastsock epoll"].rates) == 2


@pytest.mark.parametrize(
    "behave",
    [misbehaving.closes_after(64), misbehaving.resets_after(64), misbehaving.answers_garbage],
)
def test_one_that_does_not_echo(behave: misbehaving.Behaviour) -> None:
    with MisbehavingServer(behave) as server:
        results = compared(native("epoll"), at(server.address))
    assert faults(results["there"])
    assert not faults(results["fastsock epoll"])


def test_a_slow_one() -> None:
    with MisbehavingServer(misbehaving.serves_slowly(64, 0.005)) as server:
        results = compared(at(server.address))
    assert 0 < max(results["there"].rates) < 1000
    assert not faults(results["there"])


def test_a_process_that_ends_while_the_server_goes_on() -> None:
    with fastsock.Server("tcp://127.0.0.1:0") as server, process(SLEEPS) as (other, _):

        def kill_it(text: str) -> None:
            if text.startswith("round 2/2"):
                other.kill()
                other.wait()

        (result,) = compared(at(server.endpoint, other.pid), progress=kill_it).values()
    assert len(result.rates) == 2
    assert len(result.cpu_per_echo) == 1
    assert faults(result) == [f"process {other.pid} has ended, so that its CPU time is not known"]


def test_a_process_that_ends_just_before_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window is measured without it."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(RunningServer, "pid", property(lambda self: gone.pid))
    with (
        fastsock.Server("tcp://127.0.0.1:0") as server,
        RunningServer("there", server.endpoint) as there,
    ):
        report = compare.run_window(there, compare.Case(1, wait="block"), METHOD)
    assert report.messages
    assert report.server_cpu is None


def test_the_process_is_checked() -> None:
    with process(SLEEPS) as (other, _):
        check_process(other.pid)
        other.kill()
        # Its parent does not know yet.
        wait_until(lambda: "Z" in Path(f"/proc/{other.pid}/stat").read_text().split()[2])
        with pytest.raises(ValueError, match="has ended"):
            check_process(other.pid)
        other.wait()
        with pytest.raises(ValueError, match=f"there is no process {other.pid}"):
            check_process(other.pid)
    with pytest.raises(ValueError, match="has started this one"):
        check_process(os.getppid())


# --- a command with a port ----------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("udp",), ("ipv6",), ("udp", "ipv6")])
def test_a_command_gets_a_free_port(words: tuple[str, ...]) -> None:
    """As often as it asks for it; it is up on IPv6 for every address too."""
    server = listening(*words, scheme="udp" if "udp" in words else "tcp")
    with compare.started(server, None) as started, compare.turn(started):
        assert started.endpoint.host == "127.0.0.1"
        assert fastsock.load(started.endpoint, messages=10, wait="block").messages == 10


def test_a_process_of_its_group_listens() -> None:
    """Not the first one, and after a while."""
    script = 'sleep 0.2; "$@" & wait'
    server = listening()
    server = Contender("port", ("sh", "-c", script, "sh", *server.command)).on("tcp")
    with compare.started(server, None) as started, compare.turn(started):
        assert len(started.processes()) == 2
        assert fastsock.load(started.endpoint, messages=10, wait="block").messages == 10


def test_every_case_has_a_port_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join(f"'{word}'" for word in (sys.executable, "-m", "fastsock", "serve"))
    rival = f"port={words} 127.0.0.1:{{port}}"
    options = [*SHORT, "-c", "1,2", "--json", "-"]
    assert run(["bench", *options, "--rival", rival]) in DONE
    cases = json.loads(capsys.readouterr().out)["cases"]
    for case in cases:
        assert case["results"][1]["stopped_between_turns"]
        assert not connections_failed(case["results"][1])


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_a_port_that_another_process_has_taken(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server cannot have it, and the other one is not taken for it."""
    with fastsock.Server(f"{scheme}://127.0.0.1:0") as other:
        monkeypatch.setattr(compare, "free_endpoint", lambda scheme: other.endpoint)
        with (
            pytest.raises(NotStartedError, match="Address already in use"),
            compare.started(listening(scheme, scheme=scheme), None),
        ):
            pass


def test_a_port_that_another_process_has_on_ipv4() -> None:
    """The server has it on IPv6 alone, where no client of 127.0.0.1 comes."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        endpoint = Endpoint("tcp", *other.getsockname())
        command = [sys.executable, "-c", LISTENS, *[str(endpoint.port)] * 2, "ipv6", "only"]
        with subprocess.Popen(command) as server:
            try:
                wait_until(lambda: listens_on_ipv6(endpoint.port))
                assert not listen_at([server.pid], endpoint)
                assert not listen_at([], endpoint)
                assert listen_at([server.pid, os.getpid()], endpoint)
            finally:
                server.kill()


def listens_on_ipv6(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("::1", port), timeout=1):
        return True
    return False


def test_a_command_that_does_not_listen_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it prints, and wherever else it listens."""
    monkeypatch.setattr(server_process, "START_TIMEOUT", 1.0)
    command = (sys.executable, "-m", "fastsock", "serve", "127.0.0.1:0")
    at = server_process.free_endpoint("tcp")
    with pytest.raises(NotStartedError, match=f"mine did not start; .*it must listen on {at}"):
        ServerProcess(command, name="mine", at=at)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rival", "message"),
    [
        ("x=udp://127.0.0.1:7", "--rival 'x' is at udp://127.0.0.1:7, and the comparison on tcp"),
        ("x=unix:/run/x.sock", "write --kind unix"),
        ("x=127.0.0.1:7,pid=4194303", "there is no process 4194303"),
        ("x=127.0.0.1:7,pid=1", "process 1 has started this one"),
        ("x=127.0.0.1:7,pid=", "pid '' is not a whole number"),
        ("x=127.0.0.1:7,pid=0", "pid 0 is out of range"),
        ("x=tcp://127.0.0.1:7,pid=me", "pid 'me' is not a whole number"),
        ("x= 127.0.0.1:7 , pid=1,pid=2", "pid '1,pid=2' is not a whole number"),
        ("x=127.0.0.1:0", "port 0 cannot be connected to"),
        ("x=tcp://127.0.0.1", "no port"),
        ("x=127.0.0.1:70000", "70000"),
        ("x=http://127.0.0.1:80", "fastsock speaks no HTTP"),
        ("=127.0.0.1:80", "has no name"),
        ("fastsock epoll=127.0.0.1:80", "two servers are called 'fastsock epoll'"),
    ],
)
def test_a_bad_rival(rival: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", *SHORT, "--rival", rival]) == 2
    shown = capsys.readouterr().err
    assert message in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


def test_a_port_on_a_kind_without_ports(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--kind", "unix", *SHORT]
    assert run(["bench", *options, "--rival", "x=./server {port}"]) == 2
    assert "--rival 'x' has a {port}, and unix has no ports" in capsys.readouterr().err
