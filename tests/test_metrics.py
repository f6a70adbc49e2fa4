"""Metrics for Prometheus: every counter, read by Prometheus' own parser, from any client."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import fields
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
from clients import TIMEOUT, connect, echo_exactly, refuses, running, wait_until
from leftovers import children
from served import ANY_PORT, FASTSOCK, served

import fastsock
from fastsock import Endpoint
from fastsock.server.stats import CLOSE_REASONS, DROPPED, ServerStats

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fastsock.server import metrics_server
from fastsock.server.metrics import METRICS, ServerCollector, markdown
from fastsock.server.metrics_server import MOST, MetricsServer

ROOT = Path(__file__).resolve().parent.parent
SOON = 5.0  # seconds, on a busy machine

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


class Connection(HTTPConnection):
    """An HTTP connection to a tcp or unix endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__("localhost")
        self._endpoint = endpoint

    def connect(self) -> None:
        self.sock = connect(self._endpoint)


def scrape(endpoint: Endpoint) -> Samples:
    """Scrape, and read what came as Prometheus does."""
    with closing(Connection(endpoint)) as connection:
        connection.request("GET", "/metrics", headers={"Accept": "text/plain;version=0.0.4"})
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.getheader("Content-Type", "").startswith("text/plain")
        return samples_of(answer.read().decode())


def samples_of(text: str) -> Samples:
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            each = samples.setdefault(sample.name, {})
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in each, "twice"
            each[labels] = sample.value
    return samples


def collected(*servers: fastsock.Server) -> Samples:
    registry = CollectorRegistry()
    registry.register(ServerCollector(*servers))
    return samples_of(generate_latest(registry).decode())


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of the samples of that name which have these labels."""
    return sum(
        value for found, value in samples[name].items() if labels.items() <= dict(found).items()
    )


@contextmanager
def scraped_server(endpoint: str = "127.0.0.1:0") -> Iterator[tuple[fastsock.Server, Endpoint]]:
    """A server in this process, and where its metrics are."""
    with fastsock.Server(ANY_PORT) as server:
        metrics = MetricsServer(Endpoint.parse(endpoint), server)
        metrics.start()
        try:
            yield server, metrics.endpoint
        finally:
            metrics.stop()


# --- what is scraped ----------------------------------------------------------------------------


def test_every_counter() -> None:
    """The sums over the workers of both endpoints are what stats() has."""
    with fastsock.Server(ANY_PORT, "udp://127.0.0.1:0", workers=2) as server:
        tcp, udp = server.endpoints
        with ExitStack() as stack:
            for _ in range(8):
                echo_exactly(stack.enter_context(connect(tcp)), b"x" * 1000)
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.settimeout(TIMEOUT)
            sock.connect((udp.host, udp.port))
            for _ in range(5):
                sock.send(b"hello")
                assert sock.recv(10) == b"hello"
            stats, samples = server.stats(), collected(server)
            assert total(samples, "fastsock_connections_open") == 8
        wait_until(lambda: server.stats().open == 0)
    stats, samples = server.stats(), collected(server)
    for name, field in (
        ("connections_accepted_total", "accepted"),
        ("connections_open", "open"),
        ("connections_rejected_total", "rejected"),
        ("bytes_received_total", "bytes_in"),
        ("bytes_sent_total", "bytes_out"),
        ("datagrams_received_total", "datagrams_in"),
        ("datagrams_sent_total", "datagrams_out"),
        ("pauses_total", "accept_pauses"),
    ):
        assert total(samples, f"fastsock_{name}") == getattr(stats, field), name
    assert stats.accepted == 8 and stats.datagrams_in == 5
    for reason in CLOSE_REASONS:
        name = "fastsock_connections_closed_total"
        assert total(samples, name, reason=reason) == stats.closed[reason]
    for reason in DROPPED:
        name = "fastsock_datagrams_dropped_total"
        assert total(samples, name, reason=reason) == stats.dropped[reason]
    assert total(samples, "fastsock_build_info", version=fastsock.__version__) == 1
    assert total(samples, "fastsock_bytes_sent_total", endpoint=str(udp)) == 25
    workers = Counter(dict(labels)["endpoint"] for labels in samples["fastsock_pauses_total"])
    assert workers == {str(tcp): 2, str(udp): 2}


def test_every_field_of_the_counters_has_a_metric() -> None:
    """A counter that is added to ServerStats must be scraped too."""
    told = {metric.field.partition(".")[0] for metric in METRICS}
    sums_and_texts = {"engine", "engine_reason", "endpoints", "accepted_per_worker", "per_worker"}
    assert {each.name for each in fields(ServerStats)} - sums_and_texts == told
    with fastsock.Server(ANY_PORT) as server:
        (worker,) = server.stats().per_worker
        assert set(worker) - {"endpoint", "engine"} == told


def test_errors_have_their_name() -> None:
    with fastsock.Server(ANY_PORT) as server:
        with connect(server.endpoint) as sock:
            echo_exactly(sock, b"hello")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        wait_until(lambda: server.stats().open == 0)
        samples = collected(server)
    assert total(samples, "fastsock_errors_total", error="ECONNRESET") == 1
    assert total(samples, "fastsock_connections_closed_total", reason="reset") == 1


def test_servers_that_share_a_port() -> None:
    """Their workers are numbered on, or two samples would be one."""
    first = fastsock.Server(ANY_PORT, reuse_port=True)
    with first, fastsock.Server(first.endpoint, reuse_port=True) as second:
        samples = collected(first, second)
    labels = samples["fastsock_connections_accepted_total"]
    assert [dict(each)["worker"] for each in labels] == ["0", "1"]


def test_a_server_that_has_not_started() -> None:
    """It has no samples."""
    assert not any("endpoint" in str(each) for each in collected(fastsock.Server()).values())


@pytest.mark.parametrize("engine", ["serial", "fork"])
def test_an_engine_with_blocked_loops(engine: str) -> None:
    with served(ANY_PORT, "--engine", engine, "--metrics", ":0") as server:
        where = server.metrics()
        with connect(server.endpoint) as sock:
            echo_exactly(sock, b"hello")
            samples = scrape(where)
            assert total(samples, "fastsock_bytes_sent_total", engine=engine) == 5
            for child in children(server.process.pid):
                sockets = [str(each.readlink()) for each in Path(f"/proc/{child}/fd").iterdir()]
                assert sum(each.startswith("socket:") for each in sockets) <= 1, sockets
        server.stop()
        assert refuses(where)


def test_names_follow_the_conventions() -> None:
    """https://prometheus.io/docs/practices/naming/: base units, _total for counters alone."""
    for metric in METRICS:
        assert re.fullmatch(r"fastsock_[a-z_]+", metric.name)
        assert metric.exposed.endswith("_total") == (metric.kind == "counter")
        assert not re.search(r"_(ms|us|kib|kb|count)(_|$)", metric.name)


def test_the_page_has_the_list() -> None:
    assert markdown() in (ROOT / "docs" / "metrics.md").read_text()


# --- the command --------------------------------------------------------------------------------


def test_the_command_serves_metrics() -> None:
    """At a port that is picked; process_open_fds and the like are there too."""
    with served(ANY_PORT, "--metrics", "127.0.0.1:0") as server:
        where = server.metrics()
        with connect(server.endpoint) as sock:
            echo_exactly(sock, b"hello")
        samples = scrape(where)
        assert total(samples, "fastsock_bytes_received_total") == 5
        assert total(samples, "process_open_fds") > 3
        assert server.stop()[-1].startswith("served 1 connection")


@pytest.mark.parametrize("prefix", ["", "unix:", "unix://"])
def test_a_unix_socket(prefix: str, tmp_path: Path) -> None:
    """A stale file is replaced, its rights are those of --unix-mode, and it is removed."""
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    arguments = ("--metrics", f"{prefix}{path}", "--unix-mode", "640")
    with served(ANY_PORT, *arguments) as server:
        where = server.metrics()
        assert str(where) == f"unix://{path}"
        assert path.stat().st_mode & 0o777 == 0o640
        assert total(scrape(where), "fastsock_connections_accepted_total") == 0
        server.stop()
    assert list(tmp_path.iterdir()) == []


def test_a_unix_socket_of_another_user() -> None:
    """It is given to the user with the privileges; what cannot be removed at the end is told."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "metrics.sock")
        with served(ANY_PORT, "--metrics", str(path), "--user", "nobody") as server:
            server.metrics()
            assert path.owner() == "nobody"
            assert any("stays behind at the end" in line for line in server.lines)
            server.stop()


def test_a_live_unix_socket_is_not_taken(tmp_path: Path) -> None:
    with scraped_server(f"unix:{tmp_path}/m.sock") as (_, where):
        code, said = refused("--metrics", str(where))
        assert (code, "Address already in use" in said) == (2, True)
        scrape(where)


def refused(*arguments: str) -> tuple[int, str]:
    """What a serve that does not start says, and its exit code."""
    done = subprocess.run(
        [*FASTSOCK, "serve", *arguments], capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.stdout == ""
    return done.returncode, " ".join(done.stderr.split())


def test_a_port_in_use() -> None:
    """It is found before anything is served: exit code 2 and one error."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert refused(f"127.0.0.1:{port}", "--metrics", address) == (
            2,
            f"Error: --metrics: bind tcp://{address}: Address already in use "
            "(another socket is bound to it; port 0 picks a free one)",
        )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("9100", "write"),
        ("udp://127.0.0.1:9100", "is for datagrams"),
        ("unixgram:/run/m.sock", "is for datagrams"),
        ("/no/such/directory/m.sock", "make its directory first"),
        ("192.0.2.1:9100", "not an address of this machine"),
        ("", "write"),
    ],
)
def test_an_address_that_cannot_be_used(value: str, expected: str) -> None:
    code, said = refused(ANY_PORT, "--metrics", value)
    assert (code, said.count("Error: "), "listening" in said) == (2, 1, False)
    assert expected in said


def test_without_the_package() -> None:
    """Exit code 2 and a line that says what to install."""
    code = """
import sys
sys.modules["prometheus_client"] = None
from fastsock.cli import main
main()
"""
    command = [sys.executable, "-c", code, "serve", ANY_PORT, "--metrics", ":0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stderr) == (
        2,
        "Error: --metrics needs pip install 'fastsock[metrics]'\n",
    )


def test_the_package_is_loaded_only_for_metrics() -> None:
    code = "import sys, fastsock.cli; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- clients that misbehave ---------------------------------------------------------------------


def test_many_at_once() -> None:
    """50 scrapes at the same time are all answered, a few at a time."""
    with served(ANY_PORT, "--metrics", ":0") as server:
        where, answered = server.metrics(), list[Samples]()
        threads = [
            threading.Thread(target=lambda: answered.append(scrape(where))) for _ in range(50)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answered) == 50
        server.stop()


@pytest.mark.parametrize("sent", [b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: a\r\n"])
def test_silent_clients_do_not_hold_up_the_end(sent: bytes) -> None:
    """More than are served at a time, each with nothing or half of a request."""
    with served(ANY_PORT, "--metrics", ":0") as server, ExitStack() as stack:
        where = server.metrics()
        for _ in range(2 * MOST):
            stack.enter_context(connect(where)).sendall(sent)
        with connect(server.endpoint) as sock:
            echo_exactly(sock, b"hello")
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < metrics_server.TIMEOUT - 1


def test_silent_clients_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are cut off in time, and the scrape behind them is answered."""
    monkeypatch.setattr(metrics_server, "TIMEOUT", 0.2)
    with scraped_server() as (_, where), ExitStack() as stack:
        for _ in range(2 * MOST):
            stack.enter_context(connect(where))
        assert total(scrape(where), "fastsock_connections_accepted_total") == 0


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.0\r\n", b"x" * 100_000])
def test_a_request_that_never_ends_is_cut_off(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit is for all of it, also when a byte comes now and then."""
    monkeypatch.setattr(metrics_server, "TIMEOUT", 0.3)
    with scraped_server() as (_, where), connect(where) as sock:
        sock.settimeout(0.05)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            sock.sendall(sent)
            deadline = time.monotonic() + TIMEOUT
            while time.monotonic() < deadline:
                try:
                    assert sock.recv(1) == b""
                    raise BrokenPipeError
                except TimeoutError:
                    sock.sendall(b"a: b\r\n"[:1])


@pytest.mark.parametrize(
    "sent", [b"\0" * 100 + b"\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n", b"\r\n\r\n", b"GET\r\n\r\n"]
)
def test_what_is_no_request(sent: bytes) -> None:
    """It is refused or cut off; the next scrape is answered, and nothing is said."""
    with served(ANY_PORT, "--metrics", ":0") as server:
        where = server.metrics()
        with connect(where) as sock:
            sock.sendall(sent)
            answer = b""
            while part := sock.recv(4096):
                answer += part
            assert b" 200 " not in answer
        scrape(where)
        assert [line for line in server.stop() if "Traceback" in line] == []


def test_a_client_that_reads_nothing() -> None:
    """It gets what the sockets hold, and holds up neither the next scrape nor the end."""
    with served(ANY_PORT, "--metrics", ":0") as server, ExitStack() as stack:
        where = server.metrics()
        for _ in range(2 * MOST):
            sock = stack.enter_context(connect(where, rcvbuf=2048))
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        scrape(where)
        server.stop()


def test_scrapes_while_it_stops() -> None:
    """A scrape is whole or fails; the drain goes on being told, and the end is on time."""
    with served(ANY_PORT, "--metrics", ":0", "--drain-timeout", "20s") as server:
        where, whole, ended = server.metrics(), list[float](), threading.Event()

        def keep_scraping() -> None:
            while not ended.is_set():
                try:
                    whole.append(total(scrape(where), "fastsock_connections_open"))
                except (OSError, HTTPException):
                    continue

        with ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(running(keep_scraping))
            stack.callback(ended.set)
            with connect(server.endpoint) as sock:
                echo_exactly(sock, b"hello")
                wait_until(lambda: 1.0 in whole)
                server.process.send_signal(signal.SIGTERM)
                wait_until(lambda: refuses(server.endpoint))
                before = len(whole)
                wait_until(lambda: len(whole) > before + 8)
                echo_exactly(sock, b"still served")
            assert ": 17B in, 17B out;" in server.ended(0)[-1]


def test_nothing_is_left_in_the_process() -> None:
    """No thread, no descriptor (see conftest), and the port is free at once."""
    with scraped_server() as (_, where):
        scrape(where)
        with connect(where):
            pass
    socket.create_server((where.host, where.port)).close()


def test_no_spinning_without_descriptors() -> None:
    """When accept() fails with EMFILE, the server waits before it asks again."""
    with served(ANY_PORT, "--metrics", ":0") as server:
        where, pid = server.metrics(), server.process.pid
        scrape(where)
        used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, hard))
        with connect(where):
            ticks = cpu_ticks(pid)
            threading.Event().wait(1)
            assert cpu_ticks(pid) - ticks < 0.3 * os.sysconf("SC_CLK_TCK")
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        scrape(where)
        server.stop()


def cpu_ticks(pid: int) -> int:
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(values[11]) + int(values[12])


def test_a_process_that_was_forked_has_its_other_metrics() -> None:
    """The servers are the parent's; the scrape of the child is whole all the same."""
    script = """
import os, prometheus_client, fastsock
from fastsock.server.metrics import ServerCollector
with fastsock.Server("tcp://127.0.0.1:0") as server:
    prometheus_client.REGISTRY.register(ServerCollector(server))
    pid = os.fork()
    if pid == 0:
        text = prometheus_client.generate_latest().decode()
        os._exit(0 if "fastsock_build_info" in text and "_total{endpoint" not in text else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=30)


def test_exceptions_of_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape that fails is that client's alone."""

    def fail(self: Any) -> None:
        raise RuntimeError

    with scraped_server() as (_, where):
        with monkeypatch.context() as patch:
            patch.setattr(fastsock.Server, "stats", fail)
            with pytest.raises((OSError, HTTPException)):
                scrape(where)
        scrape(where)
