"""The poll engine: one loop over all connections, poll(2), as POSIX has it.

The whole list of descriptors is handed to the kernel at every turn, and the whole list is looked
through afterwards. That is simple and portable, and its cost grows with the connections that are
idle, which is what epoll(7) was made for.

How a connection goes on is in connection.pxd, and what accept() may answer in accepting.pxd.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free, malloc, realloc

from fastsock._native cimport accepting, atomic, engine, posix
from fastsock._native.connection cimport ENDED, Connection, advance, first_awaits
from fastsock._native.connection cimport idle_reason, overdue, poll_events
from fastsock._native.engine cimport Context
from fastsock._native.table cimport NO_SLOT, Table, add_connection, close_copies, connection_at
from fastsock._native.table cimport remove_connection, table_free, table_init
from fastsock._native.worker cimport Worker

cdef enum:
    LISTENER = 0                    # places in the list that are not connections
    WAKE = 1
    FIRST = 2
    PLACES_START = 64

cdef struct Loop:
    Context *context
    char *buffer                    # the one receive buffer of this worker
    posix.pollfd *list              # what poll() is given; a negative fd is passed over
    uint32_t *slots                 # whose place it is, from FIRST on
    uint32_t count, places          # used, and there
    Table table


cdef class PollWorker(Worker):
    """A worker that serves one listener with poll."""

    cdef Loop *loop

    cdef int prepare(self) except -1:
        cdef Loop *loop = <Loop *>calloc(1, sizeof(Loop))
        if loop == NULL:
            raise MemoryError
        self.loop = loop
        table_init(&loop.table)
        loop.context = &self.context
        loop.buffer = <char *>malloc(self.context.buffer_size)
        if loop.buffer == NULL or not grow(loop):
            raise MemoryError
        loop.list[LISTENER].fd = self.context.listen_fd
        loop.list[WAKE].fd = self.context.wake_fd
        loop.list[LISTENER].events = loop.list[WAKE].events = posix.POLLIN
        loop.count = FIRST
        self.main = run
        self.argument = loop
        return 0

    cdef void release(self) noexcept:
        cdef Loop *loop = self.loop
        if loop == NULL:
            return
        self.loop = NULL
        table_free(&loop.table)
        free(loop.slots)
        free(loop.list)
        free(loop.buffer)
        free(loop)

    cdef void abandon(self) noexcept:
        if self.loop != NULL:
            close_copies(&self.loop.table)


cdef void *run(void *argument) noexcept nogil:
    cdef Loop *loop = <Loop *>argument
    while not finished(loop):
        wait_and_serve(loop)
    close_all(loop)
    engine.notify(loop.context.done_fd)
    return NULL


cdef void wait_and_serve(Loop *loop) noexcept nogil:
    cdef uint32_t place
    cdef int ready = posix.poll(loop.list, loop.count, engine.timeout_ms(loop.context))
    if ready < 0:
        # SIGSTOP and SIGCONT cause EINTR even where all signals are blocked (signal(7)).
        if posix.errno != posix.EINTR:
            give_up(loop, posix.errno)
        return
    engine.note_time(loop.context)
    # Backwards: closing moves the last place, which has been looked at by then, into the gap.
    for place in range(loop.count - 1, <uint32_t>(FIRST - 1), -1):
        if loop.list[place].revents:
            on_connection(loop, place)
    if loop.list[WAKE].revents:
        engine.clear(loop.context.wake_fd)
    if loop.list[LISTENER].revents:
        accept_burst(loop)
    if engine.sweep_due(loop.context):
        close_overdue(loop)
    if accepting.resting(loop.context) and posix.monotonic_ns() >= loop.context.resume_at:
        loop.context.resume_at = engine.NEVER
        loop.list[LISTENER].fd = loop.context.listen_fd
    if engine.stop_requested(loop.context) and loop.context.listen_fd >= 0:
        drain_queue(loop)


cdef inline void on_connection(Loop *loop, uint32_t place) noexcept nogil:
    cdef Connection *connection = connection_at(&loop.table, loop.slots[place])
    cdef uint32_t awaits = advance(connection, loop.context, loop.buffer)
    if awaits >= ENDED:
        close_connection(loop, place, awaits - ENDED)
    else:
        loop.list[place].events = poll_events(awaits)


cdef void close_overdue(Loop *loop) noexcept nogil:
    cdef uint32_t place
    cdef Connection *connection
    for place in range(loop.count - 1, <uint32_t>(FIRST - 1), -1):
        connection = connection_at(&loop.table, loop.slots[place])
        if overdue(connection, loop.context):
            close_connection(loop, place, idle_reason(connection))


cdef void close_connection(Loop *loop, uint32_t place, int reason) noexcept nogil:
    remove_connection(&loop.table, loop.slots[place])
    loop.count -= 1
    loop.list[place] = loop.list[loop.count]
    loop.slots[place] = loop.slots[loop.count]
    atomic.count(&loop.context.counters.closed[reason], 1)
    if accepting.resting(loop.context):
        loop.context.resume_at = 0      # a descriptor is free again


# --- accepting ----------------------------------------------------------------------------------

cdef bint accept_burst(Loop *loop) noexcept nogil:
    """Step 5. True while there may be more in the queue."""
    cdef int fd, ended, _
    for _ in range(accepting.BURST):
        if accepting.full(loop.context, loop.table.open):
            ended = accepting.MUST_REST
        else:
            ended = accepting.accept_one(loop.context, posix.SOCK_NONBLOCK, &fd)
        if ended == accepting.ACCEPTED and not adopt(loop, fd):
            ended = accepting.accept_failed(loop.context, posix.ENOMEM)
        if ended == accepting.QUEUE_EMPTY:
            return False
        if ended == accepting.MUST_REST:
            # It stays readable, and accept() keeps failing: leave it out of the list for a while.
            loop.list[LISTENER].fd = -1
            return False
        if ended == accepting.LISTENER_GONE:
            stop_accepting(loop)
            return False
    return True


cdef bint adopt(Loop *loop, int fd) noexcept nogil:
    """Give a new connection a slot and a place; False, and closed, without memory for either."""
    cdef uint32_t slot
    if loop.count < loop.places or grow(loop):
        slot = add_connection(&loop.table, loop.context, fd)
        if slot != NO_SLOT:
            loop.slots[loop.count] = slot
            loop.list[loop.count].fd = fd
            loop.list[loop.count].events = poll_events(first_awaits(loop.context))
            loop.count += 1
            atomic.count(&loop.context.counters.accepted, 1)
            return True
    posix.close(fd)
    return False


cdef bint grow(Loop *loop) noexcept nogil:
    cdef uint32_t places = max(loop.places * 2, <uint32_t>PLACES_START)
    cdef posix.pollfd *fds = <posix.pollfd *>realloc(loop.list, places * sizeof(posix.pollfd))
    cdef uint32_t *slots
    if fds == NULL:
        return False
    loop.list = fds
    slots = <uint32_t *>realloc(loop.slots, places * sizeof(uint32_t))
    if slots == NULL:
        return False
    loop.slots = slots
    loop.places = places
    return True


cdef void stop_accepting(Loop *loop) noexcept nogil:
    loop.list[LISTENER].fd = -1
    accepting.close_listener(loop.context)


# --- stopping -----------------------------------------------------------------------------------

cdef void drain_queue(Loop *loop) noexcept nogil:
    """Once a stop is requested: take in what waits to be accepted, then stop listening.

    Closing a listener resets what waits in its queue, and those clients think they are connected.
    Without descriptors for them it listens on until there are some, or until the stop is due.
    """
    cdef int _
    for _ in range(accepting.BURSTS_AT_STOP):
        if accepting.resting(loop.context) or not accept_burst(loop):
            break
    if loop.context.listen_fd < 0:
        return
    if not accepting.resting(loop.context) or engine.stop_due(loop.context):
        stop_accepting(loop)


cdef inline bint finished(Loop *loop) noexcept nogil:
    if loop.context.listen_fd >= 0 or not engine.stop_requested(loop.context):
        return False
    return loop.table.open == 0 or engine.stop_due(loop.context)


cdef void give_up(Loop *loop, int error) noexcept nogil:
    """poll itself failed, as without memory for its list."""
    atomic.lower_i64(&loop.context.stop_at, 0)
    accepting.note_failure(loop.context, error)
    if loop.context.listen_fd >= 0:
        stop_accepting(loop)


cdef void close_all(Loop *loop) noexcept nogil:
    """Echo what has arrived, as far as it goes without waiting, and close what is still open."""
    cdef uint32_t place
    for place in range(loop.count - 1, <uint32_t>(FIRST - 1), -1):
        on_connection(loop, place)
    while loop.count > FIRST:
        close_connection(loop, loop.count - 1, engine.CLOSED_STOPPED)
