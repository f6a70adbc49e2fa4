"""The same echo server and load client in pure standard-library Python.

To learn from it, begin with nine_steps.py, a complete server in one file. Then come four classic
engines for streams, one a file: see serial.py and blocking.py first. datagrams.py is the engine for
datagrams. The client is load_streams.py and load_datagrams.py. The benchmarks compare the native
server with this one.
"""

from __future__ import annotations

from .client import load
from .server import ENGINES, Server, serve

__all__ = ["ENGINES", "Server", "load", "serve"]
