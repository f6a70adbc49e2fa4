"""The serial engine: one client at a time.

The tutorial's loop: accept, receive and send until the client has finished, close, accept the next.
The other clients wait in the accept queue.

All waiting is done in poll(), on the connection and the wake-up together; the calls themselves
never block. A recv() that blocks would keep this one thread from seeing stop() and the deadline of
a drain for as long as its client likes. No other thread could shut that socket down instead:
request_stop() takes no lock, and the number may belong to another connection by then. The price is
one more system call per echo: poll, recv, send.

How a connection advances is in connection.pxd, accepting in acceptor.pxd.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc

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
    CLIENT = poll_list.FIRST_OWN    # place in the list of the connection that is served

cdef struct Loop:
    Context *context
    Acceptor acceptor
    posix.pollfd list[CLIENT + 1]
    char *buffer
    Connections connections         # the one that is served; at a stop, those of the queue too


cdef class SerialWorker(Worker):
    """A worker that serves the clients of one listener one after the other."""

    cdef Loop loop

    def __cinit__(self):
        connections.init(&self.loop.connections)
        self.loop.acceptor.held = -1

    cdef int prepare(self) except -1:
        self.loop.context = &self.context
        acceptor.init(&self.loop.acceptor, &self.context, posix.SOCK_NONBLOCK, NULL)
        poll_list.init(&self.context, self.loop.list)
        self.loop.buffer = <char *>malloc(self.context.stream_size)
        if self.loop.buffer == NULL:
            raise MemoryError
        self.main = run
        self.argument = &self.loop
        return 0

    cdef void release(self) noexcept:
        connections.free_chunks(&self.loop.connections)
        connections.init(&self.loop.connections)
        free(self.loop.buffer)
        self.loop.buffer = NULL

    cdef void abandon(self) noexcept:
        acceptor.close_held(&self.loop.acceptor)
        connections.close_copies(&self.loop.connections)


cdef void *run(void *argument) noexcept nogil:
    cdef Loop *loop = <Loop *>argument
    cdef uint32_t slot
    while not acceptor.finished(&loop.acceptor, has_connections=False):
        poll_list.wait(&loop.acceptor, loop.list, CLIENT, for_clients=True)
        deadlines.sweep_due(loop.context)   # nothing to close, but it sets the next time
        accept_clients(loop)
        slot = 0
        while slot < loop.connections.slots:    # slots are given out in this order, from the first
            if connections.at(&loop.connections, slot).fd >= 0:
                serve(loop, slot)
            slot += 1
    acceptor.close_held(&loop.acceptor)
    wakeup.notify(loop.context.done_fd)
    return NULL


cdef void accept_clients(Loop *loop) noexcept nogil:
    """Step 5, for one client.

    Once a stop is requested, for all that wait: they are served in turn as long as there is time,
    and the listener is closed, so that no more can come.
    """
    cdef int fd = acceptor.next_client(&loop.acceptor)
    while fd >= 0:
        if connections.add(&loop.connections, loop.context, fd) == connections.NO_SLOT:
            acceptor.hold(&loop.acceptor, fd, transient.MALLOC, posix.ENOMEM)
            return
        if not deadlines.stop_requested(loop.context):
            return
        fd = acceptor.next_client(&loop.acceptor)


cdef void serve(Loop *loop, uint32_t slot) noexcept nogil:
    """Serve one client to its end, or until the stop is due, and close the connection."""
    cdef Connection *conn = connections.at(&loop.connections, slot)
    cdef uint32_t awaits = conn.awaits
    cdef int reason = counters.CLOSED_STOPPED
    loop.list[CLIENT].fd = conn.fd
    while awaits != connection.ENDED and not deadlines.stop_due(loop.context):
        loop.list[CLIENT].events = connection.poll_events(awaits)
        poll_list.wait(&loop.acceptor, loop.list, CLIENT + 1, for_clients=False)
        if loop.list[CLIENT].revents:
            awaits = connection.advance(conn, loop.context, loop.buffer)
        elif deadlines.sweep_due(loop.context) and connection.overdue(conn, loop.context):
            awaits = connection.ENDED
        if deadlines.stop_requested(loop.context):
            accept_clients(loop)
    if awaits != connection.ENDED:
        # Echo what has arrived, as far as that needs no waiting.
        awaits = connection.advance(conn, loop.context, loop.buffer)
    if awaits == connection.ENDED:
        reason = conn.close_reason
    connections.remove(&loop.connections, loop.context, slot)
    atomic.count(&loop.context.counters.closed[reason], 1)
