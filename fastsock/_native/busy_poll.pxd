# Busy polling: ask the kernel again for a while before blocking, as long as that pays.
#
# Blocking costs a wake-up: an interrupt to the other CPU, a switch of threads, and in a virtual
# machine an exit to the host, together more than an echo. A loop that asks again instead sees the
# event at once, at the price of a CPU. Whether that pays is found out by a trial, poll_trial.pxd.
# Where the user has given a time, there is no trial: the time spent asking follows the rule of
# KVM's halt polling (Documentation/virt/kvm/halt-polling.rst). It grows while waits are shorter
# than the cap, and drops to zero after a longer one, so that an idle server blocks.
#
# Either way a loop stops asking while another thread wants the CPU, which may be the very thread
# that the loop waits for.

from libc.stdint cimport int64_t, uint64_t

cimport fastsock._native.clock as clock
cimport fastsock._native.poll_trial as poll_trial
cimport fastsock._native.posix as posix
from fastsock._native.poll_trial cimport PollTrial

cdef enum:
    AUTO_CAP_NS = 200000            # the cap with a trial, which is KVM's
    FIRST_NS = 10000                # the first window; it doubles from here
    YIELDED_NS = 5000               # a sched_yield() longer than this has run another thread
    BACKOFF_MIN_NS = 50000          # how long not to poll after that: doubled each time, halved
    BACKOFF_MAX_NS = 10000000       # after each wait that polled undisturbed

cdef struct BusyPoll:
    int64_t cap_ns                  # the longest time spent polling; 0: never poll
    bint on_trial                   # poll only where a trial finds that it pays
    PollTrial trial
    int64_t window_ns               # the time spent polling now, 0 to cap_ns
    int64_t wait_start
    int64_t not_before              # end of the backoff
    int64_t backoff_ns
    bint polled                     # in this wait
    bint disturbed                  # in this wait, by another thread


cdef inline void init(BusyPoll *busy, object option, const uint64_t *received):
    """`option` is "auto" or a number of seconds; `received` counts what the loop receives."""
    busy.trial.received = received
    busy.on_trial = option == "auto"
    busy.cap_ns = AUTO_CAP_NS if busy.on_trial else round(option * 1e9)


cdef inline dict results(BusyPoll *busy):
    """What the trial has found, for any thread; empty without a trial."""
    return poll_trial.results(&busy.trial) if busy.on_trial else {}


cdef inline void begin_wait(BusyPoll *busy) noexcept nogil:
    if busy.cap_ns == 0 or busy.on_trial and not busy.trial.polling:
        return
    busy.wait_start = clock.monotonic_ns()
    if busy.polled and not busy.disturbed:
        busy.backoff_ns //= 2
    busy.polled = busy.disturbed = False


cdef inline bint poll_again(BusyPoll *busy) noexcept nogil:
    """Whether to ask, or to ask again, without blocking."""
    cdef int64_t before, after
    if busy.window_ns == 0 or busy.disturbed:
        return False
    if not busy.polled:
        busy.polled = busy.wait_start >= busy.not_before
        return busy.polled
    before = clock.monotonic_ns()
    if before - busy.wait_start >= busy.window_ns:
        return False
    posix.sched_yield()             # returns at once unless another thread wants this CPU
    after = clock.monotonic_ns()
    if after - before > YIELDED_NS:
        busy.disturbed = True
        busy.backoff_ns = min(max(busy.backoff_ns * 2, <int64_t>BACKOFF_MIN_NS),
                              <int64_t>BACKOFF_MAX_NS)
        busy.not_before = after + busy.backoff_ns
    return True


cdef inline int poll(BusyPoll *busy, posix.pollfd *list, posix.nfds_t places,
                     int timeout_ms) noexcept nogil:
    """poll(2), with busy polling first."""
    cdef int ready
    begin_wait(busy)
    while poll_again(busy):
        ready = posix.poll(list, places, 0)
        if ready != 0:
            return found(busy, ready)
    return end_wait(busy, posix.poll(list, places, timeout_ms))


cdef inline int found(BusyPoll *busy, int events) noexcept nogil:
    """After a wait that did not block: count what it found. Returns `events`."""
    if busy.on_trial:
        poll_trial.count(&busy.trial, events)
        if poll_trial.clock_is_due(&busy.trial):
            advance_trial(busy, clock.monotonic_ns())
    return events


cdef inline int end_wait(BusyPoll *busy, int events) noexcept nogil:
    """After a call that may have blocked, and returned `events` or -1, which is returned."""
    cdef int64_t now
    if busy.cap_ns == 0:
        return events
    now = clock.monotonic_ns()
    if busy.on_trial:
        poll_trial.count(&busy.trial, events)
        busy.trial.blocked += 1
        advance_trial(busy, now)
    elif now - busy.wait_start > busy.cap_ns:
        busy.window_ns = 0
    else:
        busy.window_ns = min(max(busy.window_ns * 2, <int64_t>FIRST_NS), busy.cap_ns)
    return events


cdef inline void advance_trial(BusyPoll *busy, int64_t now) noexcept nogil:
    poll_trial.advance(&busy.trial, now)
    busy.window_ns = busy.cap_ns if busy.trial.polling else 0
