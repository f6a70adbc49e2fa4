"""The options of a server: each declared once, and what goes with which endpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict, get_args

from fastsock import cgroup
from fastsock.options import (
    MAX_INT,
    Choice,
    Count,
    Cpus,
    Descriptors,
    FileMode,
    Flag,
    Line,
    Octal,
    Ranges,
    Seconds,
    Size,
    check_all,
    option,
)
from fastsock.server import faults as fault_specs
from fastsock.server.faults import Fault, Faults

if TYPE_CHECKING:
    from fastsock.endpoint import Endpoint

Engine = Literal["auto", "epoll", "poll", "threads", "fork", "serial", "io_uring"]
Service = Literal["echo", "discard", "chargen"]
Purpose = Literal["faults", "record", ""]

ENGINES: tuple[str, ...] = get_args(Engine)

#: Engines whose connections wait one by one, each in a recv() that blocks. "auto" picks
#: neither without faults.
BLOCKING = ("threads", "fork")

#: The one engine whose streams can have faults, because a stalled connection costs the others
#: nothing there, and that can record.
FAULTS_ENGINE = "threads"

DRAIN_TIME = Seconds(0, 86400)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """The checked options of a server; see `Server`."""

    service: str = option(
        "echo",
        Choice(Service),
        help="Echo (RFC 862), discard (RFC 863) or generate characters (RFC 864).",
        more="discard and chargen are for streams only.",
        group="Service",
    )
    close_on: bytes = option(
        b"",
        Line(4096),
        help="Close a connection after echoing this line.",
        more="The line ends with LF or CR LF. Empty is never. Streams only.",
    )
    engine: str = option(
        "auto",
        Choice(Engine),
        help="Serve streams with this engine; auto picks one.",
        more="`fastsock info` lists those that can be used here. An engine given by name is used, "
        "or the call fails with the reason. Datagrams have one engine of their own.",
        group="Engine",
    )
    workers: int = option(
        1,
        Count(1, 1024),
        help="Run this many native threads per tcp or udp endpoint.",
        more="Each has a socket of its own (SO_REUSEPORT), and the kernel spreads connections and "
        "the clients of datagrams over them. Other endpoints have one worker. A host name has as "
        "many for each of its addresses.",
    )
    cpus: tuple[int, ...] = option(
        (),
        Cpus(),
        help="Pin the workers to these CPUs in turn, as 0,1.",
        more="In Python a list; none is any CPU.",
    )
    buffer_size: int = option(
        65536,
        Size(1, 16 << 20),  # a connection's unsent bytes are counted in 32 bits
        help="Receive up to this many bytes at once.",
        more="It is also the most that is kept for a client that does not read. Of a big stream "
        "up to four times as many are received at once, while its socket has room to send them "
        "back at once; not by the engines threads and fork.",
    )
    busy_poll: float | str = option(
        "auto",
        Seconds(0, 0.01, words=("auto",)),
        help="Poll for up to this long before blocking.",
        more="A worker that has nothing to do asks the kernel again and again, instead of a "
        "wake-up that costs more than an echo, while nothing else wants the CPU. auto polls for "
        "200us at most, where a trial of milliseconds finds that it raises the rate or lowers the "
        "CPU time per byte; stats() has its figures. It is 0 where a CPU quota (cgroups(7)) leaves "
        "less than one CPU beside those of the workers. With a number it polls while waits are "
        "shorter than that, whatever that costs. 0 is never. An idle server blocks. Not for the "
        "engines threads and fork, whose connections wait one by one.",
    )
    fds: tuple[int, ...] = option(
        (),
        Descriptors(),
        flags=("--fd",),
        help="Also serve on this inherited descriptor.",
        more="It is a listening stream socket or a bound datagram socket, such as "
        "socket.create_server(...).fileno(). It stays the caller's: the server makes a duplicate "
        "and closes only that. A listener becomes non-blocking, for the caller too, and gets "
        "nodelay; a Unix socket takes no open files any more (SO_PASSRIGHTS, if the kernel has "
        "it). Each has one worker. A stop leaves what waits in the queue to the other holders of "
        "the socket, so that a restart loses no client.",
        group="Sockets",
    )
    backlog: int = option(
        4096, Count(1, MAX_INT), help="Let this many connections wait to be accepted, listen(2)."
    )
    nodelay: bool = option(
        True,
        Flag(),
        help="Set TCP_NODELAY.",
        more="Without it small answers wait for acknowledgements.",
    )
    rcvbuf: int = option(
        0,
        Size(0, MAX_INT),
        help="Set SO_RCVBUF; 0 = the kernel's choice.",
        more="tcp and udp only. With 0 the kernel adapts it to the connection.",
    )
    sndbuf: int = option(
        0,
        Size(0, MAX_INT),
        help="Set SO_SNDBUF; 0 = the kernel's choice.",
        more="Not for unix. Of unixgram it holds all answers that no client has received yet; "
        "when it is full, answers are dropped.",
    )
    reuse_port: bool = option(
        False,
        Flag(),
        help="Let other sockets of this user bind the same port, SO_REUSEPORT.",
        more="Every one of them must ask for it. Without it a second server finds the port in use. "
        "With several workers the kernel cannot refuse a program of the same user that asks for "
        "SO_REUSEPORT itself: that program then takes a part of the connections.",
    )
    dual_stack: bool = option(
        False,
        Flag(),
        help="Take IPv4 on IPv6 endpoints too.",
        more="An endpoint's own ?dual_stack= wins.",
    )
    unix_mode: int = option(
        Octal(0o600),
        FileMode(),
        help="Give the file of a Unix socket these rights.",
        more="They are exact whatever the umask is; a client needs to write. An abstract name "
        "(unix://@name) has none: every local user of the network namespace may connect.",
    )
    max_connections: int = option(
        0,
        Count(0, MAX_INT),
        help="Stop accepting at this many connections; 0 = unlimited.",
        more="New ones wait in the backlog until one closes. The number is shared out evenly over "
        "the workers, which a host name has at each of its addresses. Streams only.",
        group="Limits",
    )
    idle_timeout: float = option(
        0.0,
        Seconds(0, 365 * 86400),
        help="Close a connection after this long without a byte; 0 = never.",
        more="RFC 862 has no such limit. No TCP keepalive is sent, so without this option the "
        "connection of a client that vanished (power cut, dead link) may stay open for ever. "
        "Streams only.",
    )
    allow: tuple[tuple[bytes, int], ...] = option(
        (),
        Ranges(),
        help="Serve only clients from this range, as 10.0.0.0/8.",
        more="Other connections are closed at once and counted. Without a range every client is "
        "served. Streams only.",
    )
    loop_guard: bool = option(
        True,
        Flag(),
        help="Leave datagrams unanswered that may be a server's answers.",
        more="They are those from ports below 1024, from the server's own port, from or to "
        "multicast, broadcast and unspecified addresses, and from other fastsock servers. Without "
        "it one forged datagram makes two servers answer each other for ever (CVE-2024-2169). On "
        "unixgram, where no address can be forged, they are those from the server's own address.",
    )
    drain_timeout: float = option(
        0.0,
        DRAIN_TIME,
        help="Serve connections for up to this long after the first signal.",
        more="stop() does so too. The second signal stops at once.",
    )
    faults: tuple[Fault, ...] | None = option(
        None,
        Faults(),
        flags=("--fault",),
        help="Misbehave on purpose, as in reset_peer:after=4k,probability=0.1.",
        more="docs/faults.md lists what there is. Streams need the engine threads, which auto then "
        "picks. In Python [] is no fault yet: server.faults can be set while it runs.",
        group="Faults",
    )
    seed: int = option(
        1,
        Count(0, (1 << 63) - 1),
        help="Draw what faults leave to chance from this number.",
        more="The same number and the same clients give the same faults.",
    )
    record: int = option(
        0,
        Size(0, 1 << 20),
        help="Keep the last bytes received and sent of each connection; 0 = none.",
        more="server.records() has them, in Python, so many of each direction: of the connections "
        "that are open, and of the last 64 that have ended. Streams only, with the service echo "
        "and the engine threads, which auto then picks; slower than without it.",
    )

    def __post_init__(self) -> None:
        check_all(self)
        if self.close_on and self.service != "echo":
            raise ValueError(f"close_on goes with the service echo, not with {self.service}")
        engine = FAULTS_ENGINE if self.engine == "auto" and self.purpose else self.engine
        busy_poll = _busy_poll(self.busy_poll, engine, self.workers)
        object.__setattr__(self, "busy_poll", busy_poll)

    @property
    def purpose(self) -> Purpose:
        """What is asked for that only one engine can do."""
        if self.faults is not None:
            return "faults"
        return "record" if self.record else ""

    def check_endpoints(self, asked: Sequence[Endpoint], inherited: Sequence[Endpoint]) -> None:
        """Raise ValueError if these options do not go with one of the endpoints."""
        unix = sum(endpoint.is_unix for endpoint in asked)
        # At least: a host name may have several addresses.
        self.check_shares(self.workers * (len(asked) - unix) + unix + len(inherited))
        stream_only = {
            "max_connections": self.max_connections,
            "idle_timeout": self.idle_timeout,
            "allow": self.allow,
            "service": self.service != "echo",
            "close_on": self.close_on,
            "record": self.record,
        }
        given = [name for name, value in stream_only.items() if value]
        for endpoint in (*asked, *inherited):
            if given and not endpoint.is_stream:
                raise ValueError(f"{endpoint}: {given[0]} goes with streams, not with datagrams")
        if self.record:
            self._check_echo("keep records", "record")
        if self.faults is not None:
            self.check_faults(self.faults, (*asked, *inherited))

    def check_faults(self, faults: Sequence[Fault], endpoints: Sequence[Endpoint]) -> None:
        """Raise ValueError if these options and endpoints cannot have these faults."""
        fault_specs.check_endpoints(faults, endpoints)
        if self.faults is None and not all(endpoint.is_stream for endpoint in endpoints):
            raise ValueError(
                "datagrams are served without faults; "
                "make the server with faults=[], to set them while it runs"
            )
        if not any(endpoint.is_stream for endpoint in endpoints):
            return
        if self.purpose == "" and self.engine == "auto":
            raise ValueError(
                f"engine 'auto' picked one that cannot have faults of streams, not "
                f"{FAULTS_ENGINE!r}; make the server with faults=[] to set them while it runs"
            )
        self._check_echo("have faults", "faults")

    def _check_echo(self, what: str, name: str) -> None:
        """Raise ValueError if these options are not those of the echo of one engine."""
        if self.engine not in ("auto", FAULTS_ENGINE):
            raise ValueError(
                f"engine {self.engine!r} cannot {what} of streams; "
                f"expected {FAULTS_ENGINE!r} or 'auto'"
            )
        if self.service != "echo":
            raise ValueError(f"service {self.service!r} cannot {what}; expected 'echo'")
        if self.close_on:
            raise ValueError(f"close_on cannot be given with {name}")

    def check_shares(self, workers: int, why: str = "") -> None:
        """Raise ValueError if `max_connections` cannot be shared by that many workers."""
        if 0 < self.max_connections < workers:
            sharing = f"{workers} workers ({why})" if why else f"{workers} workers"
            raise ValueError(
                f"max_connections {self.max_connections} is shared by {sharing}; "
                f"expected 0 for no limit, or at least {workers}"
            )


class ServerKeywords(TypedDict, total=False):
    """What may be given for each field of `ServerOptions`."""

    service: Service
    close_on: bytes
    engine: Engine
    workers: int
    cpus: Iterable[int] | None
    buffer_size: int | str
    busy_poll: float | str
    fds: Iterable[int]
    backlog: int
    nodelay: bool
    rcvbuf: int | str
    sndbuf: int | str
    reuse_port: bool
    dual_stack: bool
    unix_mode: int
    max_connections: int
    idle_timeout: float | str
    allow: Iterable[str]
    loop_guard: bool
    drain_timeout: float | str
    faults: Iterable[str] | None
    seed: int
    record: int | str


def _busy_poll(value: float | str, engine: str, workers: int) -> float | str:
    """What a checked `busy_poll` stands for with that engine."""
    if engine not in BLOCKING:
        # Workers that poll would use up a quota, and all that shares it would stand still.
        quota = cgroup.cpu_quota()
        return 0.0 if value == "auto" and quota is not None and quota < workers + 1 else value
    if value != "auto" and value:
        raise ValueError(
            f"busy_poll {value} is not for engine {engine!r}, whose connections wait one by one; "
            "expected 0 or auto"
        )
    return 0.0
