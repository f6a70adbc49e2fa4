"""``--user``: the user that a server becomes when it is bound.

It is an option of the command only. The ids of a process belong to all its threads, so a library
that changed them would change them for the application too. An application can do it in the `bound`
of `Server.start()`, as this command does. Later is too late: a child of the fork engine and a ring
of io_uring keep the privileges of the process that made them (CVE-2024-22017).
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastsock import interruptible

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_ID = 2**32 - 2  # the next number is -1, which setresuid(2) takes for "unchanged"
_THREAD_END = 1.0  # seconds, at most, until a thread that is ending has ended
_HELD = ("CapPrm", "CapEff", "CapAmb")  # proc(5): usable now, or in a program that is started


@dataclass(frozen=True)
class User:
    """The numbers of a user and a group, and the name that was given for them."""

    name: str
    uid: int
    gid: int


if TYPE_CHECKING:
    # Generic in newer releases of click only, so it is not subscripted at run time.
    _UserType = click.ParamType[User]
else:
    _UserType = click.ParamType


class _User(_UserType):
    """A click parameter ``NAME[:GROUP]``, each a name or a number, as chown(1) takes them."""

    name = "user"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> User:
        if isinstance(value, User):
            return value
        name, colon, group = value.partition(":")
        uid, gid = _look_up(name, lambda: pwd.getpwnam(name)[2:4]) or (_number(name), None)
        if uid is None:
            self.fail(f"user {name!r} is unknown; `getent passwd` lists them", param, ctx)
        if uid == 0:
            self.fail(f"user {name!r} is root; expected one with fewer rights", param, ctx)
        if colon:
            gid = _look_up(group, lambda: grp.getgrnam(group).gr_gid)
            gid = _number(group) if gid is None else gid
            if gid is None:
                self.fail(f"group {group!r} is unknown; `getent group` lists them", param, ctx)
        if gid is None:
            self.fail(f"user {name} is a number without a name; expected {name}:GROUP", param, ctx)
        return User(value, uid, gid)


USER = _User()


def _look_up(name: str, entry: Callable[[], Any]) -> Any:
    try:
        return interruptible.call(entry)  # it may ask a server (LDAP), as getaddrinfo() does
    except (KeyError, ValueError):  # the latter for a name that no file could hold
        return None


def _number(text: str) -> int | None:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    return number if 0 <= number <= _MAX_ID else None


def check_root(user: User) -> None:
    """Refuse before binding what would fail after it."""
    if os.geteuid() != 0:
        raise _refused(user, "only root can become another user")


def become(user: User) -> None:
    """Leave this process, with all its threads, only the user's privileges, for ever.

    Raises:
        OSError: a step failed, or privileges are left; the text says which. The process may then be
            between the two users, and must end.

    """
    # In this order: each step needs a privilege that the next one drops.
    with _step("setgroups", user):
        os.setgroups([])
    with _step("setresgid", user):
        os.setresgid(user.gid, user.gid, user.gid)
    with _step("setresuid", user):
        os.setresuid(user.uid, user.uid, user.uid)
    _verify(user)


def _verify(user: User) -> None:
    """Check every thread: a process may be set to keep capabilities (SECBIT_KEEP_CAPS)."""
    deadline = time.monotonic() + _THREAD_END
    while faults := list(filter(None, (_held(task, user) for task in _threads()))):
        # glibc leaves out a thread that is ending, such as one that has looked a name up.
        if time.monotonic() > deadline:
            raise _refused(user, faults[0])
        time.sleep(0.001)
    try:
        os.setresuid(-1, 0, -1)
    except PermissionError:
        return
    raise _refused(user, "root could be regained")


def _threads() -> Iterator[Path]:
    return Path("/proc/self/task").iterdir()


def _held(task: Path, user: User) -> str:
    """The privileges that a thread still has, in words; empty if it has none or has ended."""
    try:
        lines = (task / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    status = dict(line.split(":", 1) for line in lines)
    ids = [status[name].split() for name in ("Uid", "Gid", "Groups")]
    if ids != [[str(user.uid)] * 4, [str(user.gid)] * 4, []]:
        return f"thread {task.name} is still another user"
    if any(int(status[name], 16) for name in _HELD):
        return f"thread {task.name} keeps capabilities"
    return ""


@contextmanager
def _step(name: str, user: User) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        number = error.errno or errno.EPERM
        raise OSError(number, f"{name} {user.name}: {os.strerror(number)}") from None


def _refused(user: User, why: str) -> OSError:
    return OSError(errno.EPERM, f"become {user.name}: {os.strerror(errno.EPERM)} ({why})")
