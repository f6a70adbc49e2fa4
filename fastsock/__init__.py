"""fastsock: an echo server and a load client for raw sockets, and numbers that can be believed.

Public names are imported when they are first used (PEP 562): a program that imports the package
for one of them does not pay for the others, and a build that is broken says so only where it is
used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastsock._version import __version__
    from fastsock.client.load import LoadInterrupted, load, load_async
    from fastsock.client.report import Latency, LoadReport
    from fastsock.endpoint import Endpoint
    from fastsock.server.server import Server, serve
    from fastsock.server.stats import ServerStats

__all__ = [
    "Endpoint",
    "Latency",
    "LoadInterrupted",
    "LoadReport",
    "Server",
    "ServerStats",
    "__version__",
    "load",
    "load_async",
    "serve",
]

_MODULES = {
    "Endpoint": "endpoint",
    "Latency": "client.report",
    "LoadInterrupted": "client.load",
    "LoadReport": "client.report",
    "Server": "server.server",
    "ServerStats": "server.stats",
    "__version__": "_version",
    "load": "client.load",
    "load_async": "client.load",
    "serve": "server.server",
}


if not TYPE_CHECKING:  # a type checker would take any name for one of this module

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
