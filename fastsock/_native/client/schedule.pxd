# When the messages of an open loop are due: stages of a constant or a linear rate, one after the
# other. A run with one rate has one stage.
#
# The number of messages due by a time is the integral of the rate. So message number n is due when
# that has reached n: with a rate r that grows by g per time, x = r t + g t^2 / 2, solved for t.

from libc.math cimport sqrt
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free

cdef struct Stage:
    double begins_at                # ns after the run began
    double first                    # messages that are due before it
    double interval                 # ns between two messages at its beginning
    double growth                   # of the rate, in messages per ns^2; 0: the rate is constant

cdef struct Schedule:
    int count                       # 0: a closed loop
    int last                        # the stage that was looked up last
    Stage *stages


cdef inline int make_schedule(Schedule *schedule, object options) except -1:
    """Of the options rate or stages. Before the stages comes the warm-up, at their first rate."""
    cdef double seconds, begins_at = 0, first = 0, rate, end_rate
    parts = []
    if options.rate is not None:
        parts = [(0.0, options.rate, options.rate)]
    elif options.stages:
        rate = options.stages[0].rate_from
        parts = [(options.warmup, rate, rate)] if options.warmup else []
        parts += [(each.duration, each.rate_from, each.rate_to) for each in options.stages]
    schedule.stages = <Stage *>calloc(max(len(parts), 1), sizeof(Stage))
    if schedule.stages == NULL:
        raise MemoryError
    for seconds, rate, end_rate in parts:
        schedule.stages[schedule.count] = Stage(begins_at, first, 1e9 / rate, 0)
        if end_rate != rate:
            schedule.stages[schedule.count].growth = (end_rate - rate) / seconds / 1e18
        schedule.count += 1
        begins_at += seconds * 1e9
        first += seconds * (rate + end_rate) / 2
    return 0


cdef inline void free_schedule(Schedule *schedule) noexcept nogil:
    free(schedule.stages)
    schedule.stages = NULL


cdef inline int64_t due_after(Schedule *schedule, double number) noexcept nogil:
    """How long after the beginning message `number` of the whole run is due, ns."""
    cdef int i = schedule.last
    cdef Stage *stage
    cdef double rate, count
    # Numbers near the last one are asked for: the next to be sent, and those not yet answered.
    while i + 1 < schedule.count and number >= schedule.stages[i + 1].first:
        i += 1
    while i > 0 and number < schedule.stages[i].first:
        i -= 1
    schedule.last = i
    stage = &schedule.stages[i]
    count = number - stage.first
    if stage.growth == 0:
        return <int64_t>(stage.begins_at + count * stage.interval)
    rate = 1 / stage.interval
    # Another form of the usual solution: without the difference of two numbers that are near.
    return <int64_t>(stage.begins_at + 2 * count / (
        rate + sqrt(max(rate * rate + 2 * stage.growth * count, 0.0))))
