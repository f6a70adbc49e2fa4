"""One coroutine per connection: asyncio streams, with drain().

The loop of selector_loop.py, written as if each connection had a thread. It does two things that
many examples lack. drain() waits until everything written was sent: without it, a client that does
not read fills the memory. And accept() is called here, not by asyncio.start_server(), which at the
descriptor limit logs a traceback for every try, up to `backlog` of them in a row.

A stream reads ahead of its coroutine, until it holds more than twice its limit. So a connection
can hold two buffers, one read of the transport (256 KiB), and the buffer that is being written.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections.abc import Generator
from functools import partial

from .acceptor import Acceptor
from .control import Control, Phase
from .counters import Connection, Counters
from .selector_loop import open_selector
from .transient import call

#: Connections accepted at a time, so that many new clients do not delay the connected ones.
ACCEPT_BATCH = 64


def run(
    listener: socket.socket, control: Control, counters: Counters, buffer_size: int
) -> Generator[None, None, None]:
    async def serve() -> None:
        await AsyncioServer(listener, control, counters, buffer_size).run()

    loop = open_loop()
    try:
        yield
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())
    finally:
        loop.close()


def open_loop() -> asyncio.AbstractEventLoop:
    """Return the standard library's loop, even if a policy sets another: this is the baseline."""
    selector = open_selector()
    try:
        with call("socketpair"):
            return EventLoop(selector)
    except OSError:
        selector.close()
        raise


class EventLoop(asyncio.SelectorEventLoop):
    """One whose making may fail without a traceback from its finalizer on stderr."""

    _made = False

    def __init__(self, selector: selectors.BaseSelector) -> None:
        super().__init__(selector)
        self._made = True

    def is_closed(self) -> bool:
        return not self._made or super().is_closed()


async def echo(connection: Connection, counters: Counters, buffer_size: int) -> str:
    """Serve one client to its end; return the reason of the end."""
    transport: asyncio.WriteTransport | None = None
    try:
        reader, writer = await asyncio.open_connection(sock=connection.sock, limit=buffer_size)
        transport = writer.transport
        # Then drain() waits for the last byte. By default it leaves up to 64 KiB unsent.
        transport.set_write_buffer_limits(high=0)
        while data := await reader.read(buffer_size):
            connection.bytes_in += len(data)
            writer.write(data)
            await writer.drain()
            connection.bytes_out += len(data)
        writer.close()
        await writer.wait_closed()
        return "eof"
    except OSError as error:
        return counters.count_error(error)
    finally:
        if transport:
            transport.abort()  # leaves the selector at once, so that the descriptor can be closed


class AsyncioServer:
    def __init__(
        self, listener: socket.socket, control: Control, counters: Counters, buffer_size: int
    ) -> None:
        self._listener = listener
        self._acceptor = Acceptor(listener, counters)
        self._control = control
        self._counters = counters
        self._buffer_size = buffer_size
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[str]] = set()
        self._finished = asyncio.Event()
        self._pause_timer: asyncio.TimerHandle | None = None
        self._failure: OSError | None = None

    async def run(self) -> None:
        self._loop.add_reader(self._control.reader, self._wake)
        self._loop.add_reader(self._listener, self._accept)
        await self._finished.wait()
        self._loop.remove_reader(self._control.reader)
        self._close_listener()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._failure:
            raise self._failure

    def _wake(self) -> None:
        self._control.clear()
        self._accept()

    def _accept(self) -> None:
        for _ in range(ACCEPT_BATCH):
            # Read before accept(): a drain ends only if the queue was empty after it began.
            phase = self._control.phase
            if phase is Phase.STOPPED or self._listener.fileno() < 0:
                break
            try:
                sock = self._acceptor.accept()
            except OSError as error:  # the loop would log it and go on
                self._failure = error
                self._finished.set()
                return
            if sock is None:
                if self._acceptor.pause:
                    self._pause()
                elif phase is Phase.DRAINING:
                    self._close_listener()
                break
            self._start(sock)
        self._check_finished()

    def _pause(self) -> None:
        # The listener stays readable: if it were still watched, the loop would spin.
        self._loop.remove_reader(self._listener)
        self._pause_timer = self._loop.call_later(self._acceptor.pause, self._resume)

    def _resume(self) -> None:
        self._pause_timer = None
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)
            self._accept()

    def _close_listener(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()

    def _start(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        connection = Connection(sock)
        self._counters.add(connection)
        task = self._loop.create_task(echo(connection, self._counters, self._buffer_size))
        # Kept here: the loop holds only weak references to its tasks.
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, connection))

    def _done(self, connection: Connection, task: asyncio.Task[str]) -> None:
        # Not in the coroutine: if it is cancelled before it starts, its body never runs.
        self._tasks.remove(task)
        reason = "error"
        try:
            reason = "stopped" if task.cancelled() else task.result()
        finally:
            self._counters.close(connection, reason)
            if self._pause_timer:  # a descriptor is free now
                self._pause_timer.cancel()
                self._resume()
            self._check_finished()

    def _check_finished(self) -> None:
        if self._control.phase is Phase.STOPPED or (
            self._listener.fileno() < 0 and not self._tasks
        ):
            self._finished.set()
