"""Classes of users in a locustfile: what their attributes mean as options of a load run."""

from __future__ import annotations

import difflib
from typing import Any

from locust.env import Environment

from fastsock.client.options import LoadOptions
from fastsock.endpoint import Endpoint
from fastsock.locust.user import EchoUser
from fastsock.options import declared, from_given
from fastsock.units import parse_rate

INTERVAL = 0.5  # seconds between two additions to Locust's statistics

_OPTIONS = [each.name for each in declared(LoadOptions)]
#: Options that the load of a user cannot have, and what has their place.
_NOT_OF_A_USER = {
    "duration": "Locust's --run-time ends the load",
    "messages": "Locust's --run-time ends the load",
    "stages": "write a LoadTestShape, or rate",
    "warmup": "the load is measured from its first message",
    "ramp_up": "Locust's --spawn-rate ramps",
    "interval": "Locust has figures over time itself",
    "targets": "give --fastsock-target",
    "label": "the report names the workers",
}


class UserClass:
    """A class of users, checked; ValueError says what is wrong with it."""

    def __init__(self, users: type[EchoUser], environment: Environment) -> None:
        self.name = users.__name__
        self._environment = environment
        try:
            self._given = _given(users)
            self.threads = self._given.pop("threads", None)
            self.endpoint = Endpoint.parse(users.endpoint or _missing_endpoint())
            self.options(1, 1, 0).check_target(self.endpoint)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.name}: {error}") from None

    def keywords(self, users: int, threads: int, worker: int) -> dict[str, Any]:
        """Of a run of so many users in a worker, by its number."""
        given = dict(self._given)
        given["connections"] *= users
        if given.get("rate") is not None:
            given["rate"] = users * parse_rate(str(given["rate"]), "rate")
        # The random times of two workers must differ.
        given["seed"] = given.get("seed", 1) + worker
        return {
            **given,
            "threads": min(threads, self.threads or threads, given["connections"]),
            # Those of the master, which come with the first users.
            "targets": _targets(self._environment),
            "warmup": 0.0,
            "duration": 30 * 86400.0,  # until it is ended
            "interval": INTERVAL,
        }

    @property
    def load(self) -> dict[str, Any]:
        """What the loads of one report have in common, for `differences()`."""
        return {**self.options(1, 1, 0).as_dict(), "kind of endpoint": self.endpoint.scheme}

    def options(self, users: int, threads: int, worker: int) -> LoadOptions:
        return from_given(LoadOptions, self.keywords(users, threads, worker))


def _given(users: type[EchoUser]) -> dict[str, Any]:
    """The options that a class has as attributes."""
    for each in users.__mro__[: users.__mro__.index(EchoUser)]:
        for name, value in vars(each).items():
            if name in _NOT_OF_A_USER:
                raise ValueError(f"{name} goes not with a user; {_NOT_OF_A_USER[name]}")
            if name.startswith("_") or hasattr(EchoUser, name) or callable(value):
                continue
            meant = difflib.get_close_matches(name, [*_OPTIONS, "endpoint"], 1, 0.8)
            if name not in _OPTIONS and meant:
                raise ValueError(f"there is no option {name}; did you mean {meant[0]}?")
    given = {each.name: each for each in declared(LoadOptions) if hasattr(users, each.name)}
    for name, option in given.items():
        if (value := getattr(users, name)) is not None or option.default is not None:
            option.kind.check(name, value)
    return {name: getattr(users, name) for name in given}


def _missing_endpoint() -> str:
    raise ValueError('endpoint is missing; write endpoint = "tcp://HOST:PORT"')


def _targets(environment: Environment) -> list[str]:
    return list(getattr(environment.parsed_options, "fastsock_target", None) or ())


def classes_of(environment: Environment) -> list[UserClass]:
    """All classes of users in a locustfile."""
    classes = [each for each in environment.user_classes if issubclass(each, EchoUser)]
    return [UserClass(each, environment) for each in classes]
