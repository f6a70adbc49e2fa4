"""The same echo server and load client in pure standard-library Python.

Four classic shapes of a server, one a file, and a one-threaded client. It is the baseline that the
benchmarks compare with, and plain enough to learn from: begin with serial.py and blocking.py.
"""

from __future__ import annotations

from .client import load
from .server import SHAPES, Server, serve

__all__ = ["SHAPES", "Server", "load", "serve"]
