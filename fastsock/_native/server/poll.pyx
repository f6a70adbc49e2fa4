"""The poll engine: one loop over all connections, poll(2), as POSIX has it.

The whole list of descriptors is handed to the kernel at every turn, and the whole list is looked
through afterwards. That is simple and portable, and its cost grows with the connections that are
idle, which is what epoll(7) was made for.

How a connection goes on is in connection.pxd; how one waits, lets new ones in, and no more at a
stop, in door.pxd.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free, malloc, realloc

cimport fastsock._native.atomic as atomic
cimport fastsock._native.server.engine as engine
cimport fastsock._native.posix as posix
from fastsock._native.server.connection cimport ENDED, Connection, advance, first_awaits
from fastsock._native.server.connection cimport idle_reason, overdue, poll_events
from fastsock._native.server.door cimport LISTENER, OWN, Door, door_init, end_rest, expects, finished
from fastsock._native.server.door cimport hold, let_go, list_init, next_client, wait_at
from fastsock._native.server.engine cimport Context
from fastsock._native.server.connections cimport NO_SLOT, Table, add_connection, close_copies, connection_at
from fastsock._native.server.connections cimport remove_connection, table_free, table_init
from fastsock._native.server.worker cimport Worker

cdef enum:
    FIRST = OWN                     # place in the list of the first connection
    PLACES_START = 64

cdef struct Loop:
    Context *context
    Door door
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
        door_init(&loop.door, &self.context, posix.SOCK_NONBLOCK, &loop.table.open)
        loop.buffer = <char *>malloc(self.context.stream_size)
        if loop.buffer == NULL or not grow(loop):
            raise MemoryError
        list_init(&loop.door, loop.list)
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
    cdef uint32_t place
    wait_at(&loop.door, loop.list, loop.count, for_clients=True)
    # Backwards: closing moves the last place, which has been looked at by then, into the gap.
    for place in range(loop.count - 1, <uint32_t>(FIRST - 1), -1):
        if loop.list[place].revents:
            on_connection(loop, place)
    if engine.sweep_due(loop.context):
        close_overdue(loop)
    if loop.list[LISTENER].revents or expects(&loop.door):
        let_in(loop)


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
    remove_connection(&loop.table, loop.context, loop.slots[place])
    loop.count -= 1
    loop.list[place] = loop.list[loop.count]
    loop.slots[place] = loop.slots[loop.count]
    atomic.count(&loop.context.counters.closed[reason], 1)
    end_rest(&loop.door)                # a descriptor is free again


cdef void let_in(Loop *loop) noexcept nogil:
    """Step 5, in bursts. A client that there is no memory for is held until there is."""
    cdef int fd = next_client(&loop.door)
    while fd >= 0:
        if not adopt(loop, fd):
            hold(&loop.door, fd, posix.ENOMEM)
        fd = next_client(&loop.door)


cdef bint adopt(Loop *loop, int fd) noexcept nogil:
    """Give a new connection a slot and a place; False without memory for either."""
    cdef uint32_t slot
    if loop.count == loop.places and not grow(loop):
        return False
    slot = add_connection(&loop.table, loop.context, fd)
    if slot == NO_SLOT:
        return False
    loop.slots[loop.count] = slot
    loop.list[loop.count].fd = fd
    loop.list[loop.count].events = poll_events(first_awaits(loop.context))
    loop.list[loop.count].revents = 0
    loop.count += 1
    return True


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


cdef void close_all(Loop *loop) noexcept nogil:
    """Echo what has arrived, as far as it goes without waiting, and close what is still open."""
    cdef uint32_t place
    for place in range(loop.count - 1, <uint32_t>(FIRST - 1), -1):
        on_connection(loop, place)
    while loop.count > FIRST:
        close_connection(loop, loop.count - 1, engine.CLOSED_STOPPED)
