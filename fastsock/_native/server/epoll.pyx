"""The epoll engine: one loop over all connections, epoll(7), level-triggered.

The classic loop: wait, accept what is new, and for each ready connection receive once and send
once. Level-triggered: whatever is left unread or unaccepted is reported again, so one call per
event is enough and every connection gets its turn. A connection that keeps up costs no other call;
only when its socket is full is it watched for room instead of input, and back again.

How a connection goes on is in connection.pxd, how new ones are let in, and no more at a stop, in
door.pxd, and why an event never reaches the wrong connection in table.pxd.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

cimport fastsock._native.server.acceptor as accepting
cimport fastsock._native.atomic as atomic
cimport fastsock._native.server.engine as engine
cimport fastsock._native.posix as posix
from fastsock._native.busy_poll cimport asks_on, begin_wait, end_wait
from fastsock._native.check cimport os_error
from fastsock._native.server.connection cimport AWAITS_INPUT, AWAITS_ROOM, ENDED, Connection
from fastsock._native.server.connection cimport advance, first_awaits, idle_reason, overdue
from fastsock._native.server.door cimport Door, begin_turn, close_door, door_init, end_rest, expects
from fastsock._native.server.door cimport finished, give_up, hold, let_go, listening, next_client
from fastsock._native.server.engine cimport Context
from fastsock._native.server.connections cimport LISTENER, NO_SLOT, WAKE, Table
from fastsock._native.server.connections cimport add_connection, close_copies, connection_at, owner_of
from fastsock._native.server.connections cimport remove_connection, table_free, table_init, token_of, vacate
from fastsock._native.server.worker cimport Worker

cdef enum:
    EVENTS_MAX = 256                # events per epoll_wait

cdef struct Loop:
    Context *context
    Door door
    int epfd
    bint listener_watched
    char *buffer                    # the one receive buffer of this worker
    posix.epoll_event *events
    Table table


cdef class EpollWorker(Worker):
    """A worker that serves one listener with epoll."""

    cdef Loop *loop

    cdef int prepare(self) except -1:
        cdef Loop *loop = <Loop *>calloc(1, sizeof(Loop))
        if loop == NULL:
            raise MemoryError
        self.loop = loop
        table_init(&loop.table)
        loop.context = &self.context
        door_init(&loop.door, &self.context, posix.SOCK_NONBLOCK, &loop.table.open)
        loop.buffer = <char *>malloc(self.context.stream_size)
        loop.events = <posix.epoll_event *>calloc(EVENTS_MAX, sizeof(posix.epoll_event))
        loop.epfd = posix.epoll_create1(posix.EPOLL_CLOEXEC)
        if loop.epfd < 0:
            raise os_error(posix.errno, "epoll_create1", "")
        if loop.buffer == NULL or loop.events == NULL:
            raise MemoryError
        if (watch(loop, posix.EPOLL_CTL_ADD, self.context.listen_fd, posix.EPOLLIN, LISTENER) < 0
                or watch(loop, posix.EPOLL_CTL_ADD, self.context.wake_fd, posix.EPOLLIN, WAKE) < 0):
            raise os_error(posix.errno, "epoll_ctl", "")
        loop.listener_watched = True
        loop.door.epfd = loop.epfd
        self.main = run
        self.argument = loop
        return 0

    cdef void release(self) noexcept:
        cdef Loop *loop = self.loop
        if loop == NULL:
            return
        self.loop = NULL
        table_free(&loop.table)
        if loop.epfd >= 0:
            posix.close(loop.epfd)
        free(loop.events)
        free(loop.buffer)
        free(loop)

    cdef void abandon(self) noexcept:
        if self.loop != NULL:
            let_go(&self.loop.door)
            close_copies(&self.loop.table)


cdef void *run(void *argument) noexcept nogil:
    cdef Loop *loop = <Loop *>argument
    while not finished(&loop.door, loop.table.open > 0):
        wait_and_serve(loop)
    let_go(&loop.door)
    close_all(loop)
    engine.notify(loop.context.done_fd)
    return NULL


cdef void wait_and_serve(Loop *loop) noexcept nogil:
    cdef int i, count
    cdef uint64_t token
    cdef bint knock = False
    count = wait(loop)
    # SIGSTOP and SIGCONT cause EINTR even where all signals are blocked (signal(7)).
    if count < 0 and posix.errno != posix.EINTR:
        give_up(&loop.door, posix.errno)
    begin_turn(&loop.door)
    for i in range(count):
        token = loop.events[i].data.u64
        if token == LISTENER:
            knock = True
        elif token == WAKE:
            engine.clear(loop.context.wake_fd)
        else:
            on_connection(loop, token)
    if engine.sweep_due(loop.context):
        close_overdue(loop)
    if knock and not loop.listener_watched:
        # A resting listener is watched for nothing, so this is an error or a hang-up.
        accepting.note_failure(loop.context, posix.EINVAL)
        close_door(&loop.door)
    elif knock or expects(&loop.door):
        let_in(loop)
    watch_listener(loop)


cdef inline int wait(Loop *loop) noexcept nogil:
    cdef int count
    begin_wait(&loop.context.busy_poll)
    while asks_on(&loop.context.busy_poll):
        count = posix.epoll_wait(loop.epfd, loop.events, EVENTS_MAX, 0)
        if count != 0:
            return count
    count = posix.epoll_wait(loop.epfd, loop.events, EVENTS_MAX, engine.timeout_ms(loop.context))
    end_wait(&loop.context.busy_poll)
    return count


cdef inline void on_connection(Loop *loop, uint64_t token) noexcept nogil:
    cdef Connection *connection = owner_of(&loop.table, token)
    cdef uint32_t awaits
    if connection == NULL:
        return
    awaits = advance(connection, loop.context, loop.buffer)
    if awaits == connection.awaits:
        return
    if awaits >= ENDED:
        close_connection(loop, <uint32_t>token, awaits - ENDED)
        return
    connection.awaits = awaits
    if watch(loop, posix.EPOLL_CTL_MOD, connection.fd, events_of(awaits), token) < 0:
        engine.count_error(loop.context, posix.errno)
        close_connection(loop, <uint32_t>token, engine.CLOSED_ERROR)


cdef inline uint32_t events_of(uint32_t awaits) noexcept nogil:
    if awaits == AWAITS_INPUT:
        return posix.EPOLLIN
    return posix.EPOLLOUT if awaits == AWAITS_ROOM else posix.EPOLLIN | posix.EPOLLOUT


cdef void close_overdue(Loop *loop) noexcept nogil:
    cdef uint32_t slot
    cdef Connection *connection
    for slot in range(loop.table.slots):
        connection = connection_at(&loop.table, slot)
        if connection.fd >= 0 and overdue(connection, loop.context):
            close_connection(loop, slot, idle_reason(connection))


cdef void close_connection(Loop *loop, uint32_t slot, int reason) noexcept nogil:
    # close() alone removes a descriptor from epoll only if no fork or dup holds a copy of it
    # (epoll(7), question 6); a copy would keep reporting an event that nobody can take away.
    watch(loop, posix.EPOLL_CTL_DEL, connection_at(&loop.table, slot).fd, 0, 0)
    remove_connection(&loop.table, loop.context, slot)
    atomic.count(&loop.context.counters.closed[reason], 1)
    end_rest(&loop.door)                # a descriptor is free again


cdef inline int watch(Loop *loop, int operation, int fd, uint32_t events,
                      uint64_t token) noexcept nogil:
    cdef posix.epoll_event event
    event.events = events
    event.data.u64 = token
    return posix.epoll_ctl(loop.epfd, operation, fd, &event)


cdef void let_in(Loop *loop) noexcept nogil:
    """Step 5, in bursts. A client that there is no memory for is held until there is."""
    cdef int error, fd = next_client(&loop.door)
    while fd >= 0:
        error = adopt(loop, fd)
        if error:
            hold(&loop.door, fd, error)
        fd = next_client(&loop.door)


cdef int adopt(Loop *loop, int fd) noexcept nogil:
    """Give a new connection a slot and watch it; the errno if that cannot be."""
    cdef uint32_t slot = add_connection(&loop.table, loop.context, fd)
    cdef int error
    if slot == NO_SLOT:
        return posix.ENOMEM
    if watch(loop, posix.EPOLL_CTL_ADD, fd, events_of(first_awaits(loop.context)),
             token_of(connection_at(&loop.table, slot), slot)) == 0:
        return 0
    error = posix.errno
    vacate(&loop.table, loop.context, slot)
    return error


cdef inline void watch_listener(Loop *loop) noexcept nogil:
    """While it rests it stays readable, and accept() keeps failing: it is watched for nothing."""
    cdef bint wanted = listening(&loop.door)
    if wanted != loop.listener_watched and loop.context.listen_fd >= 0:
        watch(loop, posix.EPOLL_CTL_MOD, loop.context.listen_fd, posix.EPOLLIN if wanted else 0,
              LISTENER)
        loop.listener_watched = wanted


cdef void close_all(Loop *loop) noexcept nogil:
    """Echo what has arrived, as far as it goes without waiting, and close what is still open."""
    cdef uint32_t slot
    cdef Connection *connection
    for slot in range(loop.table.slots):
        connection = connection_at(&loop.table, slot)
        if connection.fd >= 0:
            on_connection(loop, token_of(connection, slot))
        if connection.fd >= 0:
            close_connection(loop, slot, engine.CLOSED_STOPPED)
