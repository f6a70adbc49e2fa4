# Address ranges (CIDR) that clients may come from.

from libc.stdint cimport uint8_t
from libc.string cimport memcmp, memcpy, memset

cimport fastsock._native.posix as posix

cdef struct Range:                  # IPv4 is kept as IPv4-mapped IPv6 (RFC 4291 2.5.5.2)
    uint8_t network[16]
    int bits


cdef inline void as_ipv6(posix.sockaddr_storage *peer, uint8_t *address) noexcept nogil:
    if peer.ss_family == posix.AF_INET6:
        memcpy(address, &(<posix.sockaddr_in6 *>peer).sin6_addr, 16)
        return
    memset(address, 0, 10)
    memset(address + 10, 0xFF, 2)
    memcpy(address + 12, &(<posix.sockaddr_in *>peer).sin_addr, 4)


cdef inline bint in_range(const uint8_t *address, Range *range_) noexcept nogil:
    cdef int whole = range_.bits // 8, left = range_.bits % 8
    if memcmp(address, range_.network, whole) != 0:
        return False
    return left == 0 or (address[whole] ^ range_.network[whole]) >> (8 - left) == 0


cdef inline bint allowed(posix.sockaddr_storage *peer, Range *ranges, int count) noexcept nogil:
    """Whether `peer` is in one of the ranges; a peer without an IP address always is."""
    cdef uint8_t address[16]
    cdef int i
    if peer.ss_family != posix.AF_INET and peer.ss_family != posix.AF_INET6:
        return True
    as_ipv6(peer, address)
    for i in range(count):
        if in_range(address, &ranges[i]):
            return True
    return False
