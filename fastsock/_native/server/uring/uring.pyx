"""The io_uring engine: calls are handed to the kernel, and their results collected.

The loop is turned around: it does not ask who is ready and then call, it has the calls under way
all the time. One `accept` and, for every connection, one `recv` go on answering until they are
cancelled (multishot), into buffers that the kernel picks when data has come. One system call a turn
hands over the sends of all connections and waits for what comes in next.

That is the way of a connection that keeps up with small messages. All others go on by readiness as
in the poll and epoll engines, with connection.pxd: a client that does not read, whose rest must not
keep a buffer that others need; a stream of large pieces, for which one `recv` and `send` of 64 KiB
are cheaper; and the services beside echo.

What the kernel still has under way for a connection is in its Flight, and nothing of it is closed
or used again before the last result was collected: the kernel holds on to the socket till then,
and would go on receiving for whoever has it next (io_uring_cancelation(7)). A result names slot and
generation, never a descriptor.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

cimport fastsock._native.server.acceptor as accepting
cimport fastsock._native.atomic as atomic
cimport fastsock._native.server.engine as engine
cimport fastsock._native.server.uring.liburing as liburing
cimport fastsock._native.posix as posix
from fastsock._native.server.debug cimport must_hold
from fastsock._native.busy_poll cimport BusyPoll, asks_on, begin_wait, end_wait
from fastsock._native.check cimport os_error
from fastsock._native.server.door cimport Door, begin_turn, close_door, door_init, expects, finished
from fastsock._native.server.door cimport give_up, hold, let_go, listening, next_client
from fastsock._native.server.engine cimport Context
from fastsock._native.server.uring.uring_connection cimport OPERATION_SHIFT, SLOT_MASK, Flights, adopt, close_overdue
from fastsock._native.server.uring.uring_connection cimport end_all, feed_starved, flights_free, flights_init, on_result
from fastsock._native.server.uring.uring_connection cimport send_all, settle_all
from fastsock._native.server.uring.ring cimport BUFFER_BYTES, Ring, completions, new_entry, ring_add_buffers
from fastsock._native.server.uring.ring cimport ready, ring_enable, ring_open, seen, submit_and_look
from fastsock._native.server.uring.ring cimport submit_and_wait
from fastsock._native.server.connections cimport close_copies
from fastsock._native.server.worker cimport Worker

cdef enum:                          # tokens without a connection: all the slot's bits are set
    ACCEPT = SLOT_MASK
    READY = SLOT_MASK | 1 << OPERATION_SHIFT        # the listener, to accept()
    WAKE = SLOT_MASK | 2 << OPERATION_SHIFT
    CANCEL_LISTENER = SLOT_MASK | 3 << OPERATION_SHIFT

cdef struct Loop:
    Context *context
    Door door
    Ring *ring                      # that of the flights
    Flights flights
    uint64_t asking                 # ACCEPT or READY, if one of them is under way, else 0
    bint cancelling                 # it
    unsigned long descriptors       # the limit that it was begun under
    bint accepted                   # some, this turn
    bint cautious                   # look before accept() is called


cdef class UringWorker(Worker):
    """A worker that serves one listener with io_uring."""

    cdef Loop *loop
    cdef uint32_t entries, results, buffers

    def __cinit__(self):
        self.set_sizes(1024, 8192, 1024)

    def set_sizes(self, unsigned int entries, unsigned int results, unsigned int buffers) -> None:
        """Set the sizes of the three rings, powers of two, before `start()`."""
        self.entries = entries
        self.results = results
        self.buffers = buffers

    cdef int prepare(self) except -1:
        cdef Loop *loop = <Loop *>calloc(1, sizeof(Loop))
        cdef int result
        if loop == NULL:
            raise MemoryError
        self.loop = loop
        loop.context = &self.context
        loop.ring = &loop.flights.ring
        door_init(&loop.door, &self.context, posix.SOCK_NONBLOCK, &loop.flights.table.open)
        loop.cautious = one_at_a_time(loop)
        if not flights_init(&loop.flights, &self.context):
            raise MemoryError
        result = ring_open(loop.ring, self.entries, self.results)
        if result < 0:
            raise os_error(-result, "io_uring_setup", "", likely_cause(-result))
        result = ring_add_buffers(loop.ring, self.buffers,
                                  <uint32_t>min(self.context.buffer_size, <size_t>BUFFER_BYTES))
        if result < 0:
            raise os_error(-result, "io_uring_register", "", likely_cause(-result))
        self.main = run
        self.argument = loop
        return 0

    cdef void release(self) noexcept:
        cdef Loop *loop = self.loop
        if loop == NULL:
            return
        self.loop = NULL
        flights_free(&loop.flights)
        free(loop)

    cdef void abandon(self) noexcept:
        if self.loop != NULL:
            let_go(&self.loop.door)
            close_copies(&self.loop.flights.table)


cdef str likely_cause(int error):
    if error == posix.ENOSYS:
        return "the kernel has no io_uring, or a seccomp filter hides it"
    if error == posix.EPERM:
        return "kernel.io_uring_disabled forbids it, or a seccomp filter such as Docker's"
    if error == posix.ENOMEM:
        return "memory, or RLIMIT_MEMLOCK, ulimit -l"
    if error == posix.EINVAL:
        return "it needs Linux 6.1 or later"
    return ""


cdef void *run(void *argument) noexcept nogil:
    cdef Loop *loop = <Loop *>argument
    cdef int result = ring_enable(loop.ring)
    if result < 0:
        fail_ring(loop, -result)
    watch_wake(loop)
    listen(loop)
    while not finished(&loop.door, loop.flights.table.open > 0):
        wait_and_serve(loop)
    let_go(&loop.door)
    close_all(loop)
    engine.notify(loop.context.done_fd)
    return NULL


cdef void wait_and_serve(Loop *loop) noexcept nogil:
    cdef int result = wait(loop)
    if result < 0:
        fail_ring(loop, -result)
        return
    begin_turn(&loop.door)
    collect(loop)
    if loop.accepted:
        heed_limit(loop)
    feed_starved(&loop.flights)
    send_all(&loop.flights)
    if engine.sweep_due(loop.context):
        close_overdue(&loop.flights)
    if expects(&loop.door):
        let_in(loop)
    listen(loop)


cdef inline int wait(Loop *loop) noexcept nogil:
    cdef BusyPoll *busy_poll = &loop.context.busy_poll
    cdef bint found = False
    cdef int result
    begin_wait(busy_poll)
    while asks_on(busy_poll):
        result = submit_and_look(loop.ring, &found)
        if found or result < 0:
            return result
    result = submit_and_wait(loop.ring, engine.timeout_ms(loop.context))
    end_wait(busy_poll)
    return result


cdef inline void on_completion(Loop *loop, liburing.io_uring_cqe *entry) noexcept nogil:
    if entry.user_data & SLOT_MASK == SLOT_MASK:
        on_listener_or_wake(loop, entry.user_data, entry.res, entry.flags)
    else:
        on_result(&loop.flights, entry.user_data, entry.res, entry.flags)


cdef void collect(Loop *loop) noexcept nogil:
    """Go on with everything that has a result now.

    What comes meanwhile is for the next turn. To go on may hand calls over that end at once, and
    were their results collected here, and their successors', this might never end; while others
    never come, as the kernel puts them off until the next wait.
    """
    cdef uint32_t i, count, left = ready(loop.ring)
    while left:
        count = completions(loop.ring, left)
        for i in range(count):
            on_completion(loop, loop.ring.batch[i])
        seen(loop.ring, count)
        left -= count


# --- accepting ----------------------------------------------------------------------------------

cdef void listen(Loop *loop) noexcept nogil:
    """Step 5, from now on: by multishot, or, where accept() has to be looked after, by readiness.

    Only one call at a time can be told who comes, or be kept from taking in more than is allowed.
    And at the descriptor limit accept() fails also when nobody comes.
    """
    cdef liburing.io_uring_sqe *entry
    if loop.asking or not listening(&loop.door) or engine.stop_requested(loop.context):
        return
    entry = new_entry(loop.ring)
    if loop.cautious:
        liburing.io_uring_prep_poll_add(entry, loop.context.listen_fd, posix.POLLIN)
        loop.asking = READY
    else:
        liburing.io_uring_prep_multishot_accept(entry, loop.context.listen_fd, NULL, NULL,
                                                posix.SOCK_NONBLOCK | posix.SOCK_CLOEXEC)
        loop.asking = ACCEPT
        loop.descriptors = descriptor_limit()
    entry.user_data = loop.asking


cdef inline bint one_at_a_time(Loop *loop) noexcept nogil:
    return loop.context.allow_count != 0 or loop.context.max_connections != 0


cdef void on_listener_or_wake(Loop *loop, uint64_t token, int32_t result,
                              uint32_t flags) noexcept nogil:
    if token == WAKE:
        engine.clear(loop.context.wake_fd)
        if not flags & liburing.IORING_CQE_F_MORE:
            watch_wake(loop)
        return
    if token == CANCEL_LISTENER:
        loop.cancelling = False
        return
    if not flags & liburing.IORING_CQE_F_MORE:
        loop.asking = 0
    if result == -posix.ECANCELED:
        return
    if token == READY:
        let_in(loop)
    elif result >= 0:
        on_accepted(loop, result)
    else:
        on_accept_failed(loop, -result)


cdef void on_accepted(Loop *loop, int fd) noexcept nogil:
    atomic.count(&loop.context.counters.accepted, 1)
    if adopt(&loop.flights, fd):
        loop.accepted = True
    elif loop.door.held < 0:
        hold(&loop.door, fd, posix.ENOMEM)
        stop_asking(loop)
    else:
        posix.close(fd)             # there was no memory for two
        atomic.count(&loop.context.counters.closed[engine.CLOSED_ERROR], 1)


cdef void on_accept_failed(Loop *loop, int error) noexcept nogil:
    if accepting.accept_failed(loop.context, error) == accepting.LISTENER_GONE:
        close_door(&loop.door)
    elif accepting.resting(loop.context):
        stop_asking(loop)


cdef void stop_asking(Loop *loop) noexcept nogil:
    """Accepting rests; then it is begun again with care, until the queue was empty once."""
    loop.cautious = True
    if loop.asking:
        cancel_listener(loop)


cdef void heed_limit(Loop *loop) noexcept nogil:
    """A multishot accept keeps to the descriptor limit that was when it began: begin it again."""
    loop.accepted = False
    if loop.asking == ACCEPT and descriptor_limit() != loop.descriptors:
        cancel_listener(loop)


cdef inline unsigned long descriptor_limit() noexcept nogil:
    cdef posix.rlimit limit
    return limit.rlim_cur if posix.getrlimit(posix.RLIMIT_NOFILE, &limit) == 0 else 0


cdef void let_in(Loop *loop) noexcept nogil:
    """Step 5, in bursts. A client that there is no memory for is held until there is.

    While accept() is under way close() does not stop it, and shutdown() would stop it for every
    process that has a copy: at a stop it is cancelled first.
    """
    cdef int fd
    if loop.asking:
        cancel_listener(loop)
        return
    fd = next_client(&loop.door)
    while fd >= 0:
        if not adopt(&loop.flights, fd):
            hold(&loop.door, fd, posix.ENOMEM)
        fd = next_client(&loop.door)
    if loop.door.turns > 0 and listening(&loop.door):
        loop.cautious = one_at_a_time(loop)


# --- stopping -----------------------------------------------------------------------------------

cdef void watch_wake(Loop *loop) noexcept nogil:
    cdef liburing.io_uring_sqe *entry = new_entry(loop.ring)
    liburing.io_uring_prep_poll_multishot(entry, loop.context.wake_fd, posix.POLLIN)
    entry.user_data = WAKE


cdef void cancel_listener(Loop *loop) noexcept nogil:
    cdef liburing.io_uring_sqe *entry
    if loop.cancelling:
        return
    entry = new_entry(loop.ring)
    liburing.io_uring_prep_cancel64(entry, loop.asking, 0)
    entry.user_data = CANCEL_LISTENER
    loop.cancelling = True


cdef void fail_ring(Loop *loop, int error) noexcept nogil:
    """io_uring itself failed, as when something else in the process closed its descriptor."""
    loop.ring.failed = True
    give_up(&loop.door, error)


cdef void close_all(Loop *loop) noexcept nogil:
    """Echo what has arrived, as far as it goes without waiting, and close what is still open."""
    settle_all(&loop.flights)
    while loop.flights.table.open and not loop.ring.failed:
        wait_and_serve(loop)
    end_all(&loop.flights)
    must_hold(loop.ring.home == loop.ring.count or loop.ring.failed)
