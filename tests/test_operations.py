"""What docs/operations.md shows works: the unit files, the health checks, the links of a page."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clients import TIMEOUT, wait_until
from served import ANY_PORT, served

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "operations.md").read_text()


def block(language: str, holds: str) -> str:
    """The code of that language which holds a text."""
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    (code,) = (each for each in found if holds in each)
    return str(code)


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    verifier = shutil.which("systemd-analyze")
    if verifier is None:
        pytest.skip("systemd is not installed")
    command = tmp_path / "fastsock"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    units = []
    for name in ("fastsock.socket", "fastsock.service"):
        text = block("ini", f"/{name}\n")
        assert text.startswith(f"# /etc/systemd/system/{name}\n")
        (tmp_path / name).write_text(text.replace("/opt/fastsock/bin/fastsock", str(command)))
        units.append(str(tmp_path / name))
    done = subprocess.run([verifier, "verify", *units], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_of_the_unit() -> None:
    """Its options are taken: with the socket passed, and the metrics at another port."""
    unit = block("ini", "/fastsock.service\n").replace("\\\n", "")  # a line that goes on
    (line,) = re.findall(r"^ExecStart=\S+/fastsock serve (.*)$", unit, re.MULTILINE)
    arguments = line.replace("127.0.0.1:9100", "127.0.0.1:0").split()
    with served(ANY_PORT, *arguments) as server:
        server.metrics()
        server.stop()


def test_haproxy_gets_an_echo(tmp_path: Path) -> None:
    """A server that echoes is up for HAProxy, and down once it has ended."""
    haproxy = shutil.which("haproxy")
    if haproxy is None:
        pytest.skip("haproxy is not installed")
    control = tmp_path / "control"
    with served(ANY_PORT) as server:
        address = f"127.0.0.1:{server.endpoint.port}"
        backend = block("text", "tcp-check").replace("127.0.0.1:7007", address)
        (tmp_path / "cfg").write_text(
            f"global\n    stats socket {control}\n"
            "defaults\n    timeout connect 2s\n    timeout client 2s\n    timeout server 2s\n"
            f"{backend.replace('inter 2s', 'inter 100ms')}"
        )
        command = [haproxy, "-db", "-f", str(tmp_path / "cfg")]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                wait_until(control.exists)
                # It takes a server to be up until it knows better: a check must have passed.
                wait_until(lambda: "L7OK" in ask(control))
                server.stop()
                wait_until(lambda: ",DOWN," in ask(control))
            finally:
                process.kill()


def ask(control: Path) -> str:
    """What HAProxy knows of the server."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect(str(control))
        sock.sendall(b"show stat\n")
        text = b""
        while part := sock.recv(65536):
            text += part
    (line,) = (each for each in text.decode().splitlines() if each.startswith("echo,one,"))
    return line


def test_the_probe_of_kubernetes() -> None:
    """Its script ends with 0 on an echo, and else with an error."""
    script = block("yaml", "livenessProbe").partition("- |\n")[2].partition("  periodSeconds")[0]
    code = "\n".join(line.strip() for line in script.splitlines())
    with served(ANY_PORT) as server:
        command = [sys.executable, "-c", code.replace("7007", str(server.endpoint.port))]
        assert subprocess.run(command, timeout=TIMEOUT).returncode == 0
        server.stop()
    began = time.monotonic()
    assert subprocess.run(command, capture_output=True, timeout=TIMEOUT).returncode == 1
    assert time.monotonic() - began < TIMEOUT
