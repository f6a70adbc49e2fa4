"""The same echo server and load client in pure standard-library Python.

Four classic engines for streams, one a file, one engine for datagrams, and a one-threaded client
for both. The benchmarks compare the native server with it. To learn from it, begin with
nine_steps.py, a complete server in one file; then serial.py and blocking.py, and for datagrams
datagrams.py.
"""

from __future__ import annotations

from .client import load
from .server import ENGINES, Server, serve

__all__ = ["ENGINES", "Server", "load", "serve"]
