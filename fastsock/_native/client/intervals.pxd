# The figures of a run over time, for a reader in another thread.
#
# The loop records into one of two chunks; at the end of an interval it goes on with the other one,
# if the reader has emptied that. So the loop never waits for the reader: one that is late gets a
# chunk of several intervals. A third chunk has what comes after the window. The reader adds each
# chunk to the histograms of the run, so the intervals together are the whole run exactly. Without
# intervals the loop records into the histograms of the run itself.

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

cimport fastsock._native.atomic as atomic
cimport fastsock._native.clock as clock
from fastsock._native.client.histogram cimport Recorder

cdef enum:                          # what a recorder of a chunk holds
    INTENDED                        # latencies from the intended send; of an open loop only
    SENT                            # latencies from the send
    CONNECTS                        # from connect() to connected
    TAGS

cdef enum:
    AFTER_WINDOW = 2                # the chunk for it
    CHUNKS = 3

cdef struct Chunk:
    int64_t first, last             # numbers of its intervals, the first of the window being 0
    uint64_t messages, errors
    int64_t outstanding             # messages, at its end
    Recorder *recorders[TAGS]

cdef struct Intervals:
    int64_t length                  # ns; 0: there are no intervals
    int64_t ends_at                 # when the interval ends, ns; NEVER after the window
    int64_t number                  # of the interval
    int recording                   # which chunk the loop records into
    int last                        # the window's last chunk, once that is over
    int full                        # the chunk that waits for the reader
    int is_full                     # whether one does
    int has_ended                   # whether all are the reader's
    uint64_t messages, errors       # of all earlier chunks
    Chunk chunks[CHUNKS]


cdef inline int allocate(Intervals *intervals, int64_t length, bint open_loop) except -1:
    cdef int chunk, tag
    intervals.ends_at = clock.NEVER
    intervals.length = length
    for chunk in range(CHUNKS if length else 0):
        for tag in range(TAGS):
            if tag == INTENDED and not open_loop:
                continue
            intervals.chunks[chunk].recorders[tag] = <Recorder *>calloc(1, sizeof(Recorder))
            if intervals.chunks[chunk].recorders[tag] == NULL:
                raise MemoryError
    return 0


cdef inline void release(Intervals *intervals) noexcept nogil:
    cdef int chunk, tag
    for chunk in range(CHUNKS):
        for tag in range(TAGS):
            free(intervals.chunks[chunk].recorders[tag])
            intervals.chunks[chunk].recorders[tag] = NULL


cdef inline void begin(Intervals *intervals, int64_t window_start,
                       int64_t window_end) noexcept nogil:
    if intervals.length:
        intervals.ends_at = min(window_start + intervals.length, window_end)


cdef inline bint is_window_over(Intervals *intervals) noexcept nogil:
    return intervals.recording == AFTER_WINDOW


cdef inline void go_on(Intervals *intervals, int64_t window_start, int64_t window_end,
                       int64_t now) noexcept nogil:
    """An interval has ended: the loop is in the one of `now`."""
    intervals.chunks[intervals.recording].last = intervals.number
    if now >= window_end:
        intervals.ends_at = clock.NEVER
        return
    intervals.number = (now - window_start) // intervals.length
    intervals.ends_at = min(window_start + (intervals.number + 1) * intervals.length, window_end)


cdef inline void close_chunk(Intervals *intervals, uint64_t messages, uint64_t errors,
                             int64_t outstanding) noexcept nogil:
    """Note the counters; those that are given are of the whole run so far."""
    cdef Chunk *chunk = &intervals.chunks[intervals.recording]
    chunk.messages, chunk.errors = messages - intervals.messages, errors - intervals.errors
    chunk.outstanding = outstanding
    intervals.messages, intervals.errors = messages, errors


cdef inline bint hand_over(Intervals *intervals, uint64_t messages, uint64_t errors,
                           int64_t outstanding) noexcept nogil:
    """Give the chunk to the reader, and take another one; False if the reader is late.

    The window's last chunk waits, if it must, until the run has ended.
    """
    cdef bint is_free = not atomic.load_int(&intervals.is_full, atomic.ACQUIRE)
    cdef bint is_over = intervals.ends_at == clock.NEVER
    if not is_free and not is_over:
        return False
    close_chunk(intervals, messages, errors, outstanding)
    intervals.last = intervals.recording
    intervals.recording = AFTER_WINDOW if is_over else 1 - intervals.recording
    intervals.chunks[intervals.recording].first = intervals.number
    if is_free and not is_over:
        intervals.full = intervals.last
        atomic.store_int(&intervals.is_full, True, atomic.RELEASE)
    return True


cdef inline void end(Intervals *intervals, uint64_t messages, uint64_t errors,
                     int64_t outstanding) noexcept nogil:
    """After the loop: all chunks are the reader's."""
    if not is_window_over(intervals):
        intervals.last = intervals.recording
        intervals.chunks[intervals.last].last = intervals.number
    close_chunk(intervals, messages, errors, outstanding)
    atomic.store_int(&intervals.has_ended, True, atomic.RELEASE)
