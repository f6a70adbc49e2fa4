"""The epoll engine: one loop over all connections, epoll(7), level-triggered.

The classic loop: wait, accept what is new, and for each ready connection `recv` once and `send`
once. What textbooks leave out is what this file is about:

- `send` may take less than it was given. The rest is kept for that connection, and nothing more
  is read from it until the rest is gone. So a client that never reads costs at most one buffer,
  and TCP's flow control does the rest.
- Because nothing is read while something is owed, end-of-file can only be seen when nothing is
  owed: a half-close needs no state of its own.
- One event list can hold an event of a connection that an earlier event of the same list closed,
  and its descriptor, or its slot here, may already belong to somebody else. So events carry slot
  and generation, never a descriptor.
- At the descriptor limit `accept` fails while the listener stays readable, which is how servers
  come to spin. The listener rests and comes back.

Level-triggered: whatever is left unread or unaccepted is reported again, so one call per event is
enough and every connection gets its turn.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from fastsock._native cimport atomic, engine, posix
from fastsock._native.check cimport os_error
from fastsock._native.engine cimport Context
from fastsock._native.worker cimport Worker

cdef enum:
    EVENTS_MAX = 256                # events per epoll_wait
    CHUNK_BITS = 10
    CHUNK_SLOTS = 1 << CHUNK_BITS   # connection records are allocated so many at a time
    CHUNKS_MAX = 1024
    NO_SLOT = 0xFFFFFFFF

    # Tokens of the two descriptors that are not connections; no slot number reaches them.
    LISTENER = 0xFFFFFFFF
    WAKE = 0xFFFFFFFE

cdef struct Connection:
    int fd                          # -1: the slot is free
    uint32_t generation             # goes up with each owner, so that old events miss
    uint32_t next_free              # slot number, while free
    uint32_t rest_start             # what send() left: rest[rest_start:rest_end]
    uint32_t rest_end
    char *rest                      # NULL while the client keeps up

cdef struct Loop:
    Context *context
    int epfd
    char *buffer                    # the one receive buffer of this worker
    posix.epoll_event *events
    # Chunks never move: a record's address holds for good, also in a fork's copy of the memory.
    Connection *chunks[CHUNKS_MAX]
    uint32_t slots                  # slots in all chunks
    uint32_t first_free
    uint32_t open
    int64_t resume_at               # when a resting listener is tried again, else NEVER


cdef class EpollWorker(Worker):
    """A worker that serves one listener with epoll."""

    cdef Loop *loop

    cdef int prepare(self) except -1:
        cdef Loop *loop = <Loop *>calloc(1, sizeof(Loop))
        if loop == NULL:
            raise MemoryError
        self.loop = loop
        loop.context = &self.context
        loop.first_free = NO_SLOT
        loop.resume_at = engine.NEVER
        loop.buffer = <char *>malloc(self.context.buffer_size)
        loop.events = <posix.epoll_event *>calloc(EVENTS_MAX, sizeof(posix.epoll_event))
        loop.epfd = posix.epoll_create1(posix.EPOLL_CLOEXEC)
        if loop.epfd < 0:
            raise os_error(posix.errno, "epoll_create1", "")
        if loop.buffer == NULL or loop.events == NULL:
            raise MemoryError
        if (watch(loop, posix.EPOLL_CTL_ADD, self.context.listen_fd, posix.EPOLLIN, LISTENER) < 0
                or watch(loop, posix.EPOLL_CTL_ADD, self.context.wake_fd, posix.EPOLLIN, WAKE) < 0):
            raise os_error(posix.errno, "epoll_ctl", "")
        self.main = run
        self.argument = loop
        return 0

    cdef void release(self) noexcept:
        cdef Loop *loop = self.loop
        cdef uint32_t chunk
        if loop == NULL:
            return
        self.loop = NULL
        for chunk in range(loop.slots >> CHUNK_BITS):
            free(loop.chunks[chunk])
        if loop.epfd >= 0:
            posix.close(loop.epfd)
        free(loop.events)
        free(loop.buffer)
        free(loop)

    cdef void abandon(self) noexcept:
        cdef uint32_t slot
        if self.loop == NULL:
            return
        for slot in range(self.loop.slots):
            if connection_at(self.loop, slot).fd >= 0:
                posix.close(connection_at(self.loop, slot).fd)


cdef void *run(void *argument) noexcept nogil:
    cdef Loop *loop = <Loop *>argument
    while not stopping(loop):
        wait_and_serve(loop)
    close_all(loop)
    engine.notify(loop.context.done_fd)
    return NULL


cdef void wait_and_serve(Loop *loop) noexcept nogil:
    cdef int count, i
    cdef uint64_t token
    count = posix.epoll_wait(loop.epfd, loop.events, EVENTS_MAX, timeout_ms(loop))
    # SIGSTOP and SIGCONT cause EINTR even where all signals are blocked (signal(7)).
    if count < 0 and posix.errno != posix.EINTR:
        give_up(loop, posix.errno)
    for i in range(count):
        token = loop.events[i].data.u64
        if token == LISTENER:
            on_listener(loop, loop.events[i].events)
        elif token == WAKE:
            on_wake(loop)
        else:
            on_connection(loop, <uint32_t>token, <uint32_t>(token >> 32))
    if loop.resume_at != engine.NEVER and posix.monotonic_ns() >= loop.resume_at:
        resume_accepting(loop)


# --- connections --------------------------------------------------------------------------------

cdef inline Connection *connection_at(Loop *loop, uint32_t slot) noexcept nogil:
    return &loop.chunks[slot >> CHUNK_BITS][slot & (CHUNK_SLOTS - 1)]


cdef inline void on_connection(Loop *loop, uint32_t slot, uint32_t generation) noexcept nogil:
    cdef Connection *connection = connection_at(loop, slot)
    if connection.fd < 0 or connection.generation != generation:
        return
    if connection.rest != NULL:
        flush(loop, connection, slot)
    else:
        receive(loop, connection, slot)


cdef inline void receive(Loop *loop, Connection *connection, uint32_t slot) noexcept nogil:
    """Steps 6 and 7: receive once, and send it back."""
    cdef ssize_t size = posix.recv(connection.fd, loop.buffer, loop.context.buffer_size, 0)
    cdef ssize_t sent
    if size > 0:
        atomic.count(&loop.context.counters.bytes_in, size)
        sent = send_some(loop, connection, slot, loop.buffer, size)
        if 0 <= sent < size:
            keep_rest(loop, connection, slot, sent, size)
    elif size == 0:
        close_connection(loop, connection, slot, engine.CLOSED_EOF)
    elif posix.errno != posix.EAGAIN and posix.errno != posix.EINTR:
        fail_connection(loop, connection, slot, posix.errno)


cdef inline ssize_t send_some(Loop *loop, Connection *connection, uint32_t slot,
                              const char *data, size_t size) noexcept nogil:
    """Send what the socket takes now; return that, or -1 after closing the connection."""
    # MSG_NOSIGNAL: a library must not change what SIGPIPE does to the process.
    cdef ssize_t sent = posix.send(connection.fd, data, size, posix.MSG_NOSIGNAL)
    if sent >= 0:
        atomic.count(&loop.context.counters.bytes_out, sent)
        return sent
    if posix.errno == posix.EAGAIN or posix.errno == posix.EINTR:
        return 0
    fail_connection(loop, connection, slot, posix.errno)
    return -1


cdef void keep_rest(Loop *loop, Connection *connection, uint32_t slot,
                    size_t sent, size_t size) noexcept nogil:
    """Keep what was not sent, and wait until the socket takes more; read nothing meanwhile."""
    connection.rest = <char *>malloc(size - sent)
    if connection.rest == NULL:
        fail_connection(loop, connection, slot, posix.ENOMEM)
        return
    memcpy(connection.rest, loop.buffer + sent, size - sent)
    connection.rest_start = 0
    connection.rest_end = size - sent
    rewatch(loop, connection, slot, posix.EPOLLOUT)


cdef void flush(Loop *loop, Connection *connection, uint32_t slot) noexcept nogil:
    # A reset arrives here too, as EPOLLERR or EPOLLHUP: send() then says which it was.
    cdef ssize_t sent = send_some(loop, connection, slot,
                                  connection.rest + connection.rest_start,
                                  connection.rest_end - connection.rest_start)
    if sent < 0:
        return
    connection.rest_start += <uint32_t>sent
    if connection.rest_start == connection.rest_end:
        free(connection.rest)
        connection.rest = NULL
        rewatch(loop, connection, slot, posix.EPOLLIN)


cdef void rewatch(Loop *loop, Connection *connection, uint32_t slot,
                  uint32_t events) noexcept nogil:
    cdef uint64_t token = <uint64_t>connection.generation << 32 | slot
    if watch(loop, posix.EPOLL_CTL_MOD, connection.fd, events, token) < 0:
        fail_connection(loop, connection, slot, posix.errno)


cdef inline int watch(Loop *loop, int operation, int fd, uint32_t events,
                      uint64_t token) noexcept nogil:
    cdef posix.epoll_event event
    event.events = events
    event.data.u64 = token
    return posix.epoll_ctl(loop.epfd, operation, fd, &event)


cdef void fail_connection(Loop *loop, Connection *connection, uint32_t slot,
                          int error) noexcept nogil:
    engine.count_error(loop.context, error)
    close_connection(loop, connection, slot, engine.close_reason(error))


cdef void close_connection(Loop *loop, Connection *connection, uint32_t slot,
                           int reason) noexcept nogil:
    """Step 8."""
    cdef int fd = connection.fd
    # close() alone removes a descriptor from epoll only if no fork or dup holds a copy of it
    # (epoll(7), question 6); a copy would keep reporting an event that nobody can take away.
    watch(loop, posix.EPOLL_CTL_DEL, fd, 0, 0)
    connection.fd = -1              # before close(): a forked child must not close a reused number
    posix.close(fd)
    free(connection.rest)
    connection.rest = NULL
    connection.next_free = loop.first_free
    loop.first_free = slot
    loop.open -= 1
    atomic.count(&loop.context.counters.closed[reason], 1)
    if loop.resume_at != engine.NEVER:
        loop.resume_at = 0          # a descriptor is free again


# --- accepting ----------------------------------------------------------------------------------

cdef void on_listener(Loop *loop, uint32_t events) noexcept nogil:
    if loop.resume_at != engine.NEVER:
        # A resting listener is watched for nothing, so this is an error or a hang-up.
        stop_accepting(loop, posix.EINVAL)
        return
    accept_burst(loop)


cdef bint accept_burst(Loop *loop) noexcept nogil:
    """Step 5. True while there may be more in the queue."""
    cdef int fd, error, verdict, _
    for _ in range(engine.ACCEPT_BURST):
        fd = posix.accept4(loop.context.listen_fd, NULL, NULL,
                           posix.SOCK_NONBLOCK | posix.SOCK_CLOEXEC)
        if fd < 0:
            error = posix.errno
            verdict = engine.accept_verdict(error)
            if verdict == engine.ACCEPT_DONE:
                return False
            engine.count_error(loop.context, error)
            if verdict == engine.ACCEPT_PAUSE:
                pause_accepting(loop, error)
                return False
            if verdict == engine.ACCEPT_FAILED:
                stop_accepting(loop, error)
                return False
        elif not adopt(loop, fd):
            engine.count_error(loop.context, posix.ENOMEM)
            posix.close(fd)
            pause_accepting(loop, posix.ENOMEM)
            return False
    return True


cdef bint adopt(Loop *loop, int fd) noexcept nogil:
    """Give a new connection a slot and watch it; False without memory for either."""
    cdef uint32_t slot
    cdef Connection *connection
    if loop.first_free == NO_SLOT and not add_chunk(loop):
        return False
    slot = loop.first_free
    connection = connection_at(loop, slot)
    connection.generation += 1
    if watch(loop, posix.EPOLL_CTL_ADD, fd, posix.EPOLLIN,
             <uint64_t>connection.generation << 32 | slot) < 0:
        return False
    loop.first_free = connection.next_free
    connection.fd = fd
    loop.open += 1
    atomic.count(&loop.context.counters.accepted, 1)
    return True


cdef bint add_chunk(Loop *loop) noexcept nogil:
    cdef uint32_t first = loop.slots, i
    cdef Connection *chunk
    if first >> CHUNK_BITS == CHUNKS_MAX:
        return False
    chunk = <Connection *>calloc(CHUNK_SLOTS, sizeof(Connection))
    if chunk == NULL:
        return False
    for i in range(<uint32_t>CHUNK_SLOTS):
        chunk[i].fd = -1
        chunk[i].next_free = first + i + 1 if i + 1 < CHUNK_SLOTS else NO_SLOT
    loop.chunks[first >> CHUNK_BITS] = chunk
    loop.slots += CHUNK_SLOTS
    loop.first_free = first
    return True


cdef void pause_accepting(Loop *loop, int error) noexcept nogil:
    """Stop watching the listener for a while: it stays readable, and accept() keeps failing."""
    cdef int64_t now = posix.monotonic_ns()
    atomic.count(&loop.context.counters.accept_pauses, 1)
    atomic.store_int(&loop.context.pause_errno, error, atomic.RELAXED)
    loop.resume_at = now + engine.ACCEPT_PAUSE_NS
    watch(loop, posix.EPOLL_CTL_MOD, loop.context.listen_fd, 0, LISTENER)
    if now - loop.context.noticed_at >= engine.NOTICE_INTERVAL_NS:
        loop.context.noticed_at = now
        engine.notify(loop.context.notice_fd)


cdef void resume_accepting(Loop *loop) noexcept nogil:
    loop.resume_at = engine.NEVER
    watch(loop, posix.EPOLL_CTL_MOD, loop.context.listen_fd, posix.EPOLLIN, LISTENER)


cdef void stop_accepting(Loop *loop, int error) noexcept nogil:
    """Close the listener: step 9. `error` is why the server could not go on, or 0."""
    cdef int fd = loop.context.listen_fd
    watch(loop, posix.EPOLL_CTL_DEL, fd, 0, 0)
    loop.context.listen_fd = -1
    posix.close(fd)
    loop.resume_at = engine.NEVER
    if error:
        atomic.store_int(&loop.context.failed_errno, error, atomic.RELAXED)
        engine.notify(loop.context.notice_fd)


# --- stopping -----------------------------------------------------------------------------------

cdef void on_wake(Loop *loop) noexcept nogil:
    cdef uint64_t count
    posix.read(loop.context.wake_fd, &count, sizeof(count))
    if engine.stop_requested(loop.context) and loop.context.listen_fd >= 0:
        # Closing a listener resets what waits in its queue, and those clients think they are
        # connected: take them in first.
        while accept_burst(loop):
            pass
        if loop.context.listen_fd >= 0:
            stop_accepting(loop, 0)


cdef void give_up(Loop *loop, int error) noexcept nogil:
    """epoll itself failed, as when something else in the process closed its descriptor."""
    atomic.lower_i64(&loop.context.stop_at, 0)
    stop_accepting(loop, error)


cdef inline bint stopping(Loop *loop) noexcept nogil:
    cdef int64_t stop_at = atomic.load_i64(&loop.context.stop_at, atomic.ACQUIRE)
    if stop_at == engine.NEVER or loop.context.listen_fd >= 0:
        return False                # while it listens, the wake-up has not been handled yet
    return loop.open == 0 or posix.monotonic_ns() >= stop_at


cdef void close_all(Loop *loop) noexcept nogil:
    """Echo what has arrived, as far as it goes without waiting, and close what is still open."""
    cdef uint32_t slot
    cdef Connection *connection
    for slot in range(loop.slots):
        connection = connection_at(loop, slot)
        if connection.fd >= 0:
            on_connection(loop, slot, connection.generation)
        if connection.fd >= 0:
            close_connection(loop, connection, slot, engine.CLOSED_STOPPED)


cdef int timeout_ms(Loop *loop) noexcept nogil:
    """Until the listener is tried again or the stop is due; for ever (-1) otherwise."""
    cdef int64_t until = atomic.load_i64(&loop.context.stop_at, atomic.ACQUIRE)
    cdef int64_t left
    if loop.resume_at < until:
        until = loop.resume_at
    if until == engine.NEVER:
        return -1
    left = until - posix.monotonic_ns()
    # Rounded up: waking just before the time would spin until it has come.
    return 0 if left <= 0 else <int>min((left + 999999) // 1000000, 3600000)
