# The address ranges (CIDR) that clients may come from: the option `allow`.

from libc.stdint cimport uint8_t
from libc.string cimport memcmp, memcpy, memset

cimport fastsock._native.posix as posix

cdef struct Range:                  # IPv4 is kept as IPv4-mapped IPv6 (RFC 4291 2.5.5.2)
    uint8_t network[16]
    int bits


cdef inline bint contain(posix.sockaddr_storage *client, Range *ranges, int count) noexcept nogil:
    """Whether `client` is in one of the ranges; a client without an IP address always is."""
    cdef uint8_t address[16]
    cdef int i
    if client.ss_family != posix.AF_INET and client.ss_family != posix.AF_INET6:
        return True
    as_ipv6(client, address)
    for i in range(count):
        if in_range(address, &ranges[i]):
            return True
    return False


cdef inline bint in_range(const uint8_t *address, Range *range_) noexcept nogil:
    cdef int whole = range_.bits // 8, left = range_.bits % 8
    if memcmp(address, range_.network, whole) != 0:
        return False
    return left == 0 or (address[whole] ^ range_.network[whole]) >> (8 - left) == 0


cdef inline void as_ipv6(posix.sockaddr_storage *client, uint8_t *address) noexcept nogil:
    if client.ss_family == posix.AF_INET6:
        memcpy(address, &(<posix.sockaddr_in6 *>client).sin6_addr, 16)
        return
    memset(address, 0, 10)
    memset(address + 10, 0xFF, 2)
    memcpy(address + 12, &(<posix.sockaddr_in *>client).sin_addr, 4)
