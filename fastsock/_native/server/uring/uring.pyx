"""The io_uring engine: operations are given to the kernel, and their results collected.

The other loops ask which sockets are ready, and then call. This one has the operations pending all
the time. One `accept` and, for every connection, one `recv` go on giving results until they are
cancelled (multishot), into buffers that the kernel picks when data has come. One system call a turn
submits the sends of all connections and waits for what comes in next.

Connections that keep up with small messages work in this way. Three kinds work by readiness, with
connection.pxd, as in the engines poll and epoll: a client that does not read, because its unsent
bytes would occupy a buffer that other connections need; a stream of large pieces, where one `recv`
and `send` of 64 KiB are cheaper; and the services other than echo.

UringConnection holds the pending operations of a connection. The connection is closed, and its slot
used again, only after their last result: until then the kernel keeps the socket, and could receive
for the next connection (io_uring_cancelation(7)). A result names slot and generation, never a
descriptor.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

cimport fastsock._native.atomic as atomic
cimport fastsock._native.busy_poll as busy_poll
cimport fastsock._native.check as check
cimport fastsock._native.posix as posix
cimport fastsock._native.server.acceptor as acceptor
cimport fastsock._native.server.connections as connections
cimport fastsock._native.server.counters as counters
cimport fastsock._native.server.deadlines as deadlines
cimport fastsock._native.server.transient as transient
cimport fastsock._native.server.uring.liburing as liburing
cimport fastsock._native.server.uring.ring as ring
cimport fastsock._native.server.uring.uring_connection as uring_connection
cimport fastsock._native.wakeup as wakeup
from fastsock._native.busy_poll cimport BusyPoll
from fastsock._native.server.acceptor cimport Acceptor
from fastsock._native.server.context cimport Context
from fastsock._native.server.debug cimport must_hold
from fastsock._native.server.uring.ring cimport Ring
from fastsock._native.server.uring.uring_connection cimport UringConnections
from fastsock._native.server.worker cimport Worker

cdef enum:                          # tokens without a connection: all the slot's bits are set
    ACCEPT = uring_connection.SLOT_MASK
    READY = ACCEPT | 1 << uring_connection.OPERATION_SHIFT      # the listener, to accept()
    WAKE = ACCEPT | 2 << uring_connection.OPERATION_SHIFT
    CANCEL_LISTENER = ACCEPT | 3 << uring_connection.OPERATION_SHIFT

cdef struct Loop:
    Context *context
    Acceptor acceptor
    Ring *ring                      # that of `connections`
    UringConnections connections
    uint64_t listening              # ACCEPT or READY, whichever is pending, else 0
    bint cancelling                 # that operation
    unsigned long descriptor_limit  # when it was begun
    bint accepted                   # a connection, in this turn
    bint one_at_a_time              # wait until the listener is ready, and call accept()


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
        loop.ring = &loop.connections.ring
        acceptor.init(&loop.acceptor, &self.context, posix.SOCK_NONBLOCK,
                      &loop.connections.connections.open)
        loop.one_at_a_time = must_accept_one_at_a_time(loop)
        if not uring_connection.init(&loop.connections, &self.context):
            raise MemoryError
        result = ring.open_ring(loop.ring, self.entries, self.results)
        if result < 0:
            raise check.os_error(-result, "io_uring_setup", "", likely_cause(-result))
        result = ring.add_buffers(
            loop.ring, self.buffers,
            <uint32_t>min(self.context.buffer_size, <size_t>ring.BUFFER_BYTES))
        if result < 0:
            raise check.os_error(-result, "io_uring_register", "", likely_cause(-result))
        self.main = run
        self.argument = loop
        return 0

    cdef void release(self) noexcept:
        cdef Loop *loop = self.loop
        if loop == NULL:
            return
        self.loop = NULL
        uring_connection.free_all(&loop.connections)
        free(loop)

    cdef void abandon(self) noexcept:
        if self.loop != NULL:
            acceptor.close_held(&self.loop.acceptor)
            connections.close_copies(&self.loop.connections.connections)


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
    cdef int result = ring.enable(loop.ring)
    if result < 0:
        fail_ring(loop, -result)
    watch_wake(loop)
    listen(loop)
    while not acceptor.finished(&loop.acceptor, loop.connections.connections.open > 0):
        wait_and_serve(loop)
    acceptor.close_held(&loop.acceptor)
    close_all(loop)
    wakeup.notify(loop.context.done_fd)
    return NULL


cdef void wait_and_serve(Loop *loop) noexcept nogil:
    cdef int result = wait(loop)
    if result < 0:
        fail_ring(loop, -result)
        return
    acceptor.begin_turn(&loop.acceptor)
    collect(loop)
    if loop.accepted:
        follow_descriptor_limit(loop)
    uring_connection.receive_waiting(&loop.connections)
    uring_connection.send_queued(&loop.connections)
    if deadlines.sweep_due(loop.context):
        uring_connection.close_overdue(&loop.connections)
    if acceptor.must_accept(&loop.acceptor):
        accept_clients(loop)
    listen(loop)


cdef inline int wait(Loop *loop) noexcept nogil:
    cdef BusyPoll *busy = &loop.context.busy_poll
    cdef bint found = False
    cdef int result
    busy_poll.begin_wait(busy)
    while busy_poll.poll_again(busy):
        result = ring.submit_and_peek(loop.ring, &found)
        if found or result < 0:
            busy_poll.found(busy, <int>ring.ready(loop.ring))
            return result
    result = ring.submit_and_wait(loop.ring, deadlines.timeout_ms(loop.context))
    busy_poll.end_wait(busy, <int>ring.ready(loop.ring))
    return result


cdef void collect(Loop *loop) noexcept nogil:
    """Handle every completion that is there now.

    Later ones are for the next turn: handling may submit operations that complete at once, and
    with these and their successors this might never end. Other completions would never come, as
    the kernel puts them off until the next wait.
    """
    cdef uint32_t i, count, left = ring.ready(loop.ring)
    while left:
        count = ring.peek_batch(loop.ring, left)
        for i in range(count):
            on_completion(loop, loop.ring.batch[i])
        ring.release(loop.ring, count)
        left -= count


cdef inline void on_completion(Loop *loop, liburing.io_uring_cqe *entry) noexcept nogil:
    if entry.user_data & uring_connection.SLOT_MASK == uring_connection.SLOT_MASK:
        on_listener_or_wake(loop, entry.user_data, entry.res, entry.flags)
    else:
        uring_connection.on_result(&loop.connections, entry.user_data, entry.res, entry.flags)


# --- accepting ----------------------------------------------------------------------------------

cdef void listen(Loop *loop) noexcept nogil:
    """Step 5: by multishot accept, or one accept() at a time when the listener is ready.

    A multishot accept reports no address and ignores `max_connections`. At the descriptor limit it
    also fails when no connection comes.
    """
    cdef liburing.io_uring_sqe *entry
    if (loop.listening or not acceptor.listening(&loop.acceptor)
            or deadlines.stop_requested(loop.context)):
        return
    entry = ring.new_entry(loop.ring)
    if loop.one_at_a_time:
        liburing.io_uring_prep_poll_add(entry, loop.context.bound_fd, posix.POLLIN)
        loop.listening = READY
    else:
        liburing.io_uring_prep_multishot_accept(entry, loop.context.bound_fd, NULL, NULL,
                                                posix.SOCK_NONBLOCK | posix.SOCK_CLOEXEC)
        loop.listening = ACCEPT
        loop.descriptor_limit = descriptor_limit()
    entry.user_data = loop.listening


cdef inline bint must_accept_one_at_a_time(Loop *loop) noexcept nogil:
    return loop.context.range_count != 0 or loop.context.max_connections != 0


cdef void on_listener_or_wake(Loop *loop, uint64_t token, int32_t result,
                              uint32_t flags) noexcept nogil:
    if token == WAKE:
        wakeup.clear(loop.context.wake_fd)
        if not flags & liburing.IORING_CQE_F_MORE:
            watch_wake(loop)
        return
    if token == CANCEL_LISTENER:
        loop.cancelling = False
        return
    if not flags & liburing.IORING_CQE_F_MORE:
        loop.listening = 0
    if result == -posix.ECANCELED:
        return
    if token == READY:
        accept_clients(loop)
    elif result >= 0:
        on_accepted(loop, result)
    else:
        on_accept_failed(loop, -result)


cdef void on_accepted(Loop *loop, int fd) noexcept nogil:
    atomic.count(&loop.context.counters.accepted, 1)
    loop.context.failures = 0
    if uring_connection.add(&loop.connections, fd):
        loop.accepted = True
    elif loop.acceptor.held < 0:
        acceptor.hold(&loop.acceptor, fd, transient.MALLOC, posix.ENOMEM)
        stop_multishot(loop)
    else:
        posix.close(fd)             # there was no memory for two connections
        atomic.count(&loop.context.counters.closed[counters.CLOSED_ERROR], 1)


cdef void on_accept_failed(Loop *loop, int error) noexcept nogil:
    if acceptor.accept_failed(loop.context, error) == acceptor.LISTENER_GONE:
        acceptor.close_listener(&loop.acceptor)
    elif acceptor.paused(loop.context):
        stop_multishot(loop)


cdef void stop_multishot(Loop *loop) noexcept nogil:
    """Accepting is paused; then accept one at a time, until the queue was empty once."""
    loop.one_at_a_time = True
    if loop.listening:
        cancel_listener(loop)


cdef void follow_descriptor_limit(Loop *loop) noexcept nogil:
    """A multishot accept keeps to the descriptor limit of its beginning: begin it again."""
    loop.accepted = False
    if loop.listening == ACCEPT and descriptor_limit() != loop.descriptor_limit:
        cancel_listener(loop)


cdef inline unsigned long descriptor_limit() noexcept nogil:
    cdef posix.rlimit limit
    return limit.rlim_cur if posix.getrlimit(posix.RLIMIT_NOFILE, &limit) == 0 else 0


cdef void accept_clients(Loop *loop) noexcept nogil:
    """Step 5, in bursts. A connection for which there is no memory is held until there is.

    While an accept is pending, close() does not stop it, and shutdown() would stop it for every
    process that has a copy of the listener: so it is cancelled first.
    """
    cdef int fd
    if loop.listening:
        cancel_listener(loop)
        return
    fd = acceptor.next_client(&loop.acceptor)
    while fd >= 0:
        if not uring_connection.add(&loop.connections, fd):
            acceptor.hold(&loop.acceptor, fd, transient.MALLOC, posix.ENOMEM)
        fd = acceptor.next_client(&loop.acceptor)
    if loop.acceptor.attempts > 0 and acceptor.listening(&loop.acceptor):
        loop.one_at_a_time = must_accept_one_at_a_time(loop)


cdef void cancel_listener(Loop *loop) noexcept nogil:
    cdef liburing.io_uring_sqe *entry
    if loop.cancelling:
        return
    entry = ring.new_entry(loop.ring)
    liburing.io_uring_prep_cancel64(entry, loop.listening, 0)
    entry.user_data = CANCEL_LISTENER
    loop.cancelling = True


# --- stopping -----------------------------------------------------------------------------------

cdef void watch_wake(Loop *loop) noexcept nogil:
    cdef liburing.io_uring_sqe *entry = ring.new_entry(loop.ring)
    liburing.io_uring_prep_poll_multishot(entry, loop.context.wake_fd, posix.POLLIN)
    entry.user_data = WAKE


cdef void fail_ring(Loop *loop, int error) noexcept nogil:
    """io_uring itself failed, as when something else in the process closed its descriptor."""
    loop.ring.failed = True
    acceptor.fail(&loop.acceptor, transient.IO_URING_ENTER, error)


cdef void close_all(Loop *loop) noexcept nogil:
    """Echo what has arrived, as far as that needs no waiting, and close every connection."""
    uring_connection.start_closing(&loop.connections)
    while loop.connections.connections.open and not loop.ring.failed:
        wait_and_serve(loop)
    uring_connection.close_all(&loop.connections)
    must_hold(loop.ring.available == loop.ring.count or loop.ring.failed)
