"""nginx (its stream module) and haproxy as TCP proxies, in the foreground, as children of the test.

Their configuration is in a temporary directory, and they listen on a free port of loopback.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from clients import wait_until
from runs import SERVER_CPU, listening, pinned

import fastsock

NGINX = """
load_module {module};
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ }}
stream {{
    server {{
        listen 127.0.0.1:{port};
        proxy_pass {server};
        {more}
    }}
}}
"""

HAPROXY = """
global
    nbthread 1
    hard-stop-after 100ms
defaults
    mode tcp
    timeout connect 5s
    timeout client 1m
    timeout server 1m
listen proxy
    bind 127.0.0.1:{port}
    server behind {server}
"""

# Debian's place, and where nginx looks by itself
NGINX_MODULES = (Path("/usr/lib/nginx/modules"), Path("/usr/lib64/nginx/modules"))


@dataclass
class Proxy:
    """A running proxy; `processes` are its own, oldest first."""

    command: list[str]
    port: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def start(self, *more: str) -> None:
        """Start a process, perhaps another one, and wait until it listens."""
        with pinned({SERVER_CPU}):
            process = subprocess.Popen([*self.command, *more], stderr=subprocess.DEVNULL)
        self.processes.append(process)
        wait_until(lambda: process.poll() is not None or listening(self.port, process.pid), "proxy")
        assert process.poll() is None, f"{self.command[0]} ended with code {process.returncode}"

    def reload(self) -> None:
        """Let a new process of haproxy take the port, and the old one end its connections."""
        old = self.processes[-1]
        self.start("-sf", str(old.pid))
        old.wait(timeout=30)

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(timeout=30)


@contextmanager
def nginx(server: fastsock.Endpoint, *, half_close: bool = False) -> Iterator[Proxy]:
    """nginx as it comes, or with ``proxy_half_close on``."""
    program = _program("nginx")
    modules = [path for folder in NGINX_MODULES for path in folder.glob("ngx_stream_module.so")]
    if not modules:
        pytest.skip("nginx's stream module (libnginx-mod-stream) is not installed")
    more = "proxy_half_close on;" if half_close else ""
    with _proxy(NGINX, server, module=modules[0], more=more) as (folder, port):
        command = [program, "-p", str(folder), "-e", "stderr", "-c", str(folder / "proxy.conf")]
        with _running(Proxy(command, port)) as proxy:
            yield proxy


@contextmanager
def haproxy(server: fastsock.Endpoint) -> Iterator[Proxy]:
    """haproxy in mode tcp; when it is reloaded, open connections are closed 0.1 s later."""
    program = _program("haproxy")
    with (
        _proxy(HAPROXY, server) as (folder, port),
        _running(Proxy([program, "-db", "-q", "-f", str(folder / "proxy.conf")], port)) as proxy,
    ):
        yield proxy


def version(name: str) -> str:
    """As the program prints it."""
    result = subprocess.run([_program(name), "-v"], capture_output=True, text=True, check=True)
    found = re.search(r"\d+(\.\d+)+", result.stdout + result.stderr)
    return f"{name} {found[0]}" if found else name


def _program(name: str) -> str:
    if found := shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin"):
        return found
    pytest.skip(f"{name} is not installed")


@contextmanager
def _proxy(text: str, server: fastsock.Endpoint, **words: object) -> Iterator[tuple[Path, int]]:
    """A directory with the configuration, and the port in it, which was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server_address = f"{server.host}:{server.port}"
        configured = text.format(folder=folder, port=port, server=server_address, **words)
        (folder / "proxy.conf").write_text(configured)
        yield folder, port


@contextmanager
def _running(proxy: Proxy) -> Iterator[Proxy]:
    try:
        proxy.start()
        yield proxy
    finally:
        proxy.stop()
