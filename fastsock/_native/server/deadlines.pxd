# When a loop has to do something even if no event comes: stop, resume accepting, sweep.

from libc.stdint cimport int64_t

cimport fastsock._native.atomic as atomic
cimport fastsock._native.clock as clock
from fastsock._native.server.context cimport Context

cdef enum:
    STOP_GRACE_NS = 50000000        # past the stop, for connections that wait to be accepted
    LINGER_NS = 1000000000          # how long a client's end is waited for after `close_on`
    SWEEPS = 16                     # how often idle connections are looked for in `idle_ns`
    SWEEP_NS_MIN = 10000000


cdef inline int64_t stop_time(Context *context) noexcept nogil:
    return atomic.load_i64(&context.stop_at, atomic.ACQUIRE)


cdef inline bint stop_requested(Context *context) noexcept nogil:
    return stop_time(context) != clock.NEVER


cdef inline bint stop_due(Context *context) noexcept nogil:
    return stop_requested(context) and clock.monotonic_ns() >= stop_time(context)


cdef inline bint stop_overdue(Context *context) noexcept nogil:
    """Whether the time for accepting what waits in the queue is over too."""
    return stop_requested(context) and clock.monotonic_ns() - STOP_GRACE_NS >= stop_time(context)


cdef inline int timeout_ms(Context *context) noexcept nogil:
    """Milliseconds until the next deadline, for poll(2) and epoll_wait(2); -1 if there is none."""
    cdef int64_t until = min(min(stop_time(context), context.resume_at), context.sweep_at)
    cdef int64_t left
    if until == clock.NEVER:
        return -1
    left = until - clock.monotonic_ns()
    # Rounded up: a wait that ends just before the deadline would spin until it has come.
    return 0 if left <= 0 else <int>min((left + 999999) // 1000000, 3600000)


cdef inline void note_time(Context *context) noexcept nogil:
    """Once a turn of the loop, before its events."""
    if context.sweep_at != clock.NEVER:
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
