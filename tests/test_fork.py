"""A program that forks beside a native Server."""

from __future__ import annotations

import gc
import json
import os
import re
import sys
from collections.abc import Callable

from clients import assert_serves, connect_to, echo_exactly, finish_exactly, has_ended
from implementations import ANY_PORT, in_fresh_process

from fastsock import Server


def test_fork() -> None:
    """A forked child is refused in every method, and harms neither the parent nor its clients."""
    if sys.version_info >= (3, 12):
        # Python warns that threads are not copied; that they are not is what this is about.
        in_fresh_process(fork_quietly)
    else:
        in_fresh_process(fork_beside_a_server)


def fork_quietly() -> None:
    import warnings

    warnings.simplefilter("ignore", DeprecationWarning)
    fork_beside_a_server()


def fork_beside_a_server() -> None:
    with connect_to(Server(ANY_PORT)) as (server, sock):
        from_child, to_parent = os.pipe()
        from_parent, to_child = os.pipe()
        if os.fork() == 0:
            os.write(to_parent, json.dumps(call_everything(server)).encode())
            os.close(to_child)
            os.read(from_parent, 1)  # live on until the parent is done
            os._exit(0)
        said = json.loads(os.read(from_child, 10_000))
        assert len(said) == 4, said
        assert all(re.match(r"this server belongs to process \d+.* Server in", s) for s in said)
        echo_exactly(sock, b"the parent serves on")
        assert_serves(server.endpoint)
        server.stop()
        assert has_ended(sock)  # though the child had a copy of the connection
        with Server(server.endpoint) as another:  # and of the listener
            assert_serves(another.endpoint)
        os.write(to_child, b"x")
        assert os.wait()[1] == 0


def call_everything(server: Server) -> list[str]:
    """What each method says in a forked child."""
    said = []
    methods: list[Callable[[], object]] = [
        server.start,
        server.stop,
        server.stats,
        server.serve_forever,
    ]
    for method in methods:
        try:
            method()
        except RuntimeError as error:
            said.append(str(error))
    return said


def test_fork_and_new_server() -> None:
    """A forked child can make a server of its own, and end without touching the parent's."""
    in_fresh_process(fork_and_serve)


def fork_and_serve() -> None:
    import warnings

    warnings.simplefilter("ignore", DeprecationWarning)
    with connect_to(Server(ANY_PORT)) as (server, sock):
        child = os.fork()
        if child == 0:
            with Server(ANY_PORT) as own:
                assert_serves(own.endpoint)
            del server
            gc.collect()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        finish_exactly(sock, b"the parent serves on")
