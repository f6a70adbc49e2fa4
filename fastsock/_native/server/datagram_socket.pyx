"""Steps 1 to 3 of a datagram server: create, options, bind. Datagrams need no listen().

SO_REUSEADDR is never set: on UDP it lets a second process bind the same port and take all the
datagrams. IP_RECVERR is not set either: with it an ICMP error about one client fails the next send
to another one (udp(7)).
"""

cimport fastsock._native.server.loop_guard as loop_guard
cimport fastsock._native.posix as posix
from fastsock._native.server.listener cimport BoundSocket


cdef class DatagramSocket(BoundSocket):
    """A UDP socket that reports each datagram's destination address and hop limit.

    `family` is AF_INET or AF_INET6, `host` a numeric address of it, `where` the endpoint for
    messages. `rcvbuf` and `sndbuf` are bytes (the kernel doubles them, socket(7)); 0 leaves the
    kernel's defaults.
    """

    def __init__(self, int family, str host, int port, unsigned int scope_id, str where, *,
                 bint reuse_port=False, bint dual_stack=False, int rcvbuf=0, int sndbuf=0):
        self.where = where
        self.family = family
        try:
            self._create(posix.SOCK_DGRAM)
            self._set_options(reuse_port, dual_stack, rcvbuf, sndbuf)
            self._report_addresses(dual_stack)
            self._merge_datagrams()
            self._bind(host, port, scope_id)
            self._answer_from_any()
        except BaseException:
            self.close()
            raise

    def _report_addresses(self, bint dual_stack):
        if self.family == posix.AF_INET or dual_stack:
            self._set_ipv4_options()
        if self.family == posix.AF_INET6:
            self._set_ipv6_options()

    def _merge_datagrams(self):
        """Let the kernel merge datagrams of one flow and size, UDP_GRO of udp(7)."""
        cdef int yes = 1
        # Since Linux 5.0. Without it they come one by one.
        posix.setsockopt(self.fd, posix.SOL_UDP, posix.UDP_GRO, &yes, sizeof(yes))

    def _answer_from_any(self):
        """Let IPv6 answers leave from every address at which datagrams come in."""
        cdef int yes = 1
        # A route can make a whole prefix local, with no address on an interface (ip-route(8)), and
        # as a source the kernel takes such an address only with this option, since Linux 4.15. It
        # takes no rights. Not before bind(), which would take every address.
        if self.family == posix.AF_INET6:
            posix.setsockopt(self.fd, posix.IPPROTO_IPV6, posix.IPV6_FREEBIND, &yes, sizeof(yes))

    # On a wildcard socket the kernel would answer from the address of the route back, and a client
    # that asked another address would never see the answer. So each datagram comes with the address
    # that was asked, and goes back with it (RFC 1122 3.3.4.2). The hop limit is for the loop guard.

    def _set_ipv4_options(self):
        self._set("IP_PKTINFO", posix.IPPROTO_IP, posix.IP_PKTINFO, 1)
        self._set("IP_RECVTTL", posix.IPPROTO_IP, posix.IP_RECVTTL, 1)
        self._set("IP_TTL", posix.IPPROTO_IP, posix.IP_TTL, loop_guard.ANSWER_HOPS)

    def _set_ipv6_options(self):
        self._set("IPV6_RECVPKTINFO", posix.IPPROTO_IPV6, posix.IPV6_RECVPKTINFO, 1)
        self._set("IPV6_RECVHOPLIMIT", posix.IPPROTO_IPV6, posix.IPV6_RECVHOPLIMIT, 1)
        self._set("IPV6_UNICAST_HOPS", posix.IPPROTO_IPV6, posix.IPV6_UNICAST_HOPS,
                  loop_guard.ANSWER_HOPS)


cdef class UnixDatagramSocket(DatagramSocket):
    """A Unix datagram socket; `path` and `mode` are those of UnixListener.

    `sndbuf` is bytes, as above. It holds every answer until the client has received it (unix(7)).
    """

    def __init__(self, str path, str where, *, int mode, int sndbuf=0):
        self.where = where
        self.family = posix.AF_UNIX
        try:
            self._create(posix.SOCK_DGRAM)
            self._set_options(False, False, 0, sndbuf)
            self._bind_unix(path, mode)
        except BaseException:
            self.close()
            raise


cdef class InheritedDatagramSocket(DatagramSocket):
    """A bound datagram socket that another program has made; takes `fd` over.

    It gets the options that the loop guard and the answers' source address need; all others stay
    as they are. Blocking or not, no call on it waits (MSG_DONTWAIT).
    """

    def __init__(self, int fd, int family, str where, *, bint dual_stack):
        self.where = where
        self.family = family
        self.inherited = True
        self.fd = fd
        if family == posix.AF_UNIX:
            self._refuse_descriptors()
        else:
            self._report_addresses(dual_stack)
            self._answer_from_any()
