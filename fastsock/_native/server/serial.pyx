"""The serial engine: one client at a time.

The tutorial's loop: accept, receive and send until the client has finished, close, accept the next.
The others wait in the accept queue.

The waiting is all done in poll(), on the client and the wake-up together, and the calls themselves
never block. A recv() that blocks would leave this one thread deaf to stop(), and to the deadline of
a drain, for as long as its client likes; and nobody else could shut the client's socket down for
it, since request_stop() takes no lock and the number may belong to another client by then. It costs
one system call more for an echo: poll, recv, send.

How a connection goes on is in connection.pxd, and accepting in door.pxd.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc

cimport fastsock._native.atomic as atomic
cimport fastsock._native.server.engine as engine
cimport fastsock._native.posix as posix
from fastsock._native.server.connection cimport ENDED, Connection, advance, idle_reason, overdue
from fastsock._native.server.connection cimport poll_events
from fastsock._native.server.door cimport OWN, Door, door_init, finished, hold, let_go
from fastsock._native.server.door cimport list_init, next_client, wait_at
from fastsock._native.server.engine cimport Context
from fastsock._native.server.connections cimport NO_SLOT, Table, add_connection, close_copies, connection_at
from fastsock._native.server.connections cimport remove_connection, table_free, table_init
from fastsock._native.server.worker cimport Worker

cdef struct Loop:
    Context *context
    Door door
    posix.pollfd list[OWN + 1]      # its own is the client
    char *buffer
    Table table                     # the client, and at a stop those who waited behind it


cdef class SerialWorker(Worker):
    """A worker that serves the clients of one listener one after the other."""

    cdef Loop loop

    def __cinit__(self):
        table_init(&self.loop.table)
        self.loop.door.held = -1

    cdef int prepare(self) except -1:
        self.loop.context = &self.context
        door_init(&self.loop.door, &self.context, posix.SOCK_NONBLOCK, NULL)
        list_init(&self.loop.door, self.loop.list)
        self.loop.buffer = <char *>malloc(self.context.stream_size)
        if self.loop.buffer == NULL:
            raise MemoryError
        self.main = run
        self.argument = &self.loop
        return 0

    cdef void release(self) noexcept:
        table_free(&self.loop.table)
        table_init(&self.loop.table)
        free(self.loop.buffer)
        self.loop.buffer = NULL

    cdef void abandon(self) noexcept:
        let_go(&self.loop.door)
        close_copies(&self.loop.table)


cdef void *run(void *argument) noexcept nogil:
    cdef Loop *loop = <Loop *>argument
    cdef uint32_t slot
    while not finished(&loop.door, anybody_in=False):
        wait_at(&loop.door, loop.list, OWN, for_clients=True)
        engine.sweep_due(loop.context)      # nobody to close, but the next time is set
        take_in(loop)
        slot = 0
        while slot < loop.table.slots:      # slots are handed out in this order, from the first
            if connection_at(&loop.table, slot).fd >= 0:
                serve(loop, slot)
            slot += 1
    let_go(&loop.door)
    engine.notify(loop.context.done_fd)
    return NULL


cdef void take_in(Loop *loop) noexcept nogil:
    """Step 5, for one client.

    Once a stop is requested, for everybody who waits: they are served in turn as long as there is
    time, and the listener is closed, so that no more can come.
    """
    cdef int fd = next_client(&loop.door)
    while fd >= 0:
        if add_connection(&loop.table, loop.context, fd) == NO_SLOT:
            hold(&loop.door, fd, posix.ENOMEM)
            return
        if not engine.stop_requested(loop.context):
            return
        fd = next_client(&loop.door)


cdef void serve(Loop *loop, uint32_t slot) noexcept nogil:
    """Serve one client to its end, or until the stop is due, and close the connection."""
    cdef Connection *connection = connection_at(&loop.table, slot)
    cdef uint32_t awaits = connection.awaits
    cdef int reason = engine.CLOSED_STOPPED
    loop.list[OWN].fd = connection.fd
    while awaits < ENDED and not engine.stop_due(loop.context):
        loop.list[OWN].events = poll_events(awaits)
        wait_at(&loop.door, loop.list, OWN + 1, for_clients=False)      # the others have to wait
        if loop.list[OWN].revents:
            awaits = advance(connection, loop.context, loop.buffer)
        elif engine.sweep_due(loop.context) and overdue(connection, loop.context):
            awaits = ENDED + idle_reason(connection)
        if engine.stop_requested(loop.context):
            take_in(loop)
    if awaits < ENDED:
        # Echo what has arrived, as far as it goes without waiting.
        awaits = advance(connection, loop.context, loop.buffer)
    if awaits >= ENDED:
        reason = awaits - ENDED
    remove_connection(&loop.table, loop.context, slot)
    atomic.count(&loop.context.counters.closed[reason], 1)
