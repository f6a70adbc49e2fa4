"""The options of a load run: what each may be, what goes with what, and what depends on what."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, Any

from fastsock.options import (
    AUTO_BUSY_POLL,
    check_bool,
    check_choice,
    check_each,
    check_int,
    check_number,
    option,
)

if TYPE_CHECKING:
    from fastsock.endpoint import Endpoint

WAITS = ("spin", "block", "auto")
DATAGRAM_SIZES = (8, 65507)  # bytes; the first eight number it, and IPv4 takes no more

_DEFAULT_SIZES = {"echo": 64, "send": 131072, "receive": 131072}  # bytes, by mode
_DEFAULT_DURATION = 5.0  # seconds
_CONNECTIONS = (1, 65536)  # as many have a place of their own in the pattern
_MAX_SIZE = 1 << 30  # bytes
_MAX_IN_FLIGHT = 16 << 20  # bytes; more than the socket buffers of both ends ever hold
_MAX_SECONDS = 30 * 86400.0
_SECONDS = (0.001, _MAX_SECONDS, "seconds")
_MESSAGES = (1, 1 << 48)
_MAX_PID = 1 << 22  # proc(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """The checked options of a run, with every default filled in; see `load()`."""

    mode: str = option("echo", check_choice, tuple(_DEFAULT_SIZES))
    connections: int = option(1, check_int, *_CONNECTIONS)
    size: int = option(MISSING, check_int, 1, _MAX_SIZE)
    depth: int = option(1, check_int, 1, 65536)
    duration: float | None = option(None, check_number, *_SECONDS)
    messages: int | None = option(None, check_int, *_MESSAGES)
    warmup: float = option(MISSING, check_number, 0, _MAX_SECONDS, "seconds")
    rate: float | None = option(None, check_number, 0.001, 1e9, "messages per second")
    verify: bool = option(True, check_bool)
    wait: str = option("spin", check_choice, WAITS)
    threads: int = option(1, check_int, 1, 1024)
    nodelay: bool = option(True, check_bool)
    reconnect_every: int | None = option(None, check_int, *_MESSAGES)
    timeout: float = option(5.0, check_number, *_SECONDS)
    loss_timeout: float = option(0.2, check_number, *_SECONDS)
    gso: bool = option(False, check_bool)
    server_pid: int | None = option(None, check_int, 1, _MAX_PID)

    @classmethod
    def fill_in(
        cls,
        *,
        mode: str = "echo",
        size: int | None = None,
        duration: float | None = None,
        messages: int | None = None,
        warmup: float | None = None,
        **others: Any,
    ) -> LoadOptions:
        """Options with the defaults that depend on others: of size, duration and warm-up."""
        if messages is None:
            asked = _DEFAULT_DURATION if duration is None else duration
            duration = check_number("duration", asked, *_SECONDS)
            warmup = duration / 10 if warmup is None else warmup
        elif duration is not None or warmup not in (None, 0):
            raise ValueError("messages does not go with duration or warmup; give one or the other")
        if size is None:
            size = _DEFAULT_SIZES[check_choice("mode", mode, tuple(_DEFAULT_SIZES))]
        return cls(
            mode=mode,
            size=size,
            duration=duration,
            messages=messages,
            warmup=0.0 if warmup is None else warmup,
            **others,
        )

    def __post_init__(self) -> None:
        check_each(self)
        if self.threads > self.connections:
            raise ValueError(
                f"threads {self.threads} is more than connections {self.connections}; "
                "each thread needs one"
            )
        if self.depth > 1:
            self._check_depth()
        if self.mode == "receive" and (self.rate is not None or self.reconnect_every is not None):
            raise ValueError(
                "rate and reconnect_every do not go with mode 'receive': the server sends"
            )

    def _check_depth(self) -> None:
        if self.depth * self.size > _MAX_IN_FLIGHT:
            raise ValueError(
                f"depth {self.depth} of {self.size} bytes is more than a connection can hold in "
                f"flight; expected depth * size of at most {_MAX_IN_FLIGHT} bytes"
            )
        if self.rate is not None:
            raise ValueError("depth does not go with rate, which sends whether or not answers came")
        if self.mode != "echo":
            raise ValueError(
                f"depth does not go with mode {self.mode!r}, in which nothing is answered"
            )

    @property
    def busy_poll(self) -> float:
        """For how many seconds at most a loader that does not spin polls before it blocks."""
        return AUTO_BUSY_POLL / 1e6 if self.wait == "auto" else 0.0

    def check_target(self, target: Endpoint) -> None:
        """Raise ValueError if there can be no such run there."""
        if not target.is_stream:
            if self.mode != "echo":
                raise ValueError(
                    f"{target}: mode {self.mode!r} goes with streams, not with datagrams"
                )
            check_int("size of a datagram", self.size, *DATAGRAM_SIZES)
            if self.reconnect_every is not None:
                raise ValueError(f"{target}: reconnect_every goes with streams, not with datagrams")
        if self.gso and target.scheme != "udp":
            raise ValueError(f"{target}: gso goes with udp")
        if not target.is_unix and target.port == 0:
            raise ValueError(f"{target}: port 0 cannot be connected to")

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}
