"""The server: bind in the caller, run one engine in a background thread, and stop it."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from types import TracebackType
from typing import Any, Protocol

from .. import line_writer
from ..endpoint import DEFAULT_ENDPOINT, Endpoint
from ..interruptible import CancelledError
from ..server.hints import hinted
from ..server.inherited import endpoint_of
from ..server.stats import ServerStats
from ..server.unix_file import SocketFile
from . import asyncio_streams, datagrams, selector_loop, serial, threads
from .control import Control, Phase
from .counters import Counters
from .listener import InheritedListener, duplicate, open_socket, step
from .options import check_int, check_mode, check_number
from .signals import signals_to, wait_for_end
from .waker import Waker

log = logging.getLogger("fastsock.pure")

EngineRun = Generator[None, None, None]


class Engine(Protocol):
    """A generator: make what is needed, yield once, and serve until `control` ends it.

    It leaves no socket and no thread behind, also if it is closed in place of serving.
    """

    def __call__(
        self, listener: socket.socket, control: Control, counters: Counters, buffer_size: int
    ) -> EngineRun: ...


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
        endpoint: where to listen: tcp, unix, udp or unixgram; by default tcp://127.0.0.1:7007,
            unless `fds` is given. Port 0 picks a free one.
        engine: one of ENGINES, for streams; datagrams have an engine of their own.
        backlog: connections that wait for accept(), at most net.core.somaxconn.
        unix_mode: rights of a Unix socket's file, whatever the umask; an abstract name has no file.
        fds: in place of an endpoint, the descriptor of one inherited, bound socket. The caller
            keeps it, and at a stop the connections in its queue are left to its other holders.
        buffer_size: bytes received at a time, and the bytes kept for a client that does not read.
        drain_timeout: seconds that clients have to finish after stop() or the first signal.

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
        self._counters = Counters()
        self._control: Control | None = None
        self._thread: threading.Thread | None = None
        self._file: SocketFile | None = None
        self._stopped = False
        self._ended = False
        self._failure: OSError | None = None
        self._foreground = False  # served by serve_forever()
        # A stop() during start() waits for it. Reentrant: a signal handler may call stop() while
        # its thread is in start().
        self._lock = threading.RLock()
        self._wakers: list[Waker] = []  # of the threads in serve_forever()
        #: The signal that ended serve_forever(), if one did; SIGINT if that was one of several.
        self.stopped_by: signal.Signals | None = None

    @property
    def endpoint(self) -> Endpoint:
        """Return where it listens, with the real port.

        Raises RuntimeError before start().
        """
        if not self._thread:
            raise RuntimeError("this server has not been started")
        return self._endpoint

    def start(self) -> None:
        """Listen, and serve in the background. When it returns, clients can connect.

        Raises OSError (or a subclass, such as PermissionError) that names the step that failed, and
        RuntimeError if the server was started or stopped before, or (CancelledError) stopped while
        a host name was looked up or a lock was waited for.
        """
        self._start(lambda: self._stopped)

    def _start(self, cancelled: Callable[[], bool]) -> None:
        with self._lock:
            if self._thread or self._stopped:
                raise RuntimeError("a server runs once only; make a new one")
            listener, self._file = self._open(cancelled)
            try:
                with hinted(self._endpoint), step("socketpair", self._endpoint):
                    control = Control()
                if isinstance(listener, InheritedListener):
                    listener.control = control
                if not self._endpoint.is_unix:
                    self._endpoint = self._endpoint.with_port(listener.getsockname()[1])
                try:
                    thread = self._start_engine(listener, control)
                except BaseException:
                    control.close()
                    raise
            except BaseException:
                self._remove_file()
                listener.close()
                raise
            self._control, self._thread = control, thread

    def _start_engine(self, listener: socket.socket, control: Control) -> threading.Thread:
        run = ENGINES[self._engine] if self._endpoint.is_stream else datagrams.run
        engine = run(listener, control, self._counters, self._buffer_size)
        with hinted(self._endpoint):
            try:
                next(engine)  # it makes what it needs
            except OSError as error:
                raise self._where(error) from None
        thread = threading.Thread(
            target=self._run, args=(listener, engine), name="fastsock.pure", daemon=True
        )
        try:
            thread.start()
        except BaseException:
            engine.close()
            raise
        return thread

    def _where(self, error: OSError) -> OSError:
        """Put the endpoint into the text of an engine's error, which begins with the call."""
        *call, text = (error.strerror or str(error)).split(": ", 1)
        return OSError(error.errno, f"{' '.join((*call, str(self._endpoint)))}: {text}")

    def _open(self, cancelled: Callable[[], bool]) -> tuple[socket.socket, SocketFile | None]:
        if self._fds:
            return duplicate(self._fds[0]), None
        return open_socket(self._endpoint, self._backlog, self._unix_mode, cancelled)

    def _remove_file(self) -> None:
        with self._lock:  # the file is gone when this returns, whichever thread removes it
            if self._file:
                self._file.remove()

    def _run(self, listener: socket.socket, engine: EngineRun) -> None:
        try:
            with listener:
                next(engine, None)
        except OSError as error:  # that cannot pass
            self._failure = self._where(error)
            if not self._foreground:  # serve_forever() raises it
                line_writer.log(log, logging.ERROR, str(self._failure.strerror))
        finally:
            self._remove_file()  # after a crash of the engine
            self._counters.shut_down()  # after a crash of the engine, clients must not wait
            with self._lock:
                self._ended = True
                for waker in self._wakers:
                    waker.wake()

    def stop(self, drain: float | None = None) -> None:
        """Stop serving; return when the port is free and no thread is left.

        For `drain` seconds (None means `drain_timeout`), clients that are connected or wait to be
        accepted are served until they close; a second stop() can end that sooner. May be called
        from any thread, any number of times, and before start(), which then fails.
        """
        seconds = self._drain_timeout if drain is None else check_number("drain", drain, zero=True)
        self._stopped = True  # before the lock: start() may hold it while it looks up a name
        with self._lock:
            control, thread = self._control, self._thread
        if control is None or thread is None:
            return
        self._remove_file()  # first: no client should find a path that refuses
        if seconds:
            control.advance(Phase.DRAINING)
            thread.join(seconds)
        control.advance(Phase.STOPPED)
        thread.join()
        control.close()

    def serve_forever(self, *, ready: Callable[[Server], object] | None = None) -> ServerStats:
        """Serve until stop() is called or, in the main thread, Ctrl-C, SIGTERM or SIGHUP comes.

        Start the server if it is not started, and call `ready` when clients can connect. The first
        signal drains for `drain_timeout` seconds, the second ends the drain. Other threads do not
        handle signals. Return the counters; raise what start() raises, or the OSError that ended
        the service.
        """
        with closing(Waker()) as waker, signals_to(waker, self._on_signal):
            self._foreground = True
            try:
                with self._lock:
                    if not self._thread:
                        self._start(lambda: self._stopped or self.stopped_by is not None)
            except CancelledError:  # stopped before it was bound
                self.stop(0)
                return self.stats()
            try:
                if ready:
                    ready(self)
                with self._woken_at_end(waker):
                    self._wait_and_drain(waker)
            finally:
                self.stop(0)
        if self._failure:
            raise self._failure
        return self.stats()

    def _on_signal(self, number: signal.Signals) -> None:  # a handler must take no lock
        if self.stopped_by is not signal.SIGINT:
            self.stopped_by = number

    def _wait_and_drain(self, waker: Waker) -> None:
        wait_for_end(waker, None)
        self._remove_file()  # as in stop()
        if self._control and self._drain_timeout and not self._ended:
            self._control.advance(Phase.DRAINING)
            wait_for_end(waker, self._drain_timeout)

    @contextmanager
    def _woken_at_end(self, waker: Waker) -> Iterator[None]:
        with self._lock:
            self._wakers.append(waker)
            if self._ended:
                waker.wake()
        try:
            yield
        finally:
            with self._lock:
                self._wakers.remove(waker)

    def stats(self) -> ServerStats:
        """Return the counters since start(), at any time and from any thread."""
        return self._counters.stats(f"pure-{self._engine}", str(self._endpoint))

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
    """Serve until Ctrl-C, SIGTERM or SIGHUP, and return the counters.

    The options are those of Server; see also Server.serve_forever().
    """
    return Server(endpoint, **options).serve_forever(ready=ready)
