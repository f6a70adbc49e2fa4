# How the load client opens connections: step 1 and connect(), which does not block.

from libc.stdint cimport UINT64_MAX, int64_t, uint32_t
from libc.string cimport memset

cimport fastsock._native.client.connection as connection
cimport fastsock._native.client.load_run as load_run
cimport fastsock._native.client.sources as sources
cimport fastsock._native.clock as clock
cimport fastsock._native.interest_list as interest_list
cimport fastsock._native.posix as posix
from fastsock._native.client.connection cimport Connection, StreamRun

cdef enum:
    RETRY_NS = 1000000              # between two tries of connect()
    LOOPBACK_NET = 127
    SOURCE_COUNT = 60000            # source addresses, from 127.1.0.1 on
    SOURCE_STRIDE = 997             # times a thread's first connection: its first source address


cdef inline void vary_source(StreamRun *run, int fd) noexcept nogil:
    """On loopback, take the next source address of 127.0.0.0/8.

    The ports of one address would run out: each of its closed connections keeps one for a minute
    (TIME_WAIT). Errors are ignored: connect() then chooses the address, or reports the error.
    """
    cdef posix.sockaddr_in source
    cdef int on = 1
    cdef uint32_t target = posix.ntohl((<posix.sockaddr_in *>&run.address).sin_addr.s_addr)
    if run.address.ss_family != posix.AF_INET or target >> 24 != LOOPBACK_NET:
        return
    memset(&source, 0, sizeof(source))
    source.sin_family = posix.AF_INET
    source.sin_addr.s_addr = posix.htonl(
        <uint32_t>LOOPBACK_NET << 24 | 1 << 16 | run.next_source % SOURCE_COUNT + 1)
    run.next_source += 1
    # connect() chooses the port: it knows that only the four-tuple must be unique (ip(7)).
    posix.setsockopt(fd, posix.IPPROTO_IP, posix.IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on))
    posix.bind(fd, <posix.sockaddr *>&source, sizeof(source))


cdef inline void try_connect(StreamRun *run, uint32_t i) noexcept nogil:
    cdef Connection *conn = &run.connections[i]
    if (posix.connect(conn.fd, <posix.sockaddr *>&run.address, run.address_size) != 0
            and posix.errno != posix.EINPROGRESS):
        # The listener's queue is full. TCP tries again by itself. For a Unix socket the caller
        # must, and no event says when (connect(2)). For TCP this errno means that no port is free.
        if posix.errno == posix.EAGAIN and run.address.ss_family == posix.AF_UNIX:
            conn.must_retry = True
            run.retry_count += 1
            run.retry_at = min(run.retry_at, clock.monotonic_ns() + RETRY_NS)
        else:
            connection.fail_with_errno(run, conn, posix.errno)
        return
    conn.watched = posix.EPOLLOUT
    if interest_list.add(&run.base.interest_list, &conn.interest, conn.fd, posix.EPOLLOUT, i) < 0:
        connection.fail_with_errno(run, conn, posix.errno)


cdef inline int open_connection(StreamRun *run, uint32_t i) noexcept nogil:
    """Create the socket and start to connect; return the errno of socket(), or 0."""
    cdef Connection *conn = &run.connections[i]
    cdef int error
    conn.state = connection.CONNECTING
    conn.reopen_after = conn.started + run.reconnect_every if run.reconnect_every else UINT64_MAX
    conn.opened_at = conn.progress_at = clock.monotonic_ns()
    run.connecting_count += 1
    error = make_socket(run, i)
    if error:
        return error
    try_connect(run, i)
    return 0


cdef inline int make_socket(StreamRun *run, uint32_t i) noexcept nogil:
    """Step 1, and bind() where local addresses are chosen; return the errno, or 0."""
    cdef Connection *conn = &run.connections[i]
    cdef int on = 1
    conn.fd = posix.socket(run.address.ss_family,
                           posix.SOCK_STREAM | posix.SOCK_NONBLOCK | posix.SOCK_CLOEXEC, 0)
    if conn.fd < 0:
        return posix.errno
    if run.nodelay and run.address.ss_family != posix.AF_UNIX:
        # Otherwise Nagle's algorithm delays a small message until the last answer's ACK.
        posix.setsockopt(conn.fd, posix.IPPROTO_TCP, posix.TCP_NODELAY, &on, sizeof(on))
    if run.reconnect_every and run.sources.count == 0:
        vary_source(run, conn.fd)
    return sources.bind_source(&run.sources, conn.fd, run.base.first + i)


cdef inline void reopen(StreamRun *run, uint32_t i) noexcept nogil:
    cdef Connection *conn = &run.connections[i]
    cdef int error
    connection.close_socket(run, conn)
    error = open_connection(run, i)
    if error:
        connection.fail_with_errno(run, conn, error)


cdef inline void retry_connects(StreamRun *run) noexcept nogil:
    """Call connect() again for each connection that found the queue full or has an outage."""
    cdef uint32_t i
    cdef Connection *conn
    cdef int error
    run.retry_at = clock.NEVER
    for i in range(run.base.count):
        conn = &run.connections[i]
        if not conn.must_retry:
            continue
        connection.end_retry(run, conn)
        if conn.fd < 0:
            conn.opened_at = conn.progress_at = load_run.read_clock(&run.base)
            error = make_socket(run, i)
            if error:
                connection.fail_with_errno(run, conn, error)
                continue
        try_connect(run, i)
        if conn.must_retry:
            return                  # not yet, for all other connections too


cdef inline int64_t next_retry(StreamRun *run) noexcept nogil:
    return run.retry_at if run.retry_count else clock.NEVER
