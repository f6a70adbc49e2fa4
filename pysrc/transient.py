"""Which errors of system calls can pass, and why. Any other one ends the server.

An error such as EINVAL, ENOSYS or EPERM would come again for ever: a server that tries again after
it looks alive, and serves no client.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

#: Something has run out, and comes back when something else ends.
SHORTAGE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

#: About one waiting connection, says accept(2), or about one answer that did not arrive (ICMP). The
#: next call may succeed.
NETWORK = frozenset(
    (
        errno.ECONNABORTED,
        errno.ECONNRESET,
        errno.ECONNREFUSED,
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.ENETDOWN,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EPROTO,
        errno.EOPNOTSUPP,
        errno.EMSGSIZE,
        errno.EACCES,
    )
)

#: Of sendmsg(): these are about the call; every other error is about the one answer and its route.
SENDING_ENDS = frozenset((errno.EBADF, errno.ENOTSOCK, errno.ENOSYS, errno.EFAULT))


@contextmanager
def call(name: str) -> Iterator[None]:
    """Name the call in an OSError, which ends the server."""
    try:
        yield
    except OSError as error:
        number = error.errno or errno.EIO
        raise OSError(number, f"{name}: {os.strerror(number)}") from None
