# What the kernel tells with a datagram beside its bytes: cmsg(3), ip(7), ipv6(7).

from libc.stdint cimport uint16_t
from libc.string cimport memcpy

cimport fastsock._native.posix as posix

cdef enum:
    CONTROL_SIZE = 192              # bytes; two kinds of pktinfo and three ints need 144

cdef union Control:                 # where it is told
    posix.cmsghdr header            # aligns the bytes
    char room[CONTROL_SIZE]

cdef struct Arrival:                # how a datagram came
    int hops                        # its TTL or hop limit, 0 when not told
    int asked                       # which of these two holds the address that it was sent to:
    posix.in_pktinfo ipv4           # IP_PKTINFO,
    posix.in6_pktinfo ipv6          # IPV6_PKTINFO; 0 for none
    int segment                     # several came as one, each of so many bytes; 0: it is one


cdef inline void read_arrival(posix.msghdr *message, Arrival *arrival) noexcept nogil:
    cdef posix.cmsghdr *note = posix.CMSG_FIRSTHDR(message)
    cdef unsigned char *data
    arrival.hops = arrival.asked = arrival.segment = 0
    while note != NULL:
        data = posix.CMSG_DATA(note)
        if note.cmsg_level == posix.IPPROTO_IP:
            if note.cmsg_type == posix.IP_TTL:
                memcpy(&arrival.hops, data, sizeof(arrival.hops))
            elif note.cmsg_type == posix.IP_PKTINFO:
                memcpy(&arrival.ipv4, data, sizeof(arrival.ipv4))
                arrival.asked = posix.IP_PKTINFO
        elif note.cmsg_level == posix.IPPROTO_IPV6:
            if note.cmsg_type == posix.IPV6_HOPLIMIT:
                memcpy(&arrival.hops, data, sizeof(arrival.hops))
            elif note.cmsg_type == posix.IPV6_PKTINFO:
                memcpy(&arrival.ipv6, data, sizeof(arrival.ipv6))
                arrival.asked = posix.IPV6_PKTINFO
        elif note.cmsg_level == posix.SOL_UDP and note.cmsg_type == posix.UDP_GRO:
            memcpy(&arrival.segment, data, sizeof(arrival.segment))
        note = posix.CMSG_NXTHDR(message, note)


cdef inline void answer_from_asked(posix.msghdr *message, Arrival *arrival) noexcept nogil:
    """Write over what was told: the answer leaves from the address that was asked."""
    message.msg_controllen = 0
    # The route back decides on the interface, except for the addresses that each link has.
    if arrival.asked == posix.IP_PKTINFO:
        arrival.ipv4.ipi_ifindex = 0
        write_note(message, posix.IPPROTO_IP, posix.IP_PKTINFO, &arrival.ipv4,
                   sizeof(arrival.ipv4))
    elif arrival.asked == posix.IPV6_PKTINFO:
        if not posix.IN6_IS_ADDR_LINKLOCAL(&arrival.ipv6.ipi6_addr):
            arrival.ipv6.ipi6_ifindex = 0
        write_note(message, posix.IPPROTO_IPV6, posix.IPV6_PKTINFO, &arrival.ipv6,
                   sizeof(arrival.ipv6))


cdef inline void send_in_segments(posix.msghdr *message, int segment) noexcept nogil:
    """Add to what is told: it leaves as datagrams of `segment` bytes, the last perhaps
    shorter (UDP_SEGMENT, udp(7))."""
    cdef uint16_t size = <uint16_t>segment
    write_note(message, posix.SOL_UDP, posix.UDP_SEGMENT, &size, sizeof(size))


cdef inline void send_in_one(posix.msghdr *message) noexcept nogil:
    """Take back `send_in_segments`."""
    message.msg_controllen -= posix.CMSG_SPACE(sizeof(uint16_t))


cdef inline void write_note(posix.msghdr *message, int level, int kind, const void *data,
                            size_t size) noexcept nogil:
    """Add a note behind those that are there."""
    cdef char *end = <char *>message.msg_control + message.msg_controllen
    cdef posix.cmsghdr *note = <posix.cmsghdr *>end
    note.cmsg_level = level
    note.cmsg_type = kind
    note.cmsg_len = posix.CMSG_LEN(size)
    memcpy(posix.CMSG_DATA(note), data, size)
    message.msg_controllen += posix.CMSG_SPACE(size)
