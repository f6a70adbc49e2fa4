"""load() and load_async(): options in, native threads, a LoadReport out."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Unpack

from fastsock._native.client.datagram import DatagramLoader
from fastsock._native.client.stream import Loader
from fastsock.client import native_threads, sources
from fastsock.client.evidence import Taken
from fastsock.client.intervals import Collector, OnInterval
from fastsock.client.options import LoadKeywords, LoadOptions
from fastsock.client.report import LoadReport
from fastsock.client.results import Results
from fastsock.endpoint import Endpoint, EndpointLike, SocketAddress
from fastsock.interruptible import CancelledError, in_thread
from fastsock.options import from_given, takes
from fastsock.signals import STOP_SIGNALS, end_program, handled, in_main_thread

_HEAD_START_NS = 2_000_000  # for all threads to reach the common start
_TICK = 0.1  # seconds between two calls of `progress`
_EARLY = 2.0  # seconds; connections that are open for long without a message may be closed
_TICKS = 4  # in an interval, at least

_NEEDS_ASYNCIO = (
    "load_async() needs asyncio; in trio write "
    "await trio.to_thread.run_sync(functools.partial(fastsock.load, endpoint, ...))"
)

AnyLoader = Loader | DatagramLoader


class LoadInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a load run; ``report`` holds what had been measured.

    ``signal`` is SIGINT; in the command also SIGTERM or SIGHUP.
    """

    def __init__(self, report: LoadReport, signal: signal.Signals = signal.SIGINT) -> None:
        super().__init__("load run interrupted")
        self.report = report
        self.signal = signal


@takes(LoadOptions)
def load(
    endpoint: EndpointLike,
    *,
    progress: Callable[[float], object] | None = None,
    on_interval: OnInterval | None = None,
    **options: Unpack[LoadKeywords],
) -> LoadReport:
    """Load a server and report what it did.

    Without `rate` the loop is closed: each connection keeps `depth` messages in flight. With `rate`
    the loop is open: messages are sent on schedule, over all connections in turn, whether or not
    answers came. At the end the outstanding answers are awaited, and each connection is closed.
    A failing server is never an exception: its errors are in the report.

    A datagram that is not answered within `loss_timeout` counts as lost; in a closed loop the next
    datagram takes its place.

    Two modes measure throughput one way, on streams only. They have no answers, so no latency.
    "send" is an upload to a discard service (RFC 863): messages are sent as fast as the sockets
    take them, or at `rate`, with one send(2) each. At the end each connection is half-closed; the
    server must read the remaining bytes and close. "receive" is a download from a chargen service
    (RFC 864): every byte is compared with the 72-character lines. A server with another service
    makes the run fail.

    Args:
        endpoint: where the server listens.
        progress: called in this thread about every 0.1 s with the seconds since the start.
        on_interval: called in this thread with each interval of `interval` seconds that has ended.
        {options}

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option has the wrong value; the message says what is allowed.
        OSError: a host name cannot be resolved, no socket can be made, this machine does not have
            an address of `sources`, or there is no process `server_pid`.
        LoadInterrupted: Ctrl-C; a KeyboardInterrupt that carries the report so far.

    """
    return _load(endpoint, options, _Watching(progress, on_interval), Ending())


@takes(LoadOptions)
async def load_async(
    endpoint: EndpointLike,
    *,
    progress: Callable[[float], object] | None = None,
    on_interval: OnInterval | None = None,
    **options: Unpack[LoadKeywords],
) -> LoadReport:
    """Load a server from an asyncio event loop, which goes on meanwhile; see `load()`.

    Cancelling the task ends the run within milliseconds, without a report. Ctrl-C under
    `asyncio.run()` does so. Closing the loop ends it too, within 0.2 s. Outside asyncio call
    `load()` in a thread.

    Args:
        endpoint: where the server listens.
        progress: called in a thread of the run about every 0.1 s with the seconds since the start.
        on_interval: called there with each interval of `interval` seconds that has ended.
        {options}

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option has the wrong value; the message says what is allowed.
        OSError: a host name cannot be resolved, no socket can be made, this machine does not have
            an address of `sources`, or there is no process `server_pid`.
        RuntimeError: this is not a task of asyncio.

    """
    ending = Ending()

    def run(is_closed: Callable[[], bool]) -> LoadReport:
        ending.abandoned = is_closed
        return _load(endpoint, options, _Watching(progress, on_interval), ending)

    return await in_thread(run, ending.cancel, _NEEDS_ASYNCIO)


def load_until_ended(
    endpoint: EndpointLike, options: LoadKeywords, on_interval: OnInterval, ending: Ending
) -> LoadReport:
    """Load a server until `ending.end()` is called, if not until the end of the duration.

    A run that is ended so is whole: nothing interrupted it. See `load()`.
    """
    return _load(endpoint, options, _Watching(on_interval=on_interval), ending)


def load_at(
    start_at: float,
    endpoint: EndpointLike,
    *,
    progress: Callable[[float], object] | None,
    on_interval: OnInterval | None,
    **options: Unpack[LoadKeywords],
) -> LoadReport:
    """Load a server from a time on (time.time()), with connections opened shortly before.

    See `load()`.
    """
    watching = _Watching(progress, on_interval, start_at)
    return _load(endpoint, options, watching, Ending())


@dataclass(frozen=True, slots=True)
class _Watching:
    """What the caller wants to hear while a run goes on, and when it begins (time.time())."""

    progress: Callable[[float], object] | None = None
    on_interval: OnInterval | None = None
    start_at: float | None = None

    def wait(self, ending: Ending, before: float = 0.0) -> None:
        """Wait until so many seconds before the start."""
        while self.start_at is not None and not ending.asked:
            left = self.start_at - before - time.time()
            if left <= 0:
                break
            time.sleep(min(left, _TICK))

    def since(self, start: float) -> Callable[[], object]:
        """What tells the progress of a run that began at `start` (time.monotonic())."""
        if not self.progress:
            return lambda: None
        progress = self.progress
        return lambda: progress(time.monotonic() - start)


class Ending:
    """What ends a run early: a call, signals, or the end of the task or of its event loop."""

    def __init__(self) -> None:
        self.loaders: list[AnyLoader] = []
        self.ends = 0
        #: Signals that would have raised an exception, at any point of a wait.
        self.signals: list[signal.Signals] = []
        self.cancelled = False
        #: Whether the run has lost its caller, which cannot cancel it then.
        self.abandoned: Callable[[], bool] = lambda: False

    def on_signal(self, number: int, frame: object) -> None:
        """The first ends the run, the second does not wait for answers."""
        self.signals.append(signal.Signals(number))
        self._cancel_loaders(drop_everything=len(self.signals) > 1)

    def end(self) -> None:
        """End the window now; from any thread. A second call does not wait for answers."""
        self.ends += 1
        self._cancel_loaders(drop_everything=self.ends > 1)

    def cancel(self) -> None:
        """End the run without waiting for anything; from any thread."""
        self.cancelled = True
        self._cancel_loaders(drop_everything=True)

    def look(self) -> bool:
        """Cancel the run if it was abandoned; return whether it is cancelled."""
        if not self.cancelled and self.abandoned():
            self.cancel()
        return self.cancelled

    def use(self, loaders: Iterable[AnyLoader]) -> None:
        """From now on these are to be ended, at once if that was asked for before."""
        self.loaders = list(loaders)
        if self.asked:
            self._cancel_loaders(drop_everything=self.cancelled)

    def counted(self) -> tuple[Counter[str], Counter[str]]:
        """Failures of connections by kind, and datagrams, so far; the threads go on counting."""
        errors, datagrams = Counter[str](), Counter[str]()
        for loader in self.loaders:
            counts = loader.failures()
            errors.update(counts["errors"])
            datagrams.update(counts.get("datagrams", {}))
        return errors, datagrams

    def close(self) -> None:
        """Drop the loaders: a traceback that the caller keeps would keep their sockets open."""
        self.loaders = []

    @property
    def asked(self) -> bool:
        return self.cancelled or self.ends > 0 or bool(self.signals)

    def _cancel_loaders(self, *, drop_everything: bool) -> None:
        for loader in self.loaders:
            loader.cancel(drop_everything=drop_everything)


def _load(
    endpoint: EndpointLike,
    options: LoadKeywords,
    watching: _Watching,
    ending: Ending,
) -> LoadReport:
    if hasattr(type(endpoint), "endpoint"):
        raise TypeError(
            f"endpoint {endpoint!r} is {type(endpoint).__name__}; write server.endpoint"
        )
    target = Endpoint.parse(endpoint)
    checked = from_given(LoadOptions, options)
    checked.check_target(target)
    addresses: Sequence[SocketAddress] = target.resolve_all(ending.look)
    local_addresses = sources.resolved(checked.sources)
    addresses = sources.of_their_family(addresses, local_addresses, target)
    with _signals_handled(ending), closing(ending):
        watching.wait(ending, before=checked.ramp_up + _EARLY)
        tell_progress = watching.since(time.monotonic())
        tried = _connect(target, addresses, local_addresses, checked, ending, tell_progress)
        watching.wait(ending)
        started_at = datetime.now(UTC)
        before = Taken.so_far()
        collector = _collector(ending, checked, watching) if checked.interval else None
        if not ending.asked:
            _run(ending, checked, tell_progress, collector)
        if ending.cancelled:
            raise CancelledError
        interrupted_by = ending.signals[0] if ending.signals else None
        results = Results(
            [loader.result() for loader in ending.loaders],
            [loader.histograms for loader in ending.loaders],
            collector,
        )
        report = results.report(
            target, checked, tried, started_at, Taken.so_far().since(before), interrupted_by
        )
    if interrupted_by:
        raise LoadInterrupted(report, interrupted_by)
    return report


def _connect(
    target: Endpoint,
    addresses: Sequence[SocketAddress],
    local_addresses: Sequence[SocketAddress],
    options: LoadOptions,
    ending: Ending,
    tell_progress: Callable[[], object],
) -> Sequence[SocketAddress]:
    """Open all connections, to the first address that accepts one; return those that were tried.

    The loaders of `ending` become those of the last one tried.
    """
    for number, address in enumerate(addresses, 1):
        ending.use(_make_loaders(target, address, local_addresses, options))
        try:
            _in_threads(ending, [loader.connect for loader in ending.loaders], tell_progress)
        except OSError:
            if number == len(addresses):
                raise
            continue
        if ending.asked or any(map(_opened, ending.loaders)):
            break
    return addresses[:number]


def _opened(loader: AnyLoader) -> bool:
    """Whether a connection could be opened; for datagrams nothing tells until one is answered."""
    return isinstance(loader, DatagramLoader) or loader.opened > 0


def _make_loaders(
    target: Endpoint,
    address: SocketAddress,
    local_addresses: Sequence[SocketAddress],
    options: LoadOptions,
) -> Iterator[AnyLoader]:
    loader = Loader if target.is_stream else DatagramLoader
    first = 0
    for thread in range(options.threads):
        # The first threads take the connections that do not divide evenly.
        count = (options.connections - first) // (options.threads - thread)
        yield loader(
            address,
            str(target),
            options,
            first=first,
            count=count,
            local_addresses=local_addresses,
        )
        first += count


def _collector(ending: Ending, options: LoadOptions, watching: _Watching) -> Collector:
    return Collector(
        ending.loaders,
        options.interval or 0.0,
        open_loop=options.open_loop,
        has_latency=options.mode == "echo",
        on_interval=watching.on_interval,
    )


def _run(
    ending: Ending,
    options: LoadOptions,
    tell_progress: Callable[[], object],
    collector: Collector | None,
) -> None:
    """Run each loader in a thread and wait for all."""
    warmup_ns = int(options.warmup * 1e9)
    window_ns = int((options.duration or 0) * 1e9)
    begin_ns = time.monotonic_ns() + _HEAD_START_NS

    def load_with(loader: AnyLoader) -> Callable[[], None]:
        return lambda: loader.run(begin_ns, warmup_ns, window_ns)

    def look() -> None:
        if collector:
            collector.collect()
        tell_progress()

    tick = min(_TICK, (options.interval or _TICK) / _TICKS)
    _in_threads(ending, [load_with(loader) for loader in ending.loaders], look, tick)


def _in_threads(
    ending: Ending,
    tasks: Sequence[Callable[[], None]],
    look: Callable[[], object],
    tick: float = _TICK,
) -> None:
    """Run the tasks at the same time, not in this thread: a native loop would not see Ctrl-C."""
    failures: list[BaseException] = []
    new_thread, new_event = native_threads.classes()
    started: list[native_threads.AnyThread] = []
    ended: list[None] = []
    all_ended = new_event()

    def stop() -> None:
        for loader in ending.loaders:
            loader.cancel(drop_everything=True)

    def guarded(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            failures.append(error)
            stop()
        ended.append(None)
        if len(ended) == len(tasks):
            all_ended.set()

    threads = [new_thread(target=guarded, args=(task,), daemon=True) for task in tasks]
    # The threads inherit the mask. After SIGCONT the kernel gives a pending signal to a thread
    # that does not block it; if that were another thread, this one would not see Ctrl-C.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        try:
            for thread in threads:
                thread.start()
                started.append(thread)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # Never for long: Ctrl-C just before a wait does not end that wait.
        while not all_ended.wait(tick):
            if not ending.look():
                look()
    except BaseException:  # of `look`, or of a thread that could not be started
        stop()
        raise
    finally:
        for thread in started:
            thread.join()
    try:
        if failures:
            raise failures[0]
    finally:
        failures.clear()  # a cycle with the traceback would keep the loaders and their sockets


@contextmanager
def _signals_handled(ending: Ending) -> Iterator[None]:
    """Have the signals that would raise an exception end the run instead, in the main thread."""
    if not in_main_thread():
        yield
        return
    raising = (signal.default_int_handler, end_program)
    numbers = [each for each in STOP_SIGNALS if signal.getsignal(each) in raising]
    with handled(dict.fromkeys(numbers, ending.on_signal)):
        yield
