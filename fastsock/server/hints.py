"""What helps when a step of binding fails: every such error ends with it, in brackets."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from fastsock.endpoint import Endpoint

_ALL = {
    errno.EMFILE: "raise the limit of open files, ulimit -n",
    errno.ENFILE: "raise the system's limit of open files, fs.file-max",
    errno.ENOBUFS: "the kernel has no memory for it",
    errno.ENOMEM: "the kernel has no memory for it",
    errno.ENOPROTOOPT: "this kernel does not have the option",
    errno.EPERM: "a security policy refuses it, such as one of seccomp or of a cgroup",
}
_INET = _ALL | {
    errno.EACCES: "ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE; "
    "a security policy may refuse others",
    errno.EADDRINUSE: "another socket is bound to it; port 0 picks a free one",
    errno.EADDRNOTAVAIL: "not an address of this machine; `ip address` lists those that are",
    errno.EAFNOSUPPORT: "this kernel does not have the protocol; try the other of IPv4 and IPv6",
    errno.EINVAL: "a link-local address needs its own interface, as in [fe80::1%eth0]",
    errno.ENODEV: "no interface has that number; `ip link` lists them",
}
_UNIX = _ALL | {
    errno.EACCES: "this user may not write to its directory",
    errno.EADDRINUSE: "another socket is bound to it",
    errno.EDQUOT: "the quota of its file system is used up",
    errno.ELOOP: "a link at it, or in its directory, is not followed",
    errno.ENOENT: "make its directory first",
    errno.ENOSPC: "its file system has no space or inodes left",
    errno.ENOTDIR: "a part of its path is not a directory",
    errno.EOPNOTSUPP: "its file system takes no sockets; choose another, such as /run",
    errno.EPERM: "its file system takes no sockets, or a security policy refuses it",
    errno.EROFS: "its file system is read-only; choose another, such as /run",
}


def inet_hint(step: str, number: int, port: int) -> str:
    """What helps against the errno `number` of that step for tcp and udp."""
    if number == errno.EACCES and 0 < port < 1024:
        return "ports below 1024 need CAP_NET_BIND_SERVICE"
    if number == errno.EADDRINUSE and port == 0:
        return "no port of net.ipv4.ip_local_port_range is free; name one outside it"
    return _INET.get(number, f"see {step}(2)")


def unix_hint(step: str, number: int) -> str:
    """What helps against the errno `number` of that step for a Unix socket."""
    return _UNIX.get(number, f"see {step}(2)")


@contextmanager
def hinted(endpoint: Endpoint) -> Iterator[None]:
    """Add the hint to an error of a step: ``bind tcp://...: Permission denied (...)``."""
    try:
        yield
    except OSError as error:
        number = error.errno or errno.EIO
        text = error.strerror or os.strerror(number)
        if text.endswith(")"):  # it has one
            raise
        step = text.split()[0]
        if endpoint.is_unix:
            helps = unix_hint(step, number)
        else:
            helps = inet_hint(step, number, endpoint.port)
        raise OSError(number, f"{text} ({helps})") from None
