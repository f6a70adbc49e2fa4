# Which datagrams an echo server must not answer: those that may be answers themselves.
#
# UDP has no connections, and a source address is easily forged. One datagram that seems to come
# from another server that answers everything makes the two servers answer each other for ever, at
# full speed (CERT CA-1996-01, CVE-1999-0103, CVE-2024-2169). So no answer goes to a port below
# 1024, where such services are; to the server's own port; or to an address of more than one host.
# Echo servers use other ports too, so our answers are marked: they leave with a hop limit that no
# system uses by default, and a datagram that comes with that limit, or somewhat less, is not
# answered. A loop between two fastsock servers ends before the first answer is answered.
#
# Between Unix sockets no source can be forged. Only the server's own name is left out: it can come
# back when the name of a client has become, by a link, another name of ours.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp

cimport fastsock._native.posix as posix
from fastsock._native.ancillary cimport Arrival

cdef enum:
    PORTS_OF_SERVICES = 1024        # the well-known ports are below
    ANSWER_HOPS = 200               # TTL or hop limit of an answer
    USUAL_HOPS = 128                # systems start with 255, with 128, or with 64 and below

cdef struct SocketName:             # from getsockname()
    posix.sockaddr_storage address
    posix.socklen_t size            # bytes of `address` that are set


cdef inline bint may_loop(const posix.msghdr *message, const Arrival *arrival,
                          const SocketName *own) noexcept nogil:
    cdef const posix.sockaddr_storage *source = <const posix.sockaddr_storage *>message.msg_name
    cdef uint16_t port
    if source.ss_family == posix.AF_UNIX:
        return (message.msg_namelen == own.size
                and memcmp(source, &own.address, own.size) == 0)
    port = port_of(source)
    if port < PORTS_OF_SERVICES or port == port_of(&own.address):
        return True
    if USUAL_HOPS < arrival.hops <= ANSWER_HOPS:
        return True
    if source.ss_family == posix.AF_INET:
        if is_shared_ipv4(posix.ntohl((<const posix.sockaddr_in *>source).sin_addr.s_addr)):
            return True
    elif is_shared_ipv6(&(<const posix.sockaddr_in6 *>source).sin6_addr):
        return True
    return asked_group(arrival)


cdef inline uint16_t port_of(const posix.sockaddr_storage *address) noexcept nogil:
    # sin_port and sin6_port lie at the same offset.
    return posix.ntohs((<const posix.sockaddr_in6 *>address).sin6_port)


cdef inline bint is_shared_ipv4(uint32_t address) noexcept nogil:
    """Unspecified (0.0.0.0/8), multicast (224.0.0.0/4), or reserved and broadcast (240.0.0.0/4)."""
    return address >> 24 == 0 or address >> 28 >= 14


cdef inline bint is_shared_ipv6(const posix.in6_addr *address) noexcept nogil:
    """Multicast (ff00::/8), unspecified, or an IPv4 address of such a kind."""
    cdef const uint8_t *bytes = <const uint8_t *>address
    cdef uint8_t any_bit = 0
    cdef int i
    if posix.IN6_IS_ADDR_V4MAPPED(address):
        return is_shared_ipv4(<uint32_t>bytes[12] << 24 | bytes[13] << 16 | bytes[14] << 8
                              | bytes[15])
    for i in range(16):
        any_bit |= bytes[i]
    return bytes[0] == 0xFF or any_bit == 0


cdef inline bint asked_group(const Arrival *arrival) noexcept nogil:
    """Whether all hosts of a network were asked: their answers would hit one victim."""
    if arrival.pktinfo == posix.IP_PKTINFO:
        return (arrival.ipv4.ipi_addr.s_addr != arrival.ipv4.ipi_spec_dst.s_addr    # ip(7)
                or is_shared_ipv4(posix.ntohl(arrival.ipv4.ipi_addr.s_addr)))
    return arrival.pktinfo == posix.IPV6_PKTINFO and is_shared_ipv6(&arrival.ipv6.ipi6_addr)
