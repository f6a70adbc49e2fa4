# The local addresses that a run's connections or datagram sockets take in turn.

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free

cimport fastsock._native.address as address
cimport fastsock._native.posix as posix

cdef struct Sources:
    posix.sockaddr_storage *addresses
    posix.socklen_t size            # of each address: all are of one family
    uint32_t count


cdef inline int fill(Sources *sources, given) except -1:
    """`given` is a sequence of SocketAddress of one family, with port 0."""
    if not given:
        return 0
    sources.addresses = <posix.sockaddr_storage *>calloc(
        len(given), sizeof(posix.sockaddr_storage))
    if sources.addresses == NULL:
        raise MemoryError
    for each in given:
        sources.size = address.fill_address(&sources.addresses[sources.count], each.family,
                                            each.host, 0, each.scope_id)
        sources.count += 1
    return 0


cdef inline void release(Sources *sources) noexcept nogil:
    free(sources.addresses)


cdef inline int bind_source(Sources *sources, int fd, uint32_t number) noexcept nogil:
    """Give the socket of connection `number` its local address, no port; return the errno, or 0.

    connect() chooses the port: it knows that only the four-tuple must be unique (ip(7)). bind()
    would let no two sockets of an address have one port.
    """
    cdef int on = 1
    if sources.count == 0:
        return 0
    posix.setsockopt(fd, posix.IPPROTO_IP, posix.IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on))
    if posix.bind(fd, <posix.sockaddr *>&sources.addresses[number % sources.count],
                  sources.size) != 0:
        return posix.errno
    return 0
