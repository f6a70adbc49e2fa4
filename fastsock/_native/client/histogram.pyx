"""Latency histogram: recording without the GIL, percentiles and merging for Python.

Layout and percentiles are those of HdrHistogram (lowest 100 ns, highest 10 minutes, 3 significant
digits): a percentile is the highest value that its step can stand for.
"""

from libc.stdint cimport INT64_MAX, int64_t, uint64_t
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
        cdef uint64_t rank = rank_of(recorder, percent), seen = 0
        cdef int i
        for i in range(COUNTS):
            seen += recorder.counts[i]
            if seen >= rank:
                return min(highest_value_of(i), recorder.max)
        return recorder.max

    def count_above(self, double percent) -> int:
        """How many values rank above the percentile; equal values are ranked one after another."""
        cdef uint64_t rank = rank_of(self.recorder, percent)
        return self.recorder.total - min(rank, self.recorder.total)

    def corrected(self, Histogram moved_from not None, Histogram moved_to not None) -> Histogram:
        """A copy without the values in `moved_from`, and with those in `moved_to` instead.

        min and max are exact where the values of their steps are those of one histogram alone;
        otherwise they may be as far from the truth as a step is wide.

        Raises ValueError if `moved_from` has a value that this histogram has not.
        """
        cdef Histogram result = Histogram()
        cdef Recorder *mine = self.recorder
        cdef Recorder *less = moved_from.recorder
        cdef Recorder *more = moved_to.recorder
        cdef Recorder *kept = result.recorder
        cdef int i
        for i in range(COUNTS):
            if less.counts[i] > mine.counts[i]:
                raise ValueError("the histogram does not have all values that are to be moved")
            kept.counts[i] = mine.counts[i] - less.counts[i] + more.counts[i]
        if mine.total - less.total + more.total == 0:
            return result
        kept.total = mine.total - less.total + more.total
        kept.sum = mine.sum - less.sum + more.sum
        i = 0
        while kept.counts[i] == 0:
            i += 1
        # A step that has moved values has their smallest one: no other step is lower.
        kept.min = more.min if more.counts[i] else HIGHEST_NS
        if mine.counts[i] > less.counts[i]:
            kept.min = min(kept.min, max(mine.min, lowest_value_of(i)))
        i = COUNTS - 1
        while kept.counts[i] == 0:
            i -= 1
        kept.max = more.max if more.counts[i] else 0
        if mine.counts[i] > less.counts[i]:
            kept.max = max(kept.max, min(mine.max, highest_value_of(i)))
        return result

    def counts(self) -> list:
        """(index, count) of each step that has values, in the order of HdrHistogram's array."""
        cdef int i
        return [(i, self.recorder.counts[i]) for i in range(COUNTS) if self.recorder.counts[i]]

    def packed(self) -> bytes:
        """The counts in few bytes, for `add_packed()`: the gap to the last step, and the count."""
        cdef bytearray data = bytearray()
        cdef uint64_t number
        cdef int i, last = 0
        for i in range(COUNTS):
            if self.recorder.counts[i] == 0:
                continue
            for number in (<uint64_t>(i - last), self.recorder.counts[i]):
                while number >= 0x80:           # LEB128
                    data.append(number & 0x7F | 0x80)
                    number >>= 7
                data.append(number)
            last = i
        return bytes(data)

    def add_packed(self, const unsigned char[:] data) -> None:
        """Add what `packed()` gave; min, sum and max of the values are those of their steps."""
        cdef uint64_t number = 0
        cdef Py_ssize_t at
        cdef int shift = 0, index = 0
        cdef bint is_count = False
        counts = []
        for at in range(data.shape[0]):
            number |= <uint64_t>(data[at] & 0x7F) << shift
            shift += 7
            if data[at] & 0x80:
                continue
            if is_count:
                counts.append((index, number))
            else:
                index += <int>number
            is_count, number, shift = not is_count, 0, 0
        self.add_counts(counts)

    def add_counts(self, counts) -> None:
        """Add what counts() gave; the values' min, sum and max are those of their steps.

        Raises ValueError at the first index or count that no histogram can have.
        """
        cdef Recorder *recorder = self.recorder
        cdef int64_t index, count, low, high
        for index, count in counts:
            if not 0 <= index <= index_of(HIGHEST_NS):
                raise ValueError(f"index {index} stands for more than ten minutes")
            # The length of a Python object is at most INT64_MAX.
            if not 0 <= count <= INT64_MAX - <int64_t>recorder.total:
                raise ValueError(f"count {count} is negative or too large")
            if count == 0:
                continue
            low = lowest_value_of(<int>index)
            high = min(highest_value_of(<int>index), HIGHEST_NS)
            recorder.min = min(recorder.min, low) if recorder.total else low
            recorder.max = max(recorder.max, high)
            recorder.counts[index] += count
            recorder.total += count
            recorder.sum += <double>count * (low + (high - low + 1) // 2)

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


cdef uint64_t rank_of(Recorder *recorder, double percent) except 0:
    """The rank of the value that is the percentile, at least 1."""
    if not 0.0 <= percent <= 100.0:
        raise ValueError(f"percentile {percent} is not between 0 and 100")
    return max(<uint64_t>1, <uint64_t>(percent / 100.0 * <double>recorder.total + 0.5))


cdef int64_t lowest_value_of(int index) noexcept nogil:
    """The lowest value that counts[index] counts, ns."""
    return highest_value_of(index - 1) + 1 if index else 0


cdef int64_t highest_value_of(int index) noexcept nogil:
    """The highest value that counts[index] counts, ns."""
    cdef int bucket = (index >> HALF_BITS) - 1
    cdef int64_t step = (index & (HALF_COUNT - 1)) + HALF_COUNT
    if bucket < 0:
        bucket = 0
        step -= HALF_COUNT
    return ((step + 1) << (bucket + UNIT_BITS)) - 1
