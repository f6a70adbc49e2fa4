# The time in which the client's thread was not there: what it measures then is its own doing.
#
# A thread that spins reads the clock again and again; a gap between two readings is time in which
# it was stopped, suspended or had no CPU. CPU time cannot tell: what a hypervisor takes looks like
# CPU time of the thread. A thread that blocks asks for short waits only; one that returns late was
# away. And where the thread could run and had no CPU, the kernel adds to its run_delay
# (Documentation/scheduler/sched-stats.rst).
#
# Each such time is one interval of a log. So the client's part of a latency is the time of the log
# between the intended send time of the message and its answer.

from libc.stdint cimport int64_t, uint64_t
from libc.stdio cimport sscanf
from libc.stdlib cimport calloc, free

cimport fastsock._native.posix as posix

cdef enum:
    PLACES = 16384                  # intervals that the log keeps, a power of two
    GAP_NS = 1000000                # a longer gap is counted whatever the kernel says
    SUSPECT_NS = 100000             # run_delay is read after a longer one, and counted from it on
    LONGEST_WAIT_NS = 10000000      # a stop within a longer wait would not be seen
    LATE_NS = 1000000               # a message is sent late from here on
    STAT_BYTES = 96

cdef enum:                          # why the thread was not there
    AWAY                            # nothing says why
    DELAYED                         # it had no CPU
    LATE                            # it had other work: a message was sent late
    CAUSES

cdef struct Interval:
    int64_t end
    int64_t length
    int64_t total                   # of this interval and of all before it

cdef struct AwaySums:               # inside the window, ns
    int64_t by_cause[CAUSES]
    int64_t longest                 # of AWAY and DELAYED

cdef struct Away:
    int schedstat_fd                # of this thread; -1: the kernel does not tell
    int64_t seen_at                 # the last reading of the clock
    int64_t run_delay               # at the last look
    int64_t start, stop             # of the window: what is outside is in the log, not in the sums
    AwaySums sums
    int64_t total                   # of the log, ns
    int64_t last_end                # of the last interval; 0: there is none
    uint64_t count                  # intervals so far; adjacent ones are one
    Interval *log


cdef inline int allocate(Away *away) except -1:
    away.schedstat_fd = -1
    away.log = <Interval *>calloc(PLACES, sizeof(Interval))
    if away.log == NULL:
        raise MemoryError
    return 0


cdef inline void release(Away *away) noexcept nogil:
    posix.close_once(&away.schedstat_fd)
    free(away.log)
    away.log = NULL


cdef inline void begin(Away *away, int64_t now) noexcept nogil:
    """In the thread that is watched, before its loop."""
    posix.close_once(&away.schedstat_fd)        # of the thread that has opened the connections
    away.schedstat_fd = posix.open(
        b"/proc/thread-self/schedstat", posix.O_RDONLY | posix.O_CLOEXEC)
    away.count = 0
    away.total = away.last_end = 0
    away.seen_at = now
    growth_of_run_delay(away)


cdef inline int64_t growth_of_run_delay(Away *away) noexcept nogil:
    """Since the last call, ns; 0 where the kernel does not tell."""
    cdef char text[STAT_BYTES]
    cdef unsigned long long run_time = 0, run_delay = 0
    cdef ssize_t size
    cdef int64_t growth
    if away.schedstat_fd < 0:
        return 0
    size = posix.pread(away.schedstat_fd, text, STAT_BYTES - 1, 0)
    if size <= 0:
        return 0
    text[size] = 0
    sscanf(text, "%llu %llu", &run_time, &run_delay)
    growth = <int64_t>run_delay - away.run_delay
    away.run_delay = <int64_t>run_delay
    return growth


cdef inline void add(Away *away, int64_t start, int64_t end, int cause) noexcept nogil:
    """Log `start` to `end`, without what is in the log already."""
    cdef Interval *place
    cdef int64_t length
    start = max(start, away.last_end)
    length = end - start
    if length <= 0:
        return
    away.total += length
    if start > away.last_end or away.count == 0:
        away.count += 1
        away.log[(away.count - 1) & (PLACES - 1)].length = 0
    place = &away.log[(away.count - 1) & (PLACES - 1)]
    place.end = away.last_end = end
    place.length += length
    place.total = away.total
    length = min(end, away.stop) - max(start, away.start)
    if length <= 0:
        return
    away.sums.by_cause[cause] += length
    if cause != LATE:
        away.sums.longest = max(away.sums.longest, length)


cdef inline void on_gap(Away *away, int64_t start, int64_t now) noexcept nogil:
    """The thread should have been there from `start` to `now`."""
    cdef int64_t delayed = min(growth_of_run_delay(away), now - start)
    if now - start > GAP_NS:
        add(away, start, now, DELAYED if 2 * delayed > now - start else AWAY)
    elif delayed > SUSPECT_NS:
        add(away, now - delayed, now, DELAYED)


cdef inline void see(Away *away, int64_t now) noexcept nogil:
    """The thread has read the clock: it is there."""
    if now - away.seen_at > SUSPECT_NS:
        on_gap(away, away.seen_at, now)
    away.seen_at = now


cdef inline void see_end_of_wait(Away *away, int64_t until, int64_t now) noexcept nogil:
    """A wait that was to end at `until` has ended."""
    cdef int64_t delayed
    if now - away.seen_at > SUSPECT_NS:
        delayed = min(growth_of_run_delay(away), now - away.seen_at)
        if now - until > GAP_NS:
            add(away, until, now, DELAYED if 2 * delayed > now - until else AWAY)
        elif delayed > SUSPECT_NS:
            add(away, now - delayed, now, DELAYED)
    away.seen_at = now


cdef inline void on_late_send(Away *away, int64_t could_send_at, int64_t now) noexcept nogil:
    """A message is sent now that the thread could have sent earlier."""
    if now - could_send_at > LATE_NS:
        add(away, could_send_at, now, LATE)


cdef inline int64_t total_at(Away *away, int64_t time) noexcept nogil:
    """The time of the log before `time`, ns."""
    cdef uint64_t i = away.count, oldest = away.count - min(away.count, <uint64_t>PLACES)
    cdef Interval *interval
    while i > oldest:
        interval = &away.log[(i - 1) & (PLACES - 1)]
        if interval.end <= time:
            return interval.total
        if interval.end - interval.length < time:
            return interval.total - (interval.end - time)
        i -= 1
    if i == 0:
        return 0
    interval = &away.log[oldest & (PLACES - 1)]
    return interval.total - interval.length


cdef inline int64_t part_of(Away *away, int64_t start, int64_t end) noexcept nogil:
    """How much of the time from `start` to `end` is in the log, ns."""
    if away.last_end <= start:
        return 0                    # as for nearly every message
    return total_at(away, end) - total_at(away, start)
