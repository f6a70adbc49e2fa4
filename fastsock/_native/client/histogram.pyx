"""Latency histogram: recording without the GIL, percentiles and merging for Python.

Layout and percentiles are those of HdrHistogram (lowest 100 ns, highest 10 minutes, 3 significant
digits): a percentile is the highest value that its step can stand for.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free


cdef class Histogram:
    """A histogram of latencies in nanoseconds."""

    def __cinit__(self):
        self.recorder = <Recorder *>calloc(1, sizeof(Recorder))
        if self.recorder == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.recorder)

    def __len__(self) -> int:
        return self.recorder.total

    def record(self, int64_t value_ns) -> None:
        record(self.recorder, value_ns)

    def add(self, Histogram other not None) -> None:
        """Add the counts of `other` to this one, without loss."""
        cdef Recorder *mine = self.recorder
        cdef Recorder *theirs = other.recorder
        cdef int i
        if theirs.total == 0:
            return
        if mine.total == 0 or theirs.min < mine.min:
            mine.min = theirs.min
        mine.max = max(mine.max, theirs.max)
        mine.total += theirs.total
        mine.sum += theirs.sum
        for i in range(COUNTS):
            mine.counts[i] += theirs.counts[i]

    def percentile(self, double percent) -> int:
        """The latency in ns at the rank nearest to `percent` (0 to 100); 0 if empty."""
        cdef Recorder *recorder = self.recorder
        cdef uint64_t rank, seen = 0
        cdef int i
        if not 0.0 <= percent <= 100.0:
            raise ValueError(f"percentile {percent} is not between 0 and 100")
        rank = max(<uint64_t>1, <uint64_t>(percent / 100.0 * <double>recorder.total + 0.5))
        for i in range(COUNTS):
            seen += recorder.counts[i]
            if seen >= rank:
                return min(highest_value_of(i), recorder.max)
        return recorder.max

    def summary_us(self) -> dict:
        """count, min, mean, max and the usual percentiles; microseconds."""
        cdef Recorder *recorder = self.recorder
        if recorder.total == 0:
            return {"count": 0}
        percents = (("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99_9", 99.9),
                    ("p99_99", 99.99))
        return {
            "count": recorder.total,
            "min": recorder.min / 1e3,
            "mean": recorder.sum / recorder.total / 1e3,
            "max": recorder.max / 1e3,
            **{name: self.percentile(percent) / 1e3 for name, percent in percents},
        }


cdef int64_t highest_value_of(int index) noexcept nogil:
    """The highest value that counts[index] counts, ns."""
    cdef int bucket = (index >> HALF_BITS) - 1
    cdef int64_t step = (index & (HALF_COUNT - 1)) + HALF_COUNT
    if bucket < 0:
        bucket = 0
        step -= HALF_COUNT
    return ((step + 1) << (bucket + UNIT_BITS)) - 1
