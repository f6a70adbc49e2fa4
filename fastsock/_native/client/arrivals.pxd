# When the messages of an open loop are to be sent.
#
# Uniform: message number n of the whole run is due when the schedule has reached n, so nothing is
# remembered. Poisson: each thread counts the schedule in gaps that are exponential, which makes the
# times of all threads together a Poisson process too, of the schedule's rate. A random time must be
# remembered until its message is answered.

from libc.math cimport log
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc

cdef enum:
    TIMES_START = 64
    TIMES_MAX = 1 << 20             # messages of a connection that are due and not answered

cdef struct Arrivals:
    double gap                      # mean, in messages of the schedule; 0: uniform
    double at                       # of the next message, a number of the schedule
    uint64_t state                  # of the random numbers

cdef struct DueTimes:               # of one connection; unused where arrivals are uniform
    int64_t *times                  # ns, by message number & mask
    uint64_t mask


cdef inline uint64_t next_random(Arrivals *arrivals) noexcept nogil:
    """SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    cdef uint64_t z
    arrivals.state += <uint64_t>0x9E3779B97F4A7C15
    z = arrivals.state
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)


cdef inline void advance(Arrivals *arrivals) noexcept nogil:
    """Draw the time of the next message."""
    # From 0, exclusive, to 1: the logarithm of 0 is not a number.
    cdef double uniform = <double>((next_random(arrivals) >> 11) + 1) / <double>(<uint64_t>1 << 53)
    arrivals.at -= log(uniform) * arrivals.gap


cdef inline void seed(Arrivals *arrivals, uint64_t number, uint64_t thread) noexcept nogil:
    """The same numbers give the same times; threads must not share theirs."""
    arrivals.state = number
    arrivals.state = next_random(arrivals) ^ (thread * <uint64_t>0x9E3779B97F4A7C15)
    advance(arrivals)


cdef inline bint remember(DueTimes *due, uint64_t oldest, uint64_t message,
                          int64_t time) noexcept nogil:
    """Remember when `message` is due; False without a place. `oldest` is the first one needed."""
    if due.times == NULL or message - oldest > due.mask:
        if not grow(due, oldest, message):
            return False
    due.times[message & due.mask] = time
    return True


cdef inline bint grow(DueTimes *due, uint64_t oldest, uint64_t end) noexcept nogil:
    cdef uint64_t mask = due.mask * 2 + 1 if due.times != NULL else TIMES_START - 1
    cdef int64_t *times
    if mask >= TIMES_MAX:
        return False
    times = <int64_t *>malloc((mask + 1) * sizeof(int64_t))
    if times == NULL:
        return False
    while oldest < end:
        times[oldest & mask] = due.times[oldest & due.mask]
        oldest += 1
    free(due.times)
    due.times, due.mask = times, mask
    return True
