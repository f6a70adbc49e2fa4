# Control messages: what the kernel tells about a datagram, cmsg(3), ip(7), ipv6(7), udp(7).

from libc.stdint cimport uint16_t
from libc.string cimport memcpy, memset

cimport fastsock._native.posix as posix

cdef enum:
    CONTROL_SIZE = 192              # bytes; two kinds of pktinfo and three ints need 144

cdef union Control:                 # the buffer of control messages
    posix.cmsghdr header            # aligns the bytes
    char room[CONTROL_SIZE]

cdef struct Arrival:                # how a datagram came
    int hops                        # its TTL or hop limit, 0 if unknown
    int pktinfo                     # IP_PKTINFO or IPV6_PKTINFO: which of the next two is set
    posix.in_pktinfo ipv4           # the address that it was sent to
    posix.in6_pktinfo ipv6
    int segment                     # several came as one, each of so many bytes; 0: it is one


cdef inline void read_arrival(posix.msghdr *message, Arrival *arrival) noexcept nogil:
    cdef posix.cmsghdr *header = posix.CMSG_FIRSTHDR(message)
    cdef unsigned char *data
    arrival.hops = arrival.pktinfo = arrival.segment = 0
    while header != NULL:
        data = posix.CMSG_DATA(header)
        if header.cmsg_level == posix.IPPROTO_IP:
            if header.cmsg_type == posix.IP_TTL:
                memcpy(&arrival.hops, data, sizeof(arrival.hops))
            elif header.cmsg_type == posix.IP_PKTINFO:
                memcpy(&arrival.ipv4, data, sizeof(arrival.ipv4))
                arrival.pktinfo = posix.IP_PKTINFO
        elif header.cmsg_level == posix.IPPROTO_IPV6:
            if header.cmsg_type == posix.IPV6_HOPLIMIT:
                memcpy(&arrival.hops, data, sizeof(arrival.hops))
            elif header.cmsg_type == posix.IPV6_PKTINFO:
                memcpy(&arrival.ipv6, data, sizeof(arrival.ipv6))
                arrival.pktinfo = posix.IPV6_PKTINFO
        elif header.cmsg_level == posix.SOL_UDP and header.cmsg_type == posix.UDP_GRO:
            memcpy(&arrival.segment, data, sizeof(arrival.segment))
        header = posix.CMSG_NXTHDR(message, header)
    # The kernel looks up the interface and the local address when a datagram is queued, where
    # IP_PKTINFO is set by then. One that was queued before has 0 for both, and none that came later
    # has interface 0. Only the address that was asked is known: sendmsg() refuses it as a source
    # (EINVAL) if it is a broadcast address.
    if arrival.pktinfo == posix.IP_PKTINFO and arrival.ipv4.ipi_ifindex == 0:
        arrival.ipv4.ipi_spec_dst = arrival.ipv4.ipi_addr


cdef inline void answer_from_asked(posix.msghdr *message, Arrival *arrival) noexcept nogil:
    """Replace the control messages: the answer leaves from the address that was asked."""
    message.msg_controllen = 0
    # The route back decides on the interface, except for link-local addresses.
    if arrival.pktinfo == posix.IP_PKTINFO:
        arrival.ipv4.ipi_ifindex = 0
        add_message(message, posix.IPPROTO_IP, posix.IP_PKTINFO, &arrival.ipv4,
                    sizeof(arrival.ipv4))
    elif arrival.pktinfo == posix.IPV6_PKTINFO:
        if not posix.IN6_IS_ADDR_LINKLOCAL(&arrival.ipv6.ipi6_addr):
            arrival.ipv6.ipi6_ifindex = 0
        if posix.IN6_IS_ADDR_MULTICAST(&arrival.ipv6.ipi6_addr):
            memset(&arrival.ipv6.ipi6_addr, 0, sizeof(arrival.ipv6.ipi6_addr))  # no source
        add_message(message, posix.IPPROTO_IPV6, posix.IPV6_PKTINFO, &arrival.ipv6,
                    sizeof(arrival.ipv6))


cdef inline void send_in_segments(posix.msghdr *message, int segment) noexcept nogil:
    """Let it leave as datagrams of `segment` bytes, the last one perhaps shorter (UDP_SEGMENT)."""
    cdef uint16_t size = <uint16_t>segment
    add_message(message, posix.SOL_UDP, posix.UDP_SEGMENT, &size, sizeof(size))


cdef inline void send_in_one(posix.msghdr *message) noexcept nogil:
    """Take back send_in_segments()."""
    message.msg_controllen -= posix.CMSG_SPACE(sizeof(uint16_t))


cdef inline void add_message(posix.msghdr *message, int level, int kind, const void *data,
                             size_t size) noexcept nogil:
    """Add a control message after those that are there; its padding is 0, for memcmp()."""
    cdef char *end = <char *>message.msg_control + message.msg_controllen
    cdef posix.cmsghdr *header = <posix.cmsghdr *>end
    memset(header, 0, posix.CMSG_SPACE(size))
    header.cmsg_level = level
    header.cmsg_type = kind
    header.cmsg_len = posix.CMSG_LEN(size)
    memcpy(posix.CMSG_DATA(header), data, size)
    message.msg_controllen += posix.CMSG_SPACE(size)
