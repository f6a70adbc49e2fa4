"""The server: binds in the caller, runs one engine in a background thread, and stops it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from types import TracebackType
from typing import Any, Protocol

from ..endpoint import DEFAULT_ENDPOINT, Endpoint
from ..server.inherited import endpoint_of
from ..server.stats import ServerStats
from ..server.unix_file import SocketFile
from . import asyncio_streams, datagrams, selector_loop, serial, threads
from .bell import Bell
from .control import Control, Phase
from .listener import BorrowedListener, borrow, open_socket
from .options import check_int, check_mode, check_number
from .signals import signals_to, wait_for_end
from .tally import Tally


class Engine(Protocol):
    """What every engine is: serves until `control` says otherwise, and leaves nothing behind."""

    def __call__(
        self, listener: socket.socket, control: Control, tally: Tally, buffer_size: int
    ) -> None: ...


ENGINES: dict[str, Engine] = {
    "serial": serial.run,
    "threads": threads.run,
    "selectors": selector_loop.run,
    "asyncio": asyncio_streams.run,
}


class Server:
    """An echo server in a background thread.

        with Server("tcp://127.0.0.1:0") as server:
            socket.create_connection((server.endpoint.host, server.endpoint.port))

    Args:
        endpoint: where to listen: tcp, unix, udp or unixgram; tcp://127.0.0.1:7007 if there is
            none, nor any `fds`. Port 0 picks a free one.
        engine: one of ENGINES, for streams; datagrams have one of their own.
        backlog: connections that wait for accept(), at most net.core.somaxconn.
        unix_mode: rights of a Unix socket's file, whatever the umask is; an abstract name has none.
        fds: in place of an endpoint, the descriptor of one bound socket that somebody else made.
            It stays the caller's, and at a stop its queue is left to whoever holds it.
        buffer_size: bytes received at a time, and the bytes kept for a client that does not read.
        drain_timeout: seconds that stop() and the first signal leave to the clients to finish.

    Raises ValueError or TypeError for a bad option. A server runs once.
    """

    def __init__(
        self,
        endpoint: Endpoint | str | tuple[Any, ...] | None = None,
        *,
        engine: str = "threads",
        backlog: int = 4096,
        unix_mode: int = 0o600,
        fds: Iterable[int] = (),
        buffer_size: int = 65536,
        drain_timeout: float = 0.0,
    ) -> None:
        if not isinstance(engine, str):
            raise TypeError(f"engine {engine!r} is {type(engine).__name__}; expected a str")
        if engine not in ENGINES:
            raise ValueError(f"engine {engine!r} is unknown; expected one of {', '.join(ENGINES)}")
        self._fds = tuple(fds)
        if len(self._fds) > (endpoint is None):
            raise ValueError("expected one endpoint, or one descriptor in its place")
        if self._fds:
            endpoint = endpoint_of(self._fds[0])
        self._endpoint = Endpoint.parse(endpoint or DEFAULT_ENDPOINT)
        self._engine = engine
        self._backlog = check_int("backlog", backlog)
        self._unix_mode = check_mode("unix_mode", unix_mode)
        self._buffer_size = check_int("buffer_size", buffer_size)
        self._drain_timeout = check_number("drain_timeout", drain_timeout, zero=True)
        self._tally = Tally()
        self._control: Control | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._ended = False
        # Makes a stop() during start-up wait for it. Reentrant, because a signal handler may call
        # stop() while its thread is in start().
        self._lock = threading.RLock()
        self._bells: list[Bell] = []  # of those who wait in serve_forever()

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens, with the real port. RuntimeError before start()."""
        if not self._thread:
            raise RuntimeError("this server has not been started")
        return self._endpoint

    def start(self) -> None:
        """Listens and serves in the background. When it returns, clients can connect.

        Raises OSError (the subclass says which: PermissionError, ...) naming the step that failed,
        and RuntimeError if the server was started or stopped before.
        """
        with self._lock:
            if self._thread or self._stopped:
                raise RuntimeError("a server runs once only; make a new one")
            listener, file = self._open()
            control = Control()
            thread = threading.Thread(
                target=self._run, args=(listener, file, control), name="fastsock.pure", daemon=True
            )
            if isinstance(listener, BorrowedListener):
                listener.control = control
            if not self._endpoint.is_unix:
                self._endpoint = self._endpoint.with_port(listener.getsockname()[1])
            try:
                thread.start()
            except BaseException:
                control.close()
                listener.close()
                if file:
                    file.remove()
                raise
            self._control, self._thread = control, thread

    def _open(self) -> tuple[socket.socket, SocketFile | None]:
        if self._fds:
            return borrow(self._fds[0]), None
        return open_socket(self._endpoint, self._backlog, self._unix_mode)

    def _run(self, listener: socket.socket, file: SocketFile | None, control: Control) -> None:
        try:
            with listener:
                run = ENGINES[self._engine] if self._endpoint.is_stream else datagrams.run
                run(listener, control, self._tally, self._buffer_size)
        finally:
            if file:
                file.remove()
            self._tally.shut_down()  # an engine that crashed must not leave its clients waiting
            with self._lock:
                self._ended = True
                for bell in self._bells:
                    bell.ring()

    def stop(self, drain: float | None = None) -> None:
        """Stops serving; returns when the port is free and no thread is left.

        With `drain` (seconds; None means `drain_timeout`), clients that are connected or wait to be
        accepted are served until they close, but no longer than that; a second stop() can end it
        sooner. May be called from any thread, any number of times, and before start(), which then
        is refused.
        """
        seconds = self._drain_timeout if drain is None else check_number("drain", drain, zero=True)
        with self._lock:
            self._stopped = True
            control, thread = self._control, self._thread
        if control is None or thread is None:
            return
        if seconds:
            control.advance(Phase.DRAINING)
            thread.join(seconds)
        control.advance(Phase.STOPPED)
        thread.join()
        control.close()

    def serve_forever(self, *, ready: Callable[[Server], object] | None = None) -> ServerStats:
        """Serves until stop() is called or, in the main thread, Ctrl-C or SIGTERM comes.

        Starts the server if need be, and calls `ready` once it can be connected to. The first
        signal drains for `drain_timeout` seconds, the second ends that. Outside the main thread
        signals are left alone. Returns the counters; raises what start() raises.
        """
        with closing(Bell()) as bell, signals_to(bell):
            with self._lock:
                if not self._thread:
                    self.start()
            try:
                if ready:
                    ready(self)
                with self._rung_at_end(bell):
                    self._serve_until_rung(bell)
            finally:
                self.stop(0)
        return self.stats()

    def _serve_until_rung(self, bell: Bell) -> None:
        wait_for_end(bell, None)
        if self._control and self._drain_timeout and not self._ended:
            self._control.advance(Phase.DRAINING)
            wait_for_end(bell, self._drain_timeout)

    @contextmanager
    def _rung_at_end(self, bell: Bell) -> Iterator[None]:
        with self._lock:
            self._bells.append(bell)
            if self._ended:
                bell.ring()
        try:
            yield
        finally:
            with self._lock:
                self._bells.remove(bell)

    def stats(self) -> ServerStats:
        """The counters since start(), at any time and from any thread."""
        return self._tally.stats(f"pure-{self._engine}", str(self._endpoint))

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def serve(
    endpoint: Endpoint | str | tuple[Any, ...] | None = None,
    *,
    ready: Callable[[Server], object] | None = None,
    **options: Any,
) -> ServerStats:
    """Serves until Ctrl-C or SIGTERM, and returns what was counted.

    Takes the options of Server; see there and Server.serve_forever().
    """
    return Server(endpoint, **options).serve_forever(ready=ready)
