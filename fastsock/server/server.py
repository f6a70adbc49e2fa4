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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Unpack

from fastsock import line_writer
from fastsock._native.server.datagram import DatagramWorker
from fastsock._native.server.datagram_faults import FaultyDatagramWorker
from fastsock._native.server.datagram_socket import DatagramSocket
from fastsock._native.server.faults import FaultTable
from fastsock._native.server.records import RecordTable
from fastsock.endpoint import DEFAULT_ENDPOINT, Endpoint, EndpointLike
from fastsock.interruptible import CancelledError, in_thread
from fastsock.options import from_given, takes
from fastsock.server import binding, engines, inherited
from fastsock.server.faults import KINDS as FAULT_KINDS
from fastsock.server.faults import Fault, Faults
from fastsock.server.options import DRAIN_TIME, ServerKeywords, ServerOptions
from fastsock.server.records import ConnectionRecord, record_of
from fastsock.server.signals import stop_signals
from fastsock.server.stats import CLOSE_REASONS, DROPPED, ServerStats
from fastsock.units import plural

if TYPE_CHECKING:
    from types import TracebackType

    from fastsock._native.server.listener import BoundSocket
    from fastsock._native.server.worker import Worker
    from fastsock.server.unix_file import SocketFile

logger = logging.getLogger("fastsock")

_NEVER = 2**63 - 1  # ns on CLOCK_MONOTONIC
_LAST_LINES = 0.05  # seconds that the end of serve_forever() waits for its log to be written

_NEEDS_ASYNCIO = (
    "`async with` of a Server needs asyncio; write `with`, which serves beside trio and curio too"
)

Hook = Callable[["Server"], object]


@takes(ServerOptions)
class Server:
    """An echo server in background native threads.

    It echoes every byte of every connection, and every datagram with one datagram (RFC 862), from
    `start()` to `stop()`, whatever the Python threads do. Every method may be called from any
    thread.

    Urgent bytes (MSG_OOB) are not sent back: TCP delivers them apart from the stream (tcp(7)).

    Args:
        endpoints: where to listen: ``"127.0.0.1:7007"`` or another text that `Endpoint.parse()`
            takes, ``(host, port)`` or an Endpoint. Without any, and without `fds`, it is
            ``tcp://127.0.0.1:7007``. Port 0 picks a free port. A host name is served at every
            address of this machine that it resolves to, on one port: ``localhost`` over IPv4 and
            IPv6. A stale socket at a ``unix`` or ``unixgram`` path is replaced; anything else there
            is EADDRINUSE.
        {options}

    A Unix datagram can be answered only if its sender is bound to an address of its own. If that
    address is a file, this process must have the right to write to it.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option has the wrong value; the message says what is allowed.
        OSError: one of `fds` is not an open socket.

    """

    def __init__(self, *endpoints: EndpointLike, **options: Unpack[ServerKeywords]) -> None:
        self._options = from_given(ServerOptions, options)
        default = () if self._options.fds else (DEFAULT_ENDPOINT,)
        self._asked = tuple(Endpoint.parse(endpoint) for endpoint in endpoints or default)
        self._with_faults = self._options.faults is not None
        self.engine = engines.choose(self._options.engine, self._options.purpose)
        borrowed = [inherited.endpoint_of(fd) for fd in self._options.fds]
        self._options.check_endpoints(self._asked, borrowed)
        self._borrowed = tuple(borrowed)
        self._faults = self._options.faults or ()
        self._fault_table: FaultTable | None = None  # of them, made when a worker needs it
        self._faults_lock = threading.Lock()  # over the two; never held for long
        self._records: RecordTable | None = None
        #: Native threads per tcp or udp endpoint; for a host name, per address.
        self.workers = self._options.workers
        self._lock = threading.RLock()  # start() and the end of stop(); never taken by a handler
        self._state = "new"  # "running", then "stopped"
        self._stop_at = _NEVER
        self._workers: tuple[Worker, ...] = ()
        self._bound: tuple[Endpoint, ...] = ()
        self._addresses: tuple[int, ...] = ()  # of each
        self._files: list[SocketFile] = []
        self._last_counters: list[dict[str, Any]] = []
        self._pid = os.getpid()
        self._foreground = False  # serve_forever() raises what ended the service
        self._failure_logged = False
        #: The signal that ended serve_forever(), if one did; SIGINT if that was one of several.
        self.stopped_by: signal.Signals | None = None

    def start(self, *, bound: Hook | None = None) -> None:
        """Bind every endpoint and serve in the background.

        `bound` is called between the two, before there is any thread or ring: a server that began
        as root drops its privileges there. An exception of `bound` ends the start.

        Raises:
            OSError: a step failed; the text names the step and the endpoint. Nothing stays bound.
            ValueError: one of `fds` is no longer what it was, or a host name has more addresses
                than `max_connections` can be shared by.
            RuntimeError: started before, stopped before, stopped while a host name was looked up
                or a lock was waited for (CancelledError), or this process is a fork.

        """
        self._check_process()
        with self._lock:
            if self._state != "new":
                raise RuntimeError(f"this server is {self._state}; make a new Server")
            made = binding.bind(self._asked, self._options.fds, self._options, self._stop_asked)
            try:
                self._bound, self._files = tuple(made.endpoints), made.files
                self._addresses = tuple(made.addresses)
                if bound is not None:
                    bound(self)
                if self._options.record:
                    self._records = RecordTable(self._options.record)
                self._workers = self._start_workers(made.sockets)
                if self._with_faults or self._faults:  # they may have been set meanwhile
                    self._give_faults(*self._workers)
            except BaseException:
                self._bound, self._addresses = (), ()
                made.undo()
                raise
            self._state = "running"
            _running.add(self)
            self._request_stop(self._stop_at)  # a signal may have come meanwhile
            for reason in made.left_out:
                line_writer.log(logger, logging.WARNING, f"address left out: {reason}")
            for line in listening(self):
                line_writer.log(logger, logging.INFO, line)

    def stop(self, drain: float | str | None = None) -> None:
        """Stop serving and return when every thread has ended; the ports are free then.

        Connections that wait in the backlog are accepted, except from `fds`, and until 50 ms past
        the deadline at most. Bytes that have arrived are sent back as far as that needs no waiting.
        With `drain`, clients are served for up to that many seconds more, until all have closed,
        and the datagrams that wait to be received are answered. A second call, or one from another
        thread, can only bring the end closer.

        Args:
            drain: seconds, or text such as "5s"; None means the option `drain_timeout`.

        """
        self._check_process()
        at = self._deadline(drain)
        self._request_stop(at)  # before the lock: the thread that holds it may drain for long
        with self._lock:
            self._request_stop(at)
            if self._state == "running":
                self._remove_files()  # first: no client should find a path that refuses
                _wait_readable({worker.done_fd for worker in self._workers})
                self._log_failure()
                self._finish()
            self._state = "stopped"
        if self._failure_logged:
            line_writer.flush(_LAST_LINES)

    def serve_forever(
        self,
        *,
        bound: Hook | None = None,
        ready: Hook | None = None,
        stopping: Hook | None = None,
    ) -> ServerStats:
        """Serve until `stop()` is called or, in the main thread, Ctrl-C, SIGTERM or SIGHUP comes.

        The first signal drains for `drain_timeout` seconds, the second stops at once. Outside the
        main thread signals are left alone; so is a SIGHUP that is ignored or has a handler. `bound`
        is as for `start()`. `ready` is called once the endpoints can be connected to, and
        `stopping` when the drain begins. Returns the counters at the end.

        Raises:
            OSError: as `start()`, or the listener was taken away while serving.
            RuntimeError: this server was stopped before, or this process is a fork.

        """
        self._check_process()
        failed: OSError | None = None
        self._foreground = True
        with stop_signals(self._on_signal) as signal_fd:
            try:
                if self._state != "running":
                    self.start(bound=bound)
                if ready is not None:
                    ready(self)
                failed = self._watch(self._workers, signal_fd, stopping)
            except CancelledError:
                pass  # stopped before it was bound
            finally:
                self.stop(0)
        line_writer.flush(_LAST_LINES)
        if failed:
            raise failed
        return self.stats()

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints as bound, one for each that was asked for, with their real ports.

        Those of `fds` are the last. A host name stays one: ``tcp://localhost:40213``.
        """
        if not self._bound:
            raise RuntimeError(
                "this server has not been started; use it in a with statement, or call start()"
            )
        return self._bound

    @property
    def endpoint(self) -> Endpoint:
        """The first of `endpoints`."""
        return self.endpoints[0]

    @property
    def address(self) -> Any:
        """What connects to `endpoint`.

        For tcp it is ``(host, port)``, which `socket.create_connection` takes, and for udp too,
        which `connect` and `sendto` of a socket take. Else it is the path of a Unix socket, which
        `connect` takes: ``"\\0name"`` for an abstract one. (Any, as type checkers have it of
        `socket.getsockname`: a union would fit no call.)
        """
        endpoint = self.endpoint
        if not endpoint.is_unix:
            host, percent, _ = endpoint.host.partition("%")
            if percent:  # glibc takes the name of an interface for link-local addresses only
                host = f"{host}%{endpoint.resolve().scope_id}"
            return host, endpoint.port
        path = endpoint.path
        return f"\0{path[1:]}" if path.startswith("@") else path

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What new connections and new datagrams are treated with; it may be set at any time.

        Setting it takes a list such as ``["reset_peer:after=4k"]`` and checks it as `Server()`
        does. Connections that are open keep their faults. New ones are numbered from 0 again, so
        that they have the faults that they would have at the start.
        """
        return self._faults

    @faults.setter
    def faults(self, value: Iterable[str]) -> None:
        self._check_process()
        checked = Faults().check("faults", value)
        self._options.check_faults(checked, (*self._asked, *self._borrowed))
        with self._faults_lock:
            self._faults, self._fault_table = checked, None
        self._give_faults(*self._workers)

    def _give_faults(self, *workers: Worker) -> None:
        with self._faults_lock:
            for worker in workers:
                if self._fault_table is None:
                    numbers = [each.numbers() for each in self._faults]
                    self._fault_table = FaultTable(numbers, self._options.seed)
                worker.set_faults(self._fault_table)

    @property
    def host(self) -> str:
        """The host of `endpoint`; RuntimeError if that is a Unix one."""
        return self._inet_endpoint("host").host

    @property
    def port(self) -> int:
        """The port of `endpoint`; RuntimeError if that is a Unix one."""
        return self._inet_endpoint("port").port

    def _inet_endpoint(self, wanted: str) -> Endpoint:
        endpoint = self.endpoint
        if endpoint.is_unix:
            raise RuntimeError(f"{endpoint} has no {wanted}; server.address is its path")
        return endpoint

    def __repr__(self) -> str:
        try:
            where = ", ".join(self._described(self._bound or (*self._asked, *self._borrowed)))
            state = self._state
            if os.getpid() != self._pid:
                state = f"of process {self._pid}"
            elif state == "running" and self._stop_asked():
                state = "stopping"
        except AttributeError:
            return "<fastsock.Server, not constructed>"
        return f"<fastsock.Server {where}, {state}>"

    def _described(
        self, endpoints: Sequence[Endpoint], names: Mapping[int, str] | None = None
    ) -> Iterator[str]:
        """Each endpoint and how it is served; `names` are those of inherited descriptors."""
        origins = [f"descriptor {fd} {(names or {}).get(fd, '')}" for fd in self._options.fds]
        made = len(endpoints) - len(origins)
        for number, endpoint in enumerate(endpoints):
            inherits = number >= made
            workers = 1 if endpoint.is_unix or inherits else self.workers
            several = any(addresses > 1 for addresses in self._addresses[number : number + 1])
            how = [
                self.engine if endpoint.is_stream else "datagrams",
                plural(workers, "worker") + " per address" * several,
            ]
            if inherits:
                how.append(origins[number - made].rstrip())
            yield f"{endpoint} ({', '.join(how)})"

    def stats(self) -> ServerStats:
        """Return the counters so far, without stopping or locking anything."""
        self._check_process()
        self._log_failure()
        counters = self._last_counters or [worker.counters() for worker in self._workers]
        closed = sum((Counter(c["closed"]) for c in counters), Counter())
        accepted = sum(c["accepted"] for c in counters)
        return ServerStats(
            engine=self.engine,
            engine_reason=engines.reason(self._options.engine, self._options.purpose),
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
            busy_poll=tuple(c["busy_poll"] for c in counters if c["busy_poll"]),
            faults={
                kind: times
                for number, kind in enumerate(FAULT_KINDS)
                if (times := sum(c["faults"][number] for c in counters))
            },
            per_worker=tuple(
                {
                    "endpoint": str(endpoint),
                    "engine": self.engine if endpoint.is_stream else "datagrams",
                    "open": c["accepted"] - sum(c["closed"].values()),
                    **c,
                    "faults": dict(zip(FAULT_KINDS, c["faults"], strict=True)),
                }
                for endpoint, c in zip(self._endpoint_of_each(), counters, strict=False)
            ),
        )

    def records(self) -> tuple[ConnectionRecord, ...]:
        """The last bytes of each connection, the oldest first; empty without `record`.

        They are there at any time, also after `stop()`: of the connections that are open, and of
        the last 64 that have ended. What a client has received is in the record then.
        """
        self._check_process()
        copied = self._records.copied() if self._records is not None else []
        return tuple(record_of(*each) for each in copied)

    def _endpoint_of_each(self) -> Iterator[Endpoint]:
        """The endpoint of each worker; there is no worker before the start."""
        made = len(self._bound) - len(self._options.fds)
        for number, endpoint in enumerate(self._bound):
            single = endpoint.is_unix or number >= made
            workers = self._addresses[number] * (1 if single else self.workers)
            yield from repeat(endpoint, workers)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        except BaseException:  # Ctrl-C during the drain: nothing would end it later
            self.stop(0)
            raise

    async def __aenter__(self) -> Server:
        await self._in_thread(self.start)  # a host name may take long to resolve
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._in_thread(self.stop)

    async def _in_thread(self, function: Callable[[], object]) -> None:
        """Call `function` in a thread; when this is cancelled, stop the server at once."""
        import asyncio  # not at the top: it would double the time of `import fastsock`

        stop_now = partial(self._request_stop, 0)  # ends a drain, or the look-up of a name
        try:
            await in_thread(lambda _: function(), stop_now, _NEEDS_ASYNCIO)
        except asyncio.CancelledError:
            with suppress(Exception, asyncio.CancelledError):
                await in_thread(lambda _: self.stop(0), stop_now, _NEEDS_ASYNCIO)
            raise

    def _remove_files(self) -> None:
        for file in self._files:
            file.remove()

    def _worker(self, bound: BoundSocket, max_connections: int, cpu: int) -> Worker:
        if isinstance(bound, DatagramSocket):
            datagrams = FaultyDatagramWorker if self._with_faults else DatagramWorker
            made: Worker = datagrams(bound, self._options, cpu=cpu)
        else:
            of_engine = engines.WORKERS[self.engine]
            made = of_engine(bound, self._options, max_connections=max_connections, cpu=cpu)
        if self._with_faults:
            self._give_faults(made)
        if self._records is not None:
            made.set_records(self._records)
        return made

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

    def _deadline(self, drain: float | str | None) -> int:
        seconds = self._options.drain_timeout if drain is None else DRAIN_TIME.check("drain", drain)
        return time.monotonic_ns() + int(seconds * 1e9)

    def _stop_asked(self) -> bool:
        return self._stop_at != _NEVER

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

    def _watch(
        self, workers: tuple[Worker, ...], signal_fd: int | None, stopping: Hook | None
    ) -> OSError | None:
        """Wait until all loops have ended, and log their notices; return what failed, if it did."""
        for worker in workers:  # stats() may have cleared a notice
            self._on_notice(worker)
        by_notice = {worker.notice_fd: worker for worker in workers}
        running = {worker.done_fd for worker in workers}
        signals = set() if signal_fd is None else {signal_fd}
        while running:
            # As in stop(), which may be running in another thread and then has the lock.
            if self._stop_at != _NEVER and self._lock.acquire(blocking=False):
                try:
                    self._remove_files()
                finally:
                    self._lock.release()
            for fd in _wait_any(running | signals | by_notice.keys()):
                if fd in running:
                    running.discard(fd)
                elif fd in signals:
                    os.read(fd, 4096)  # its handler has run, or runs before the next wait
                else:
                    self._on_notice(by_notice[fd])
            if self._stop_at != _NEVER and stopping is not None:
                stopping(self)
                stopping = None
        return self._failure(workers)

    def _failure(self, workers: tuple[Worker, ...]) -> OSError | None:
        """Return what ended the service of one of them, if it did."""
        for worker in workers:
            _, (number, call) = worker.notice()
            if number:
                break
        else:
            return None
        where = ", ".join(map(str, self._bound))
        hint = ""
        if number in (errno.EINVAL, errno.EBADF) and call in ("accept", "recvmmsg"):
            hint = " (the listener was shut)" if call == "accept" else " (the socket was shut)"
        elif number in (errno.ENOSYS, errno.EPERM):
            hint = " (a seccomp filter may forbid it)"
        return OSError(number, f"{call} {where}: {os.strerror(number)}{hint}")

    def _log_failure(self) -> None:
        """Log, once, what ended the service in the background."""
        if self._foreground or self._failure_logged:
            return
        failed = self._failure(self._workers)
        if failed is None:
            return
        self._failure_logged = True
        line_writer.log(logger, logging.ERROR, str(failed.strerror))
        if self._foreground:  # since a moment: its notice was cleared here
            self._request_stop(self._deadline(None))

    def _on_notice(self, worker: Worker) -> None:
        """Log a pause; stop when the service has failed."""
        (paused, call), (failed, _) = worker.notice()
        if failed:
            self._request_stop(self._deadline(None))
        elif paused:
            stats, reason = self.stats(), os.strerror(paused)
            what = "receive" if call == "recvmmsg" else "accept"
            why = reason if call in ("accept", "recvmmsg") else f"{call}: {reason}"
            line_writer.log(
                logger,
                logging.WARNING,
                f"{what} paused: {why}; {stats.open} connections open, "
                f"paused {stats.accept_pauses} times; trying again every 0.1 s",
            )

    def _on_signal(self, number: signal.Signals) -> None:
        again = self.stopped_by is not None
        if self.stopped_by is not signal.SIGINT:
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


@takes(ServerOptions)
def serve(
    *endpoints: EndpointLike,
    bound: Hook | None = None,
    ready: Hook | None = None,
    **options: Unpack[ServerKeywords],
) -> ServerStats:
    """Serve until Ctrl-C, SIGTERM or SIGHUP; return the counters.

    See `Server` and `Server.serve_forever()`. Where it listens is logged (logger "fastsock", INFO),
    or written to stderr where logging has no handler.

    Args:
        endpoints: where to listen; see `Server`.
        bound: called when every endpoint is bound, before there is any thread.
        ready: called once the endpoints can be connected to; nothing is written to stderr then.
        {options}

    """
    return Server(*endpoints, **options).serve_forever(bound=bound, ready=ready or _announce)


def listening(server: Server, names: Mapping[int, str] | None = None) -> Iterator[str]:
    """Lines such as ``listening on tcp://127.0.0.1:7007 (epoll, 1 worker)``, one an endpoint.

    `names` are those that systemd gave to inherited descriptors.
    """
    return (f"listening on {each}" for each in server._described(server.endpoints, names))


def _announce(server: Server) -> None:
    """Say where it listens, where nothing can take what `start()` has logged."""
    wanted = logger.level <= logging.INFO and not logger.disabled  # NOTSET is 0
    if wanted and not logger.hasHandlers():
        for line in listening(server):
            line_writer.say(line)


_running: weakref.WeakSet[Server] = weakref.WeakSet()


def _wait_any(fds: set[int], timeout_ms: int | None = None) -> list[int]:
    """Wait until one of the descriptors is readable; return those that are.

    Signal handlers run meanwhile, and the wait goes on after them (PEP 475).
    """
    if not hasattr(select, "poll"):  # eventlet.monkey_patch() removes it, and replaces select()
        timeout = None if timeout_ms is None else timeout_ms / 1000
        return select.select(fds, [], [], timeout)[0]
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(timeout_ms)]


def _wait_readable(fds: set[int]) -> None:
    waiting = set(fds)
    while waiting:
        # Never for long: Ctrl-C just before a wait does not end that wait.
        waiting.difference_update(_wait_any(waiting, 100))


def _forget_after_fork() -> None:
    for server in tuple(_running):
        server._forget_after_fork()


os.register_at_fork(after_in_child=_forget_after_fork)
