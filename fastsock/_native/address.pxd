# sockaddr_in, sockaddr_in6 and sockaddr_un: what bind() and connect() are given.

from libc.string cimport memcpy, memset

cimport fastsock._native.posix as posix


cdef inline int fill_address(posix.sockaddr_storage *storage, int family, str host, int port,
                             unsigned int scope_id) except -1:
    """Write `host` and `port` in network byte order; return the size of the address.

    For AF_UNIX `host` is the path, or "@name" for an abstract name.
    """
    cdef bytes text
    cdef posix.sockaddr_in *v4 = <posix.sockaddr_in *>storage
    cdef posix.sockaddr_in6 *v6 = <posix.sockaddr_in6 *>storage
    cdef void *binary
    memset(storage, 0, sizeof(posix.sockaddr_storage))
    if family == posix.AF_UNIX:
        return fill_unix(<posix.sockaddr_un *>storage, host)
    text = host.encode("ascii")
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
        raise ValueError(f"address family {family} is none of AF_INET, AF_INET6, AF_UNIX")
    if posix.inet_pton(family, text, binary) != 1:
        raise ValueError(f"{host!r} is not a numeric address of family {family}")
    return sizeof(posix.sockaddr_in) if family == posix.AF_INET else sizeof(posix.sockaddr_in6)


cdef inline int fill_unix(posix.sockaddr_un *address, str path) except -1:
    import os
    cdef bytes text = os.fsencode(path)
    cdef Py_ssize_t size = len(text)
    # A path ends with a NUL. An abstract name begins with one instead, and the size of the address
    # is its length: a NUL at the end would be part of the name (unix(7)).
    cdef bint abstract = text.startswith(b"@")
    if size + (not abstract) > <Py_ssize_t>sizeof(address.sun_path):
        raise ValueError(f"{path!r} is too long for a Unix socket")
    address.sun_family = posix.AF_UNIX
    memcpy(address.sun_path, <const char *>text, size)
    if abstract:
        address.sun_path[0] = 0
    return <int>(sizeof(posix.sa_family_t) + size + (not abstract))
