"""One coroutine per connection: asyncio streams, with drain().

The loop of selector_loop.py, written as if each connection had a thread. Two things make it correct
that many examples lack. drain() waits until what was written has gone out: without it, a client
that does not read fills the memory. And accept() is called here, not by asyncio.start_server(),
which at the descriptor limit logs a traceback for every try, up to `backlog` of them in a row.

A stream reads ahead of its coroutine, until it holds more than twice its limit. So a connection
can hold two buffers, one read of the transport (256 KiB), and the buffer that is being written.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial

from .accepting import Acceptor
from .control import Control, Phase
from .tally import Connection, Tally

#: Connections taken in one go, so that a flood of new clients does not starve the ones that are in.
ACCEPT_BATCH = 64


def run(listener: socket.socket, control: Control, tally: Tally, buffer_size: int) -> None:
    # The standard library's loop even where a policy installs another: this is the baseline.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(serve(listener, control, tally, buffer_size))


async def serve(listener: socket.socket, control: Control, tally: Tally, buffer_size: int) -> None:
    await Streams(listener, control, tally, buffer_size).run()


async def echo(connection: Connection, tally: Tally, buffer_size: int) -> str:
    """Serves one client to its end; returns the reason of the end."""
    transport: asyncio.WriteTransport | None = None
    try:
        reader, writer = await asyncio.open_connection(sock=connection.sock, limit=buffer_size)
        transport = writer.transport
        # drain() then waits for the last byte, where by default it lets 64 KiB wait.
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
        return tally.count_error(error)
    finally:
        if transport:
            transport.abort()  # leaves the selector at once, so the descriptor may be closed


class Streams:
    def __init__(
        self, listener: socket.socket, control: Control, tally: Tally, buffer_size: int
    ) -> None:
        self._listener = listener
        self._acceptor = Acceptor(listener, tally)
        self._control = control
        self._tally = tally
        self._buffer_size = buffer_size
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[str]] = set()
        self._finished = asyncio.Event()
        self._resting: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        self._loop.add_reader(self._control.waker, self._wake)
        self._loop.add_reader(self._listener, self._accept)
        await self._finished.wait()
        self._loop.remove_reader(self._control.waker)
        self._close_listener()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _wake(self) -> None:
        self._control.clear()
        self._accept()

    def _accept(self) -> None:
        for _ in range(ACCEPT_BATCH):
            # Read before accept(): only a queue found empty after the drain began is done with.
            phase = self._control.phase
            if phase is Phase.STOPPED or self._listener.fileno() < 0:
                break
            sock = self._acceptor.accept()
            if sock is None:
                self._rest(phase)
                break
            self._start(sock)
        self._check_finished()

    def _rest(self, phase: Phase) -> None:
        if self._acceptor.pause:
            # It stays readable all the while: left registered, the loop would spin.
            self._loop.remove_reader(self._listener)
            self._resting = self._loop.call_later(self._acceptor.pause, self._resume)
        elif phase is Phase.DRAINING:
            self._close_listener()

    def _resume(self) -> None:
        self._resting = None
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)
            self._accept()

    def _close_listener(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()

    def _start(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        connection = self._tally.opened(sock)
        task = self._loop.create_task(echo(connection, self._tally, self._buffer_size))
        # Kept, because the loop itself holds tasks by weak references only.
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, connection))

    def _done(self, connection: Connection, task: asyncio.Task[str]) -> None:
        # Here and not in the coroutine, whose body never runs if it is cancelled before it starts.
        self._tasks.remove(task)
        reason = "error"
        try:
            reason = "stopped" if task.cancelled() else task.result()
        finally:
            self._tally.closed(connection, reason)
            if self._resting:  # a descriptor has come free
                self._resting.cancel()
                self._resume()
            self._check_finished()

    def _check_finished(self) -> None:
        if self._control.phase is Phase.STOPPED or (
            self._listener.fileno() < 0 and not self._tasks
        ):
            self._finished.set()
