"""Servers as pytest fixtures: ``echo_server``, for UDP and Unix sockets too, and a factory.

Loaded by pytest through its entry point. A project that uses no fixture pays for this module only:
nothing native is imported before a server starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fastsock import Server

_SCOPES = ("function", "class", "module", "package", "session")
_PATIENCE = 1.0  # seconds, for the server to see that a client has closed its connection
_LOOK = 0.005  # seconds between two looks at its counters
_SHOWN = 8  # records of connections that a report of a failure shows, the last ones
_COLUMNS = 16  # bytes in a line of them


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "how long a fixture of fastsock lives: " + ", ".join(_SCOPES)
    parser.addini("fastsock_scope", text, default="function")
    group = parser.getgroup("fastsock")
    group.addoption("--fastsock-scope", choices=_SCOPES, default=None, help=text)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "fastsock(**options): options of the servers of fastsock's fixtures, such as "
        "faults=['reset_peer:after=4k']; allow_open=True allows connections that are open at the "
        "end.",
    )
    config.stash[_RUNNING] = []
    scope = config.getini("fastsock_scope")
    if scope not in _SCOPES:
        raise pytest.UsageError(f"fastsock_scope {scope!r} is none of {', '.join(_SCOPES)}")


# --- the fixtures ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Running:
    """A server of a fixture."""

    name: str
    server: Server
    is_shared: bool  # by several tests
    allow_open: bool
    faults: list[str] = field(default_factory=list)  # those that it was started with
    has_failed: bool = False  # a test of it: its traceback keeps the test's sockets open


_RUNNING = pytest.StashKey[list[_Running]]()


def _scope_of(fixture_name: str, config: pytest.Config) -> Any:
    return config.getoption("fastsock_scope") or config.getini("fastsock_scope")


@pytest.fixture(scope=_scope_of)
def fastsock_server(request: pytest.FixtureRequest) -> Iterator[Callable[..., Server]]:
    """Start servers: ``fastsock_server("tcp://127.0.0.1:0", **options of fastsock.Server)``.

    They are stopped at the end of the fixture's scope.
    """
    with _servers(request, "fastsock_server") as start:
        yield start


@pytest.fixture(scope=_scope_of)
def echo_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A running echo server on a free port of 127.0.0.1 (TCP)."""
    with _servers(request, "echo_server") as start:
        yield start("tcp://127.0.0.1:0")


@pytest.fixture(scope=_scope_of)
def udp_echo_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A running echo server on a free port of 127.0.0.1 (UDP)."""
    with _servers(request, "udp_echo_server") as start:
        yield start("udp://127.0.0.1:0")


@pytest.fixture(scope=_scope_of)
def unix_echo_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A running echo server on a Unix socket in a directory of its own."""
    # Not below tmp_path: a path of a Unix socket has at most 107 bytes (unix(7)).
    with (
        TemporaryDirectory(prefix="fastsock-") as directory,
        _servers(request, "unix_echo_server") as start,
    ):
        yield start(f"unix://{directory}/echo.sock")


@contextmanager
def _servers(request: pytest.FixtureRequest, name: str) -> Iterator[Callable[..., Server]]:
    """What starts servers; at the end they are checked and stopped, all of them."""
    from fastsock import Server  # the first use of anything native

    running: list[_Running] = request.config.stash[_RUNNING]
    mine: list[_Running] = []
    is_shared = request.scope != "function"
    marked = {} if is_shared else _marked(request.node)

    def start(endpoint: Any = "tcp://127.0.0.1:0", **options: Any) -> Server:
        given = {**marked, **options}
        allow_open = given.pop("allow_open", False)
        if is_shared and name != "fastsock_server":
            given.setdefault("faults", [])  # with the engine on which tests can set them
        server = Server(endpoint, **given)
        server.start()
        one = _Running(name, server, is_shared, allow_open, list(given.get("faults", ())))
        mine.append(one)
        running.append(one)
        return server

    try:
        yield start
    finally:
        with ExitStack() as stack:  # whatever comes in between
            for each in mine:
                stack.callback(running.remove, each)
                stack.callback(each.server.stop, drain=0)
            problems = [_problem(each) for each in mine]
    if any(problems):
        pytest.fail("\n".join(filter(None, problems)), pytrace=False)


def _marked(node: pytest.Item) -> dict[str, Any]:
    """The options of the markers of a test; the nearest marker wins."""
    options: dict[str, Any] = {}
    for marker in reversed(list(node.iter_markers("fastsock"))):
        if marker.args:
            raise pytest.UsageError(
                f"{node.nodeid}: the marker fastsock takes options by name, as in "
                "fastsock(faults=['reset_peer:after=4k'])"
            )
        options.update(marker.kwargs)
    return options


def _problem(running: _Running) -> str:
    """What is wrong with a server at the end, if anything."""
    server = running.server
    # With no_read the end of a client stays behind what the server does not receive.
    if running.allow_open or running.has_failed or "no_read" in server.stats().faults:
        return ""
    left = _left_open(server)
    if not left:
        return ""
    return (
        f"{running.name} {server.endpoint}: connections still open at the end: {left}; close them "
        "in the test, or allow them: @pytest.mark.fastsock(allow_open=True)"
    )


def _left_open(server: Server) -> int:
    """Connections that are open although the server had time to see the end of them."""
    until = time.monotonic() + _PATIENCE
    while (left := server.stats().open) and time.monotonic() < until:
        time.sleep(_LOOK)
    return left


# --- tests that share a server --------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """With a wider scope the marker sets the faults of the connections that the test opens."""
    marked = _marked(item)
    shared = [each for each in _servers_of(item) if each.is_shared] if marked else []
    if shared and set(marked) - {"faults", "allow_open"}:
        others = ", ".join(sorted(set(marked) - {"faults", "allow_open"}))
        pytest.fail(
            f"the marker fastsock can set faults of a server that tests share, not {others}; "
            "use the scope function, or fastsock_server(...)",
            pytrace=False,
        )
    for each in shared:
        each.allow_open |= bool(marked.get("allow_open"))
    changed = shared if "faults" in marked else []
    try:
        for each in changed:
            each.server.faults = marked["faults"]
        return (yield)
    finally:
        for each in changed:
            each.server.faults = each.faults


def _servers_of(item: pytest.Item) -> list[_Running]:
    """The servers of the fixtures that a test uses."""
    names = getattr(item, "fixturenames", ())
    return [each for each in item.config.stash[_RUNNING] if each.name in names]


# --- failures -------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails shows what its servers have seen."""
    report = yield
    if report.failed and report.when == "call":
        for running in _servers_of(item):
            running.has_failed = True
            title = f"{running.name} {running.server.endpoint}"
            report.sections.append((title, "\n".join(_seen(running.server))))
    return report


def _seen(server: Server) -> Iterator[str]:
    counters = {name: value for name, value in server.stats().as_dict().items() if _says(value)}
    for name in ("endpoints", "busy_poll", "accepted_per_worker", "per_worker", "engine_reason"):
        counters.pop(name, None)
    for name, value in counters.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{each} {count}" for each, count in value.items() if count)
        yield f"{name}: {value}"
    yield from _records(server)


def _says(value: Any) -> bool:
    return any(value.values()) if isinstance(value, Mapping) else bool(value)


def _records(server: Server) -> Iterator[str]:
    """The last bytes of the last connections, where the server records them."""
    for record in server.records()[-_SHOWN:]:
        peer = record.peer or "a client without address"
        yield f"connection {record.number} from {peer}, {'open' if record.is_open else 'ended'}"
        yield from _hex_dump("received", record.received, record.bytes_in)
        yield from _hex_dump("sent", record.sent, record.bytes_out)


def _hex_dump(title: str, data: bytes, total: int) -> Iterator[str]:
    """The last bytes of `total`, each line with the offset of its first byte."""
    first = total - len(data)
    yield (
        f"  {title}, the last {len(data)} of {total} bytes:"
        if first
        else f"  {title}: {total} bytes"
    )
    for at in range(0, len(data), _COLUMNS):
        part = data[at : at + _COLUMNS]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        yield f"    {first + at:8x}  {part.hex(' '):{3 * _COLUMNS}} {text}"
