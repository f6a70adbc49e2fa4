from typing import Any

from fastsock._native.client.histogram import Histogram

class Loader:
    @property
    def from_intended(self) -> Histogram: ...
    @property
    def connects(self) -> Histogram: ...
    @property
    def from_send(self) -> Histogram: ...
    @property
    def send_delay(self) -> Histogram: ...
    def __init__(
        self,
        family: int,
        host: str,
        port: int,
        scope_id: int,
        where: str,
        *,
        mode: str,
        first: int,
        count: int,
        everyone: int,
        size: int,
        depth: int,
        rate: float,
        messages: int,
        timeout: float,
        verify: bool,
        spin: bool,
        nodelay: bool,
        busy_poll: int = 0,
        reconnect_every: int = 0,
        server_pid: int = 0,
    ) -> None: ...
    def connect(self) -> None: ...
    def run(self, begin_ns: int, warmup_ns: int, window_ns: int) -> None: ...
    def cancel(self, drop_everything: bool = False) -> None: ...
    def result(self) -> dict[str, Any]: ...
