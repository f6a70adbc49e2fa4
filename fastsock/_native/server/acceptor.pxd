# Step 5, and what may go wrong there, for every engine.
#
# At the descriptor limit accept() fails while the listener stays readable, which is how servers
# come to spin. Here the listener rests for a while, unwatched, and comes back by itself; so does
# the queue, because the kernel keeps it.

from libc.stdint cimport int64_t, uint32_t

cimport fastsock._native.clock as clock
cimport fastsock._native.atomic as atomic
cimport fastsock._native.server.engine as engine
cimport fastsock._native.posix as posix
from fastsock._native.server.ranges cimport allowed
from fastsock._native.server.engine cimport Context

cdef enum:
    BURST = 64                      # connections taken before the others get their turn again
    BURSTS_AT_STOP = 128            # twice what net.core.somaxconn lets wait by default
    REST_NS = 100000000             # how long a listener rests
    NOTICE_INTERVAL_NS = 1000000000     # at most one notice, so one log line, in this time

cdef enum:                          # how an attempt to accept ended
    ACCEPTED
    QUEUE_EMPTY
    TRY_NEXT                        # this connection failed; the next may not
    MUST_REST                       # no descriptors or memory
    LISTENER_GONE                   # its errno is in `failed_errno`


cdef inline int accept_one(Context *context, int flags, int *fd) noexcept nogil:
    """Accept a connection; `flags` are those of accept4, SOCK_CLOEXEC is always set."""
    cdef posix.sockaddr_storage peer
    cdef posix.socklen_t size = sizeof(peer)
    # Whoever accepts next keeps those who wait for longer than a server that stops.
    if context.inherited and engine.stop_requested(context):
        return QUEUE_EMPTY
    if context.allow_count == 0:
        fd[0] = posix.accept4(context.listen_fd, NULL, NULL, flags | posix.SOCK_CLOEXEC)
        return ACCEPTED if fd[0] >= 0 else accept_failed(context, posix.errno)
    fd[0] = posix.accept4(context.listen_fd, <posix.sockaddr *>&peer, &size,
                          flags | posix.SOCK_CLOEXEC)
    if fd[0] < 0:
        return accept_failed(context, posix.errno)
    if allowed(&peer, context.allow, context.allow_count):
        return ACCEPTED
    posix.close(fd[0])
    atomic.count(&context.counters.rejected, 1)
    return TRY_NEXT


cdef inline int accept_failed(Context *context, int error) noexcept nogil:
    if error == posix.EAGAIN:
        return QUEUE_EMPTY
    engine.count_error(context, error)
    if error in (posix.EMFILE, posix.ENFILE, posix.ENOBUFS, posix.ENOMEM):
        note_rest(context, error)
        return MUST_REST
    # EINVAL: somebody else shut the listener down, which `ss -K` can do too.
    if error in (posix.EINVAL, posix.EBADF, posix.ENOTSOCK):
        note_failure(context, error)
        return LISTENER_GONE
    # EINTR, ECONNABORTED, EPERM, and the network errors that Linux passes from the new
    # connection to accept(): accept(2) asks to treat them like EAGAIN by retrying.
    return TRY_NEXT


cdef inline void note_rest(Context *context, int error) noexcept nogil:
    """Set when to try again; tell who listens, not too often."""
    cdef int64_t now = clock.monotonic_ns()
    context.resume_at = now + REST_NS
    atomic.count(&context.counters.accept_pauses, 1)
    atomic.store_int(&context.pause_errno, error, atomic.RELAXED)
    if now - context.noticed_at >= NOTICE_INTERVAL_NS:
        context.noticed_at = now
        engine.notify(context.notice_fd)


cdef inline void note_failure(Context *context, int error) noexcept nogil:
    atomic.store_int(&context.failed_errno, error, atomic.RELAXED)
    engine.notify(context.notice_fd)


cdef inline bint resting(Context *context) noexcept nogil:
    return context.resume_at != engine.NEVER


cdef inline bint full(Context *context, uint32_t open) noexcept nogil:
    """Whether `max_connections` is reached; if so the listener rests until one of them closes."""
    if context.max_connections == 0 or open < context.max_connections:
        return False
    context.resume_at = engine.NEVER - 1
    return True


cdef inline void close_listener(Context *context) noexcept nogil:
    """Step 9."""
    cdef int fd = context.listen_fd
    context.listen_fd = -1
    context.resume_at = engine.NEVER
    posix.close(fd)
