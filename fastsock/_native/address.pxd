# sockaddr_in and sockaddr_in6: what bind() and connect() are given.

from libc.string cimport memset

from fastsock._native cimport posix


cdef inline int fill_address(posix.sockaddr_storage *storage, int family, str host, int port,
                             unsigned int scope_id) except -1:
    """Write `host` and `port` in network byte order; return the size of the address."""
    cdef bytes text = host.encode("ascii")
    cdef posix.sockaddr_in *v4 = <posix.sockaddr_in *>storage
    cdef posix.sockaddr_in6 *v6 = <posix.sockaddr_in6 *>storage
    cdef void *binary
    memset(storage, 0, sizeof(posix.sockaddr_storage))
    if family == posix.AF_INET:
        v4.sin_family = posix.AF_INET
        v4.sin_port = posix.htons(port)
        binary = &v4.sin_addr
    elif family == posix.AF_INET6:
        v6.sin6_family = posix.AF_INET6
        v6.sin6_port = posix.htons(port)
        v6.sin6_scope_id = scope_id
        binary = &v6.sin6_addr
    else:
        raise ValueError(f"address family {family} is neither AF_INET nor AF_INET6")
    if posix.inet_pton(family, text, binary) != 1:
        raise ValueError(f"{host!r} is not a numeric address of family {family}")
    return sizeof(posix.sockaddr_in) if family == posix.AF_INET else sizeof(posix.sockaddr_in6)
