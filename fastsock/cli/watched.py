"""How ``fastsock serve`` is watched: its options for that, metrics, lines, the service manager.

A library's server has none of this: a program has a log and a registry of its own.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from fastsock.cli.exposed import exposed
from fastsock.cli.log import Format, Level, Log
from fastsock.cli.service_manager import ServiceManager
from fastsock.cli.stats_line import StatsLine
from fastsock.endpoint import Endpoint
from fastsock.options import Choice, Kind, Seconds, check_all, option
from fastsock.server.server import Server, listening

if TYPE_CHECKING:
    from fastsock.server.metrics_server import MetricsServer


class HttpAddress(Kind):
    """Where HTTP is served: an endpoint of tcp or unix, or a path."""

    metavar = "HOST:PORT|PATH"
    limits = "a tcp or unix endpoint, or a path"

    def check(self, name: str, value: Any) -> Endpoint:
        if isinstance(value, str) and value.startswith("/"):
            value = f"unix:{value}"
        endpoint = Endpoint.parse(value)
        if not endpoint.is_stream:
            raise ValueError(f"{name} {endpoint} is for datagrams; expected {self.limits}")
        return endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The checked options of the command alone."""

    metrics: Endpoint | None = option(  # noqa: RUF009 - Endpoint is frozen
        None,
        HttpAddress(),
        help="Serve metrics for Prometheus at this address.",
        more="`:9100` is port 9100 of loopback; of a host name the first address is bound. A path, "
        "or `unix:PATH`, is a Unix socket with the rights of unix_mode. It needs `pip install "
        "'fastsock[metrics]'`. docs/metrics.md says what each metric means.",
        group="Watching",
    )
    stats_interval: float | None = option(
        None,
        Seconds(0.1, 86400),
        help="Print a line with rates this often; SIGUSR1 prints one too.",
    )
    log_level: str = option("info", Choice(Level), help="Say only what is at least this grave.")
    log_format: str = option(
        "plain",
        Choice(Format),
        help="Say it as plain lines, or with time and level as text or json.",
        more="The time is UTC. json is one object a line: time, level, message.",
    )

    def __post_init__(self) -> None:
        check_all(self)


class Watched:
    """What watches a server from before it is bound, `with`, until after it has ended.

    `served` are the options of the server. `passed` are the descriptors of the service manager,
    with their names.
    """

    def __init__(
        self,
        server: Server,
        log: Log,
        options: ServeOptions,
        served: Mapping[str, Any],
        passed: Mapping[int, str],
    ) -> None:
        self.log = log
        self._chargen_for_all = served["service"] == "chargen" and not served["allow"]
        self._passed = passed
        self._manager = ServiceManager()
        self._stats_line = StatsLine(server, options.stats_interval, self._say_rates)
        self._scraped: MetricsServer | None = None
        if options.metrics is not None:
            self._scraped = _metrics_server(options.metrics, server, served["unix_mode"])
        self._stack = ExitStack()

    def __enter__(self) -> Watched:
        if self._scraped is not None:
            self._stack.callback(self._scraped.stop)
        self._stack.enter_context(self._stats_line.asked_by_signal())
        self._stack.callback(self._stats_line.stop)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where else this process listens: for the scrapes of its metrics."""
        return () if self._scraped is None else (self._scraped.endpoint,)

    def ready(self, server: Server) -> None:
        """Say where it listens, and start the threads; the endpoints can be connected to."""
        lines = list(listening(server, self._passed))
        for line in lines:
            self.log.info(line)
        if self._scraped is not None:
            self.log.info(f"metrics on {self._scraped}")
        advice = exposed(server.endpoints, self.endpoints, chargen_for_all=self._chargen_for_all)
        if advice:
            self.log.warning(advice)
        try:
            self._stats_line.start()
            if self._scraped is not None:
                self._scraped.start()
        except RuntimeError as error:
            number = errno.EAGAIN
            raise OSError(number, f"start a thread: {os.strerror(number)}") from error
        if failed := self._manager.ready("; ".join(lines)):
            self.log.warning(
                f"the service manager (NOTIFY_SOCKET) was not told: {failed.strerror or failed}"
            )

    def stopping(self, server: Server) -> None:
        self._manager.stopping()

    def _say_rates(self, line: str, figures: dict[str, float]) -> None:
        self.log.info(line, stats=figures)
        self._manager.status(line)


def _metrics_server(endpoint: Endpoint, server: Server, mode: int) -> MetricsServer:
    """Bind what serves the metrics, before anything else is bound."""
    try:
        from fastsock.server.metrics_server import MetricsServer
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "prometheus_client":
            raise
        raise click.UsageError("--metrics needs pip install 'fastsock[metrics]'") from None
    try:
        return MetricsServer(endpoint, server, mode)
    except OSError as error:
        raise click.UsageError(f"--metrics: {error.strerror or error}") from None
