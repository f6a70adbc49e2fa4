"""load(): options in, native threads, a LoadReport out."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Unpack

from fastsock._native.client.datagram import DatagramLoader
from fastsock._native.client.histogram import Histogram
from fastsock._native.client.stream import Loader
from fastsock.client.options import LoadKeywords, LoadOptions
from fastsock.client.report import DATAGRAM_COUNTS, NO_LATENCY, Latency, LoadReport
from fastsock.endpoint import Endpoint, EndpointLike
from fastsock.host import host_facts
from fastsock.options import from_given, takes
from fastsock.signals import STOP_SIGNALS, end_program, handled, in_main_thread

_HEAD_START_NS = 2_000_000  # for all threads to reach the common start
_TICK = 0.1  # seconds between two calls of `progress`

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
    **options: Unpack[LoadKeywords],
) -> LoadReport:
    """Load a server and report what it did.

    Without `rate` the loop is closed: each connection keeps `depth` messages in flight. With `rate`
    the loop is open: messages are sent on schedule, over all connections in turn, whether or not
    answers came. At the end each connection is half-closed, and every byte must still come back.
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
        {options}

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option has the wrong value; the message says what is allowed.
        OSError: a host name cannot be resolved, no socket can be made, or there is no process
            `server_pid`.
        LoadInterrupted: Ctrl-C; a KeyboardInterrupt that carries the report so far.

    """
    target = Endpoint.parse(endpoint)
    checked = from_given(LoadOptions, options)
    checked.check_target(target)
    loaders = _make_loaders(target, checked)
    with _signals_cancel(loaders) as came:
        _run(loaders, checked, progress, came)
        interrupted_by = came[0] if came else None
        report = _report(target, checked, loaders, interrupted_by)
    if interrupted_by:
        raise LoadInterrupted(report, interrupted_by)
    return report


def _make_loaders(target: Endpoint, options: LoadOptions) -> list[AnyLoader]:
    loader = Loader if target.is_stream else DatagramLoader
    server = target.resolve()
    loaders: list[AnyLoader] = []
    first = 0
    for thread in range(options.threads):
        # The first threads take the connections that do not divide evenly.
        count = (options.connections - first) // (options.threads - thread)
        loaders.append(loader(server, str(target), options, first=first, count=count))
        first += count
    return loaders


def _run(
    loaders: Sequence[AnyLoader],
    options: LoadOptions,
    progress: Callable[[float], object] | None,
    came: Sequence[signal.Signals],
) -> None:
    """Run each loader in a thread and wait for all, or until signals `came`."""
    warmup_ns = int(options.warmup * 1e9)
    window_ns = int((options.duration or 0) * 1e9)
    _in_threads(loaders, [loader.connect for loader in loaders], None)
    if came:
        return
    begin_ns = time.monotonic_ns() + _HEAD_START_NS

    def load_with(loader: AnyLoader) -> Callable[[], None]:
        return lambda: loader.run(begin_ns, warmup_ns, window_ns)

    _in_threads(loaders, [load_with(loader) for loader in loaders], progress)


def _in_threads(
    loaders: Sequence[AnyLoader],
    tasks: Sequence[Callable[[], None]],
    progress: Callable[[float], object] | None,
) -> None:
    """Run the tasks at the same time, not in this thread: a native loop would not see Ctrl-C."""
    failures: list[BaseException] = []
    started: list[threading.Thread] = []
    ended: list[None] = []
    all_ended = threading.Event()

    def stop() -> None:
        for loader in loaders:
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

    threads = [threading.Thread(target=guarded, args=(task,), daemon=True) for task in tasks]
    start = time.monotonic()
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
        while not all_ended.wait(_TICK):
            if progress:
                progress(time.monotonic() - start)
    except BaseException:  # of `progress`, or of a thread that could not be started
        stop()
        raise
    finally:
        for thread in started:
            thread.join()
    if failures:
        raise failures[0]


@contextmanager
def _signals_cancel(loaders: Sequence[AnyLoader]) -> Iterator[list[signal.Signals]]:
    """Collect the signals that would have raised an exception, at any point of a wait.

    The first ends the run, the second does not wait for answers.
    """
    came: list[signal.Signals] = []
    if not in_main_thread():
        yield came
        return

    def on_signal(number: int, frame: object) -> None:
        came.append(signal.Signals(number))
        for loader in loaders:
            loader.cancel(drop_everything=len(came) > 1)

    raising = (signal.default_int_handler, end_program)
    numbers = [each for each in STOP_SIGNALS if signal.getsignal(each) in raising]
    with handled(dict.fromkeys(numbers, on_signal)):
        yield came


def _report(
    target: Endpoint,
    options: LoadOptions,
    loaders: Sequence[AnyLoader],
    interrupted_by: signal.Signals | None,
) -> LoadReport:
    results = [loader.result() for loader in loaders]

    def total(name: str) -> int:
        return int(sum(result.get(name, 0) for result in results))

    start = min(result["window_start_ns"] for result in results)
    end = max(result["window_end_ns"] for result in results)
    duration = max(end - start, 0) / 1e9
    # A thread is idle from when its last connection was closed.
    idle_ns = sum(result["idle_ns"] + end - result["window_end_ns"] for result in results)
    messages = total("messages")
    errors = sum((Counter(result["errors"]) for result in results), Counter[str]())
    lost, corrupt = total("lost_bytes"), total("corrupt_bytes")
    datagrams = None
    if not target.is_stream:
        datagrams = {kind: sum(r["datagrams"][kind] for r in results) for kind in DATAGRAM_COUNTS}
    other_errno = max(result["other_errno"] for result in results)
    connects = _latency([loader.connects for loader in loaders if isinstance(loader, Loader)])
    silent = connects.count > 0 and total("received_bytes") == 0
    answered = options.mode == "echo"
    return LoadReport(
        endpoint=str(target),
        options=options.as_dict(),
        duration=duration,
        messages=messages,
        bytes=messages * options.size,
        latency=_latency([each.from_intended for each in loaders]) if answered else NO_LATENCY,
        latency_from_send=_latency([each.from_send for each in loaders])
        if answered
        else NO_LATENCY,
        connect_latency=connects,
        send_delay=_latency([each.send_delay for each in loaders]) if options.rate else NO_LATENCY,
        offered_per_s=options.rate,
        errors=dict(errors),
        lost_bytes=lost,
        corrupt_bytes=corrupt,
        datagrams=datagrams,
        reasons=(
            *_interrupt_reasons(interrupted_by),
            *_error_reasons(options.mode, errors, other_errno),
            *(_silence_reasons(options.mode, errors) if silent else []),
            *([f"{lost} bytes lost"] if lost else []),
            *([f"{corrupt} bytes corrupt"] if corrupt else []),
            *_datagram_reasons(datagrams),
            *_rate_reasons(options, messages, duration),
        ),
        client_busy=max(0.0, 1 - idle_ns / 1e9 / duration / len(results)) if duration else 0.0,
        server_cpu=_server_cpu(results[0]["server_cpu_ns"]),
        host=host_facts(),
    )


def _server_cpu(ns: int | None) -> float | None:
    """Seconds, never less than 0: the last tick of a child that ends in the window is not seen."""
    return None if ns is None else max(ns, 0) / 1e9


def _interrupt_reasons(number: signal.Signals | None) -> list[str]:
    if number is None:
        return []
    return [f"interrupted by {'Ctrl-C' if number is signal.SIGINT else number.name}"]


def _error_reasons(mode: str, errors: Counter[str], other_errno: int) -> list[str]:
    mismatch = {
        "echo": "answered with other bytes than were sent",
        "send": "answered, which a discard service does not",
        "receive": "brought other bytes than the lines of a chargen service",
    }
    words = {
        "refused": "refused",
        "reset": "reset by the server",
        "timeout": "without progress for too long",
        "closed_early": "closed by the server with bytes outstanding or before the client was done",
        "mismatch": mismatch[mode],
        "other": f"failed: {os.strerror(other_errno)}",
    }
    return [f"connections {words[kind]}: {count}" for kind, count in errors.items() if count]


def _silence_reasons(mode: str, errors: Counter[str]) -> list[str]:
    """What it may mean that connections were opened and no byte ever came."""
    if mode == "receive":
        return ["the server sent nothing: perhaps it is not a chargen service"]
    if mode == "echo" and (errors["timeout"] or errors["closed_early"]):
        return ["nothing of what was sent came back: perhaps it is not an echo service"]
    return []


def _datagram_reasons(datagrams: dict[str, int] | None) -> list[str]:
    if datagrams is None:
        return []
    sent, lost, duplicated = (datagrams[kind] for kind in ("sent", "lost", "duplicated"))
    reasons = []
    if lost > max(sent / 100, 2):
        reasons.append(f"{lost} of {sent} datagrams lost")
    if duplicated:
        reasons.append(f"{duplicated} datagrams answered more than once")
    return reasons


def _rate_reasons(options: LoadOptions, messages: int, duration: float) -> list[str]:
    if messages == 0:
        what = {"echo": "answered", "send": "sent", "receive": "received"}[options.mode]
        return [f"no message was {what} in the window"]
    if options.rate is None or duration == 0:
        return []
    offered = options.rate * duration
    # In a steady state as many answers arrive of messages from before the window as are outstanding
    # at its end.
    if offered - messages <= max(offered / 100, 2):
        return []
    return [f"offered {options.rate:g} messages/s, achieved {messages / duration:g}"]


def _latency(histograms: Sequence[Histogram]) -> Latency:
    merged = Histogram()
    for histogram in histograms:
        merged.add(histogram)
    return Latency(**merged.summary_us())
