# What every engine is given, and what it counts.

from libc.stdint cimport int64_t, uint32_t, uint64_t

cimport fastsock._native.clock as clock
cimport fastsock._native.atomic as atomic
cimport fastsock._native.posix as posix
from fastsock._native.server.ranges cimport Range
from fastsock._native.busy_poll cimport BusyPoll
from fastsock._native.server.unsent cimport Rests

cdef extern from "<stdint.h>" nogil:
    const int64_t NEVER "INT64_MAX"

cdef enum:
    ERRNO_LIMIT = 134               # one past Linux's last errno, EHWPOISON
    STREAM_BUFFERS = 4              # `stream_size` in units of `buffer_size`
    STOP_GRACE_NS = 50000000        # after the stop, for taking in who waits
    LINGER_NS = 1000000000          # how long the end of a closed conversation is waited for
    SWEEPS = 16                     # how often idle connections are looked for in `idle_ns`
    SWEEP_NS_MIN = 10000000
    POLL_AGAIN_NS = 10000000        # until poll() is tried again that had no memory

cdef enum:                          # reasons of a connection's end
    CLOSED_EOF                      # the client half-closed and got everything back
    CLOSED_RESET                    # ECONNRESET or EPIPE
    CLOSED_ERROR                    # any other errno
    CLOSED_STOPPED                  # still open when the server stopped
    CLOSED_IDLE                     # nothing came or went for `idle_timeout`
    CLOSED_LINE                     # the client sent the `close_on` line
    CLOSE_REASONS

cdef enum:                          # reasons why a datagram got no answer
    DROPPED_GUARD                   # it may come from a server: see loop_guard.pxd
    DROPPED_TRUNCATED               # longer than the buffer
    DROPPED_UNNAMED                 # its sender is a Unix socket that is not bound
    DROPPED_SENDING                 # the answer could not be sent
    DROP_REASONS

cdef struct Counters:               # each set of them is written by one thread, read by any
    uint64_t accepted
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t accept_pauses
    uint64_t rejected               # accepted and closed at once: not in `allow`
    uint64_t datagrams_in
    uint64_t datagrams_out
    uint64_t dropped[DROP_REASONS]
    uint64_t closed[CLOSE_REASONS]
    uint64_t errors[ERRNO_LIMIT]

cdef struct Context:                # one worker: what it serves, and how others talk to it
    int listen_fd                   # owned by the worker; -1 once closed
    bint inherited                  # others hold that socket too: at a stop its queue is theirs
    int wake_fd                     # eventfd, others to worker: look at stop_at
    int notice_fd                   # eventfd, worker to others: look at the two errnos below
    int done_fd                     # eventfd, worker to others: the loop has ended
    size_t buffer_size              # bytes per recv, and the most a slow reader can keep
    size_t stream_size              # bytes per recv of a big stream, in a loop that has one buffer
    int service                     # ECHO, DISCARD or CHARGEN
    char *chargen                   # what it sends, or NULL
    char *close_line                # the line that ends a conversation, or NULL
    uint32_t close_line_size
    uint32_t max_connections        # at so many the listener rests until one closes; 0: no limit
    Range *allow                    # where clients may come from
    int allow_count                 # 0: from everywhere
    int64_t idle_ns                 # how long a connection may be idle; 0: for ever
    int64_t sweep_at                # when idle connections are looked for next, else NEVER
    int64_t now                     # of this turn of the loop, ns; only kept if somebody sweeps
    Rests rests                     # of clients that do not keep up, where one loop has them all
    BusyPoll busy_poll              # only where waiting has one place; see there
    int64_t stop_at                 # CLOCK_MONOTONIC ns; NEVER while serving; only ever lowered
    int64_t resume_at               # when a resting listener is tried again, else NEVER
    int64_t noticed_at              # when notice_fd was last written, ns
    int pause_errno                 # why accepting last rested
    int failed_errno                # why the worker cannot go on accepting, or 0
    Counters counters


cdef inline void count_error(Context *context, int error) noexcept nogil:
    tally_error(&context.counters, error)


cdef inline void tally_error(Counters *counters, int error) noexcept nogil:
    if 0 < error < ERRNO_LIMIT:
        atomic.count(&counters.errors[error], 1)


cdef inline void add_counters(Counters *total, Counters *more) noexcept nogil:
    """total += more, each counter read whole while its thread goes on counting."""
    cdef int i
    # Ends are read before beginnings, so that "open" can never come out negative.
    for i in range(CLOSE_REASONS):
        total.closed[i] += atomic.load_u64(&more.closed[i], atomic.ACQUIRE)
    total.accepted += atomic.load_u64(&more.accepted, atomic.ACQUIRE)
    total.bytes_in += atomic.load_u64(&more.bytes_in, atomic.RELAXED)
    total.bytes_out += atomic.load_u64(&more.bytes_out, atomic.RELAXED)
    total.rejected += atomic.load_u64(&more.rejected, atomic.RELAXED)
    total.accept_pauses += atomic.load_u64(&more.accept_pauses, atomic.RELAXED)
    total.datagrams_in += atomic.load_u64(&more.datagrams_in, atomic.RELAXED)
    total.datagrams_out += atomic.load_u64(&more.datagrams_out, atomic.RELAXED)
    for i in range(DROP_REASONS):
        total.dropped[i] += atomic.load_u64(&more.dropped[i], atomic.RELAXED)
    for i in range(ERRNO_LIMIT):
        total.errors[i] += atomic.load_u64(&more.errors[i], atomic.RELAXED)


cdef inline int64_t open_connections(Counters *counters) noexcept nogil:
    cdef int64_t found = <int64_t>counters.accepted
    cdef int reason
    for reason in range(CLOSE_REASONS):
        found -= <int64_t>counters.closed[reason]
    return found


cdef inline int close_reason(int error) noexcept nogil:
    if error == posix.ECONNRESET or error == posix.EPIPE:
        return CLOSED_RESET
    return CLOSED_ERROR


cdef inline void notify(int fd) noexcept nogil:
    """Make an eventfd readable; it can only fail when it is so already."""
    cdef uint64_t one = 1
    posix.write(fd, &one, sizeof(one))


cdef inline void clear(int fd) noexcept nogil:
    """Make an eventfd, or a timerfd, unreadable again."""
    cdef uint64_t count
    posix.read(fd, &count, sizeof(count))


cdef inline int64_t stop_time(Context *context) noexcept nogil:
    return atomic.load_i64(&context.stop_at, atomic.ACQUIRE)


cdef inline bint stop_requested(Context *context) noexcept nogil:
    return stop_time(context) != NEVER


cdef inline bint stop_due(Context *context) noexcept nogil:
    return stop_requested(context) and clock.monotonic_ns() >= stop_time(context)


cdef inline bint stop_overdue(Context *context) noexcept nogil:
    """Whether even what should be done at a stop has taken too long."""
    return stop_requested(context) and clock.monotonic_ns() - STOP_GRACE_NS >= stop_time(context)


cdef inline int timeout_ms(Context *context) noexcept nogil:
    """Until the listener is tried again, a sweep or the stop is due; for ever (-1) otherwise."""
    cdef int64_t until = min(min(stop_time(context), context.resume_at), context.sweep_at)
    cdef int64_t left
    if until == NEVER:
        return -1
    left = until - clock.monotonic_ns()
    # Rounded up: waking just before the time would spin until it has come.
    return 0 if left <= 0 else <int>min((left + 999999) // 1000000, 3600000)


cdef inline bint poll_may_work_again(int error) noexcept nogil:
    """After poll(2) failed: False if it always will. Who has to be patient sleeps a little here."""
    cdef posix.timespec pause
    if error == posix.EINTR:        # POSIX lets it come without a handler too
        return True
    # It had no memory for its copy of the list, or the list is longer than the limit of open files
    # allows, which somebody must have lowered. Both pass, and until then this must not spin.
    if error != posix.ENOMEM and error != posix.EINVAL:
        return False
    pause.tv_sec = 0
    pause.tv_nsec = POLL_AGAIN_NS
    posix.nanosleep(&pause, NULL)
    return True


cdef inline void note_time(Context *context) noexcept nogil:
    """Once a turn of the loop, before its events: when they happened, if anybody wants to know."""
    if context.sweep_at != NEVER:
        context.now = clock.monotonic_ns()


cdef inline bint sweep_due(Context *context) noexcept nogil:
    """Once a turn of the loop, after its events: whether to look for idle connections."""
    if context.now < context.sweep_at:
        return False
    context.sweep_at = context.now + sweep_interval(context)
    return True


cdef inline int64_t sweep_interval(Context *context) noexcept nogil:
    cdef int64_t shortest = context.idle_ns if context.idle_ns else LINGER_NS
    return max(shortest // SWEEPS, <int64_t>SWEEP_NS_MIN)
