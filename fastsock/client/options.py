"""The options of a load run: each declared once, what goes with what, and what depends on what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from fastsock.client import targets as client_targets
from fastsock.client.percentiles import Percentiles
from fastsock.client.stages import Stage, Stages
from fastsock.client.targets import Target, Targets
from fastsock.options import (
    Addresses,
    Choice,
    Count,
    Flag,
    Rate,
    Seconds,
    Size,
    Text,
    check_all,
    option,
)

if TYPE_CHECKING:
    from fastsock.endpoint import Endpoint

Mode = Literal["echo", "send", "receive"]
Wait = Literal["spin", "block", "auto"]
Arrivals = Literal["uniform", "poisson"]
Finish = Literal["wait", "half-close"]
OnDisconnect = Literal["stop", "reconnect"]

WAITS: tuple[str, ...] = get_args(Wait)
DATAGRAM_SIZES = (8, 65507)  # bytes; the first eight number it, and IPv4 takes no more

_DEFAULT_SIZES = {"echo": 64, "send": 131072, "receive": 131072}  # bytes, by mode
_DEFAULT_DURATION = 5.0  # seconds
_MAX_IN_FLIGHT = 16 << 20  # bytes; more than the socket buffers of both ends ever hold
_MAX_SECONDS = 30 * 86400.0
_MAX_PID = 1 << 22  # proc(5)
LOWEST_RATE, HIGHEST_RATE = 0.001, 1e9  # messages per second

_TIME = Seconds(0.001, _MAX_SECONDS)
_MESSAGES = Count(1, 1 << 48, units=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """The checked options of a run, with every default filled in; see `load()`."""

    connections: int = option(
        1,
        Count(1, 65536),  # as many have a place of their own in the pattern
        flags=("-c",),
        help="Open this many connections.",
        group="Load",
    )
    size: int = option(
        None,
        Size(1, 1 << 30),
        flags=("-s",),
        shown="64; 128k to send or receive",
        help="Send messages of this many bytes.",
        more="Datagrams, UDP or Unix: 8 to 65507.",
    )
    depth: int = option(
        1,
        Count(1, 65536),
        help="Keep this many messages in flight per connection.",
        more="In a closed loop of echoes only.",
    )
    rate: float | None = option(
        None,
        Rate(LOWEST_RATE, HIGHEST_RATE),
        flags=("-r",),
        help="Send on schedule, this many messages per second in all (open loop).",
        more="Over all connections in turn, whether or not answers came. Not to receive.",
    )
    stages: tuple[Stage, ...] | None = option(
        None,
        Stages(),
        help="Send on schedule, at rates that change: 10s@1k, 30s@1k..10k, 20s@10k.",
        more="Each stage has a constant rate, or one that grows or falls evenly; their lengths are "
        "the duration. The warm-up comes before, at their first rate.",
    )
    arrivals: str = option(
        "uniform",
        Choice(Arrivals),
        help="Space the messages of an open loop evenly, or at random (Poisson).",
        more="Independent users come at random; a queue then forms below the capacity too.",
    )
    seed: int = option(
        1,
        Count(0, (1 << 63) - 1),
        help="Draw the random times of Poisson arrivals from this number.",
        more="The same number gives the same times.",
    )
    mode: str = option(
        "echo",
        Choice(Mode),
        help="Echo, send to a discard service, or receive from a chargen service.",
        more="send and receive measure throughput one way, on streams only.",
    )
    verify: bool = option(True, Flag(), help="Compare every byte that comes with what must come.")
    duration: float | None = option(
        None, _TIME, flags=("-d",), shown="5s", help="Measure for this long.", group="Length"
    )
    messages: int | None = option(
        None,
        _MESSAGES,
        flags=("-n",),
        help="Stop after this many messages, instead of --duration.",
        more="They are counted over all connections; each is closed when its share is done.",
    )
    warmup: float = option(
        None,
        Seconds(0, _MAX_SECONDS),
        shown="duration / 10; 0 with messages",
        help="Load for this long before the measured window.",
    )
    ramp_up: float = option(
        0.0,
        Seconds(0, _MAX_SECONDS),
        help="Open the connections evenly over this long, before the load begins.",
        more="Streams only.",
        group="Connections",
    )
    reconnect_every: int | None = option(
        None,
        _MESSAGES,
        help="Connect again after this many messages; 1 = connect-echo-close.",
        more="On loopback the source addresses vary, so that ports do not run out. Streams only, "
        "and not to receive.",
    )
    on_disconnect: str | None = option(
        None,
        Choice(OnDisconnect),
        shown="stop",
        help="After a failure leave the connection closed, or connect again.",
        more="Connecting again counts an outage instead of an error, for a reload or a failover. "
        "Not to receive, and on streams only.",
    )
    finish: str | None = option(
        None,
        Choice(Finish),
        shown="wait",
        help="Half-close after the last answer (wait), or at once (half-close).",
        more="At once tests that a server and the path to it send back what is under way, and a "
        "server that does not close then fails. Echoes on streams only.",
    )
    timeout: float = option(
        5.0,
        _TIME,
        help="Fail a connection after this long without progress.",
        more="At the end a connection that is still answered is given up after one more window "
        "(at least 1s); "
        "in a closed loop after the length of the run so far and this long. Streams only.",
    )
    loss_timeout: float = option(
        0.2, _TIME, help="Count a datagram as lost after this long without an answer."
    )
    nodelay: bool = option(True, Flag(), help="Set TCP_NODELAY.", more="Nothing on a Unix socket.")
    gso: bool = option(
        False,
        Flag(),
        help="Send datagrams together that are due together (UDP_SEGMENT).",
        more="One call takes those of a connection, for the kernel or the network card to take "
        "apart, and they are received together (UDP_GRO), which takes Linux 5.0. On loopback "
        "nothing takes them apart, so a server that knows UDP_GRO gets them as one. UDP only.",
    )
    sources: tuple[str, ...] = option(
        (),
        Addresses(),
        flags=("--source",),
        help="Connect from these addresses of this machine, in turn.",
        more="Each has its own ports, about 28,000 (net.ipv4.ip_local_port_range) to one address "
        "and port of a server. Not on a Unix socket.",
    )
    threads: int = option(
        1,
        Count(1, 1024),
        flags=("-t",),
        help="Share the connections out over this many native threads.",
        group="Client",
    )
    wait: str = option(
        "spin",
        Choice(Wait),
        help="Poll without pause, block, or poll for a while before blocking.",
        more="spin is for measuring, and takes a CPU per thread. auto polls for 200us at most, "
        "where a trial finds that it pays, which is the rule of a server's busy_poll.",
    )
    interval: float | None = option(
        None,
        Seconds(0.1, 86400.0),
        help="Report the figures of each interval of this length too.",
        more="A run keeps at most 3600 rows: neighbours are joined when there are more.",
        group="Output",
    )
    server_pid: int | None = option(
        None,
        Count(1, _MAX_PID),
        help="Report the CPU time of this local process and its children too.",
        more="It is the time over the window, with that of the processes it has started by the "
        "middle of the warm-up and of those that end in the window.",
    )
    targets: tuple[Target, ...] = option(
        (),
        Targets(),
        flags=("--target",),
        help="Require this of the run, as p99<1ms: exit code 3 if missed.",
        more="A target on errors, lost or corrupt decides instead of the rule that there must be "
        "none. A percentile with fewer than ten answers above it misses its target. In the "
        "variable commas stand between targets.",
    )
    percentiles: tuple[float, ...] = option(
        (50.0, 90.0, 99.0, 99.9),
        Percentiles(),
        help="Show these percentiles.",
        more="The JSON has them beside its own.",
    )
    label: str | None = option(
        None, Text(200), help="Put this text into the report, to find the run again."
    )

    def __post_init__(self) -> None:
        check_all(self)
        self._fill_in()
        if self.threads > self.connections:
            raise ValueError(
                f"threads {self.threads} is more than connections {self.connections}; "
                "each thread needs one"
            )
        if self.depth > 1:
            self._check_depth()
        if self.arrivals != "uniform" and not (self.open_loop and self.duration is not None):
            raise ValueError(
                f"arrivals {self.arrivals!r} needs a rate and a duration, in which a random number "
                "of messages is sent"
            )
        if self.mode == "receive" and (self.open_loop or self.reconnect_every is not None):
            raise ValueError(
                "rate, stages and reconnect_every do not go with mode 'receive': the server sends"
            )
        self._check_messages()
        self._check_end()
        client_targets.check_options(self)

    def _fill_in(self) -> None:
        """Set the defaults that depend on other options: of size, duration and warm-up."""
        size, duration, warmup = self.size, self.duration, self.warmup
        if self.stages:
            for name in ("rate", "duration", "messages"):
                if getattr(self, name) is not None:
                    raise ValueError(f"stages does not go with {name}, which the stages have")
            duration = sum(stage.duration for stage in self.stages)
        if self.messages is not None:
            if duration is not None or warmup:
                raise ValueError(
                    "messages does not go with duration or warmup; give one or the other"
                )
            warmup = 0.0
        else:
            duration = _DEFAULT_DURATION if duration is None else duration
            warmup = duration / 10 if warmup is None else warmup
        size = _DEFAULT_SIZES[self.mode] if size is None else size
        for name, value in {"size": size, "duration": duration, "warmup": warmup}.items():
            object.__setattr__(self, name, value)

    def _check_messages(self) -> None:
        if self.messages is None:
            return
        if self.rate is not None and self.messages / self.rate > _MAX_SECONDS:
            raise ValueError(
                f"messages {self.messages} at rate {self.rate:g} take more than "
                f"{_MAX_SECONDS / 86400:g} days; expected fewer messages or a higher rate"
            )
        if self.mode == "receive" and self.ramp_up:
            raise ValueError(
                "ramp_up does not go with messages in mode 'receive', which are measured from the "
                "first connection; give a duration"
            )

    def _check_end(self) -> None:
        if self.finish is not None and self.mode != "echo":
            raise ValueError(
                f"finish does not go with mode {self.mode!r}, in which nothing is answered"
            )
        if self.on_disconnect is not None and self.mode == "receive":
            raise ValueError("on_disconnect does not go with mode 'receive'")

    def _check_depth(self) -> None:
        if self.depth * self.size > _MAX_IN_FLIGHT:
            raise ValueError(
                f"depth {self.depth} of {self.size} bytes is more than a connection can hold in "
                f"flight; expected depth * size of at most {_MAX_IN_FLIGHT} bytes"
            )
        if self.open_loop:
            raise ValueError(
                "depth does not go with rate or stages, which send whether or not answers came"
            )
        if self.mode != "echo":
            raise ValueError(
                f"depth does not go with mode {self.mode!r}, in which nothing is answered"
            )

    def check_target(self, target: Endpoint) -> None:
        """Raise ValueError if there can be no such run there."""
        if not target.is_stream:
            if self.mode != "echo":
                raise ValueError(
                    f"{target}: mode {self.mode!r} goes with streams, not with datagrams"
                )
            check_datagram_size(self.size)
            for name in ("ramp_up", "reconnect_every", "finish", "on_disconnect"):
                if getattr(self, name):
                    raise ValueError(f"{target}: {name} goes with streams, not with datagrams")
        client_targets.check_endpoint(self.targets, target)
        if self.sources and target.is_unix:
            raise ValueError(f"{target}: sources go with tcp and udp")
        if self.gso and target.scheme != "udp":
            raise ValueError(f"{target}: gso goes with udp")
        if not target.is_unix and target.port == 0:
            raise ValueError(
                f"{target}: port 0 cannot be connected to; write the port that the server printed"
            )

    @property
    def open_loop(self) -> bool:
        return self.rate is not None or self.stages is not None

    @property
    def offered_per_s(self) -> float | None:
        """Messages per second, the mean of the stages; None in a closed loop."""
        if self.stages:
            messages = sum(stage.messages for stage in self.stages)
            return messages / sum(stage.duration for stage in self.stages)
        return self.rate

    def as_dict(self) -> dict[str, Any]:
        """With the stages as text."""
        values = {name: getattr(self, name) for name in self.__slots__}
        if self.stages:
            values["stages"] = ", ".join(map(str, self.stages))
        return values


def check_datagram_size(size: int) -> None:
    """Raise ValueError if no datagram of a load run has that many bytes."""
    low, high = DATAGRAM_SIZES
    if not low <= size <= high:
        raise ValueError(f"size {size} is no size of a datagram; expected {low} to {high}")


class LoadKeywords(TypedDict, total=False):
    """What may be given for each field of `LoadOptions`."""

    connections: int
    size: int | str | None
    depth: int
    rate: float | str | None
    stages: str | Sequence[str] | None
    arrivals: Arrivals
    seed: int
    mode: Mode
    verify: bool
    duration: float | str | None
    messages: int | str | None
    warmup: float | str | None
    ramp_up: float | str
    reconnect_every: int | str | None
    on_disconnect: OnDisconnect | None
    finish: Finish | None
    timeout: float | str
    loss_timeout: float | str
    nodelay: bool
    gso: bool
    sources: Iterable[str]
    threads: int
    wait: Wait
    interval: float | str | None
    server_pid: int | None
    targets: Iterable[str]
    percentiles: Iterable[float]
    label: str | None
