"""The file of a Unix socket: bound under a lock, with exact rights, and removed at the end.

bind(2) makes the file and only unlink(2) removes it, so a server that was killed leaves a file
behind that refuses every connection. Such a stale file is replaced; anything else at the path is in
use and stays. Two servers may find the same file stale, and the second unlink() would remove the
first one's new socket. Therefore all this happens under a lock, flock(2) on ``PATH.lock`` beside
the path. The kernel drops the lock when its holder dies, so it cannot become stale. The lock's file
is removed with it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

from fastsock.endpoint import Endpoint
from fastsock.interruptible import CancelledError
from fastsock.server.hints import unix_hint

_LOCK_TIMEOUT = 1.0  # seconds; a holder needs well under a millisecond
_LAST_LOCK_TIMEOUT = 0.02  # seconds; of a server that stops, which can do without
_LOCK_INTERVAL = 0.001  # seconds

_FCHMODAT2 = 452  # its number, the same on every architecture that Python is built for but Alpha
_AT_EMPTY_PATH = 0x1000  # <linux/fcntl.h>: the descriptor itself is meant


class _Closable(Protocol):
    def close(self) -> None: ...


_Socket = TypeVar("_Socket", bound=_Closable)


class SocketFile:
    """The file of a socket that this process is bound to.

    The file is removed by `remove()`, with the last reference, or at the end of the interpreter. It
    is removed only if it is still the same file, and never by a forked child.
    """

    def __init__(self, path: str, mode: int) -> None:
        # While a descriptor is open, the kernel gives the number of its inode to no other file: a
        # file with the same number is the same file. O_PATH needs no rights and opens any kind.
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _widen(descriptor, path, mode)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self._finalizer = weakref.finalize(self, _remove, path, descriptor, os.getpid())

    def remove(self) -> None:
        """Remove the file, once; another file in its place is left alone.

        Call it while the socket is bound: then it works without the lock, which needs a descriptor.
        """
        if found := self._finalizer.detach():
            _, _, arguments, _ = found
            _remove(*arguments, bound=True)

    def forget_after_fork(self) -> None:
        """In a forked child: leave the file to the parent."""
        if self._finalizer.detach():
            os.close(self._descriptor)


def bind_unix(
    endpoint: Endpoint,
    mode: int,
    make_bound: Callable[[], _Socket],
    cancelled: Callable[[], bool],
) -> tuple[_Socket, SocketFile | None]:
    """Call `make_bound` when the path is free; return its socket and the file it made.

    `make_bound` gives its socket the rights `mode` by fchmod(2) before bind(2), so that the file
    never has more: Linux uses the socket's mode, less the umask. An abstract name has no file and
    no rights.

    Raises:
        CancelledError: `cancelled` returned true while another program held the lock.
        OSError: EADDRINUSE when something other than a stale socket is at the path, or the error of
            a step; the text names the step and the endpoint. Nothing is left behind.

    """
    path = endpoint.path
    if path.startswith("@"):
        return make_bound(), None
    with _lock(path, str(endpoint), cancelled):
        with _step("bind", endpoint):
            _clear(path)
        bound = make_bound()
        try:
            with _step("chmod", endpoint):
                return bound, SocketFile(path, mode)
        except BaseException:
            with suppress(OSError):
                Path(path).unlink()
            bound.close()
            raise


def give_away(path: str, uid: int, gid: int) -> None:
    """Give the file of a bound socket to another user: bind(2) makes it for the calling user.

    Raises:
        OSError: EADDRINUSE when another file is in the place of the socket.

    """
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # A user who may write to the directory could have put a link to any file there.
        found = os.fstat(descriptor)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
            raise OSError(errno.EADDRINUSE, f"chown {path}: it is not the socket that was bound")
        # fchown() refuses an O_PATH descriptor (open(2)), and a path may name another file by now.
        _call_libc("fchownat", descriptor, b"", uid, gid, _AT_EMPTY_PATH)
    finally:
        os.close(descriptor)


def _clear(path: str) -> None:
    """Remove a stale socket at `path`; raise EADDRINUSE for anything else that is there."""
    file = Path(path)
    try:
        found = file.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EADDRINUSE, "what is there is not a socket, and is left alone")
    error = _try_to_connect(path)
    if error not in (errno.ECONNREFUSED, errno.ENOENT):
        unknown = f": {os.strerror(error)}" if error not in (0, errno.EPROTOTYPE) else ""
        raise OSError(errno.EADDRINUSE, f"another socket is bound to it{unknown}")
    with suppress(FileNotFoundError):
        if os.path.samestat(found, file.lstat()):
            file.unlink()


def _try_to_connect(path: str) -> int:
    """The errno of connect(): ECONNREFUSED says that no socket is bound to the file."""
    # A datagram socket's connect() sends nothing and never waits. To a stream socket it fails with
    # EPROTOTYPE, whether that listens or not. A stream socket's connect() would make a client of
    # the server there, and would be refused between that server's bind() and listen().
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(path)


def _widen(descriptor: int, path: str, mode: int) -> None:
    """Add the rights that the umask removed. The lock is held."""
    if stat.S_IMODE(os.fstat(descriptor).st_mode) == mode:
        return
    # fchmod() refuses an O_PATH descriptor (open(2)), and a path may name another file by now.
    with suppress(OSError):
        Path(f"/proc/self/fd/{descriptor}").chmod(mode)
        return
    # Without /proc, as in a chroot: fchmodat2(2), since Linux 6.6.
    with suppress(OSError, ImportError):
        _call_libc("syscall", _FCHMODAT2, descriptor, b"", mode, _AT_EMPTY_PATH)
        return
    if not os.path.samestat(os.fstat(descriptor), os.lstat(path)):
        raise OSError(errno.EADDRINUSE, "it was replaced by another file")
    Path(path).chmod(mode)


def _call_libc(function: str, *arguments: int | bytes) -> None:
    import ctypes  # not at the top: few servers need it

    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _remove(path: str, descriptor: int, owner: int, *, bound: bool = False) -> None:
    """Remove the file if it is ours; with `bound`, when the lock cannot be had too.

    At the limit of descriptors, or on a full disk, the lock's file cannot be made. The lock
    protects the file of another server that has found ours stale, and ours is not stale while its
    socket is bound.
    """
    try:
        if os.getpid() == owner:
            # Gone already, or out of reach: then the file stays, stale, and the next server
            # replaces it.
            with suppress(OSError):
                timeout = _LAST_LOCK_TIMEOUT if bound else _LOCK_TIMEOUT
                try:
                    with _lock(path, path, timeout=timeout):
                        _unlink(path, descriptor)
                except OSError:
                    if bound:
                        _unlink(path, descriptor)
    finally:
        os.close(descriptor)


def _unlink(path: str, descriptor: int) -> None:
    if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
        Path(path).unlink()


@contextmanager
def _lock(
    path: str,
    where: str,
    cancelled: Callable[[], bool] = lambda: False,
    timeout: float | None = None,
) -> Iterator[None]:
    """Keep every other server that takes this lock from binding or removing `path`."""
    name = Path(f"{path}.lock")
    try:
        descriptor = _acquire(name, cancelled, _LOCK_TIMEOUT if timeout is None else timeout)
    except OSError as error:
        helps = unix_hint("open", error.errno or errno.EIO)
        raise _named("bind", where, error, f"for its lock, {name}; {helps}") from None
    try:
        yield
    finally:
        with suppress(OSError):
            name.unlink()  # before the unlock: afterwards the file may be another server's
        # Unlocked, not only closed: a child forked meanwhile has a copy that would hold the lock.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _acquire(name: Path, cancelled: Callable[[], bool], timeout: float) -> int:
    deadline = time.monotonic() + timeout
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600)
        locked = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed the file since it was opened.
            locked = os.path.samestat(os.fstat(descriptor), name.lstat())
            if locked:
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError:
            # flock() has no time limit, and a wait without one could hang a server.
            if time.monotonic() >= deadline:
                raise OSError(errno.EADDRINUSE, "") from None
            if cancelled():
                raise CancelledError from None
            time.sleep(_LOCK_INTERVAL)
        finally:
            if not locked:
                os.close(descriptor)


@contextmanager
def _step(name: str, endpoint: Endpoint) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # An error raised in this module says why; one of the system has its standard text only.
        number = error.errno or errno.EIO
        hint = error.strerror if error.strerror != os.strerror(number) else ""
        raise _named(name, str(endpoint), error, hint or "") from None


def _named(step: str, where: str, error: OSError, hint: str) -> OSError:
    """The same error, with the step that failed, where, and what may help."""
    number = error.errno or errno.EIO
    text = f"{step} {where}: {os.strerror(number)}"
    return OSError(number, f"{text} ({hint})" if hint else text)
