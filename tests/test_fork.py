"""A program that forks beside a native Server."""

from __future__ import annotations

import gc
import json
import os
import re
import warnings
from collections.abc import Callable

import pytest
from clients import assert_serves, connect_to, echo_exactly, has_ended
from implementations import ANY_PORT, in_fresh_process, usable_engines

from fastsock import Server


@pytest.mark.parametrize("engine", usable_engines())
def test_fork(engine: str) -> None:
    """A forked child is refused in every method, keeps nothing open, and can serve by itself."""
    in_fresh_process(fork_beside_a_server, engine)


def fork_beside_a_server(engine: str) -> None:
    # Python 3.12 warns that threads are not copied: this is what is tested here.
    warnings.simplefilter("ignore", DeprecationWarning)
    with connect_to(Server(ANY_PORT, engine=engine)) as (server, sock):
        from_child, to_parent = os.pipe()
        from_parent, to_child = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(to_child)  # so that the read below also ends when the parent fails
            said = call_everything(server)
            with Server(ANY_PORT, engine=engine) as own:
                assert_serves(own.endpoint)
            del server
            gc.collect()
            os.write(to_parent, json.dumps(said).encode())
            os.read(from_parent, 1)  # live on until the parent is done
            os._exit(0)
        os.close(to_parent)
        said = json.loads(os.read(from_child, 10_000))
        assert len(said) == 4, said
        assert all(re.match(r"this server belongs to process \d+.* Server in", s) for s in said)
        echo_exactly(sock, b"the parent goes on")
        if engine != "serial":
            assert_serves(server.endpoint)
        server.stop()
        assert has_ended(sock)  # though the child had a copy of the connection
        with Server(server.endpoint, engine=engine) as another:  # and of the listener
            assert_serves(another.endpoint)
        os.write(to_child, b"x")
        assert os.waitpid(child, 0)[1] == 0


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
