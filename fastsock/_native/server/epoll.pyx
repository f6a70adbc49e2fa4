"""The epoll engine: one loop over all connections, epoll(7), level-triggered.

The classic loop: wait, accept what is new, and for each ready connection receive once and send
once. Level-triggered: what is left unread or unaccepted is reported again, so one call per event is
enough and every connection gets its turn. A connection that keeps up costs no other call; only when
its socket is full is it watched for room instead of input, and back again.

Connections that are ready at nearly every turn are watched with poll(2): see interest_list.pxd. How
a connection advances is in connection.pxd, accepting and stopping in acceptor.pxd, and why an event
never reaches the wrong connection in connections.pxd.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

cimport fastsock._native.atomic as atomic
cimport fastsock._native.busy_poll as busy_poll
cimport fastsock._native.check as check
cimport fastsock._native.interest_list as interest_list
cimport fastsock._native.posix as posix
cimport fastsock._native.server.acceptor as acceptor
cimport fastsock._native.server.connection as connection
cimport fastsock._native.server.connections as connections
cimport fastsock._native.server.counters as counters
cimport fastsock._native.server.deadlines as deadlines
cimport fastsock._native.server.transient as transient
cimport fastsock._native.services as services
cimport fastsock._native.wakeup as wakeup
from fastsock._native.busy_poll cimport BusyPoll
from fastsock._native.interest_list cimport InterestList
from fastsock._native.server.acceptor cimport Acceptor
from fastsock._native.server.connection cimport Connection
from fastsock._native.server.connections cimport Connections
from fastsock._native.server.context cimport Context
from fastsock._native.server.worker cimport Worker

cdef struct Loop:
    Context *context
    Acceptor acceptor
    InterestList interest_list
    bint listener_watched
    char *buffer                    # the one receive buffer of this worker
    Connections connections


cdef class EpollWorker(Worker):
    """A worker that serves one listener with epoll."""

    cdef Loop *loop

    cdef int prepare(self) except -1:
        cdef Loop *loop = <Loop *>calloc(1, sizeof(Loop))
        cdef int error
        if loop == NULL:
            raise MemoryError
        self.loop = loop
        loop.interest_list.epfd = -1
        connections.init(&loop.connections)
        loop.context = &self.context
        acceptor.init(&loop.acceptor, &self.context, posix.SOCK_NONBLOCK, &loop.connections.open)
        loop.buffer = <char *>malloc(self.context.stream_size)
        error = interest_list.open_list(&loop.interest_list)
        if loop.buffer == NULL or error == posix.ENOMEM:
            raise MemoryError
        if error:
            raise check.os_error(error, "epoll_create1", "")
        if (interest_list.control(&loop.interest_list, posix.EPOLL_CTL_ADD, self.context.bound_fd,
                                  posix.EPOLLIN, connections.LISTENER) < 0
                or interest_list.control(&loop.interest_list, posix.EPOLL_CTL_ADD,
                                         self.context.wake_fd, posix.EPOLLIN,
                                         connections.WAKE) < 0):
            raise check.os_error(posix.errno, "epoll_ctl", "")
        loop.listener_watched = True
        loop.acceptor.epfd = loop.interest_list.epfd
        self.main = run
        self.argument = loop
        return 0

    cdef void release(self) noexcept:
        cdef Loop *loop = self.loop
        if loop == NULL:
            return
        self.loop = NULL
        connections.free_chunks(&loop.connections)
        interest_list.close_list(&loop.interest_list)
        free(loop.buffer)
        free(loop)

    cdef void abandon(self) noexcept:
        if self.loop != NULL:
            interest_list.abandon(&self.loop.interest_list)
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
    cdef int i, count
    cdef uint64_t token
    cdef bint listener_ready = False
    count = wait(loop)
    if count < 0 and not transient.epoll_wait_can_pass(posix.errno):
        acceptor.fail(&loop.acceptor, transient.EPOLL_WAIT, posix.errno)
    acceptor.begin_turn(&loop.acceptor)
    for i in range(count):
        token = loop.interest_list.events[i].data.u64
        if token == connections.LISTENER:
            listener_ready = True
        elif token == connections.WAKE:
            wakeup.clear(loop.context.wake_fd)
        else:
            on_connection(loop, token)
    if deadlines.sweep_due(loop.context):
        close_overdue(loop)
    if listener_ready and not loop.listener_watched:
        # A listener that is watched for nothing is reported only for an error or a hang-up.
        acceptor.note_failure(loop.context, transient.ACCEPT, posix.EINVAL)
        acceptor.close_listener(&loop.acceptor)
    elif listener_ready or acceptor.must_accept(&loop.acceptor):
        accept_clients(loop)
    watch_listener(loop)


cdef inline int wait(Loop *loop) noexcept nogil:
    cdef BusyPoll *busy = &loop.context.busy_poll
    cdef int count
    busy_poll.begin_wait(busy)
    while busy_poll.poll_again(busy):
        count = interest_list.wait(&loop.interest_list, 0)
        if count != 0:
            return busy_poll.found(busy, count)
    count = interest_list.wait(&loop.interest_list, deadlines.timeout_ms(loop.context))
    return busy_poll.end_wait(busy, count)


# --- connections --------------------------------------------------------------------------------

cdef inline void on_connection(Loop *loop, uint64_t token) noexcept nogil:
    cdef Connection *conn = connections.at_token(&loop.connections, token)
    cdef uint32_t awaits
    if conn == NULL:
        return
    awaits = connection.advance(conn, loop.context, loop.buffer)
    if awaits == connection.ENDED:
        close_connection(loop, <uint32_t>token, conn.close_reason)
        return
    if awaits != conn.awaits:
        conn.awaits = awaits
        if interest_list.change(&loop.interest_list, &conn.interest, conn.fd,
                                connection.poll_events(awaits), token) < 0:
            counters.count_error(&loop.context.counters, posix.errno)
            close_connection(loop, <uint32_t>token, counters.CLOSED_ERROR)
            return
    interest_list.note_event(&loop.interest_list, &conn.interest, conn.fd,
                             connection.poll_events(awaits), token)


cdef void close_overdue(Loop *loop) noexcept nogil:
    cdef uint32_t slot
    cdef Connection *conn
    for slot in range(loop.connections.slots):
        conn = connections.at(&loop.connections, slot)
        if conn.fd >= 0 and connection.overdue(conn, loop.context):
            close_connection(loop, slot, conn.close_reason)


cdef void close_connection(Loop *loop, uint32_t slot, int reason) noexcept nogil:
    cdef Connection *conn = connections.at(&loop.connections, slot)
    interest_list.remove(&loop.interest_list, &conn.interest, conn.fd)
    end_connection(loop, slot, reason)


cdef inline void end_connection(Loop *loop, uint32_t slot, int reason) noexcept nogil:
    """Close a connection that is not watched."""
    connections.remove(&loop.connections, loop.context, slot)
    atomic.count(&loop.context.counters.closed[reason], 1)
    acceptor.resume(loop.context)


# --- accepting ----------------------------------------------------------------------------------

cdef void accept_clients(Loop *loop) noexcept nogil:
    """Step 5, in bursts. A connection for which there is no memory is held until there is."""
    cdef int error, fd = acceptor.next_client(&loop.acceptor)
    while fd >= 0:
        error = add_connection(loop, fd)
        if error:
            acceptor.hold(&loop.acceptor, fd, transient.EPOLL_CTL, error)
        fd = acceptor.next_client(&loop.acceptor)


cdef int add_connection(Loop *loop, int fd) noexcept nogil:
    """Give a new connection a slot, serve it, and watch it; return an errno or 0."""
    cdef uint32_t slot = connections.add(&loop.connections, loop.context, fd)
    cdef Connection *conn
    cdef int error
    if slot == connections.NO_SLOT:
        return posix.ENOMEM
    conn = connections.at(&loop.connections, slot)
    conn.awaits = first_turn(loop, conn)
    if conn.awaits == connection.ENDED:
        end_connection(loop, slot, conn.close_reason)
        return 0
    if interest_list.add(&loop.interest_list, &conn.interest, fd,
                         connection.poll_events(conn.awaits),
                         connections.token_of(conn, slot)) == 0:
        return 0
    error = posix.errno
    if connection.is_untouched(conn):
        connections.free_slot(&loop.connections, loop.context, slot)
        return error
    counters.count_error(&loop.context.counters, error)
    end_connection(loop, slot, counters.CLOSED_ERROR)
    return 0


cdef inline uint32_t first_turn(Loop *loop, Connection *conn) noexcept nogil:
    """Serve what a new connection has sent already; return what it waits for.

    Often that is its message, or all of it: where a client opens a connection for each message, the
    end has come too, and the connection is closed before it was ever watched.
    """
    cdef uint64_t received = loop.context.counters.bytes_in
    cdef uint32_t awaits = conn.awaits
    if loop.context.service == services.ECHO:
        awaits = connection.advance(conn, loop.context, loop.buffer)
        if awaits == connection.AWAITS_INPUT and loop.context.counters.bytes_in != received:
            awaits = connection.advance(conn, loop.context, loop.buffer)
    return awaits


cdef inline void watch_listener(Loop *loop) noexcept nogil:
    """While accepting is paused, the listener stays readable: then watch it for nothing."""
    cdef bint wanted = acceptor.listening(&loop.acceptor)
    if wanted != loop.listener_watched and loop.context.bound_fd >= 0:
        if interest_list.control(&loop.interest_list, posix.EPOLL_CTL_MOD, loop.context.bound_fd,
                                 posix.EPOLLIN if wanted else 0, connections.LISTENER) == 0:
            loop.listener_watched = wanted
        else:                       # it allocates nothing: what fails will always fail
            acceptor.fail(&loop.acceptor, transient.EPOLL_CTL, posix.errno)


# --- the end ------------------------------------------------------------------------------------

cdef void close_all(Loop *loop) noexcept nogil:
    """Echo what has arrived, as far as that needs no waiting, and close every connection."""
    cdef uint32_t slot
    cdef Connection *conn
    for slot in range(loop.connections.slots):
        conn = connections.at(&loop.connections, slot)
        if conn.fd >= 0:
            on_connection(loop, connections.token_of(conn, slot))
        if conn.fd >= 0:
            close_connection(loop, slot, counters.CLOSED_STOPPED)
