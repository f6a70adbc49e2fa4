"""Server and serve(): options in, native threads and signals, counters out."""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fastsock._native.server.datagram import DatagramWorker
from fastsock._native.server.datagram_socket import (
    DatagramSocket,
    InheritedDatagramSocket,
    UnixDatagramSocket,
)
from fastsock._native.server.listener import InheritedListener, Listener, UnixListener
from fastsock.endpoint import DEFAULT_ENDPOINT, Endpoint, EndpointLike
from fastsock.options import check_number, check_ranges
from fastsock.server import engines, inherited
from fastsock.server.options import DRAIN_TIMES, ServerOptions, check_cpus, check_fds
from fastsock.server.signals import stop_signals
from fastsock.server.stats import CLOSE_REASONS, DROPPED, ServerStats
from fastsock.server.unix_file import SocketFile, bind_unix

if TYPE_CHECKING:
    from types import TracebackType

    from fastsock._native.server.listener import BoundSocket
    from fastsock._native.server.worker import Worker

logger = logging.getLogger("fastsock")

_NEVER = 2**63 - 1  # ns on CLOCK_MONOTONIC

Hook = Callable[["Server"], object]


class Server:
    """An echo server in background native threads.

    It echoes every byte of every connection, and every datagram with one datagram (RFC 862), from
    `start()` to `stop()`, whatever the Python threads do. Every method may be called from any
    thread.

    A stream is all bytes but the urgent ones (MSG_OOB), which TCP delivers apart from it (tcp(7)):
    those are not sent back.

    Args:
        endpoints: where to listen, as URL, ``(host, port)`` or Endpoint; ``tcp://127.0.0.1:7007``
            if there is none, nor any `fds`. Port 0 picks a free port. A stale socket at a ``unix``
            or ``unixgram`` path is replaced, and anything else there is EADDRINUSE.
        engine: "auto" or the name of one, see ``fastsock info``. One asked for by name is used or
            is an error. For streams; datagrams have one engine of their own.
        backlog: connections that may wait to be accepted, listen(2).
        unix_mode: rights of a Unix socket's file, of which a client needs to write; exact whatever
            the umask is. An abstract name (``unix://@name``) has none: every local user of the
            network namespace may connect.
        reuse_port: let other sockets of this user bind the same port, SO_REUSEPORT.
        dual_stack: take IPv4 on IPv6 endpoints too; an endpoint's own ``?dual_stack=`` wins.
        nodelay: TCP_NODELAY, without which small answers wait for acknowledgements.
        rcvbuf: SO_RCVBUF in bytes, tcp and udp only; 0 leaves the kernel's autotuning on.
        sndbuf: SO_SNDBUF in bytes, not for ``unix``; 0 as above. Of ``unixgram`` it holds all
            answers that no client has received yet; when it is full, answers are dropped.
        fds: descriptors of bound sockets to serve on besides, made by somebody else, such as
            ``socket.create_server(...).fileno()``: listening stream sockets, or datagram ones. They
            stay the caller's: `start()` makes duplicates, and only those are closed. A listener
            becomes non-blocking, for the caller too, and gets `nodelay`; a Unix socket takes no
            open files any more (SO_PASSRIGHTS, where there is that). Each has one worker. `stop()`
            leaves what waits in the queue to whoever holds the socket, so that a restart loses no
            client.
        workers: native threads per tcp endpoint, each with its own listener (SO_REUSEPORT); a
            Unix endpoint has one, for want of that option, and a udp endpoint has one too.
        cpus: the CPUs that the workers run on, in turn; None is any.
        buffer_size: bytes per receive, and the most that is kept for a client that does not read.
            Of a big stream up to four times as many are taken in at once, while its socket has
            room for them to go back at once; not by the engines threads and fork.
        busy_poll: microseconds, at most, for which a worker that has nothing to do asks the kernel
            again and again before it blocks; "auto" is 200. It answers few connections sooner, for
            the price of CPU time, and only while waits are shorter than that and nobody else wants
            the CPU, so an idle server blocks. Not for the engines threads and fork, whose
            connections wait one by one. 0 is never.
        max_connections: at so many open ones no more are accepted, and new ones wait in the
            backlog until one closes; shared out evenly over the workers. 0 is no limit.
        idle_timeout: seconds after which a connection that neither sent nor took a byte is closed;
            0 is never, as RFC 862 has it. Without it a client that vanished without a word (power
            cut, dead link) may keep its place for ever, as no TCP keepalive is sent.
        allow: address ranges such as "10.0.0.0/8" or "::1/128"; who comes from elsewhere is closed
            at once and counted. Empty allows everybody.
        loop_guard: leave datagrams unanswered that may be a server's answers: from ports below
            1024, from the own port, from or to multicast, broadcast and unspecified addresses,
            and from other fastsock servers. Without it one forged datagram makes two servers
            answer each other for ever (CVE-2024-2169). On ``unixgram``, where no address can be
            forged, those from the own one.
        drain_timeout: seconds that `stop()` and the first signal leave to the clients to finish.
        service: "echo" (RFC 862), "discard" (RFC 863) or "chargen" (RFC 864).
        close_on: an echo ends when the client sends a line equal to this, ended by LF or CR LF;
            it is echoed, and then the connection is closed. Empty is never.

    `max_connections`, `idle_timeout`, `allow`, `service` and `close_on` are about streams, and do
    not go with a udp or unixgram endpoint.

    A Unix datagram can be answered only if its sender is bound to an address of its own, and, if
    that is a file, one that this process may write to.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option has the wrong value; the message says what is allowed.
        OSError: one of `fds` is not an open socket.

    """

    def __init__(
        self,
        *endpoints: EndpointLike,
        engine: str = "auto",
        # sockets
        backlog: int = 4096,
        unix_mode: int = 0o600,
        reuse_port: bool = False,
        dual_stack: bool = False,
        nodelay: bool = True,
        rcvbuf: int = 0,
        sndbuf: int = 0,
        fds: Iterable[int] = (),
        # engine
        workers: int = 1,
        cpus: Sequence[int] | None = None,
        buffer_size: int = 65536,
        busy_poll: int | str = 0,
        # limits
        max_connections: int = 0,
        idle_timeout: float = 0.0,
        allow: Iterable[str] = (),
        loop_guard: bool = True,
        drain_timeout: float = 0.0,
        # service
        service: str = "echo",
        close_on: bytes = b"",
    ) -> None:
        self._fds = check_fds(fds)
        default = () if self._fds else (DEFAULT_ENDPOINT,)
        self._asked = tuple(Endpoint.parse(endpoint) for endpoint in endpoints or default)
        self.engine = engines.choose(engine)
        self._engine_reason = engines.reason(engine)
        self._options = ServerOptions(
            backlog=backlog,
            unix_mode=unix_mode,
            reuse_port=reuse_port,
            dual_stack=dual_stack,
            nodelay=nodelay,
            rcvbuf=rcvbuf,
            sndbuf=sndbuf,
            workers=workers,
            cpus=check_cpus(cpus),
            buffer_size=buffer_size,
            busy_poll=engines.busy_poll_us(busy_poll, self.engine) / 1e6,
            max_connections=max_connections,
            idle_timeout=idle_timeout,
            allow=check_ranges("allow", allow),
            loop_guard=loop_guard,
            drain_timeout=drain_timeout,
            service=service,
            close_on=close_on,
        )
        borrowed = [inherited.endpoint_of(fd) for fd in self._fds]
        self._options.check_endpoints(self._asked, borrowed)
        #: Native threads per tcp endpoint.
        self.workers = workers
        self._lock = threading.RLock()  # start() and the end of stop(); never taken by a handler
        self._state = "new"  # "running", then "stopped"
        self._stop_at = _NEVER
        self._workers: tuple[Worker, ...] = ()
        self._bound: tuple[Endpoint, ...] = ()
        self._files: list[SocketFile] = []
        self._last_counters: list[dict[str, Any]] = []
        self._pid = os.getpid()
        #: The signal that ended serve_forever(), if one did.
        self.stopped_by: signal.Signals | None = None

    def start(self, *, bound: Hook | None = None) -> None:
        """Bind every endpoint and serve in the background.

        `bound` is called between the two, before there is any thread or ring: where a server that
        began as root gives its rights up. What it raises ends the start.

        Raises:
            OSError: a step failed; the text names the step and the endpoint. Nothing stays bound.
            ValueError: one of `fds` is no longer what it was.
            RuntimeError: started before, stopped before, or this process is a fork.

        """
        self._check_process()
        with self._lock:
            if self._state != "new":
                raise RuntimeError(f"this server is {self._state}; make a new Server")
            listeners: list[BoundSocket] = []
            try:
                served = [self._listen(endpoint, listeners) for endpoint in self._asked]
                served += [self._inherit(fd, listeners) for fd in self._fds]
                self._bound = tuple(served)
                if bound is not None:
                    bound(self)
                self._workers = self._start_workers(listeners)
            except BaseException:
                self._bound = ()
                for listener in listeners:
                    listener.close()  # not when the exception is forgotten, which may be late
                self._remove_files()
                raise
            self._state = "running"
            _running.add(self)
            self._request_stop(self._stop_at)  # a signal may have come meanwhile

    def stop(self, drain: float | None = None) -> None:
        """Stop serving and return when every thread has ended; the ports are free then.

        What waits to be accepted is taken in, except from `fds` and for 50 ms past the deadline at
        most, and what has arrived is sent back as far as that needs no waiting. With `drain`,
        clients are served for up to so many seconds more, until all have closed; of datagrams,
        those are answered that wait to be received. A second call, or one from another thread, can
        only bring the end closer.

        Args:
            drain: seconds; None means the option `drain_timeout`.

        """
        self._check_process()
        at = self._deadline(drain)
        self._request_stop(at)  # before the lock: whoever holds it may be draining for long
        with self._lock:
            self._request_stop(at)
            if self._state == "running":
                self._remove_files()  # first: no client should find a path that refuses
                _wait_readable({worker.done_fd for worker in self._workers})
                self._finish()
            self._state = "stopped"

    def serve_forever(self, *, bound: Hook | None = None, ready: Hook | None = None) -> ServerStats:
        """Serve until `stop()` is called or, in the main thread, Ctrl-C or SIGTERM comes.

        The first signal drains for `drain_timeout` seconds, the second stops at once. Outside the
        main thread signals are left alone. `bound` is that of `start()`; `ready` is called once the
        endpoints can be connected to. Returns the counters at the end.

        Raises:
            OSError: as `start()`, or the listener was taken away while serving.
            RuntimeError: this server was stopped before, or this process is a fork.

        """
        self._check_process()
        with stop_signals(self._on_signal) as signal_fd:
            try:
                if self._state != "running":
                    self.start(bound=bound)
                if ready is not None:
                    ready(self)
                failed = self._watch(self._workers, signal_fd)
            finally:
                self.stop(0)
        if failed:
            where = ", ".join(map(str, self._bound))
            streams = any(endpoint.is_stream for endpoint in self._bound)
            step, what = ("accept", "listener") if streams else ("receive", "socket")
            hint = f" (the {what} was shut)" if failed in (errno.EINVAL, errno.EBADF) else ""
            raise OSError(failed, f"{step} {where}: {os.strerror(failed)}{hint}")
        return self.stats()

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints as bound, with their real ports; those of `fds` are the last."""
        if not self._bound:
            raise RuntimeError("this server has not been started")
        return self._bound

    @property
    def endpoint(self) -> Endpoint:
        """The first of `endpoints`."""
        return self.endpoints[0]

    def stats(self) -> ServerStats:
        """Count what has happened so far, without stopping or locking anything."""
        self._check_process()
        counters = self._last_counters or [worker.counters() for worker in self._workers]
        closed = sum((Counter(c["closed"]) for c in counters), Counter())
        accepted = sum(c["accepted"] for c in counters)
        return ServerStats(
            engine=self.engine,
            engine_reason=self._engine_reason,
            endpoints=tuple(map(str, self._bound)),
            accepted=accepted,
            open=accepted - closed.total(),
            closed={reason: closed[reason] for reason in CLOSE_REASONS},
            rejected=sum(c["rejected"] for c in counters),
            accepted_per_worker=tuple(c["accepted"] for c in counters),
            bytes_in=sum(c["bytes_in"] for c in counters),
            bytes_out=sum(c["bytes_out"] for c in counters),
            errors=dict(sum((Counter(c["errors"]) for c in counters), Counter())),
            accept_pauses=sum(c["accept_pauses"] for c in counters),
            datagrams_in=sum(c["datagrams_in"] for c in counters),
            datagrams_out=sum(c["datagrams_out"] for c in counters),
            dropped={reason: sum(c["dropped"][reason] for c in counters) for reason in DROPPED},
        )

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

    async def __aenter__(self) -> Server:
        import asyncio  # not at the top: it would double the time of `import fastsock`

        await asyncio.to_thread(self.start)  # a host name may take long to resolve
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.stop)

    def _listen(self, endpoint: Endpoint, listeners: list[BoundSocket]) -> Endpoint:
        """Append a socket for each worker; return the endpoint with its real port."""
        if endpoint.is_unix:
            listeners.append(self._listen_unix(endpoint))
            return endpoint
        return self._listen_inet(endpoint, listeners)

    def _listen_unix(self, endpoint: Endpoint) -> BoundSocket:
        make: Callable[..., BoundSocket] = partial(UnixDatagramSocket, sndbuf=self._options.sndbuf)
        if endpoint.is_stream:
            make = partial(UnixListener, backlog=self._options.backlog)
        make = partial(make, endpoint.path, str(endpoint), mode=self._options.unix_mode)
        bound, file = bind_unix(endpoint, self._options.unix_mode, make)
        if file:
            self._files.append(file)
        return bound

    def _remove_files(self) -> None:
        while self._files:
            self._files.pop().remove()

    def _listen_inet(self, endpoint: Endpoint, listeners: list[BoundSocket]) -> Endpoint:
        address = endpoint.resolve()
        options = self._options
        dual_stack = options.dual_stack if endpoint.dual_stack is None else endpoint.dual_stack
        make: Callable[..., BoundSocket] = DatagramSocket
        workers = 1
        if endpoint.is_stream:
            make = partial(Listener, backlog=options.backlog, nodelay=options.nodelay)
            workers = self.workers
        port = address.port
        for _ in range(workers):
            bound = make(
                address.family,
                address.host,
                port,
                address.scope_id,
                str(endpoint),
                dual_stack=dual_stack,
                # The kernel spreads new connections over the sockets that share a port this way.
                reuse_port=options.reuse_port or workers > 1,
                rcvbuf=options.rcvbuf,
                sndbuf=options.sndbuf,
            )
            port = bound.port
            listeners.append(bound)
        return endpoint.with_port(port)

    def _inherit(self, fd: int, listeners: list[BoundSocket]) -> Endpoint:
        """Append a duplicate of a socket that somebody else has made; return its endpoint."""
        sock, endpoint = inherited.borrow(fd)
        where, family = str(endpoint), int(sock.family)
        if endpoint.is_stream:
            # A connection can vanish between poll() and accept(), which then would block.
            sock.setblocking(False)
            nodelay = self._options.nodelay
            listeners.append(InheritedListener(sock.detach(), family, where, nodelay=nodelay))
        else:
            dual_stack = bool(endpoint.dual_stack)
            listeners.append(
                InheritedDatagramSocket(sock.detach(), family, where, dual_stack=dual_stack)
            )
        return endpoint

    def _worker(self, bound: BoundSocket, max_connections: int, cpu: int) -> Worker:
        if isinstance(bound, DatagramSocket):
            return DatagramWorker(bound, self._options, cpu=cpu)
        worker = engines.WORKERS[self.engine]
        return worker(bound, self._options, max_connections=max_connections, cpu=cpu)

    def _start_workers(self, listeners: list[BoundSocket]) -> tuple[Worker, ...]:
        most, cpus = self._options.max_connections, self._options.cpus
        workers: list[Worker] = []
        try:
            for number, listener in enumerate(listeners):
                # The first workers take what does not divide evenly.
                share = (most + len(listeners) - 1 - number) // len(listeners)
                cpu = cpus[number % len(cpus)] if cpus else -1
                workers.append(self._worker(listener, share, cpu))
                workers[-1].start()
        except BaseException:
            for worker in workers:  # also the one that did not start: it has its listener
                worker.request_stop(0)
                worker.join()
            raise
        return tuple(workers)

    def _deadline(self, drain: float | None) -> int:
        seconds = self._options.drain_timeout if drain is None else drain
        return time.monotonic_ns() + int(check_number("drain", seconds, *DRAIN_TIMES) * 1e9)

    def _request_stop(self, at_ns: int) -> None:
        """Ask the loops to end by then. Takes no lock: a signal handler calls it."""
        self._stop_at = min(self._stop_at, at_ns)
        if self._stop_at != _NEVER:
            for worker in self._workers:
                worker.request_stop(self._stop_at)

    def _finish(self) -> None:
        for worker in self._workers:
            worker.join()
        self._last_counters = [worker.counters() for worker in self._workers]
        self._workers = ()
        _running.discard(self)

    def _watch(self, workers: tuple[Worker, ...], signal_fd: int | None) -> int:
        """Wait until all loops have ended, and log what they notice; return a listener's errno."""
        by_notice = {worker.notice_fd: worker for worker in workers}
        running = {worker.done_fd for worker in workers}
        signals = set() if signal_fd is None else {signal_fd}
        failed = 0
        while running:
            for fd in _wait_any(running | signals | by_notice.keys()):
                if fd in running:
                    running.discard(fd)
                elif fd in signals:
                    os.read(fd, 4096)  # its handler has run, or runs before the next wait
                else:
                    failed = self._on_notice(by_notice[fd]) or failed
        return failed

    def _on_notice(self, worker: Worker) -> int:
        paused, failed = worker.notice()
        if failed:
            self._request_stop(self._deadline(None))
        elif paused:
            stats = self.stats()
            logger.warning(
                "accept paused: %s; %d connections open, paused %d times; trying again every 0.1 s",
                os.strerror(paused),
                stats.open,
                stats.accept_pauses,
            )
        return int(failed)

    def _on_signal(self, number: signal.Signals) -> None:
        again = self.stopped_by is not None
        self.stopped_by = number
        self._request_stop(0 if again else self._deadline(None))

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"this server belongs to process {self._pid}, and a fork does not copy its "
                f"threads; make a new Server in process {os.getpid()}"
            )

    def _forget_after_fork(self) -> None:
        for worker in self._workers:
            worker.forget_after_fork()
        for file in self._files:
            file.forget_after_fork()


def serve(
    *endpoints: EndpointLike,
    bound: Hook | None = None,
    ready: Hook | None = None,
    **options: Any,
) -> ServerStats:
    """Serve until Ctrl-C, SIGTERM or the end of the process; return the counters.

    Takes the options of Server; see there and `Server.serve_forever()`.
    """
    return Server(*endpoints, **options).serve_forever(bound=bound, ready=ready)


_running: weakref.WeakSet[Server] = weakref.WeakSet()


def _wait_any(fds: set[int], timeout_ms: int | None = None) -> list[int]:
    """Wait until one of the descriptors is readable; return those that are.

    Signal handlers run meanwhile, and the wait goes on after them (PEP 475).
    """
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(timeout_ms)]


def _wait_readable(fds: set[int]) -> None:
    waiting = set(fds)
    while waiting:
        # Never for long: Ctrl-C just before a sleep is slept over.
        waiting.difference_update(_wait_any(waiting, 100))


def _forget_after_fork() -> None:
    for server in tuple(_running):
        server._forget_after_fork()


os.register_at_fork(after_in_child=_forget_after_fork)
