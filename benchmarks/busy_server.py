"""A server in the background of a process whose main thread computes in Python.

``python -m benchmarks.busy_server native epoll`` serves natively, ``stdlib threads`` as the twin
does. Ends with SIGTERM.
"""

from __future__ import annotations

import signal
import sys

import fastsock
import fastsock.pure


def main(package: str, kind: str) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    server: fastsock.Server | fastsock.pure.Server
    if package == "native":
        server = fastsock.Server("tcp://127.0.0.1:0", engine=kind)
    else:
        server = fastsock.pure.Server("tcp://127.0.0.1:0", engine=kind)
    with server:
        print(f"listening on {server.endpoint} ({kind})", file=sys.stderr, flush=True)
        compute_for_ever()


def compute_for_ever() -> None:
    """As a test or a simulation may: pure Python that never blocks."""
    number = 1
    while True:
        number = (number * 1103515245 + 12345) % 2147483648


if __name__ == "__main__":
    main(*sys.argv[1:])
