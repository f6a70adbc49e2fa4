"""The poll engine: one loop over all connections, poll(2), as POSIX has it.

The whole list of descriptors is given to the kernel at every turn, and searched afterwards. That is
simple and portable, and its cost grows with the connections that are idle, which is what epoll(7)
was made for.

How a connection advances is in connection.pxd, accepting and stopping in acceptor.pxd, and waiting
in poll_list.pxd.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free, malloc, realloc

cimport fastsock._native.atomic as atomic
cimport fastsock._native.posix as posix
cimport fastsock._native.server.acceptor as acceptor
cimport fastsock._native.server.connection as connection
cimport fastsock._native.server.connections as connections
cimport fastsock._native.server.counters as counters
cimport fastsock._native.server.deadlines as deadlines
cimport fastsock._native.server.poll_list as poll_list
cimport fastsock._native.server.transient as transient
cimport fastsock._native.wakeup as wakeup
from fastsock._native.server.acceptor cimport Acceptor
from fastsock._native.server.connection cimport Connection
from fastsock._native.server.connections cimport Connections
from fastsock._native.server.context cimport Context
from fastsock._native.server.worker cimport Worker

cdef enum:
    FIRST = poll_list.FIRST_OWN     # place in the list of the first connection
    PLACES_START = 64

cdef struct Loop:
    Context *context
    Acceptor acceptor
    char *buffer                    # the one receive buffer of this worker
    posix.pollfd *list              # what poll() is given; it passes over a negative fd
    uint32_t *slots                 # of the connection at each place, from FIRST on
    uint32_t count, places          # places used, and allocated
    Connections connections


cdef class PollWorker(Worker):
    """A worker that serves one listener with poll."""

    cdef Loop *loop

    cdef int prepare(self) except -1:
        cdef Loop *loop = <Loop *>calloc(1, sizeof(Loop))
        if loop == NULL:
            raise MemoryError
        self.loop = loop
        connections.init(&loop.connections)
        loop.context = &self.context
        acceptor.init(&loop.acceptor, &self.context, posix.SOCK_NONBLOCK, &loop.connections.open)
        loop.buffer = <char *>malloc(self.context.stream_size)
        if loop.buffer == NULL or not grow(loop):
            raise MemoryError
        poll_list.init(&self.context, loop.list)
        loop.count = FIRST
        self.main = run
        self.argument = loop
        return 0

    cdef void release(self) noexcept:
        cdef Loop *loop = self.loop
        if loop == NULL:
            return
        self.loop = NULL
        connections.free_chunks(&loop.connections)
        free(loop.slots)
        free(loop.list)
        free(loop.buffer)
        free(loop)

    cdef void abandon(self) noexcept:
        if self.loop != NULL:
            # The parent's loop may have been reallocating them: a leak is better.
            self.loop.list = NULL
            self.loop.slots = NULL
            acceptor.close_held(&self.loop.acceptor)
            connections.close_copies(&self.loop.connections)


cdef void *run(void *argument) noexcept nogil:
    cdef Loop *loop = <Loop *>argument
    while not acceptor.finished(&loop.acceptor, loop.connections.open > 0):
        wait_and_serve(loop)
    acceptor.close_held(&loop.acceptor)
    close_all(loop)
    wakeup.notify(loop.context.done_fd)
    return NULL


cdef void wait_and_serve(Loop *loop) noexcept nogil:
    cdef uint32_t place
    poll_list.wait(&loop.acceptor, loop.list, loop.count, for_clients=True)
    # Backwards: closing moves the last place, which was served already, into the gap.
    for place in range(loop.count - 1, <uint32_t>(FIRST - 1), -1):
        if loop.list[place].revents:
            on_connection(loop, place)
    if deadlines.sweep_due(loop.context):
        close_overdue(loop)
    if loop.list[poll_list.LISTENER].revents or acceptor.must_accept(&loop.acceptor):
        accept_clients(loop)


cdef inline Connection *connection_at(Loop *loop, uint32_t place) noexcept nogil:
    return connections.at(&loop.connections, loop.slots[place])


cdef inline void on_connection(Loop *loop, uint32_t place) noexcept nogil:
    cdef Connection *conn = connection_at(loop, place)
    cdef uint32_t awaits = connection.advance(conn, loop.context, loop.buffer)
    if awaits == connection.ENDED:
        close_connection(loop, place, conn.close_reason)
    else:
        loop.list[place].events = connection.poll_events(awaits)


cdef void close_overdue(Loop *loop) noexcept nogil:
    cdef uint32_t place
    cdef Connection *conn
    for place in range(loop.count - 1, <uint32_t>(FIRST - 1), -1):
        conn = connection_at(loop, place)
        if connection.overdue(conn, loop.context):
            close_connection(loop, place, conn.close_reason)


cdef void close_connection(Loop *loop, uint32_t place, int reason) noexcept nogil:
    connections.remove(&loop.connections, loop.context, loop.slots[place])
    loop.count -= 1
    loop.list[place] = loop.list[loop.count]
    loop.slots[place] = loop.slots[loop.count]
    atomic.count(&loop.context.counters.closed[reason], 1)
    acceptor.resume(loop.context)


cdef void accept_clients(Loop *loop) noexcept nogil:
    """Step 5, in bursts. A connection for which there is no memory is held until there is."""
    cdef int fd = acceptor.next_client(&loop.acceptor)
    while fd >= 0:
        if not add_connection(loop, fd):
            acceptor.hold(&loop.acceptor, fd, transient.MALLOC, posix.ENOMEM)
        fd = acceptor.next_client(&loop.acceptor)


cdef bint add_connection(Loop *loop, int fd) noexcept nogil:
    """Give a new connection a slot and a place in the list; False without memory for either."""
    cdef uint32_t slot
    if loop.count == loop.places and not grow(loop):
        return False
    slot = connections.add(&loop.connections, loop.context, fd)
    if slot == connections.NO_SLOT:
        return False
    loop.slots[loop.count] = slot
    loop.list[loop.count].fd = fd
    loop.list[loop.count].events = connection.poll_events(connection.first_awaits(loop.context))
    loop.list[loop.count].revents = 0
    loop.count += 1
    return True


cdef bint grow(Loop *loop) noexcept nogil:
    cdef uint32_t places = max(loop.places * 2, <uint32_t>PLACES_START)
    cdef posix.pollfd *list = <posix.pollfd *>realloc(loop.list, places * sizeof(posix.pollfd))
    cdef uint32_t *slots
    if list == NULL:
        return False
    loop.list = list
    slots = <uint32_t *>realloc(loop.slots, places * sizeof(uint32_t))
    if slots == NULL:
        return False
    loop.slots = slots
    loop.places = places
    return True


cdef void close_all(Loop *loop) noexcept nogil:
    """Echo what has arrived, as far as that needs no waiting, and close every connection."""
    cdef uint32_t place
    for place in range(loop.count - 1, <uint32_t>(FIRST - 1), -1):
        on_connection(loop, place)
    while loop.count > FIRST:
        close_connection(loop, loop.count - 1, counters.CLOSED_STOPPED)
