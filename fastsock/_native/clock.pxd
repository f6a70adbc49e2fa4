# The clocks, in nanoseconds.

from libc.stdint cimport int64_t

cimport fastsock._native.posix as posix

cdef extern from "<stdint.h>" nogil:
    const int64_t NEVER "INT64_MAX"     # later than every time


cdef inline int64_t read_ns(int clock) noexcept nogil:
    """The time of a clock of clock_gettime(2); 0 if it fails, as for a process that has ended."""
    cdef posix.timespec now
    if posix.clock_gettime(clock, &now) != 0:
        return 0
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef inline int64_t monotonic_ns() noexcept nogil:
    return read_ns(posix.CLOCK_MONOTONIC)
