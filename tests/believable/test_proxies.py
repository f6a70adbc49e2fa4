"""``fastsock load`` through real proxies: nginx with its stream module, and haproxy."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import pytest
from proxies import Proxy, haproxy, nginx, version
from records import record
from runs import SERVER_CPU, Client, Run, echo_server, load, undisturbed
from servers import delayed_echo

import fastsock

pytestmark = [pytest.mark.believable, pytest.mark.timeout(120)]

StartProxy = Callable[[fastsock.Endpoint], AbstractContextManager[Proxy]]

PROXIES: dict[str, StartProxy] = {
    "nginx": nginx,
    "nginx with proxy_half_close on": partial(nginx, half_close=True),
    "haproxy": haproxy,
}
LOADS = {
    "closed": ("-c", 4, "--wait", "block"),
    "open": ("-c", 4, "--rate", 1000),
    "reconnecting": ("-c", 4, "--reconnect-every", 10, "--wait", "block"),
    "deep": ("-c", 4, "--depth", 16, "--size", "16k", "--wait", "block"),
}


def keep(name: str, disturbance: str, expected: str, seen: Run) -> None:
    program = name.partition(" ")[0]
    record(
        f"{name.replace(' ', '-')}-{disturbance.split(';')[0].replace(' ', '-')}",
        disturbance=f"through {name}: {disturbance}",
        expected=expected,
        seen=seen.seen(),
        version=version(program),
    )


def without_error(proxy: Proxy, *words: object) -> Run:
    """A run in which every byte came back, also on a busy machine."""
    seen = load(proxy.endpoint, *words)
    assert not sum(seen.report["errors"].values()), seen.report["errors"]
    assert seen.report["lost_bytes"] == seen.report["corrupt_bytes"] == 0
    return seen


@pytest.mark.parametrize("how", LOADS)
@pytest.mark.parametrize("name", PROXIES)
def test_through_a_proxy(name: str, how: str) -> None:
    """All answers came before the client closed, so the run is valid with any proxy."""
    with echo_server() as server, PROXIES[name](server.endpoint) as proxy:
        seen = undisturbed(lambda: without_error(proxy, "-d", "1s", *LOADS[how]))
    keep(name, f"{how} load", "valid", seen)
    assert seen.valid, (seen.report["reasons"], seen.beside)
    assert seen.exit_code == 0


@pytest.mark.parametrize("name", ["nginx with proxy_half_close on", "haproxy"])
def test_half_close_through_a_proxy_that_passes_it_on(name: str) -> None:
    words = ("-d", "1s", "-c", 8, "--depth", 16, "--wait", "block", "--finish", "half-close")
    with echo_server() as server, PROXIES[name](server.endpoint) as proxy:
        seen = undisturbed(lambda: without_error(proxy, *words))
    keep(name, "half-close with messages outstanding", "valid", seen)
    assert seen.valid, (seen.report["reasons"], seen.beside)


def test_half_close_through_nginx_as_it_comes() -> None:
    """It closes both sides when one closes. The report says so, and names the usual cause."""
    words = ("-d", "1s", "-c", 8, "--depth", 16, "--wait", "block", "--finish", "half-close")
    # Behind it is a server that answers late: else the last answers may come before nginx closes.
    with (
        delayed_echo(0.05, cpu=SERVER_CPU) as server,
        nginx(fastsock.Endpoint.parse(server.endpoint)) as proxy,
    ):
        seen = load(proxy.endpoint, *words)
    keep("nginx", "half-close with messages outstanding", "errors, and the usual cause", seen)
    assert seen.exit_code == 1
    assert {"errors", "lost"} & set(seen.codes)
    assert "proxy_half_close" in " ".join(seen.seen()["reasons"] + seen.seen()["notes"])


def reloaded(*words: object) -> Run:
    """A run through haproxy, which is reloaded in the window."""
    with (
        echo_server() as server,
        haproxy(server.endpoint) as proxy,
        Client(proxy.endpoint, *words) as client,
    ):
        client.wait_connected(4)
        time.sleep(1.3)  # the warm-up takes 0.3 s
        proxy.reload()
        return client.finish()


def test_haproxy_is_reloaded() -> None:
    """With reconnect the run goes on; each connection that was cut is an outage."""
    words = ("-d", "3s", "-c", 4, "--rate", 1000, "--on-disconnect", "reconnect")
    seen = reloaded(*words)
    keep("haproxy", "reload; --on-disconnect reconnect", "4 outages, no error", seen)
    assert seen.report["outages"]["count"] == 4
    assert not sum(seen.report["errors"].values())
    assert seen.report["messages"] > 2000


def test_haproxy_is_reloaded_under_a_client_that_stops() -> None:
    """By default what was cut is an error."""
    seen = reloaded("-d", "3s", "-c", 4, "--rate", 1000)
    keep("haproxy", "reload", "errors", seen)
    assert seen.exit_code == 1
    assert "errors" in seen.codes


def test_the_server_behind_is_restarted() -> None:
    words = ("-d", "3s", "-c", 4, "--rate", 1000, "--on-disconnect", "reconnect")
    with (
        echo_server() as server,
        nginx(server.endpoint) as proxy,
        Client(proxy.endpoint, *words) as client,
    ):
        client.wait_connected(4)
        time.sleep(1.3)  # the warm-up takes 0.3 s
        server.stop()
        with echo_server(str(server.endpoint)):
            seen = client.finish()
    keep("nginx", "server behind it restarted; --on-disconnect reconnect", "outages", seen)
    assert seen.report["outages"]["count"] >= 4
    assert not sum(seen.report["errors"].values())
    assert seen.report["messages"] > 2000
