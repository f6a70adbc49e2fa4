# Whether busy polling pays, found out by trying: epochs without it and epochs with it, in turns.
#
# A client that sends its next message after the answer to the last one gets faster when its server
# polls: a wake-up costs more than an echo. A client that sends at a pace of its own does not, and
# the polling is CPU time spent for nothing. Both look alike to a loop that only watches how long it
# waits. So the loop compares. Polling stays where it raises the rate of events, or lowers their
# CPU time at the same rate.
#
# A verdict holds for a while, longer when the next trial confirms it, and ends early when the rate
# of events changes. Where events are few a trial would cost more than polling could ever win.

from libc.stdint cimport int64_t, uint64_t

cimport fastsock._native.atomic as atomic
cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix

cdef enum:
    EPOCH_NS = 4000000
    PAIRS = 3                       # of epochs in a trial: a median needs three
    FEWEST = 24                     # events in an epoch
    HOLD_NS = 150000000             # how long a verdict holds at first; twice as long each time
    HOLD_MAX_NS = 600000000         # that it is confirmed
    CHECK_NS = 20000000             # between two looks at the rate while a verdict holds
    FORGET_NS = 50000000            # after a wait as long as this, nothing learnt holds any more
    EVENTS_PER_LOOK = 64            # between two readings of the clock while the loop never waits

cdef struct Epoch:
    double rate                     # events per ns
    double cost                     # CPU time per event, ns

cdef struct Figures:                # the medians of a trial, for other threads to read
    int64_t events_per_s
    int64_t cpu_ns_per_event

cdef struct PollTrial:
    bint polling                    # whether the loop is to poll now
    bint holding                    # a verdict holds; else a trial is under way
    int epoch                       # number of the trial's epoch; the odd ones poll
    int64_t until                   # the end of the epoch, or of the verdict
    int64_t hold_ns
    double rate                     # that of the verdict
    int64_t check_at
    uint64_t events                 # so far
    int64_t seen_at                 # when the clock was last read,
    uint64_t events_seen            # and the events by then
    int64_t began_at, began_cpu     # of the epoch, or since the last check
    uint64_t events_before
    Epoch epochs[2][PAIRS]          # without and with polling
    # Shared with other threads
    uint64_t trials                 # that came to an end
    int verdict                     # 1: polling pays
    Figures figures[2]              # of the last such trial, without and with polling


cdef inline void count(PollTrial *trial, int events) noexcept nogil:
    """Count what a wait has found; -1, for a call that failed, counts as nothing."""
    trial.events += max(events, 0)


cdef inline bint must_look(PollTrial *trial) noexcept nogil:
    """Whether to call look() after a wait that did not block."""
    return trial.events - trial.events_seen >= EVENTS_PER_LOOK


cdef inline void look(PollTrial *trial, int64_t now) noexcept nogil:
    """Go on with the trial; after every wait that blocked, and when must_look() says so."""
    cdef int64_t seen_at = trial.seen_at
    trial.seen_at = now
    trial.events_seen = trial.events
    if now - seen_at > FORGET_NS:
        trial.hold_ns = 0
        begin(trial, now)
    elif trial.holding:
        if now >= trial.until or now >= trial.check_at and rate_changed(trial, now):
            begin(trial, now)
    elif now >= trial.until:
        end_epoch(trial, now)


cdef inline void begin(PollTrial *trial, int64_t now) noexcept nogil:
    trial.epoch = 0
    trial.holding = False
    begin_epoch(trial, now)


cdef inline void begin_epoch(PollTrial *trial, int64_t now) noexcept nogil:
    trial.polling = trial.epoch & 1
    trial.until = now + EPOCH_NS
    trial.began_at = now
    trial.began_cpu = clock.read_ns(posix.CLOCK_THREAD_CPUTIME_ID)
    trial.events_before = trial.events


cdef inline void end_epoch(PollTrial *trial, int64_t now) noexcept nogil:
    cdef Epoch *epoch = &trial.epochs[trial.epoch & 1][trial.epoch >> 1]
    cdef double events = <double>(trial.events - trial.events_before)
    epoch.rate = events / <double>(now - trial.began_at)
    if events < FEWEST:
        hold(trial, False, epoch.rate, now)
        return
    epoch.cost = <double>(clock.read_ns(posix.CLOCK_THREAD_CPUTIME_ID) - trial.began_cpu) / events
    trial.epoch += 1
    if trial.epoch == 2 and clearly_wasted(trial.epochs[0][0], trial.epochs[1][0]):
        decide(trial, trial.epochs[0][0], trial.epochs[1][0], now)
    elif trial.epoch < 2 * PAIRS:
        begin_epoch(trial, now)
    else:
        decide(trial, median(trial.epochs[0]), median(trial.epochs[1]), now)


cdef inline bint clearly_wasted(Epoch blocking, Epoch polling) noexcept nogil:
    """Whether one pair is enough to see it: more epochs would waste more CPU time."""
    return polling.rate < 1.05 * blocking.rate and polling.cost > 1.2 * blocking.cost


cdef inline void decide(PollTrial *trial, Epoch blocking, Epoch polling,
                        int64_t now) noexcept nogil:
    cdef bint faster = polling.rate > 1.10 * blocking.rate
    cdef bint cheaper = (polling.cost <= 1.02 * blocking.cost
                         and polling.rate >= 0.99 * blocking.rate)
    cdef bint pays = faster or cheaper
    publish(&trial.figures[0], blocking)
    publish(&trial.figures[1], polling)
    atomic.count(&trial.trials, 1)
    hold(trial, pays, polling.rate if pays else blocking.rate, now)


cdef inline void hold(PollTrial *trial, bint polling, double rate, int64_t now) noexcept nogil:
    cdef bint confirmed = polling == atomic.load_int(&trial.verdict, atomic.RELAXED)
    atomic.store_int(&trial.verdict, polling, atomic.RELAXED)
    trial.hold_ns = min(2 * trial.hold_ns, <int64_t>HOLD_MAX_NS) if confirmed else HOLD_NS
    trial.hold_ns = max(trial.hold_ns, <int64_t>HOLD_NS)
    trial.holding = True
    trial.polling = polling
    trial.rate = rate
    trial.until = now + trial.hold_ns
    begin_check(trial, now)


cdef inline void begin_check(PollTrial *trial, int64_t now) noexcept nogil:
    trial.check_at = now + CHECK_NS
    trial.began_at = now
    trial.events_before = trial.events


cdef inline bint rate_changed(PollTrial *trial, int64_t now) noexcept nogil:
    """Whether the verdict was for another load: the rate of events differs by 30 %."""
    cdef double rate = (<double>(trial.events - trial.events_before)
                        / <double>(now - trial.began_at))
    cdef double least = <double>FEWEST / <double>EPOCH_NS     # slower ones are all alike
    begin_check(trial, now)
    return abs(max(rate, least) - max(trial.rate, least)) > 0.3 * max(trial.rate, least)


cdef inline Epoch median(Epoch *epochs) noexcept nogil:
    """The median rate and the median cost of PAIRS epochs."""
    cdef Epoch middle
    middle.rate = median_of(epochs[0].rate, epochs[1].rate, epochs[2].rate)
    middle.cost = median_of(epochs[0].cost, epochs[1].cost, epochs[2].cost)
    return middle


cdef inline double median_of(double a, double b, double c) noexcept nogil:
    return max(min(a, b), min(max(a, b), c))


cdef inline void publish(Figures *figures, Epoch epoch) noexcept nogil:
    atomic.store_i64(&figures.events_per_s, <int64_t>(epoch.rate * 1e9), atomic.RELAXED)
    atomic.store_i64(&figures.cpu_ns_per_event, <int64_t>epoch.cost, atomic.RELAXED)


cdef inline dict results(PollTrial *trial):
    """What was found last, for any thread; a copy may mix the figures of two trials."""
    return {
        "polling": bool(atomic.load_int(&trial.verdict, atomic.RELAXED)),
        "trials": atomic.load_u64(&trial.trials, atomic.RELAXED),
        "blocking": figures_of(&trial.figures[0]),
        "busy_polling": figures_of(&trial.figures[1]),
    }


cdef inline dict figures_of(Figures *figures):
    return {
        "events_per_s": atomic.load_i64(&figures.events_per_s, atomic.RELAXED),
        "cpu_us_per_event": atomic.load_i64(&figures.cpu_ns_per_event, atomic.RELAXED) / 1e3,
    }
