"""A user of Locust whose load is made natively."""

from __future__ import annotations

from typing import ClassVar

import locust


class EchoUser(locust.User):
    """A user with connections to an echo server; subclass it, with `endpoint` at least.

    Every option of `fastsock.load()` that a user can have is a class attribute. `connections` and
    `rate` are of one user. `threads` are those of a worker process at most, one for each CPU if it
    is not given.
    """

    abstract = True

    endpoint: ClassVar[str] = ""
    connections: ClassVar[int] = 1
    wait: ClassVar[str] = "block"  # Locust's method of that name is not used

    # A user has nothing to do. While it waits, Locust can stop it at once.
    wait_time = locust.constant(3600)

    @locust.task
    def _stay(self) -> None:
        pass
