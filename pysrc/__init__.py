"""The same echo server and load client in pure standard-library Python.

Four classic shapes of a server, one a file, one for datagrams, and a one-threaded client for both.
It is the baseline that the benchmarks compare with, and plain enough to learn from: begin with
serial.py and blocking.py, and for datagrams with datagrams.py.
"""

from __future__ import annotations

from .client import load
from .server import SHAPES, Server, serve

__all__ = ["SHAPES", "Server", "load", "serve"]
