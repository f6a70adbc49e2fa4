"""The pytest plugin, as the test suite of another project uses it."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Another project, in whose environment fastsock is installed: its plugin is loaded."""
    monkeypatch.setenv("PYTEST_PLUGINS", "fastsock.pytest_plugin")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return pytester


def run(project: pytest.Pytester, text: str, *arguments: str) -> pytest.RunResult:
    project.makepyfile(textwrap.dedent(text))
    return project.runpytest_subprocess("-q", *arguments)


def test_an_echo_server_takes_one_argument(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
        import socket

        def test_echo(echo_server):
            with socket.create_connection(echo_server.address) as sock:
                sock.sendall(b"hello")
                assert sock.recv(5) == b"hello"

        def test_udp(udp_echo_server):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect(udp_echo_server.address)
                sock.send(b"hello")
                assert sock.recv(5) == b"hello"

        def test_unix(unix_echo_server):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(unix_echo_server.address)
                sock.sendall(b"hello")
                assert sock.recv(5) == b"hello"

        def test_factory(fastsock_server):
            servers = [fastsock_server(service="discard"), fastsock_server("udp://[::1]:0")]
            with socket.create_connection(servers[0].address) as sock:
                sock.sendall(b"hello")
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(5) == b""
        """,
    )
    result.assert_outcomes(passed=4)


def test_the_marker_sets_options(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
        import socket, pytest

        pytestmark = pytest.mark.fastsock(service="discard")

        def test_the_file_s(echo_server):
            with socket.create_connection(echo_server.address) as sock:
                sock.sendall(b"hello")
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(5) == b""

        @pytest.mark.fastsock(service="echo")
        def test_the_nearest_wins(echo_server):
            with socket.create_connection(echo_server.address) as sock:
                sock.sendall(b"hello")
                assert sock.recv(5) == b"hello"

        @pytest.mark.fastsock("discard")
        def test_without_a_name(echo_server):
            pass

        @pytest.mark.fastsock(servise="echo")
        def test_misspelt(echo_server):
            pass
        """,
    )
    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines(
        ["*the marker fastsock takes options by name*", "*did you mean 'service'?*"]
    )


def test_a_connection_left_open_is_an_error(project: pytest.Pytester) -> None:
    """The check waits for what is being closed, and the server is stopped whatever it finds."""
    result = run(
        project,
        """
        import socket, threading, pytest

        left = []

        def connect(server):
            left.append(socket.create_connection(server.address))
            left[-1].sendall(b"hello")
            assert left[-1].recv(5) == b"hello"

        def test_left_open(echo_server):
            connect(echo_server)

        @pytest.mark.fastsock(allow_open=True)
        def test_allowed(echo_server):
            connect(echo_server)

        def test_closed_a_moment_later(echo_server):
            connect(echo_server)
            threading.Timer(0.2, left[-1].close).start()

        def test_the_server_has_ended():
            assert left[0].recv(5) == b""
            for each in left:
                each.close()
        """,
    )
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines(["*connections still open at the end: 1; close them*"])


@pytest.mark.parametrize("by", ["option", "ini"])
def test_a_wider_scope_shares_a_server(project: pytest.Pytester, by: str) -> None:
    if by == "ini":
        project.makeini("[pytest]\nfastsock_scope = module\n")
    result = run(
        project,
        """
        import pytest

        seen = set()

        @pytest.fixture(scope="module")
        def address(echo_server):
            return echo_server.address

        @pytest.mark.parametrize("number", range(3))
        def test_one(echo_server, address, number):
            seen.add(echo_server.address)
            assert len(seen) == 1 and address in seen

        @pytest.mark.fastsock(service="discard")
        def test_other_options(echo_server):
            pass
        """,
        *(["--fastsock-scope=module"] if by == "option" else []),
    )
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*can set faults of a server that tests share, not service*"])


def test_a_failure_shows_what_the_server_saw(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
        import socket

        def test_fails(echo_server):
            with socket.create_connection(echo_server.address) as sock:
                sock.sendall(b"hello")
                assert sock.recv(5) == b"other"
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*echo_server tcp://127.0.0.1:*", "*accepted: 1*", "*bytes_in: 5*"]
    )


def test_a_failure_shows_the_last_bytes(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
        import os, socket, pytest

        def exchange(server, family, data):
            with socket.socket(family) as sock:
                sock.connect(server.address)
                sock.sendall(data)
                return sock.recv(len(data), socket.MSG_WAITALL)

        @pytest.mark.fastsock(record=64, faults=["corrupt"])
        def test_fails(echo_server):
            assert exchange(echo_server, socket.AF_INET, b"hello\\n") == b"hello\\n"

        @pytest.mark.fastsock(record=64)
        def test_fails_with_more(fastsock_server):
            server = fastsock_server(f"unix://@fastsock-{os.getpid()}")
            exchange(server, socket.AF_UNIX, bytes(range(100)))
            assert False

        @pytest.mark.fastsock(record=64)
        def test_of_datagrams(udp_echo_server):
            pass
        """,
    )
    result.assert_outcomes(failed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*record goes with streams, not with datagrams*",
            "*echo_server tcp://127.0.0.1:*",
            "connection 0 from 127.0.0.1:*, *",
            "  received: 6 bytes",
            "           0  68 65 6c 6c 6f 0a  * hello.",
            "  sent: 6 bytes",
            "           0  97 65 6c 6c 6f 0a  * .ello.",
            "*fastsock_server unix://@fastsock-*",
            "connection 0 from a client without address, *",
            "  received, the last 64 of 100 bytes:",
            "          24  24 25 26 27 28 29 2a 2b 2c 2d 2e 2f 30 31 32 33  $*/0123",
            "  sent, the last 64 of 100 bytes:",
            "          54  54 55 56 57 58 59 5a 5b 5c 5d 5e 5f 60 61 62 63  TUVWXYZ*abc",
        ]
    )


def test_collecting_imports_nothing_native(project: pytest.Pytester) -> None:
    project.makeconftest(
        """
        import sys

        def pytest_sessionfinish():
            native = [name for name in sys.modules if name.startswith("fastsock._native")]
            print("native modules:", native)
        """
    )
    result = run(project, "def test_nothing(): pass", "--co", "-s")
    result.stdout.fnmatch_lines(["*native modules: []*"])
    result = run(project, "def test_nothing(): pass", "-s")
    result.stdout.fnmatch_lines(["*native modules: []*"])


def test_in_coroutines(project: pytest.Pytester) -> None:
    """The servers need no event loop, and disturb none."""
    result = run(
        project,
        """
        import asyncio, trio

        async def echo_asyncio(address):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()
            await writer.wait_closed()

        async def echo_trio(host, port):
            async with await trio.open_tcp_stream(host, port) as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some(5) == b"hello"

        def test_asyncio(echo_server):
            asyncio.run(echo_asyncio(echo_server.address))

        def test_trio(echo_server):
            trio.run(echo_trio, *echo_server.address)
        """,
    )
    result.assert_outcomes(passed=2)


def test_side_by_side(project: pytest.Pytester) -> None:
    """Under xdist each process has servers of its own."""
    result = run(
        project,
        """
        import socket, pytest

        @pytest.mark.parametrize("number", range(8))
        def test_echo(echo_server, unix_echo_server, number):
            for server, family in (echo_server, socket.AF_INET), (unix_echo_server, socket.AF_UNIX):
                with socket.socket(family) as sock:
                    sock.connect(server.address)
                    sock.sendall(b"hello")
                    assert sock.recv(5) == b"hello"
        """,
        *("-p", "xdist", "-n", "2", "--fastsock-scope=session"),
    )
    result.assert_outcomes(passed=8)


def test_the_page_s_example(project: pytest.Pytester) -> None:
    """A reset, a stall, a slow link and a half-close: three lines each."""
    text = (Path(__file__).parents[1] / "docs/pytest.md").read_text()
    example = text.split("```python\n", 1)[1].split("```", 1)[0]
    run(project, example).assert_outcomes(passed=5)


def test_a_failure_is_told_once(project: pytest.Pytester) -> None:
    """Its traceback keeps the test's socket open: that is no second error."""
    result = run(
        project,
        """
        import socket

        def test_fails(echo_server):
            sock = socket.create_connection(echo_server.address)
            assert sock.fileno() < 0
        """,
    )
    result.assert_outcomes(failed=1)


def test_a_marker_is_for_the_servers_of_its_test(project: pytest.Pytester) -> None:
    """Other servers that are shared keep what they have, and nothing is left behind."""
    result = run(
        project,
        """
        import socket, pytest

        def reply(server, size=5):
            with socket.create_connection(server.address) as sock:
                sock.sendall(bytes(size))
                return len(sock.recv(size))

        def test_all(echo_server, udp_echo_server, fastsock_server):
            fastsock_server(service="discard")

        @pytest.mark.fastsock(faults=["limit_data:bytes=3"])
        def test_limited(echo_server):
            assert reply(echo_server) == 3

        @pytest.mark.fastsock(faults=["loss"])
        def test_wrong_kind(echo_server):
            pass

        @pytest.mark.fastsock(allow_open=True)
        def test_left_open(echo_server):
            kept.append(socket.create_connection(echo_server.address))

        kept = []

        def test_after(echo_server):
            assert reply(echo_server) == 5
        """,
        "--fastsock-scope=session",
    )
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["*'loss' is for datagrams*"])


def test_a_scope_that_there_is_not(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\nfastsock_scope = modul\n")
    result = run(project, "def test_nothing(): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*fastsock_scope 'modul' is none of function, class*"])


def test_the_marker_sets_faults_of_a_shared_server(project: pytest.Pytester) -> None:
    """For the connections that the test opens; the next test has those of the start again."""
    result = run(
        project,
        """
        import socket, pytest

        def reply(server):
            with socket.create_connection(server.address) as sock:
                sock.sendall(b"hello")
                return sock.recv(5)

        def test_before(echo_server):
            assert reply(echo_server) == b"hello"

        @pytest.mark.fastsock(faults=["refuse"])
        def test_refused(echo_server):
            with pytest.raises(ConnectionResetError):
                reply(echo_server)

        def test_after(echo_server):
            assert reply(echo_server) == b"hello"
            assert echo_server.stats().faults == {"refuse": 1}
        """,
        "--fastsock-scope=module",
    )
    result.assert_outcomes(passed=3)
