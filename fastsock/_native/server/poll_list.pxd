# Waiting with poll(2), for the engines that do. At the head of each engine's list are the listener
# and the eventfd that wakes the loop; what else the engine watches follows.

from libc.stdint cimport uint32_t

cimport fastsock._native.busy_poll as busy_poll
cimport fastsock._native.posix as posix
cimport fastsock._native.server.acceptor as acceptor
cimport fastsock._native.server.deadlines as deadlines
cimport fastsock._native.server.transient as transient
cimport fastsock._native.wakeup as wakeup
from fastsock._native.server.acceptor cimport Acceptor
from fastsock._native.server.context cimport Context

cdef enum:                          # places in the list
    LISTENER
    WAKE
    FIRST_OWN                       # the first place of the engine's own

cdef enum:
    POLL_AGAIN_NS = 10000000        # until poll() is tried again after it had no memory


cdef inline void init(Context *context, posix.pollfd *list) noexcept nogil:
    list[WAKE].fd = context.wake_fd
    list[LISTENER].events = list[WAKE].events = posix.POLLIN


cdef inline void wait(Acceptor *accepting, posix.pollfd *list, uint32_t places,
                      bint for_clients) noexcept nogil:
    """Block until anything in the list is ready or a deadline has come, and begin a turn.

    New connections do not end the wait unless `for_clients`.
    """
    cdef Context *context = accepting.context
    cdef int ready
    # While accepting is paused the listener stays readable. poll() passes over a descriptor of -1.
    list[LISTENER].fd = -1
    if for_clients and acceptor.listening(accepting):
        list[LISTENER].fd = context.bound_fd
    ready = busy_poll.poll(&context.busy_poll, list, places, deadlines.timeout_ms(context))
    if ready < 0:
        clear_results(list, places)
        if not may_work_again(context, posix.errno):
            acceptor.fail(accepting, transient.POLL, posix.errno)
    elif list[WAKE].revents:
        wakeup.clear(context.wake_fd)
    acceptor.begin_turn(accepting)


cdef inline void clear_results(posix.pollfd *list, uint32_t places) noexcept nogil:
    """After a poll() that failed, which leaves the results of the one before."""
    cdef uint32_t place
    for place in range(places):
        list[place].revents = 0


cdef inline bint may_work_again(Context *context, int error) noexcept nogil:
    """After poll(2) failed: whether to try again; sleeps first where that would spin."""
    cdef posix.timespec time
    if not transient.poll_can_pass(error):
        return False
    if error == posix.EINTR:
        return True
    acceptor.note_pause(context, transient.POLL, error)
    time.tv_sec = 0
    time.tv_nsec = POLL_AGAIN_NS
    posix.nanosleep(&time, NULL)
    return True
