# Asking again for a while before blocking, as long as that pays.
#
# To block costs a wake-up: an interrupt to the other CPU and a switch of threads, and in a virtual
# machine an exit to the host, together more than an echo. Whoever asks the kernel again and again
# instead is there at once, and pays for it with a CPU. So the time spent asking follows the rule of
# KVM's halt polling (Documentation/virt/kvm/halt-polling.rst): it grows while waits are shorter
# than the cap, and shrinks to nothing after one that was longer, so an idle server blocks. It also
# stops when the CPU has other work: then asking takes from the very one who is waited for.

from libc.stdint cimport int64_t

cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix

cdef enum:
    FIRST_NS = 10000                # what it grows from, doubling
    YIELDED_NS = 5000               # a sched_yield() longer than this has let somebody else run
    PENANCE_MIN_NS = 50000          # how long not to try again after that: it doubles each time,
    PENANCE_MAX_NS = 10000000       # to this, and halves with each wait that was left in peace

cdef struct BusyPoll:
    int64_t cap_ns                  # the longest time spent asking; 0: never ask
    int64_t window_ns               # the time spent asking now, 0 to cap_ns
    int64_t idle_since              # when this wait began
    int64_t not_before              # after other work was seen
    int64_t penance_ns
    bint asked                      # in this wait
    bint disturbed                  # by other work


cdef inline void begin_wait(BusyPoll *busy) noexcept nogil:
    if busy.cap_ns == 0:
        return
    busy.idle_since = clock.monotonic_ns()
    if busy.asked and not busy.disturbed:
        busy.penance_ns //= 2
    busy.asked = busy.disturbed = False


cdef inline bint asks_on(BusyPoll *busy) noexcept nogil:
    """Whether to ask, or ask again, without blocking."""
    cdef int64_t before, after
    if busy.window_ns == 0 or busy.disturbed:
        return False
    if not busy.asked:
        busy.asked = busy.idle_since >= busy.not_before
        return busy.asked
    before = clock.monotonic_ns()
    if before - busy.idle_since >= busy.window_ns:
        return False
    posix.sched_yield()             # returns at once unless somebody else wants this CPU
    after = clock.monotonic_ns()
    if after - before > YIELDED_NS:
        busy.disturbed = True
        busy.penance_ns = min(max(busy.penance_ns * 2, <int64_t>PENANCE_MIN_NS),
                              <int64_t>PENANCE_MAX_NS)
        busy.not_before = after + busy.penance_ns
    return True


cdef inline int poll_busily(BusyPoll *busy, posix.pollfd *list, posix.nfds_t places,
                            int timeout_ms) noexcept nogil:
    """poll(2), asking first."""
    cdef int ready
    begin_wait(busy)
    while asks_on(busy):
        ready = posix.poll(list, places, 0)
        if ready != 0:
            return ready
    ready = posix.poll(list, places, timeout_ms)
    end_wait(busy)
    return ready


cdef inline void end_wait(BusyPoll *busy) noexcept nogil:
    """After a call that may have blocked: learn from how long this wait was."""
    cdef int64_t now
    if busy.cap_ns == 0:
        return
    now = clock.monotonic_ns()
    if now - busy.idle_since > busy.cap_ns:
        busy.window_ns = 0
    else:
        busy.window_ns = min(max(busy.window_ns * 2, <int64_t>FIRST_NS), busy.cap_ns)
