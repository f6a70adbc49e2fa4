# What each worker's loop is given: the socket, the options, and how other threads talk to it.

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

cimport fastsock._native.busy_poll as busy_poll
cimport fastsock._native.clock as clock
cimport fastsock._native.server.unsent as unsent
cimport fastsock._native.services as services
from fastsock._native.busy_poll cimport BusyPoll
from fastsock._native.server.counters cimport Counters
from fastsock._native.server.ranges cimport Range
from fastsock._native.server.unsent cimport UnsentPool

cdef enum:
    STREAM_BUFFERS = 4              # `stream_size` in units of `buffer_size`

cdef struct Context:
    int bound_fd                    # the listener or the datagram socket; -1 once closed
    bint inherited                  # another process has that socket too: see acceptor.accept_one()
    int wake_fd                     # eventfd, others to the loop: read stop_at
    int notice_fd                   # eventfd, the loop to others: read the two errnos below
    int done_fd                     # eventfd, the loop to others: the loop has ended
    # The options; see fastsock/server/options.py
    size_t buffer_size              # bytes per recv, and the most kept for a slow reader
    size_t stream_size              # bytes per recv of a big stream, in a loop that has one buffer
    int service                     # of services.pxd
    char *chargen                   # the lines that CHARGEN sends, or NULL
    char *close_line                # the `close_on` line, or NULL
    uint32_t close_line_size
    uint32_t max_connections        # this worker's share; 0: no limit
    Range *ranges                   # where clients may come from
    int range_count                 # 0: from everywhere
    int64_t idle_ns                 # how long a connection may be idle; 0: no limit
    BusyPoll busy_poll              # for the one place where a loop waits
    # The state of the loop
    int64_t now                     # time of this turn; kept only while sweep_at is set
    int64_t sweep_at                # when idle connections are looked for next, or NEVER
    int64_t resume_at               # when accepting, which is paused, is tried again, or NEVER
    bint full                       # accepting is paused until a connection closes
    int failures                    # of accept or receive calls, in a row
    int64_t noticed_at              # when notice_fd was last written, ns
    UnsentPool unsent               # memory for clients that do not read
    # Shared with other threads
    int64_t stop_at                 # CLOCK_MONOTONIC ns; NEVER while serving; only ever lowered
    int pause_call, pause_errno     # why accepting was last paused: a call of transient.pxd
    int failed_call, failed_errno   # why the worker cannot go on accepting, or 0
    Counters counters


cdef inline void init(Context *context) noexcept nogil:
    """Before any option is read; the memory is zero."""
    context.bound_fd = context.wake_fd = context.notice_fd = context.done_fd = -1
    context.stop_at = context.resume_at = context.sweep_at = clock.NEVER


cdef inline int read_options(Context *context, object options, uint32_t max_connections) except -1:
    """Copy the checked options of a server; durations are in seconds."""
    context.buffer_size = options.buffer_size
    context.stream_size = context.buffer_size * STREAM_BUFFERS
    context.max_connections = max_connections
    context.idle_ns = <int64_t>(options.idle_timeout * 1e9)
    context.service = services.by_name(options.service)
    busy_poll.init(&context.busy_poll, options.busy_poll,
                   &context.counters.bytes_out if context.service == services.CHARGEN
                   else &context.counters.bytes_in)
    if context.service == services.CHARGEN:
        context.chargen = services.chargen_table(context.buffer_size)
        if context.chargen == NULL:
            raise MemoryError
    read_close_line(context, options.close_on)
    read_ranges(context, options.allow)
    if context.idle_ns or context.close_line != NULL:
        context.sweep_at = 0
    unsent.init(&context.unsent, context.buffer_size)
    return 0


cdef inline int read_close_line(Context *context, bytes line) except -1:
    cdef size_t size = len(line)
    if size:
        context.close_line = <char *>malloc(size)
        if context.close_line == NULL:
            raise MemoryError
        memcpy(context.close_line, <const char *>line, size)
        context.close_line_size = <uint32_t>size
    return 0


cdef inline int read_ranges(Context *context, tuple ranges) except -1:
    """`ranges` holds pairs of a 16-byte IPv6 network and its prefix length."""
    cdef bytes network
    cdef int i
    if ranges:
        context.ranges = <Range *>calloc(len(ranges), sizeof(Range))
        if context.ranges == NULL:
            raise MemoryError
        context.range_count = <int>len(ranges)
        for i in range(context.range_count):
            network, context.ranges[i].bits = ranges[i]
            memcpy(context.ranges[i].network, <const char *>network, 16)
    return 0


cdef inline void free_options(Context *context) noexcept nogil:
    free(context.chargen)
    free(context.close_line)
    free(context.ranges)
