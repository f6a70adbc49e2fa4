# How the load client's connections are opened: step 1 and connect(), without waiting for it.

from libc.stdint cimport UINT64_MAX, int64_t, uint32_t
from libc.string cimport memset

cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix
from fastsock._native.client.load_run cimport watch
from fastsock._native.client.connection cimport CONNECTING, Peer, Run, admit, fail, failure_of_errno

cdef enum:
    RETRY_NS = 1000000              # how often connect() is tried again
    LOOPBACK_NET = 127
    SOURCES = 60000                 # addresses that are used as sources, from 127.1.0.1 on
    SOURCES_APART = 997             # between the first of two threads


cdef inline void vary_source(Run *run, int fd) noexcept nogil:
    """On loopback, connect from one address of 127.0.0.0/8 after the other.

    The ports of one address would run out: each of its closed connections keeps one for a minute
    (TIME_WAIT). A failure is no matter here: connect() then chooses the address, or says why not.
    """
    cdef posix.sockaddr_in source
    cdef int on = 1
    cdef uint32_t target = posix.ntohl((<posix.sockaddr_in *>&run.address).sin_addr.s_addr)
    if run.address.ss_family != posix.AF_INET or target >> 24 != LOOPBACK_NET:
        return
    memset(&source, 0, sizeof(source))
    source.sin_family = posix.AF_INET
    source.sin_addr.s_addr = posix.htonl(
        <uint32_t>LOOPBACK_NET << 24 | 1 << 16 | run.next_source % SOURCES + 1)
    run.next_source += 1
    # The port is chosen by connect(), which knows that only the four-tuple must be unique (ip(7)).
    posix.setsockopt(fd, posix.IPPROTO_IP, posix.IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on))
    posix.bind(fd, <posix.sockaddr *>&source, sizeof(source))


cdef inline void start_connect(Run *run, uint32_t i) noexcept nogil:
    cdef Peer *peer = &run.peers[i]
    if (posix.connect(peer.fd, <posix.sockaddr *>&run.address, run.address_size) != 0
            and posix.errno != posix.EINPROGRESS):
        # A full queue: TCP tries again by itself, a Unix socket leaves that to its owner, with no
        # event to wait for (connect(2)). For TCP the same errno means that no port is left.
        if posix.errno == posix.EAGAIN and run.address.ss_family == posix.AF_UNIX:
            peer.turned_away = True
            run.turned_away += 1
            run.retry_at = clock.monotonic_ns() + RETRY_NS
        else:
            fail(run, peer, failure_of_errno(run, posix.errno))
        return
    peer.watched = posix.EPOLLOUT
    if watch(&run.frame, posix.EPOLL_CTL_ADD, peer.fd, posix.EPOLLOUT, i) < 0:
        fail(run, peer, failure_of_errno(run, posix.errno))


cdef inline int open_peer(Run *run, uint32_t i) noexcept nogil:
    """Start a connect; return the errno of socket(), or 0."""
    cdef Peer *peer = &run.peers[i]
    cdef int on = 1
    peer.fd = posix.socket(run.address.ss_family,
                           posix.SOCK_STREAM | posix.SOCK_NONBLOCK | posix.SOCK_CLOEXEC, 0)
    if peer.fd < 0:
        return posix.errno
    if run.nodelay and run.address.ss_family != posix.AF_UNIX:
        # Otherwise Nagle's algorithm holds a small message back until the last answer's ACK.
        posix.setsockopt(peer.fd, posix.IPPROTO_TCP, posix.TCP_NODELAY, &on, sizeof(on))
    peer.state = CONNECTING
    peer.leave_after = peer.started + run.reconnect_every if run.reconnect_every else UINT64_MAX
    peer.opened_at = peer.active_at = clock.monotonic_ns()
    run.connecting += 1
    if run.reconnect_every:
        vary_source(run, peer.fd)
    start_connect(run, i)
    return 0


cdef inline void open_again(Run *run, uint32_t i) noexcept nogil:
    cdef Peer *peer = &run.peers[i]
    cdef int error
    posix.close_once(&peer.fd)
    error = open_peer(run, i)
    if error:
        fail(run, peer, failure_of_errno(run, error))


cdef inline void try_again(Run *run) noexcept nogil:
    """connect() once more for those that a full queue turned away."""
    cdef uint32_t i
    for i in range(run.frame.count):
        if run.peers[i].turned_away:
            admit(run, &run.peers[i])
            start_connect(run, i)
            if run.peers[i].turned_away:
                return              # full again, and for all that follow


cdef inline int64_t retry_time(Run *run) noexcept nogil:
    return run.retry_at if run.turned_away else clock.NEVER
