# What a server counts. Each set of counters is written by one thread and read by any.

from libc.stdint cimport int64_t, uint64_t

cimport fastsock._native.atomic as atomic
cimport fastsock._native.posix as posix

cdef enum:
    ERRNO_LIMIT = 134               # one past Linux's last errno, EHWPOISON

cdef enum:                          # why a connection ended
    CLOSED_EOF                      # the client half-closed and got everything back
    CLOSED_RESET                    # ECONNRESET or EPIPE
    CLOSED_ERROR                    # any other errno
    CLOSED_STOPPED                  # still open when the server stopped
    CLOSED_IDLE                     # no byte came or went for `idle_timeout`
    CLOSED_LINE                     # the client sent the `close_on` line
    CLOSED_FAULT                    # a fault that was asked for has cut it
    CLOSE_REASONS

cdef enum:                          # why a datagram got no answer
    DROPPED_GUARD                   # it may come from a server: see loop_guard.pxd
    DROPPED_TRUNCATED               # longer than the buffer
    DROPPED_UNNAMED                 # its sender is a Unix socket that is not bound
    DROPPED_SENDING                 # the answer could not be sent
    DROPPED_QUEUE                   # the queue of a server with faults was full
    DROPPED_STOPPED                 # it was in that queue when the server stopped
    DROP_REASONS

cdef enum:                          # what is done wrong on request: KINDS of server/faults.py
    FAULT_LATENCY
    FAULT_BANDWIDTH
    FAULT_SLICER
    FAULT_LIMIT_DATA
    FAULT_RESET_PEER
    FAULT_TIMEOUT
    FAULT_SLOW_CLOSE
    FAULT_CORRUPT
    FAULT_DUPLICATE
    FAULT_DROP
    FAULT_NO_READ
    FAULT_HALF_CLOSE
    FAULT_REFUSE
    FAULT_ACCEPT_DELAY
    FAULT_LOSS
    FAULT_REORDER
    FAULT_TRUNCATE
    FAULT_KINDS

cdef struct Counters:
    uint64_t accepted
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t accept_pauses
    uint64_t rejected               # accepted and closed at once: the address is in no range
    uint64_t datagrams_in
    uint64_t datagrams_out
    uint64_t dropped[DROP_REASONS]
    uint64_t closed[CLOSE_REASONS]
    uint64_t errors[ERRNO_LIMIT]
    uint64_t faults[FAULT_KINDS]


cdef inline void count_error(Counters *counters, int error) noexcept nogil:
    if 0 < error < ERRNO_LIMIT:
        atomic.count(&counters.errors[error], 1)


cdef inline int close_reason(int error) noexcept nogil:
    """Why a connection ends after a call has failed with `error`."""
    if error == posix.ECONNRESET or error == posix.EPIPE:
        return CLOSED_RESET
    return CLOSED_ERROR


cdef inline void add(Counters *total, Counters *more) noexcept nogil:
    """total += more; each counter is read whole while its thread goes on counting."""
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
    for i in range(FAULT_KINDS):
        total.faults[i] += atomic.load_u64(&more.faults[i], atomic.RELAXED)
    for i in range(ERRNO_LIMIT):
        total.errors[i] += atomic.load_u64(&more.errors[i], atomic.RELAXED)


cdef inline int64_t open_connections(Counters *counters) noexcept nogil:
    cdef int64_t count = <int64_t>counters.accepted
    cdef int reason
    for reason in range(CLOSE_REASONS):
        count -= <int64_t>counters.closed[reason]
    return count
