"""The counters of servers as Prometheus metrics; needs prometheus-client, the extra ``metrics``.

A program that has a registry of its own adds its servers to it:

    prometheus_client.REGISTRY.register(ServerCollector(server))
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from fastsock import __version__

if TYPE_CHECKING:
    from fastsock.server.server import Server

LABELS = ("endpoint", "engine", "worker")
BUILD_INFO = "fastsock_build_info"
_BUILD_INFO_HELP = "1, with the version of fastsock and of Python"


class Described(NamedTuple):
    """A metric that every worker has.

    ``field`` is where its value is in the counters of a worker; a dot leads into a mapping. With a
    `label` the value is a mapping, a sample for each key. `of` says for which endpoints it is.
    """

    name: str
    field: str
    help: str
    label: str = ""
    of: str = "all"
    kind: str = "counter"

    @property
    def exposed(self) -> str:
        """The name as it is scraped."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


METRICS = (
    Described("fastsock_connections_accepted", "accepted", "Connections accepted", of="streams"),
    Described(
        "fastsock_connections_open", "open", "Connections open now", of="streams", kind="gauge"
    ),
    Described(
        "fastsock_connections_closed",
        "closed",
        "Connections closed: eof (the client ended and got everything back), reset, error, "
        "stopped (by the server's end), idle (idle_timeout), close_on, fault (on request)",
        label="reason",
        of="streams",
    ),
    Described(
        "fastsock_connections_rejected",
        "rejected",
        "Connections from outside the allowed ranges, closed at once and not accepted",
        of="streams",
    ),
    Described("fastsock_bytes_received", "bytes_in", "Bytes received, of datagrams too"),
    Described("fastsock_bytes_sent", "bytes_out", "Bytes sent, of datagrams too"),
    Described("fastsock_datagrams_received", "datagrams_in", "Datagrams received", of="datagrams"),
    Described("fastsock_datagrams_sent", "datagrams_out", "Datagrams answered", of="datagrams"),
    Described(
        "fastsock_datagrams_dropped",
        "dropped",
        "Datagrams not answered: loop_guard (it may have been a server's answer), truncated, "
        "unnamed (a sender without an address), send_error, queue_full and stopped (with faults)",
        label="reason",
        of="datagrams",
    ),
    Described("fastsock_faults", "faults", "Faults done on request, by kind", label="kind"),
    Described("fastsock_errors", "errors", "System calls that failed, by errno", label="error"),
    Described(
        "fastsock_pauses",
        "accept_pauses",
        "Pauses in accepting, or in receiving datagrams, because descriptors or memory ran out",
    ),
    Described(
        "fastsock_busy_poll_trials",
        "busy_poll.trials",
        "Trials of busy_poll=auto that came to an end",
        of="busy_poll",
    ),
    Described(
        "fastsock_busy_poll_active",
        "busy_poll.polling",
        "1 if the last verdict of busy_poll=auto was to poll before blocking, else 0",
        of="busy_poll",
        kind="gauge",
    ),
)


class ServerCollector(Collector):
    """Reads the counters of servers when a registry is scraped, and at no other time."""

    def __init__(self, *servers: Server) -> None:
        self._servers = servers
        self._process = os.getpid()

    def describe(self) -> list[Metric]:
        """Nothing: a registry then does not read the counters to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        build = InfoMetricFamily(BUILD_INFO.removesuffix("_info"), _BUILD_INFO_HELP)
        build.add_metric([], {"version": __version__, "python": platform.python_version()})
        yield build
        # A program that has forked has no servers there, and its own metrics are not to fail.
        workers = list(self._workers()) if os.getpid() == self._process else []
        for metric in METRICS:
            labels = (*LABELS, metric.label) if metric.label else LABELS
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=labels)
            for where, counters in workers:
                for label, value in _samples(metric, counters):
                    family.add_metric([*where, *label], value)
            yield family

    def _workers(self) -> Iterator[tuple[tuple[str, str, str], Mapping[str, Any]]]:
        """The labels and the counters of each worker.

        Workers are numbered within their endpoint, over all servers: two servers can share a port.
        """
        numbers: Counter[str] = Counter()
        for server in self._servers:
            for counters in server.stats().per_worker:
                endpoint, engine = counters["endpoint"], counters["engine"]
                yield (endpoint, engine, str(numbers[endpoint])), counters
                numbers[endpoint] += 1


def _samples(
    metric: Described, counters: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], float]]:
    kind = "datagrams" if counters["engine"] == "datagrams" else "streams"
    if metric.of in ("streams", "datagrams") and metric.of != kind:
        return
    value: Any = counters
    for name in metric.field.split("."):
        if name not in value:
            return  # without busy_poll=auto
        value = value[name]
    if not metric.label:
        yield (), float(value)
        return
    for key, each in value.items():
        yield (key,), float(each)


def markdown() -> str:
    """The metrics as a list in Markdown, for docs/metrics.md; names are too long for a table."""
    lines = []
    for metric in METRICS:
        label = f", by `{metric.label}`" if metric.label else ""
        lines.append(f"- `{metric.exposed}` ({metric.kind}{label}): {metric.help}")
    lines.append(f"- `{BUILD_INFO}` (gauge, by `version` and `python`): {_BUILD_INFO_HELP}")
    return "\n".join(lines)
