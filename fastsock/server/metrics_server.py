"""The HTTP server that Prometheus scrapes, on TCP or on a Unix socket.

No scrape can hold up the end of the program: every thread is a daemon, and `stop()` ends the
connections. A client that sends nothing, or reads nothing, has `TIMEOUT` seconds.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import threading
import time
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, MetricsHandler, ProcessCollector

from fastsock.interruptible import start_thread
from fastsock.server.hints import hinted
from fastsock.server.metrics import ServerCollector
from fastsock.server.unix_file import SocketFile, bind_unix

if TYPE_CHECKING:
    from fastsock.endpoint import Endpoint, SocketAddress
    from fastsock.server.server import Server

TIMEOUT = 5.0  # seconds that a client has to send its request, and then to take the answer
MOST = 8  # scrapes at a time; more wait in the backlog
_LONGEST = 16384  # bytes of a request
_BACKLOG = 128
_PAUSE = 0.1  # seconds, while there are no descriptors to accept with
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_LAST_SCRAPES = 0.2  # seconds that a stop waits for their threads
_UNTIL_WOKEN = 3600.0  # seconds


class MetricsServer:
    """Serves the counters of `server`, and figures of this process, on an endpoint.

    A host name is bound at its first address. A Unix path gets the rights `mode`; a stale socket
    there is replaced.

    Raises:
        OSError: the endpoint cannot be bound; the text names the step and the endpoint.

    """

    def __init__(self, endpoint: Endpoint, server: Server, mode: int = 0o600) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(ServerCollector(server))
        ProcessCollector(registry=registry)
        handler = type("Handler", (_Handler,), {"registry": registry})
        address = endpoint.resolve()
        self._file: SocketFile | None = None
        with hinted(endpoint):
            if endpoint.is_unix:
                self._http, self._file = bind_unix(
                    endpoint, mode, lambda: _Http(address, endpoint, handler, mode), lambda: False
                )
            else:
                self._http = _Http(address, endpoint, handler)
                endpoint = endpoint.with_port(self._http.socket.getsockname()[1])
        self.endpoint = endpoint
        self._thread: threading.Thread | None = None

    def __str__(self) -> str:
        """What a client asks for: a URL, or the endpoint of a Unix socket."""
        if self.endpoint.is_unix:
            return str(self.endpoint)
        return f"http://{str(self.endpoint).partition('://')[2].partition('?')[0]}/metrics"

    def start(self) -> None:
        """Answer from now on, in a thread of its own.

        Raises:
            RuntimeError: no thread can be started.

        """
        self._thread = start_thread(
            lambda: self._http.serve_forever(_UNTIL_WOKEN), "fastsock-metrics"
        )

    def stop(self) -> None:
        """End every scrape, close the socket and remove its file."""
        if self._file is not None:
            self._file.remove()
        self._http.stop(running=self._thread is not None)


class _Http(ThreadingMixIn, TCPServer):
    """Not http.server's HTTPServer, which looks its own name up by DNS."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = _BACKLOG

    def __init__(
        self,
        address: SocketAddress,
        endpoint: Endpoint,
        handler: type[MetricsHandler],
        mode: int = 0,
    ) -> None:
        self.address_family = address.family
        self._mode = mode
        self._dual_stack = bool(endpoint.dual_stack)
        self._changed = threading.Condition()
        self._scrapes: set[Any] = set()
        self._ended = False
        try:
            super().__init__(address.name, handler)  # type: ignore[arg-type]
        except OSError as error:
            number = error.errno or errno.EIO
            raise OSError(number, f"bind {endpoint}: {os.strerror(number)}") from None

    def server_bind(self) -> None:
        if self.address_family == socket.AF_UNIX:
            os.fchmod(self.fileno(), self._mode)  # before bind(2), see bind_unix()
        elif self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not self._dual_stack)
        super().server_bind()

    def close(self) -> None:
        self.server_close()

    def stop(self, *, running: bool) -> None:
        with self._changed:
            self._ended = True
            for request in self._scrapes:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)
            self._changed.notify_all()
        if running:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)  # ends the wait for the next client
            self.shutdown()
        self.server_close()
        with self._changed:
            self._changed.wait_for(lambda: not self._scrapes, _LAST_SCRAPES)

    def get_request(self) -> Any:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in _EXHAUSTED:  # the listener stays readable: do not spin
                with self._changed:
                    self._changed.wait_for(lambda: self._ended, _PAUSE)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._scrapes) < MOST)
            self._scrapes.add(request)
        if self._ended:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._changed:
            self._scrapes.discard(request)
            self._changed.notify_all()
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away, and of a thread that could not be started."""


class _Handler(MetricsHandler):
    timeout = TIMEOUT  # of each recv() and sendall()

    def setup(self) -> None:
        super().setup()
        if self.request.family != socket.AF_UNIX:
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.rfile.close()  # else the socket stays open as long as it
        self.rfile = io.BytesIO(_request(self.connection))

    def do_GET(self) -> None:
        """Answer in one piece with its length: without it, what a stop cuts off looks whole."""
        connection, self.wfile = self.wfile, io.BytesIO()
        super().do_GET()
        head, end, body = self.wfile.getvalue().partition(b"\r\n\r\n")
        self.wfile = connection
        connection.write(b"%b\r\nContent-Length: %d%b%b" % (head, len(body), end, body))


def _request(sock: socket.socket) -> bytes:
    """Receive the head of a request; nothing if it is not there in time, or too long.

    One time limit for all of it: with one for each recv() a client that sends a byte now and then
    would be served for ever.
    """
    data = b""
    deadline = time.monotonic() + TIMEOUT
    while b"\r\n\r\n" not in data and b"\n\n" not in data:
        left = deadline - time.monotonic()
        if left <= 0 or len(data) > _LONGEST:
            return b""
        sock.settimeout(left)
        part = sock.recv(4096)
        if not part:
            return b""
        data += part
    sock.settimeout(TIMEOUT)
    return data
