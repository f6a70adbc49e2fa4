# The front door of a stream engine: step 5, resting when it cannot be done, and step 9. What
# accept() may answer is in accepting.pxd.
#
# The engines that wait with poll(2) do that here too, with the listener and the wake-up at the head
# of their list; the epoll engine waits by itself and says when a turn begins.

from libc.stdint cimport uint32_t

cimport fastsock._native.clock as clock
cimport fastsock._native.server.acceptor as accepting
cimport fastsock._native.atomic as atomic
cimport fastsock._native.server.engine as engine
cimport fastsock._native.posix as posix
from fastsock._native.busy_poll cimport poll_busily
from fastsock._native.server.engine cimport Context

cdef enum:                          # places in the list
    LISTENER
    WAKE
    OWN                             # here begins what the engine watches besides

cdef struct Door:
    Context *context
    const uint32_t *open            # how many connections there are; NULL if that is no matter
    int flags                       # of accept4
    int epfd                        # of the epoll that watches the listener, or -1
    int held                        # a client that nobody could be found for yet, or -1
    int turns                       # attempts to accept before the others get their turn again
    bint closing                    # a stop was requested, and `turns` are enough for who waits


cdef inline void door_init(Door *door, Context *context, int flags,
                           const uint32_t *open) noexcept nogil:
    door.context = context
    door.open = open
    door.flags = flags
    door.epfd = -1
    door.held = -1


cdef inline void list_init(Door *door, posix.pollfd *list) noexcept nogil:
    """Put what every engine watches at the head of its list for poll(2)."""
    list[WAKE].fd = door.context.wake_fd
    list[LISTENER].events = list[WAKE].events = posix.POLLIN


cdef inline void wait_at(Door *door, posix.pollfd *list, uint32_t places,
                         bint for_clients) noexcept nogil:
    """Block until anything in the list is ready, or the time of the context has come."""
    cdef Context *context = door.context
    cdef int ready
    # While it rests it stays readable, and accept() keeps failing: poll() passes over a -1.
    list[LISTENER].fd = context.listen_fd if for_clients and listening(door) else -1
    ready = poll_busily(&context.busy_poll, list, places, engine.timeout_ms(context))
    if ready < 0:
        forget_ready(list, places)
        if not engine.poll_may_work_again(posix.errno):
            give_up(door, posix.errno)
    elif list[WAKE].revents:
        engine.clear(context.wake_fd)
    begin_turn(door)


cdef inline void forget_ready(posix.pollfd *list, uint32_t places) noexcept nogil:
    """After a poll() that failed, which leaves the answers of the one before."""
    cdef uint32_t place
    for place in range(places):
        list[place].revents = 0


cdef inline void begin_turn(Door *door) noexcept nogil:
    """After each wait, before clients are let in."""
    cdef Context *context = door.context
    engine.note_time(context)
    door.turns = accepting.BURST
    door.closing = engine.stop_requested(context)
    if door.closing:
        door.turns += queue_length(context.listen_fd)
    if accepting.resting(context) and clock.monotonic_ns() >= context.resume_at:
        context.resume_at = engine.NEVER


cdef inline bint listening(Door *door) noexcept nogil:
    """Whether the listener is to be watched."""
    return door.context.listen_fd >= 0 and not accepting.resting(door.context)


cdef inline bint expects(Door *door) noexcept nogil:
    """Whether to ask for the next client even if the listener is not known to be ready."""
    return door.held >= 0 or (engine.stop_requested(door.context) and door.context.listen_fd >= 0)


cdef inline int next_client(Door *door) noexcept nogil:
    """Step 5: the next connection, or -1 when there is none now.

    Closing a listener resets what waits in its queue, and those clients think they are connected:
    so once a stop is requested it is closed as soon as the queue is empty, or the stop is due. Not
    if the request comes in the middle of this, with turns for a part of the queue: wait_at() then
    does not wait, and gives more. And not for as long as a long queue would take, where to take in
    a client means to make a process.
    """
    cdef Context *context = door.context
    cdef int fd = door.held, ended
    if fd >= 0 and not accepting.resting(context):
        door.held = -1
        return fd
    while context.listen_fd >= 0 and not accepting.resting(context) and door.turns > 0:
        door.turns -= 1
        if door.closing and engine.stop_overdue(context):
            break
        if door.open != NULL and accepting.full(context, door.open[0]):
            break
        ended = accepting.accept_one(context, door.flags, &fd)
        if ended == accepting.ACCEPTED:
            atomic.count(&context.counters.accepted, 1)
            return fd
        if ended == accepting.QUEUE_EMPTY:
            break
        if ended == accepting.LISTENER_GONE:
            close_door(door)
    if context.listen_fd >= 0 and door.closing:
        if not accepting.resting(context) or engine.stop_due(context):
            close_door(door)
    return -1


cdef inline void close_door(Door *door) noexcept nogil:
    """Step 9."""
    if door.epfd >= 0:
        # close() alone removes a descriptor from epoll only if no fork or dup holds a copy of it
        # (epoll(7), question 6); a copy would be reported for ever.
        posix.epoll_ctl(door.epfd, posix.EPOLL_CTL_DEL, door.context.listen_fd, NULL)
    accepting.close_listener(door.context)


cdef inline int queue_length(int listen_fd) noexcept nogil:
    """How many wait to be accepted now.

    At a stop no more than these are taken in, and a few who may have come meanwhile: to make a
    process takes longer than to connect, so a queue that is refilled might never be empty.
    """
    cdef posix.tcp_info info
    cdef posix.socklen_t size = sizeof(info)
    if listen_fd < 0:
        return 0
    if posix.getsockopt(listen_fd, posix.IPPROTO_TCP, posix.TCP_INFO, &info, &size) != 0:
        return accepting.BURST * accepting.BURSTS_AT_STOP
    return info.tcpi_unacked        # of a listener: the length of its accept queue


cdef inline void hold(Door *door, int fd, int error) noexcept nogil:
    """What else a client needs cannot be had now: rest, and try again with the same one."""
    door.held = fd
    engine.count_error(door.context, error)
    accepting.note_rest(door.context, error)


cdef inline void let_go(Door *door) noexcept nogil:
    """Close the client that is held, if there is one: it is over."""
    if door.held >= 0:
        posix.close(door.held)
        door.held = -1
        atomic.count(&door.context.counters.closed[engine.CLOSED_STOPPED], 1)


cdef inline void end_rest(Door *door) noexcept nogil:
    """Something that accepting may have rested for is free again."""
    if accepting.resting(door.context):
        door.context.resume_at = 0


cdef inline void give_up(Door *door, int error) noexcept nogil:
    """To wait itself failed, and always will."""
    atomic.lower_i64(&door.context.stop_at, 0)
    accepting.note_failure(door.context, error)
    if door.context.listen_fd >= 0:
        close_door(door)


cdef inline bint finished(Door *door, bint anybody_in) noexcept nogil:
    if door.context.listen_fd >= 0 or not engine.stop_requested(door.context):
        return False
    return not (anybody_in or door.held >= 0) or engine.stop_due(door.context)
