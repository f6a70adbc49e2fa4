# Step 5, accepting, for every stream engine: what accept() may answer, pausing, and step 9.
#
# At the descriptor limit accept() fails while the listener stays readable, which makes servers
# spin. Here accepting is paused, with the listener unwatched, and tried again by itself. The kernel
# keeps the queue meanwhile.

from libc.stdint cimport int64_t, uint32_t

cimport fastsock._native.atomic as atomic
cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix
cimport fastsock._native.server.counters as counters
cimport fastsock._native.server.deadlines as deadlines
cimport fastsock._native.server.ranges as ranges
cimport fastsock._native.server.transient as transient
cimport fastsock._native.wakeup as wakeup
from fastsock._native.server.context cimport Context

cdef enum:
    BURST = 64                      # accept() calls before the connections get their turn again
    BURSTS_AT_STOP = 128            # of an unknown queue: twice net.core.somaxconn's default
    PAUSE_NS = 100000000            # until accept() is tried again
    FAILURES_MAX = 64               # failed calls in a row before a pause
    NOTICE_INTERVAL_NS = 1000000000     # at most one notice, so one log line, in this time

cdef enum:                          # what accept_one() found
    ACCEPTED
    QUEUE_EMPTY
    TRY_NEXT                        # this connection failed; the next one may not
    PAUSED                          # no descriptors or no memory
    LISTENER_GONE                   # its errno is in `failed_errno`

cdef struct Acceptor:               # of one loop
    Context *context
    const uint32_t *open            # number of open connections; NULL: no limit is kept
    int flags                       # of accept4
    int epfd                        # the epoll that watches the listener, or -1
    int held                        # waits for memory, a thread or a process; -1: none
    int attempts                    # accept() calls that are left in this turn
    bint closing                    # a stop was requested, and `attempts` cover the whole queue


cdef inline void init(Acceptor *acceptor, Context *context, int flags,
                      const uint32_t *open) noexcept nogil:
    acceptor.context = context
    acceptor.open = open
    acceptor.flags = flags
    acceptor.epfd = -1
    acceptor.held = -1


# --- one accept() -------------------------------------------------------------------------------

cdef inline int accept_one(Context *context, int flags, int *fd) noexcept nogil:
    """Accept a connection; `flags` are those of accept4, SOCK_CLOEXEC is always set."""
    cdef posix.sockaddr_storage client
    cdef posix.socklen_t size = sizeof(client)
    # The queue of an inherited listener is left to the next process that accepts from it.
    if context.inherited and deadlines.stop_requested(context):
        return QUEUE_EMPTY
    if context.range_count == 0:
        fd[0] = posix.accept4(context.bound_fd, NULL, NULL, flags | posix.SOCK_CLOEXEC)
        if fd[0] < 0:
            return accept_failed(context, posix.errno)
        context.failures = 0
        return ACCEPTED
    fd[0] = posix.accept4(context.bound_fd, <posix.sockaddr *>&client, &size,
                          flags | posix.SOCK_CLOEXEC)
    if fd[0] < 0:
        return accept_failed(context, posix.errno)
    context.failures = 0
    if ranges.contain(&client, context.ranges, context.range_count):
        return ACCEPTED
    posix.close(fd[0])
    atomic.count(&context.counters.rejected, 1)
    return TRY_NEXT


cdef inline int accept_failed(Context *context, int error) noexcept nogil:
    if error == posix.EAGAIN:
        context.failures = 0
        return QUEUE_EMPTY
    counters.count_error(&context.counters, error)
    if error != posix.EINTR and not transient.is_of_network(error):
        if not transient.is_shortage(error):
            # EINVAL: the listener was shut down, by another process or by `ss -K`.
            note_failure(context, transient.ACCEPT, error)
            return LISTENER_GONE
        context.failures = FAILURES_MAX
    else:
        context.failures += 1       # one that stays would make the loop spin
    if context.failures < FAILURES_MAX:
        return TRY_NEXT
    pause(context, transient.ACCEPT, error)
    return PAUSED


# --- pausing ------------------------------------------------------------------------------------

cdef inline void pause(Context *context, int call, int error) noexcept nogil:
    """Accept nothing for PAUSE_NS, because `call` failed."""
    context.resume_at = clock.monotonic_ns() + PAUSE_NS
    note_pause(context, call, error)


cdef inline void note_pause(Context *context, int call, int error) noexcept nogil:
    """Count it, and notify the thread that logs, once a second at most."""
    cdef int64_t now = clock.monotonic_ns()
    atomic.count(&context.counters.accept_pauses, 1)
    atomic.store_int(&context.pause_call, call, atomic.RELAXED)
    atomic.store_int(&context.pause_errno, error, atomic.RELAXED)
    if now - context.noticed_at >= NOTICE_INTERVAL_NS:
        context.noticed_at = now
        wakeup.notify(context.notice_fd)


cdef inline bint paused(Context *context) noexcept nogil:
    return context.full or context.resume_at != clock.NEVER


cdef inline void resume(Context *context) noexcept nogil:
    """Try again at the next turn: a connection has closed, and its descriptor is free."""
    if paused(context):
        context.full = False
        context.resume_at = 0


cdef inline void note_failure(Context *context, int call, int error) noexcept nogil:
    if atomic.load_int(&context.failed_errno, atomic.RELAXED):
        return                      # the first one is the cause
    atomic.store_int(&context.failed_call, call, atomic.RELAXED)
    atomic.store_int(&context.failed_errno, error, atomic.RELAXED)
    wakeup.notify(context.notice_fd)


# --- a turn of the loop -------------------------------------------------------------------------

cdef inline void begin_turn(Acceptor *acceptor) noexcept nogil:
    """After each wait, before anything is accepted."""
    cdef Context *context = acceptor.context
    deadlines.note_time(context)
    acceptor.attempts = BURST
    acceptor.closing = deadlines.stop_requested(context)
    if acceptor.closing:
        acceptor.attempts += queue_length(context.bound_fd)
    if context.resume_at != clock.NEVER and clock.monotonic_ns() >= context.resume_at:
        context.resume_at = clock.NEVER


cdef inline bint listening(Acceptor *acceptor) noexcept nogil:
    """Whether the listener is to be watched."""
    return acceptor.context.bound_fd >= 0 and not paused(acceptor.context)


cdef inline bint must_accept(Acceptor *acceptor) noexcept nogil:
    """Whether to call next_client() even if the listener was not reported as readable."""
    if acceptor.held >= 0:
        return True
    return deadlines.stop_requested(acceptor.context) and acceptor.context.bound_fd >= 0


cdef inline int next_client(Acceptor *acceptor) noexcept nogil:
    """Step 5: the next connection, or -1 when there is none now.

    Closing a listener resets the connections in its queue; their clients think that they are
    connected. So once a stop is requested, the listener is closed when the queue is empty or the
    stop is due. A stop that is requested in the middle of a burst closes nothing in this turn: the
    next wait does not block, and then `attempts` cover the whole queue. With a process for each
    connection a long queue takes too long: stop_overdue() is the limit.
    """
    cdef Context *context = acceptor.context
    cdef int fd = acceptor.held, found
    if fd >= 0 and not paused(context):
        acceptor.held = -1
        return fd
    while context.bound_fd >= 0 and not paused(context) and acceptor.attempts > 0:
        acceptor.attempts -= 1
        if acceptor.closing and deadlines.stop_overdue(context):
            break
        if is_full(acceptor):
            context.full = True
            break
        found = accept_one(context, acceptor.flags, &fd)
        if found == ACCEPTED:
            atomic.count(&context.counters.accepted, 1)
            return fd
        if found == QUEUE_EMPTY:
            break
        if found == LISTENER_GONE:
            close_listener(acceptor)
    if context.bound_fd >= 0 and acceptor.closing:
        if not paused(context) or deadlines.stop_due(context):
            close_listener(acceptor)
    return -1


cdef inline bint is_full(Acceptor *acceptor) noexcept nogil:
    cdef uint32_t most = acceptor.context.max_connections
    return acceptor.open != NULL and most != 0 and acceptor.open[0] >= most


cdef inline int queue_length(int listen_fd) noexcept nogil:
    """How many connections wait to be accepted now.

    At a stop no more than these are accepted, and a few that may have come meanwhile. A process
    takes longer to make than a connection, so a queue that is refilled might never be empty.
    """
    cdef posix.tcp_info info
    cdef posix.socklen_t size = sizeof(info)
    if listen_fd < 0:
        return 0
    if (posix.getsockopt(listen_fd, posix.IPPROTO_TCP, posix.TCP_INFO, &info, &size) != 0
            # qemu-user fills in 4 bytes; what is behind them was never set.
            or size < <posix.socklen_t>(<char *>(&info.tcpi_unacked + 1) - <char *>&info)):
        return BURST * BURSTS_AT_STOP
    return info.tcpi_unacked        # of a listener: the length of its accept queue


cdef inline void hold(Acceptor *acceptor, int fd, int call, int error) noexcept nogil:
    """Keep `fd` for a later next_client(), and pause: `call`, which it needs, has failed.

    If that call can never succeed, the connection is closed and no other one is accepted.
    """
    counters.count_error(&acceptor.context.counters, error)
    if transient.is_shortage(error):
        acceptor.held = fd
        pause(acceptor.context, call, error)
        return
    if fd >= 0:
        posix.close(fd)
        atomic.count(&acceptor.context.counters.closed[counters.CLOSED_ERROR], 1)
    note_failure(acceptor.context, call, error)
    if acceptor.context.bound_fd >= 0:
        close_listener(acceptor)


# --- the end ------------------------------------------------------------------------------------

cdef inline void close_listener(Acceptor *acceptor) noexcept nogil:
    """Step 9."""
    if acceptor.epfd >= 0:
        # close() alone removes a descriptor from epoll only if no fork or dup holds a copy of it
        # (epoll(7), question 6); a copy would be reported for ever.
        posix.epoll_ctl(acceptor.epfd, posix.EPOLL_CTL_DEL, acceptor.context.bound_fd, NULL)
    close_bound(acceptor.context)


cdef inline void close_bound(Context *context) noexcept nogil:
    cdef int fd = context.bound_fd
    context.bound_fd = -1           # before close(): a forked child must not close a reused number
    context.full = False
    context.resume_at = clock.NEVER
    posix.close(fd)


cdef inline void close_held(Acceptor *acceptor) noexcept nogil:
    if acceptor.held >= 0:
        posix.close_once(&acceptor.held)
        atomic.count(&acceptor.context.counters.closed[counters.CLOSED_STOPPED], 1)


cdef inline void fail(Acceptor *acceptor, int call, int error) noexcept nogil:
    """End the loop: to wait for events has failed, and always will."""
    atomic.lower_i64(&acceptor.context.stop_at, 0)
    note_failure(acceptor.context, call, error)
    if acceptor.context.bound_fd >= 0:
        close_listener(acceptor)


cdef inline bint finished(Acceptor *acceptor, bint has_connections) noexcept nogil:
    """Whether the loop is to end."""
    cdef Context *context = acceptor.context
    if context.bound_fd >= 0 or not deadlines.stop_requested(context):
        return False
    return not (has_connections or acceptor.held >= 0) or deadlines.stop_due(context)
