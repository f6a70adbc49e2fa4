# Which datagrams cannot leave as a run (UDP_SEGMENT), by the host of the client.
#
# Above the MTU of the route the kernel sends one datagram in fragments, but refuses a run of them
# (EMSGSIZE); through an IPsec tunnel it refuses all runs (EIO). To be told so costs a failed call,
# so the size is remembered. By the host, as all its ports have one route. A source address is
# easily forged, so the memory is fixed: hosts that share a place displace each other, and then it
# costs a failed call again. A route that becomes wider is not noticed: its runs still go one by
# one, as without UDP_SEGMENT.

from libc.stdint cimport uint32_t
from libc.string cimport memcmp, memcpy, memset

cimport fastsock._native.posix as posix

cdef enum:
    PLACES = 64                     # a power of 2

cdef struct Limit:
    posix.in6_addr host             # IPv4 in the first 4 bytes
    size_t refused                  # the smallest size that was refused; 0: this place is free

cdef struct RunLimits:              # all 0 at the start
    Limit limits[PLACES]
    bint any                        # one of them is set


cdef inline Limit *place_of(RunLimits *limits, const posix.msghdr *message,
                            posix.in6_addr *host) noexcept nogil:
    """The place of the host that the message goes to, and that host."""
    cdef const posix.sockaddr_storage *name = <const posix.sockaddr_storage *>message.msg_name
    cdef uint32_t words[4]
    memset(host, 0, sizeof(posix.in6_addr))
    if name.ss_family == posix.AF_INET:
        memcpy(host, &(<const posix.sockaddr_in *>name).sin_addr, sizeof(posix.in_addr))
    else:
        host[0] = (<const posix.sockaddr_in6 *>name).sin6_addr
    memcpy(words, host, sizeof(words))
    # Knuth's multiplicative hash: its high bits depend on all bits of the address.
    return &limits.limits[(words[0] ^ words[1] ^ words[2] ^ words[3]) * <uint32_t>2654435761
                          >> 16 & PLACES - 1]


cdef inline bint may_send(RunLimits *limits, const posix.msghdr *message,
                          size_t size) noexcept nogil:
    """Whether a run of datagrams of `size` bytes has not been refused."""
    cdef posix.in6_addr host
    cdef Limit *limit
    if not limits.any:
        return True
    limit = place_of(limits, message, &host)
    return (limit.refused == 0 or size < limit.refused
            or memcmp(&limit.host, &host, sizeof(host)) != 0)


cdef inline void note_refusal(RunLimits *limits, const posix.msghdr *message,
                              size_t size) noexcept nogil:
    cdef posix.in6_addr host
    cdef Limit *limit = place_of(limits, message, &host)
    if limit.refused != 0 and memcmp(&limit.host, &host, sizeof(host)) == 0:
        size = min(size, limit.refused)
    limit.host = host
    limit.refused = size
    limits.any = True
