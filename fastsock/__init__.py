"""fastsock: an echo server and a load client for raw sockets, and numbers that can be believed."""

from fastsock.client import LoadInterrupted, load
from fastsock.endpoint import Endpoint
from fastsock.report import Latency, LoadReport, ServerStats
from fastsock.server import Server, serve

__all__ = [
    "Endpoint",
    "Latency",
    "LoadInterrupted",
    "LoadReport",
    "Server",
    "ServerStats",
    "load",
    "serve",
]

__version__ = "0.1.0"
