"""What a server is exposed to, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from fastsock.endpoint import Endpoint


def exposed(
    endpoints: Iterable[Endpoint], scraped: Iterable[Endpoint], *, chargen_for_all: bool
) -> str:
    """A line of advice, or "" without any; `scraped` is where the metrics can be read."""
    return "; ".join(_reasons(endpoints, scraped, chargen_for_all))


def _reasons(
    endpoints: Iterable[Endpoint], scraped: Iterable[Endpoint], chargen_for_all: bool
) -> Iterator[str]:
    if os.geteuid() == 0:
        yield "this server runs as root: add --user NAME"
    far = [each for each in endpoints if beyond_loopback(each)]
    streams = ", ".join(str(each) for each in far if each.is_stream)
    datagrams = ", ".join(str(each) for each in far if not each.is_stream)
    if streams and chargen_for_all:
        yield f"{streams} sends without end to every host: add --allow RANGE, or bind 127.0.0.1"
    if datagrams:
        yield (
            f"{datagrams} answers forged senders too: bind 127.0.0.1, or have a firewall pass your "
            "clients alone"
        )
    for each in filter(beyond_loopback, scraped):
        yield f"every host can read the metrics on {each.host}: bind 127.0.0.1"


def beyond_loopback(endpoint: Endpoint) -> bool:
    """Whether other hosts may reach it; of host names only localhost is known not to be."""
    import ipaddress  # not at the top: most servers are on loopback by their default

    if endpoint.is_unix or endpoint.host in ("127.0.0.1", "::1", "localhost"):
        return False
    try:
        address = ipaddress.ip_address(endpoint.host.partition("%")[0])
    except ValueError:
        return True
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_loopback
