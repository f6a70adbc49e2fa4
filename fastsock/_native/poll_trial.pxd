# Whether busy polling pays, found out by trying: epochs without it and epochs with it, in turns.
#
# A client that sends its next message after the answer to the last one gets faster when its server
# polls: a wake-up costs more than an echo. A client that sends at a pace of its own does not, and
# the polling is CPU time spent for nothing. Both look alike to a loop that only watches how long it
# waits. So the loop compares. Polling stays where more bytes come in the same time, or where they
# cost no more CPU time. Bytes, not events: a loop that polls meets the same bytes in more events.
#
# A verdict holds for a while, longer when the next trial confirms it, and ends early when the rate
# of bytes changes. Where events are few a trial would cost more than polling could ever win.

from libc.stdint cimport int64_t, uint64_t

cimport fastsock._native.atomic as atomic
cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix

cdef enum:
    EPOCH_NS = 4000000
    FIRST_LOOK_NS = 1000000         # into the first epoch that polls: does it cost far too much?
    PAIRS = 3                       # of epochs in a trial: a median needs three
    FEWEST = 24                     # events in an epoch
    HOLD_NS = 150000000             # how long a verdict holds at first; twice as long each time
    HOLD_MAX_NS = 600000000         # that it is confirmed
    CHECK_NS = 20000000             # between two looks at the rate while a verdict holds
    FORGET_NS = 50000000            # after a wait as long as this, nothing learnt holds any more
    EVENTS_PER_READING = 64         # of the clock, while a verdict holds and the loop never waits

cdef extern from *:
    """
    #define FEW 1e-12
    """
    const double FEW                # bytes per ns; any load that is worth a trial has 30 % more

cdef struct Epoch:
    double rate                     # bytes per ns
    double cost                     # CPU time per byte, ns
    double blocked                  # waits that blocked, per event

cdef struct Figures:                # the medians of a trial, for other threads to read
    int64_t bytes_per_s
    int64_t cpu_ns_per_kib

cdef struct PollTrial:
    bint polling                    # whether the loop is to poll now
    bint holding                    # a verdict holds; else a trial is under way
    int number                      # of the trial's epoch; the odd ones poll
    bint looked                     # FIRST_LOOK_NS into it
    int64_t until                   # the end of the epoch, or of the verdict
    int64_t hold_ns
    int64_t check_at
    double rate                     # of the checks so far; 0: none yet; FEW: it made no trial
    const uint64_t *received        # bytes; in the load client's loop for datagrams, datagrams
    uint64_t events, blocked        # so far: events, and waits that blocked
    int64_t clock_read_at
    uint64_t events_then            # when the clock was read
    # At the beginning of the epoch, or at the last check
    int64_t began_at, began_cpu
    uint64_t received_before, events_before, blocked_before
    Epoch epochs[2][PAIRS]          # without and with polling
    # Shared with other threads
    uint64_t trials                 # that came to an end
    int verdict                     # 1: polling pays
    Figures figures[2]              # of the last such trial, without and with polling


cdef inline void count(PollTrial *trial, int events) noexcept nogil:
    """Count what a wait has found; -1, for a call that failed, counts as nothing."""
    trial.events += max(events, 0)


cdef inline bint clock_is_due(PollTrial *trial) noexcept nogil:
    """Whether to call advance() after a wait that did not block."""
    return not trial.holding or trial.events - trial.events_then >= EVENTS_PER_READING


cdef inline void advance(PollTrial *trial, int64_t now) noexcept nogil:
    """Go on; after every wait that blocked, and when clock_is_due() says so."""
    cdef int64_t before = trial.clock_read_at
    trial.clock_read_at = now
    trial.events_then = trial.events
    if now - before > FORGET_NS:
        trial.hold_ns = 0
        atomic.store_int(&trial.verdict, False, atomic.RELAXED)
        begin(trial, now)
    elif not trial.holding:
        if now >= trial.until or out_of_all_bounds(trial, now):
            end_epoch(trial, now)
    elif now >= trial.until or now >= trial.check_at and load_changed(trial, now):
        begin(trial, now)


cdef inline void begin(PollTrial *trial, int64_t now) noexcept nogil:
    trial.holding = False
    begin_epoch(trial, 0, now)


cdef inline void begin_epoch(PollTrial *trial, int number, int64_t now) noexcept nogil:
    trial.number = number
    trial.polling = number & 1
    trial.looked = number != 1
    trial.until = now + EPOCH_NS
    begin_counting(trial, now)
    trial.began_cpu = clock.read_ns(posix.CLOCK_THREAD_CPUTIME_ID)


cdef inline void begin_counting(PollTrial *trial, int64_t now) noexcept nogil:
    trial.began_at = now
    trial.received_before = trial.received[0]
    trial.events_before = trial.events
    trial.blocked_before = trial.blocked


cdef inline bint out_of_all_bounds(PollTrial *trial, int64_t now) noexcept nogil:
    """Whether a millisecond is enough to see that polling is wasted, as where little comes.

    There a whole epoch would cost more than all that it is compared with.
    """
    cdef double size
    if trial.looked or now - trial.began_at < FIRST_LOOK_NS:
        return False
    trial.looked = True
    size = <double>(trial.received[0] - trial.received_before)
    return (<double>(clock.read_ns(posix.CLOCK_THREAD_CPUTIME_ID) - trial.began_cpu)
            > 3 * size * trial.epochs[0][0].cost)


cdef inline void end_epoch(PollTrial *trial, int64_t now) noexcept nogil:
    cdef int pair = trial.number >> 1
    cdef Epoch *epoch = &trial.epochs[trial.number & 1][pair]
    cdef double events = <double>(trial.events - trial.events_before)
    cdef double size = <double>(trial.received[0] - trial.received_before)
    # Few events in an epoch that polls, unlike the one before: it was cut short, or the loop shares
    # its CPU with the client, and has kept it from sending.
    if events < FEWEST or size == 0:
        if trial.number & 1:
            trial.hold_ns = max(trial.hold_ns, <int64_t>HOLD_NS)    # doubled at once
        hold(trial, False, now)
        if trial.number == 0:
            trial.rate = FEW        # a load that has just begun has its trial after the next check
        return
    epoch.rate = size / <double>(now - trial.began_at)
    epoch.cost = <double>(clock.read_ns(posix.CLOCK_THREAD_CPUTIME_ID) - trial.began_cpu) / size
    epoch.blocked = <double>(trial.blocked - trial.blocked_before) / events
    if trial.number == 1 and clearly_wasted(trial.epochs[0][0], epoch[0]):
        trial.hold_ns = max(trial.hold_ns, <int64_t>HOLD_NS)    # doubled at once
        publish(trial, trial.epochs[0][0], epoch[0])
        hold(trial, False, now)
    elif trial.number + 1 < 2 * PAIRS:
        begin_epoch(trial, trial.number + 1, now)
    else:
        publish(trial, median(trial.epochs[0]), median(trial.epochs[1]))
        hold(trial, pays(trial), now)


cdef inline bint clearly_wasted(Epoch blocking, Epoch polling) noexcept nogil:
    """Whether one pair is enough to see it: more epochs would waste more CPU time."""
    cdef double least = 1.05 if polling.cost < 2 * blocking.cost else 1.25
    return polling.rate < least * blocking.rate and polling.cost > 1.2 * blocking.cost


cdef inline bint pays(PollTrial *trial) noexcept nogil:
    cdef Epoch blocking = median(trial.epochs[0]), polling = median(trial.epochs[1])
    # Every epoch that polls above every other one: with random arrivals the medians alone differ
    # by a tenth too often.
    cdef bint faster = (polling.rate > 1.10 * blocking.rate
                        and lowest_rate(trial.epochs[1]) > highest_rate(trial.epochs[0]))
    # Where other threads want the CPU it has hardly polled, and both kinds of epoch are the same.
    cdef bint cheaper = (polling.cost <= 1.02 * blocking.cost
                         and polling.rate >= 0.99 * blocking.rate and polling.blocked < 0.5)
    return faster or cheaper


cdef inline void hold(PollTrial *trial, bint polling, int64_t now) noexcept nogil:
    """Go by a verdict for a while."""
    cdef bint confirmed = polling == atomic.load_int(&trial.verdict, atomic.RELAXED)
    atomic.store_int(&trial.verdict, polling, atomic.RELAXED)
    trial.hold_ns = min(2 * trial.hold_ns, <int64_t>HOLD_MAX_NS) if confirmed else HOLD_NS
    trial.hold_ns = max(trial.hold_ns, <int64_t>HOLD_NS)
    trial.holding = True
    trial.polling = polling
    trial.until = now + trial.hold_ns
    trial.rate = 0
    trial.check_at = now + CHECK_NS
    begin_counting(trial, now)


cdef inline bint load_changed(PollTrial *trial, int64_t now) noexcept nogil:
    """Whether the verdict was for another load: the rate differs by 30 % from the checks so far."""
    cdef double duration = <double>(now - trial.began_at)
    cdef double rate = <double>(trial.received[0] - trial.received_before) / duration
    cdef double events = <double>(trial.events - trial.events_before)
    trial.check_at = now + CHECK_NS
    begin_counting(trial, now)
    if events * EPOCH_NS < FEWEST * duration:
        return trial.polling        # too few to poll for
    if trial.rate == 0:
        trial.rate = rate
    if abs(rate - trial.rate) > 0.3 * trial.rate:
        return True
    trial.rate += (rate - trial.rate) / 4       # one check alone is a matter of chance too
    return False


cdef inline Epoch median(Epoch *epochs) noexcept nogil:
    """The median of each figure of PAIRS epochs."""
    cdef Epoch middle
    middle.rate = median_of(epochs[0].rate, epochs[1].rate, epochs[2].rate)
    middle.cost = median_of(epochs[0].cost, epochs[1].cost, epochs[2].cost)
    middle.blocked = median_of(epochs[0].blocked, epochs[1].blocked, epochs[2].blocked)
    return middle


cdef inline double median_of(double a, double b, double c) noexcept nogil:
    return max(min(a, b), min(max(a, b), c))


cdef inline double lowest_rate(Epoch *epochs) noexcept nogil:
    return min(min(epochs[0].rate, epochs[1].rate), epochs[2].rate)


cdef inline double highest_rate(Epoch *epochs) noexcept nogil:
    return max(max(epochs[0].rate, epochs[1].rate), epochs[2].rate)


# --- for other threads --------------------------------------------------------------------------

cdef inline void publish(PollTrial *trial, Epoch blocking, Epoch polling) noexcept nogil:
    publish_figures(&trial.figures[0], blocking)
    publish_figures(&trial.figures[1], polling)
    atomic.count(&trial.trials, 1)


cdef inline void publish_figures(Figures *figures, Epoch epoch) noexcept nogil:
    atomic.store_i64(&figures.bytes_per_s, <int64_t>(epoch.rate * 1e9), atomic.RELAXED)
    atomic.store_i64(&figures.cpu_ns_per_kib, <int64_t>(epoch.cost * 1024), atomic.RELAXED)


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
        "bytes_per_s": atomic.load_i64(&figures.bytes_per_s, atomic.RELAXED),
        "cpu_us_per_kib": atomic.load_i64(&figures.cpu_ns_per_kib, atomic.RELAXED) / 1e3,
    }
