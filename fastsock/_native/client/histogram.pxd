# Latency recorder with HdrHistogram's bucket layout, so that its tools can read the counts.
#
# A bucket has 1024 equal steps; the width of a step doubles from one bucket to the next. At 3
# significant digits every step is below a thousandth of its value.
#   lowest 100 ns -> unit 64 ns; highest 10 min; 24 buckets; 25 * 1024 counts of 8 bytes

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    UNIT_BITS = 6                   # the smallest step is 64 ns
    HALF_BITS = 10
    HALF_COUNT = 1 << HALF_BITS     # steps of a bucket that the bucket below does not have
    BUCKETS = 24
    COUNTS = (BUCKETS + 1) * HALF_COUNT

cdef extern from * nogil:
    int leading_zeros "__builtin_clzll"(unsigned long long value)
    const int64_t HIGHEST_NS "600000000000LL"

cdef struct Recorder:               # written by one thread; merged after the threads have ended
    uint64_t total
    int64_t min
    int64_t max
    double sum
    uint64_t counts[COUNTS]


cdef inline int index_of(int64_t value) noexcept nogil:
    cdef int64_t mask = (<int64_t>2 * HALF_COUNT - 1) << UNIT_BITS
    cdef int bucket = 64 - leading_zeros(<uint64_t>(value | mask)) - UNIT_BITS - HALF_BITS - 1
    cdef int step = <int>(value >> (bucket + UNIT_BITS))
    return (bucket << HALF_BITS) + step


cdef inline void record(Recorder *recorder, int64_t value) noexcept nogil:
    """Record a latency in ns; more than ten minutes counts as ten minutes."""
    if value < 0:
        value = 0
    elif value > HIGHEST_NS:
        value = HIGHEST_NS
    recorder.counts[index_of(value)] += 1
    if recorder.total == 0 or value < recorder.min:
        recorder.min = value
    if value > recorder.max:
        recorder.max = value
    recorder.total += 1
    recorder.sum += <double>value


cdef class Histogram:
    cdef Recorder *recorder
