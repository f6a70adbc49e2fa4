"""Tests of a dead link, clocks that jump, unusual packets, and inherited descriptors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from clients import (
    assert_serves,
    connect,
    echo_exactly,
    finish_exactly,
    half_close,
    has_ended,
    not_zero,
    nothing_comes,
    receive_all,
    receive_exactly,
    reset,
    wait_until,
)
from conftest import Serve, ServeProcess
from implementations import GENEROUS, Implementation, ServedProcess
from load_runs import SERVED
from networks import SERVER, inside, own_network, two_networks

FAST_OPEN = 0x1 | 0x2 | 0x4 | 0x200 | 0x400  # clients and every listener, without a cookie
TCPI_OPT_SYN_DATA = 32  # <linux/tcp.h>
SECRET = b"correct horse battery staple"
LARGEST_BACKLOG = 2**31 - 1  # of an int, as listen(2) takes it

# --- clients that disappear ---------------------------------------------------------------------


@pytest.mark.native
@pytest.mark.many_clients
def test_clients_behind_a_dead_link_are_closed(implementation: Implementation) -> None:
    """idle_timeout closes connections whose link is dead, with and without unsent bytes."""
    with two_networks() as networks, ExitStack() as stack:
        with inside(networks.server):
            server = implementation.server(f"tcp://{SERVER}:0", idle_timeout=0.4)
            stack.enter_context(server)
        with inside(networks.client):
            silent = stack.enter_context(connect(server.endpoint))
            with_unsent = stack.enter_context(connect(server.endpoint))
        echo_exactly(silent, b"hello")
        send_until_full(with_unsent)
        networks.pull_cable()
        wait_until(lambda: server.stats().closed["idle"] == 2, "both closed")
        assert server.stats().open == 0
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):  # with the cable in place the end would arrive
            silent.recv(1)
        with inside(networks.server):
            assert_serves(server.endpoint)


def send_until_full(sock: socket.socket) -> None:
    sock.setblocking(False)
    while True:
        try:
            sock.send(bytes(1 << 16))
        except BlockingIOError:
            return


# --- a queue of unknown length ------------------------------------------------------------------

#: accept4() works only once TCP_INFO was asked for, which a stop does; 4 bytes of that are valid.
SHORT_TCP_INFO = """\
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
static volatile int asked;
int getsockopt(int fd, int level, int name, void *value, socklen_t *size) {
    if (level != SOL_TCP || name != TCP_INFO)
        return (int)syscall(SYS_getsockopt, fd, level, name, value, size);
    asked = 1;
    memset(value, 0, *size);
    *size = 4;
    return 0;
}
int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags) {
    int (*real)(int, struct sockaddr *, socklen_t *, int) = dlsym(RTLD_NEXT, "accept4");
    if (asked)
        return real(fd, address, size, flags);
    errno = EMFILE;
    return -1;
}
"""


@pytest.mark.native("epoll", "poll", "threads", "fork")
def test_stop_where_the_length_of_the_queue_is_not_told(
    implementation: Implementation, tmp_path: Path
) -> None:
    """As under qemu-user: every client that waits is served, not only a turn's 64."""
    source, library = tmp_path / "short.c", tmp_path / "short.so"
    source.write_text(SHORT_TCP_INFO)
    server = ServedProcess(implementation, under=preloading(source, library), drain_timeout=60)
    with closing(server), ExitStack() as stack:
        socks = [stack.enter_context(connect(server.endpoint)) for _ in range(150)]
        server.signal(signal.SIGTERM)
        for sock in socks:
            finish_exactly(sock, b"hello")
            sock.close()
        assert server.finish()["stats"]["closed"]["eof"] == 150


def preloading(source: Path, library: Path) -> tuple[str, ...]:
    """A command that runs another one with a library of that source loaded before all others."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (cc or gcc) on PATH")
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True)
    # A sanitizer's runtime has to come first.
    return ("env", f"LD_PRELOAD={os.environ.get('LD_PRELOAD', '')} {library}")


# --- clocks that jump ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jumping_clock(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A command that runs another one with a wall clock that jumps by hours."""
    library = tmp_path_factory.mktemp("shim") / "jumping_clock.so"
    under = preloading(Path(__file__).with_name("jumping_clock.c"), library)
    reads = "import time; print(max(abs(time.time() - time.time()) for _ in range(50)))"
    done = run(*under, sys.executable, "-c", reads)
    assert float(done) > 3600
    return under


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=GENEROUS)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.native
@pytest.mark.many_clients
def test_idle_timeout_when_the_clock_jumps(
    implementation: Implementation, jumping_clock: tuple[str, ...]
) -> None:
    """idle_timeout uses a monotonic clock: busy clients stay, an idle one is closed."""
    server = ServedProcess(implementation, under=jumping_clock, idle_timeout=2.0)
    with closing(server), ExitStack() as stack:
        idle, *busy = (stack.enter_context(connect(server.endpoint)) for _ in range(3))
        echo_exactly(idle, b"hello")
        while server.stats()["closed"]["idle"] == 0:
            for sock in busy:  # so that the loop runs while the other one is idle
                echo_exactly(sock, b"still here")
            nothing_comes(busy[0], 0.005)
        assert has_ended(idle)
        for sock in busy:
            finish_exactly(sock, b"still here")
        assert server.stats()["closed"]["idle"] == 1


def test_drain_timeout_when_the_clock_jumps(
    implementation: Implementation, jumping_clock: tuple[str, ...]
) -> None:
    """drain_timeout uses a monotonic clock: the drain does not end early."""
    server = ServedProcess(implementation, under=jumping_clock, drain_timeout=GENEROUS)
    with closing(server), connect(server.endpoint) as sock:
        echo_exactly(sock, b"before")
        server.signal(signal.SIGTERM)
        for _ in range(200):
            echo_exactly(sock, b"during")
        finish_exactly(sock, b"after")
        server.finish()


@pytest.mark.native("epoll")
def test_load_when_the_clock_jumps(serve: Serve, jumping_clock: tuple[str, ...]) -> None:
    """A load run measures with a monotonic clock."""
    endpoint = str(serve().endpoint)
    load = ("load", endpoint, "--connections", "1", "--duration", "1s", "--json", "-")
    command = [*jumping_clock, sys.executable, "-m", "fastsock", *load]
    done = subprocess.run(command, capture_output=True, text=True, timeout=GENEROUS)
    assert done.returncode in SERVED, done.stderr
    report = json.loads(done.stdout)
    assert 0 < report["duration_s"] < GENEROUS
    assert report["latency_us"]["from_actual_send"]["max"] < GENEROUS * 1e6


# --- urgent data --------------------------------------------------------------------------------


def test_urgent_bytes_between_and_at_the_end(serve: Serve) -> None:
    """Urgent bytes are not echoed; the bytes around them are, and the end follows."""
    with connect(serve().endpoint) as sock:
        for number in range(20):
            sock.send(b"!", socket.MSG_OOB)
            echo_exactly(sock, b"number %d" % number)
        sock.send(b"!", socket.MSG_OOB)
        half_close(sock)
        assert receive_all(sock) == b""


# --- data in the SYN, and packets without data --------------------------------------------------


def test_fast_open(implementation: Implementation) -> None:
    """Bytes that came with the SYN (RFC 7413) are echoed, and so are the bytes after them."""
    with own_network():
        Path("/proc/sys/net/ipv4/tcp_fastopen").write_text(str(FAST_OPEN))
        with implementation.server() as server, socket.socket() as sock:
            sock.settimeout(GENEROUS)
            address = (server.endpoint.host, server.endpoint.port)
            assert sock.sendto(b"with the SYN", socket.MSG_FASTOPEN, address) == 12
            assert receive_exactly(sock, 12) == b"with the SYN"
            options = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]
            assert options & TCPI_OPT_SYN_DATA, "no data in the SYN"
            finish_exactly(sock, b"and more")


@pytest.mark.native("epoll", "threads", "io_uring")
def test_keepalive_probes_do_not_count_as_traffic(implementation: Implementation) -> None:
    """A client that sends only keepalive probes (SO_KEEPALIVE) is idle, and is closed."""
    with own_network(), implementation.server(idle_timeout=1.5) as server, ExitStack() as stack:
        silent, active = (stack.enter_context(connect(server.endpoint)) for _ in range(2))
        for sock in (silent, active):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        while not server.stats().closed["idle"]:
            echo_exactly(active, b"still here")
            nothing_comes(active, 0.005)
        assert has_ended(silent)
        assert kernel_count("TCPKeepAlive") > 0, "there was no probe"
        assert not_zero(server.stats().closed) == {"idle": 1}


def kernel_count(name: str) -> int:
    """A TcpExt counter of this network."""
    titles, values = (
        line.split()
        for line in Path("/proc/thread-self/net/netstat").read_text().splitlines()
        if line.startswith("TcpExt:")
    )
    return int(values[titles.index(name)])


# --- the log ------------------------------------------------------------------------------------


@pytest.mark.native
@pytest.mark.many_clients
def test_nothing_that_clients_sent_is_logged(
    implementation: Implementation, serve_process: ServeProcess
) -> None:
    """When descriptors run out and a client resets, the log has no byte that a client sent."""
    server = serve_process()
    with connect(server.endpoint) as sock, ExitStack() as stack:
        echo_exactly(sock, SECRET)
        server.leave_descriptors(0)
        waiting = stack.enter_context(connect(server.endpoint))
        waiting.sendall(SECRET)
        wait_until(lambda: "accept paused" in server.errors(), "a line of log")
        sock.sendall(SECRET)
        reset(sock)
        stats = json.dumps(server.stats())
    assert SECRET.decode() not in server.errors() + stats


# --- descriptors and limits ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "unix", "udp"])
def test_a_child_inherits_no_descriptor(
    implementation: Implementation, kind: str, tmp_path: Path
) -> None:
    """A program started meanwhile inherits no socket: it would keep the port or connection open."""
    urls = {
        "tcp": "tcp://127.0.0.1:0",
        "unix": f"unix://{tmp_path}/echo.sock",
        "udp": "udp://127.0.0.1:0",
    }
    before = inherited_by_a_child()
    with implementation.server(urls[kind]) as server, connected(server.endpoint) as sock:
        sock.send(b"hello")
        assert sock.recv(5) == b"hello"
        assert inherited_by_a_child() == before


def inherited_by_a_child() -> list[str]:
    """The open files of a child that is started with close_fds=False."""
    code = (
        "import os\n"
        "for fd in os.listdir('/proc/self/fd'):\n"
        "    try: print(os.readlink(f'/proc/self/fd/{fd}'))\n"
        "    except FileNotFoundError: pass"  # of listdir() itself
    )
    null = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, stdout=subprocess.PIPE, close_fds=False, text=True, **null)
    assert done.returncode == 0
    return sorted(line for line in done.stdout.splitlines() if not line.startswith("pipe:"))


def connected(endpoint: Any) -> socket.socket:
    kind = socket.SOCK_STREAM if endpoint.is_stream else socket.SOCK_DGRAM
    family = socket.AF_UNIX if endpoint.is_unix else socket.AF_INET
    sock = socket.socket(family, kind)
    sock.settimeout(GENEROUS)
    sock.connect(endpoint.path if endpoint.is_unix else (endpoint.host, endpoint.port))
    return sock


def test_the_largest_backlog(serve: Serve) -> None:
    """A backlog above net.core.somaxconn is no error: listen(2) reduces it."""
    assert_serves(serve(backlog=LARGEST_BACKLOG).endpoint)
