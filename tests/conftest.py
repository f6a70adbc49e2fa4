"""Fixtures of every test: implementations, running servers, and a check that nothing is left."""

from __future__ import annotations

import gc
import platform
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from implementations import (
    IMPLEMENTATIONS,
    Implementation,
    ServedProcess,
    any_endpoint,
    left_out,
)
from leftovers import everything

import fastsock

# Names among a report's user properties, which also come from pytest-xdist's workers.
FIGURE, RUN = "figure", "run"

# A suite that a shell starts in the background inherits an ignored SIGINT, and one under nohup an
# ignored SIGHUP. The processes that tests start must not inherit them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))

Serve = Callable[..., Any]
ServeProcess = Callable[..., ServedProcess]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "many_clients: needs several clients served at a time")
    config.addinivalue_line("markers", "native(*engines): for native engines, or those named")
    config.addinivalue_line("markers", "kinds(*kinds): on each of these sockets; else on tcp alone")


def pytest_report_header() -> list[str]:
    return [
        f"fastsock: {', '.join(IMPLEMENTATIONS)}; "
        f"kernel {platform.release()}, Python {platform.python_version()}",
        *(f"fastsock: left out {name}: {why}" for name, why in left_out().items()),
    ]


def pytest_runtest_setup(item: pytest.Item) -> None:
    chosen = item.callspec.params if hasattr(item, "callspec") else {}
    if "implementation" in chosen and "socket_kind" in chosen:
        case = item.nodeid.partition("[")[0]
        run = [chosen["implementation"].name, chosen["socket_kind"], case]
        item.user_properties.append((RUN, run))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures, and how much of implementations x kinds x cases was run."""
    properties = [
        (report.nodeid.rpartition("::")[2], *each)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "teardown"  # each test has one
        for each in report.user_properties
    ]
    if figures := [f"{test}: {text}" for test, name, text in properties if name == FIGURE]:
        terminalreporter.section("figures")
        for line in figures:
            terminalreporter.write_line(line)
    if runs := [run for _, name, run in properties if name == RUN]:
        servers, kinds, cases = (len(set(each)) for each in zip(*runs, strict=True))
        terminalreporter.write_line(
            f"{servers} implementations x {kinds} kinds x {cases} cases: {len(runs)} runs, "
            "where the case applies"
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "implementation" in metafunc.fixturenames:
        marks = list(metafunc.definition.iter_markers())
        chosen = [each for each in IMPLEMENTATIONS.values() if suits(each, marks)]
        metafunc.parametrize("implementation", chosen, ids=[each.name for each in chosen])
    if "socket_kind" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("kinds")
        metafunc.parametrize("socket_kind", mark.args if mark else ("tcp",))


def suits(implementation: Implementation, marks: list[pytest.Mark]) -> bool:
    """Whether an implementation can run a test that is marked so."""
    if any(mark.name == "many_clients" for mark in marks) and implementation.one_at_a_time:
        return False
    return all(
        implementation.native and (not mark.args or implementation.engine in mark.args)
        for mark in marks
        if mark.name == "native"
    )


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """A function that takes a line of what a test has measured, to be printed at the end."""
    return lambda text: request.node.user_properties.append((FIGURE, text))


@pytest.fixture(autouse=True)
def nothing_left_over() -> Iterator[None]:
    """No test leaves a descriptor, a thread or a child process behind."""
    before = everything()
    yield
    deadline = time.monotonic() + 5
    while left := everything() - before:
        if time.monotonic() > deadline:
            pytest.fail(f"left over: {sorted(left)}")
        gc.collect()
        time.sleep(0.01)


@pytest.fixture
def server() -> Iterator[fastsock.Server]:
    """A native server on TCP."""
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        yield server


@pytest.fixture
def serve(implementation: Implementation, socket_kind: str) -> Iterator[Serve]:
    """A function that starts a server on a free endpoint; all are stopped at the end.

    By then each of its connections must have been closed and counted, and none twice.
    """
    servers: list[Any] = []
    with ExitStack() as stack:

        def start(**options: Any) -> Any:
            servers.append(implementation.server(any_endpoint(socket_kind), **options))
            return stack.enter_context(servers[-1])

        yield start
    assert all(server.stats().open == 0 for server in servers)


@pytest.fixture
def serve_process(implementation: Implementation, socket_kind: str) -> Iterator[ServeProcess]:
    """A function that starts a server in a process of its own; all are killed at the end."""
    with ExitStack() as stack:

        def start(**options: Any) -> ServedProcess:
            options.setdefault("endpoint", any_endpoint(socket_kind))
            return stack.enter_context(closing(ServedProcess(implementation, **options)))

        yield start
