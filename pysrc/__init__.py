"""The same echo server and load client in pure standard-library Python.

Four classic engines for streams, one a file, one for datagrams, and a one-threaded client for both.
It is the baseline that the benchmarks compare with, and plain enough to learn from: begin with
serial.py and blocking.py, and for datagrams with datagrams.py.
"""

from __future__ import annotations

from .client import load
from .server import ENGINES, Server, serve

__all__ = ["ENGINES", "Server", "load", "serve"]
