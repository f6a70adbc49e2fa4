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

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from fastsock._native cimport accepting, atomic, engine, liburing, posix, service
from fastsock._native.check cimport os_error
from fastsock._native.connection cimport AWAITS_INPUT, AWAITS_ROOM, ENDED, Connection
from fastsock._native.connection cimport advance, idle_reason, overdue, poll_events
from fastsock._native.engine cimport Context
from fastsock._native.ring cimport BUFFER_BYTES, NO_BUFFER, Ring, buffer_at, buffer_of, completions
from fastsock._native.ring cimport new_entry, recycle, ring_add_buffers, ring_close, ring_open
from fastsock._native.ring cimport seen, submit_and_wait
from fastsock._native.table cimport CHUNK_BITS, CHUNK_SLOTS, CHUNKS_MAX, NO_SLOT, Table
from fastsock._native.table cimport add_connection, close_copies, connection_at, owner_of
from fastsock._native.table cimport remove_connection, table_free, table_init, token_of
from fastsock._native.worker cimport Worker

cdef enum:
    SMALL_AGAIN = 4                 # receives that would fit a buffer before a stream is none

cdef enum:                          # what is under way; part of the token of a result
    RECV = 1
    SEND = 2
    POLL = 4
    CANCEL = 8                      # of one of the three
    SENDING = 16                    # on the list of those who have something to send
    STARVED = 32                    # on the list of those who wait for a buffer

cdef enum:
    OPERATION_SHIFT = 24            # a slot has no more than 20 bits
    SLOT_MASK = (1 << OPERATION_SHIFT) - 1

cdef enum:                          # tokens without a connection: all the slot's bits are set
    ACCEPT = SLOT_MASK
    READY = SLOT_MASK | 1 << OPERATION_SHIFT        # the listener, to accept()
    WAKE = SLOT_MASK | 2 << OPERATION_SHIFT
    CANCEL_LISTENER = SLOT_MASK | 3 << OPERATION_SHIFT

cdef struct Flight:                 # what the kernel has of one connection, beside its record
    uint8_t under_way               # RECV, ...
    bint by_readiness               # it goes on with poll, recv and send
    bint stalled                    # the socket took less than it was given
    bint at_end                     # the client has closed its side
    uint32_t ending                 # 1 + the reason to close, once there is one
    uint32_t small                  # receives in a row that would have fitted a buffer
    uint16_t first, last            # received and not sent yet: a queue of buffers
    uint32_t sent                   # of the first
    uint32_t next_sending           # the lists, by slot
    uint32_t next_starved

cdef struct Loop:
    Context *context
    Ring ring
    char *buffer                    # of those who go on by readiness
    bint by_readiness               # nobody may do otherwise
    uint32_t length_limit           # bytes a multishot receive may bring; 0: the kernel has none
    uint64_t listening              # ACCEPT or READY, if one of them is under way, else 0
    bint cancelling                 # it
    unsigned long descriptors       # the limit that it was begun under
    bint accepted                   # some, this turn
    bint cautious                   # accept() failed: look before it is tried again
    bint closing                    # every connection goes as it ends its Flight
    uint32_t sending, starved       # heads of the lists
    Table table
    Flight *flights[CHUNKS_MAX]


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
        table_init(&loop.table)
        loop.sending = loop.starved = NO_SLOT
        loop.context = &self.context
        loop.by_readiness = (self.context.service != service.ECHO
                             or self.context.close_line != NULL)
        loop.cautious = self.context.allow_count != 0 or self.context.max_connections != 0
        loop.length_limit = <uint32_t>self.context.buffer_size
        loop.buffer = <char *>malloc(self.context.buffer_size)
        if loop.buffer == NULL:
            raise MemoryError
        result = ring_open(&loop.ring, self.entries, self.results)
        if result < 0:
            raise os_error(-result, "io_uring_setup", "", likely_cause(-result))
        result = ring_add_buffers(&loop.ring, self.buffers,
                                  <uint32_t>min(self.context.buffer_size, <size_t>BUFFER_BYTES))
        if result < 0:
            raise os_error(-result, "io_uring_register", "", likely_cause(-result))
        self.main = run
        self.argument = loop
        return 0

    cdef void release(self) noexcept:
        cdef Loop *loop = self.loop
        cdef int chunk
        if loop == NULL:
            return
        self.loop = NULL
        ring_close(&loop.ring)
        table_free(&loop.table)
        for chunk in range(CHUNKS_MAX):
            free(loop.flights[chunk])
        free(loop.buffer)
        free(loop)

    cdef void abandon(self) noexcept:
        if self.loop != NULL:
            close_copies(&self.loop.table)


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
    cdef int result = liburing.io_uring_enable_rings(&loop.ring.ring)
    if result < 0:
        give_up(loop, -result)
    watch_wake(loop)
    listen(loop)
    while not finished(loop):
        wait_and_serve(loop)
    close_all(loop)
    engine.notify(loop.context.done_fd)
    return NULL


cdef void wait_and_serve(Loop *loop) noexcept nogil:
    cdef int result = submit_and_wait(&loop.ring, engine.timeout_ms(loop.context))
    if result < 0:
        give_up(loop, -result)
        return
    engine.note_time(loop.context)
    collect(loop)
    if loop.accepted:
        heed_limit(loop)
    feed_starved(loop)
    send_all(loop)
    if engine.sweep_due(loop.context):
        close_overdue(loop)
    if accepting.resting(loop.context) and posix.monotonic_ns() >= loop.context.resume_at:
        loop.context.resume_at = engine.NEVER
        listen(loop)
    if engine.stop_requested(loop.context) and loop.context.listen_fd >= 0:
        drain_queue(loop)


cdef void collect(Loop *loop) noexcept nogil:
    """Go on with everything that has a result."""
    cdef uint32_t i, count = completions(&loop.ring)
    while count:
        for i in range(count):
            on_result(loop, loop.ring.batch[i].user_data, loop.ring.batch[i].res,
                      loop.ring.batch[i].flags)
        seen(&loop.ring, count)
        count = completions(&loop.ring)


cdef inline void on_result(Loop *loop, uint64_t token, int32_t result,
                           uint32_t flags) noexcept nogil:
    cdef uint32_t slot = <uint32_t>token & SLOT_MASK
    cdef uint8_t operation = <uint8_t>(token >> OPERATION_SHIFT)
    if slot == SLOT_MASK:
        on_listener_or_wake(loop, token, result, flags)
    elif owner_of(&loop.table, token & ~(<uint64_t>0xFF << OPERATION_SHIFT)) == NULL:
        return
    elif operation == RECV:
        on_received(loop, slot, result, flags)
    elif operation == SEND:
        on_sent(loop, slot, result)
    elif operation == POLL:
        on_ready(loop, slot, result)
    else:
        on_cancelled(loop, slot)


cdef inline Flight *flight_at(Loop *loop, uint32_t slot) noexcept nogil:
    return &loop.flights[slot >> CHUNK_BITS][slot & (CHUNK_SLOTS - 1)]


cdef inline liburing.io_uring_sqe *begin(Loop *loop, uint32_t slot, uint8_t operation,
                                         uint64_t *token) noexcept nogil:
    token[0] = token_of(connection_at(&loop.table, slot), slot) | operation << OPERATION_SHIFT
    flight_at(loop, slot).under_way |= operation
    return new_entry(&loop.ring)


# --- one connection, by completion --------------------------------------------------------------

cdef void receive(Loop *loop, uint32_t slot) noexcept nogil:
    """Step 6, from now on, until what it brings no longer has MORE set."""
    cdef uint64_t token
    cdef liburing.io_uring_sqe *entry = begin(loop, slot, RECV, &token)
    liburing.io_uring_prep_recv_multishot(entry, connection_at(&loop.table, slot).fd, NULL, 0, 0)
    entry.flags = liburing.IOSQE_BUFFER_SELECT
    entry.buf_group = 0
    # `optlen` of Linux 6.17: so much and no more, however fast it comes. It shares this place.
    entry.file_index = loop.length_limit
    entry.user_data = token


cdef void on_received(Loop *loop, uint32_t slot, int32_t result, uint32_t flags) noexcept nogil:
    cdef Flight *flight = flight_at(loop, slot)
    cdef uint16_t number = buffer_of(flags)
    if number != NO_BUFFER:
        loop.ring.home -= 1
        if result > 0 and not flight.ending:
            keep(loop, slot, number, <uint32_t>result)
        else:
            recycle(&loop.ring, number)
    if flags & liburing.IORING_CQE_F_MORE:
        if flight.by_readiness:
            cancel(loop, slot)
        return
    # The last one. It may have brought data all the same, where there was no room for another.
    flight.under_way &= ~RECV
    if result == 0:
        flight.at_end = True
    elif result == -posix.ENOBUFS:
        flight.under_way |= STARVED
        flight.next_starved = loop.starved
        loop.starved = slot
    elif result == -posix.EINVAL and loop.length_limit:
        loop.length_limit = 0       # before Linux 6.17
    elif result < 0 and result not in (-posix.ECANCELED, -posix.EINTR, -posix.EAGAIN):
        fail(loop, slot, -result)
        return
    settle(loop, slot)


cdef inline void keep(Loop *loop, uint32_t slot, uint16_t number, uint32_t size) noexcept nogil:
    """Queue a buffer to be sent back."""
    cdef Flight *flight = flight_at(loop, slot)
    cdef Ring *ring = &loop.ring
    atomic.count(&loop.context.counters.bytes_in, size)
    connection_at(&loop.table, slot).active_at = loop.context.now
    if size == ring.buffer_size:
        leave_ring(flight)
    if flight.first == NO_BUFFER:
        flight.first = number
    elif (not (flight.under_way & SEND and flight.first == flight.last)
            and ring.buffers[flight.last].size + size <= ring.buffer_size):
        # Small pieces go out together.
        memcpy(buffer_at(ring, flight.last) + ring.buffers[flight.last].size,
               buffer_at(ring, number), size)
        ring.buffers[flight.last].size += size
        recycle(ring, number)
        return
    else:
        ring.buffers[flight.last].next = number
    flight.last = number
    ring.buffers[number].size = size
    ring.buffers[number].next = NO_BUFFER
    want_to_send(loop, slot)


cdef inline void want_to_send(Loop *loop, uint32_t slot) noexcept nogil:
    cdef Flight *flight = flight_at(loop, slot)
    if flight.under_way & (SEND | SENDING) or flight.stalled:
        return
    flight.under_way |= SENDING
    flight.next_sending = loop.sending
    loop.sending = slot


cdef void send_all(Loop *loop) noexcept nogil:
    """Step 7 for everybody who has something, handed over with the next wait."""
    cdef uint32_t slot
    cdef Flight *flight
    while loop.sending != NO_SLOT:
        slot = loop.sending
        flight = flight_at(loop, slot)
        loop.sending = flight.next_sending
        flight.under_way &= ~SENDING
        if flight.first != NO_BUFFER and not flight.ending:
            send_first(loop, slot)
        else:
            settle(loop, slot)


cdef inline void send_first(Loop *loop, uint32_t slot) noexcept nogil:
    cdef uint64_t token
    cdef uint16_t number = flight_at(loop, slot).first
    cdef liburing.io_uring_sqe *entry = begin(loop, slot, SEND, &token)
    # Never waiting: it has its result at the next turn, so that no client can keep a buffer. And
    # one at a time: two could overtake each other when the socket is full.
    liburing.io_uring_prep_send(entry, connection_at(&loop.table, slot).fd,
                                buffer_at(&loop.ring, number), loop.ring.buffers[number].size,
                                posix.MSG_NOSIGNAL | posix.MSG_DONTWAIT)
    entry.user_data = token


cdef void on_sent(Loop *loop, uint32_t slot, int32_t result) noexcept nogil:
    cdef Flight *flight = flight_at(loop, slot)
    flight.under_way &= ~SEND
    if result < 0 and result not in (-posix.EAGAIN, -posix.EINTR):
        fail(loop, slot, -result)
        return
    flight.sent = max(result, 0)
    atomic.count(&loop.context.counters.bytes_out, flight.sent)
    connection_at(&loop.table, slot).active_at = loop.context.now
    if flight.sent == loop.ring.buffers[flight.first].size:
        drop_first(loop, flight)
    else:
        flight.stalled = True
        leave_ring(flight)
        cancel(loop, slot)
    settle(loop, slot)


cdef inline void drop_first(Loop *loop, Flight *flight) noexcept nogil:
    cdef uint16_t number = flight.first
    flight.first = loop.ring.buffers[number].next
    flight.sent = 0
    recycle(&loop.ring, number)


cdef void feed_starved(Loop *loop) noexcept nogil:
    """Receive again for those who found no buffer, as far as some have come back."""
    cdef uint32_t slot, home = loop.ring.home
    while loop.starved != NO_SLOT and (home or loop.closing):
        slot = loop.starved
        loop.starved = flight_at(loop, slot).next_starved
        flight_at(loop, slot).under_way &= ~STARVED
        home -= home > 0
        settle(loop, slot)


# --- one connection, by readiness ---------------------------------------------------------------

cdef inline void leave_ring(Flight *flight) noexcept nogil:
    """Go on by readiness, once all that is under way has ended."""
    flight.by_readiness = True
    flight.small = 0


cdef void watch(Loop *loop, uint32_t slot) noexcept nogil:
    cdef uint64_t token
    cdef Connection *connection = connection_at(&loop.table, slot)
    cdef liburing.io_uring_sqe *entry = begin(loop, slot, POLL, &token)
    liburing.io_uring_prep_poll_add(entry, connection.fd, poll_events(connection.awaits))
    entry.user_data = token


cdef void on_ready(Loop *loop, uint32_t slot, int32_t result) noexcept nogil:
    cdef Flight *flight = flight_at(loop, slot)
    flight.under_way &= ~POLL
    if result < 0 and result != -posix.ECANCELED:
        fail(loop, slot, -result)
        return
    if result >= 0 and not flight.ending and not loop.closing:
        go_on(loop, slot)
    settle(loop, slot)


cdef void go_on(Loop *loop, uint32_t slot) noexcept nogil:
    """One recv and one send; see whether the connection has small messages again."""
    cdef Connection *connection = connection_at(&loop.table, slot)
    cdef Flight *flight = flight_at(loop, slot)
    cdef uint64_t before = loop.context.counters.bytes_in
    cdef uint32_t awaits = advance(connection, loop.context, loop.buffer)
    if awaits >= ENDED:
        flight.ending = 1 + awaits - ENDED
        return
    connection.awaits = awaits
    if loop.by_readiness or awaits != AWAITS_INPUT:
        return
    if loop.context.counters.bytes_in - before < loop.ring.buffer_size:
        flight.small += 1
    else:
        flight.small = 0
    if flight.small == SMALL_AGAIN:
        flight.by_readiness = False


cdef bint keep_rest(Loop *loop, uint32_t slot) noexcept nogil:
    """Move what the socket did not take out of the ring's buffers; False without memory."""
    cdef Connection *connection = connection_at(&loop.table, slot)
    cdef Flight *flight = flight_at(loop, slot)
    cdef uint16_t number = flight.first
    cdef size_t size = 0
    while number != NO_BUFFER:
        size += loop.ring.buffers[number].size
        number = loop.ring.buffers[number].next
    connection.rest = <char *>malloc(size)
    if connection.rest == NULL:
        return False
    connection.rest_start = flight.sent
    connection.rest_end = 0
    while flight.first != NO_BUFFER:
        size = loop.ring.buffers[flight.first].size
        memcpy(connection.rest + connection.rest_end, buffer_at(&loop.ring, flight.first), size)
        connection.rest_end += <uint32_t>size
        drop_first(loop, flight)
    flight.stalled = False
    connection.awaits = AWAITS_ROOM
    return True


# --- beginning and end --------------------------------------------------------------------------

cdef void settle(Loop *loop, uint32_t slot) noexcept nogil:
    """What comes next for a connection, now that something has ended."""
    cdef Connection *connection = connection_at(&loop.table, slot)
    cdef Flight *flight = flight_at(loop, slot)
    if flight.ending:
        settle_end(loop, slot)
        return
    if flight.first != NO_BUFFER and not flight.stalled:
        want_to_send(loop, slot)
    if flight.under_way:
        return
    if flight.stalled and not keep_rest(loop, slot):
        fail(loop, slot, posix.ENOMEM)
    elif flight.at_end and connection.rest == NULL:
        flight.ending = 1 + engine.CLOSED_EOF
        settle_end(loop, slot)
    elif loop.closing:
        go_on(loop, slot)
        if not flight.ending:
            flight.ending = 1 + engine.CLOSED_STOPPED
        settle_end(loop, slot)
    elif flight.by_readiness:
        watch(loop, slot)
    else:
        receive(loop, slot)


cdef void fail(Loop *loop, uint32_t slot, int error) noexcept nogil:
    if flight_at(loop, slot).ending:
        settle_end(loop, slot)      # for a reason that was counted before
        return
    engine.count_error(loop.context, error)
    end(loop, slot, engine.close_reason(error))


cdef void end(Loop *loop, uint32_t slot, int reason) noexcept nogil:
    """Let a connection go, whatever it is owed."""
    flight_at(loop, slot).ending = 1 + reason
    settle_end(loop, slot)


cdef void settle_end(Loop *loop, uint32_t slot) noexcept nogil:
    """Close an ending connection, or cancel what keeps it from that."""
    cdef Flight *flight = flight_at(loop, slot)
    if flight.under_way:
        cancel(loop, slot)
        return
    while flight.first != NO_BUFFER:
        drop_first(loop, flight)
    remove_connection(&loop.table, slot)
    atomic.count(&loop.context.counters.closed[flight.ending - 1], 1)
    if accepting.resting(loop.context):
        loop.context.resume_at = 0      # a descriptor is free again


cdef void cancel(Loop *loop, uint32_t slot) noexcept nogil:
    """Ask for the end of what waits for the client: its own result says when that has come."""
    cdef Flight *flight = flight_at(loop, slot)
    cdef uint8_t waiting = flight.under_way & (RECV | POLL)
    cdef uint64_t token
    cdef liburing.io_uring_sqe *entry
    if not waiting or flight.under_way & CANCEL:
        return
    entry = begin(loop, slot, CANCEL, &token)
    liburing.io_uring_prep_cancel64(
        entry, token ^ (CANCEL ^ waiting) << OPERATION_SHIFT, 0)
    entry.user_data = token


cdef void on_cancelled(Loop *loop, uint32_t slot) noexcept nogil:
    cdef Flight *flight = flight_at(loop, slot)
    flight.under_way &= ~CANCEL
    cancel(loop, slot)              # again, if the kernel was just moving it between its lists
    settle(loop, slot)


cdef void close_overdue(Loop *loop) noexcept nogil:
    cdef uint32_t slot
    cdef Connection *connection
    for slot in range(loop.table.slots):
        connection = connection_at(&loop.table, slot)
        if (connection.fd >= 0 and not flight_at(loop, slot).ending
                and overdue(connection, loop.context)):
            end(loop, slot, idle_reason(connection))


# --- accepting ----------------------------------------------------------------------------------

cdef void listen(Loop *loop) noexcept nogil:
    """Step 5, from now on: by multishot, or, where accept() has to be looked after, by readiness.

    Only one call at a time can be told who comes, or be kept from taking in more than is allowed.
    And at the descriptor limit accept() fails also when nobody comes.
    """
    cdef liburing.io_uring_sqe *entry
    if loop.listening or loop.context.listen_fd < 0 or engine.stop_requested(loop.context):
        return
    entry = new_entry(&loop.ring)
    if loop.cautious:
        liburing.io_uring_prep_poll_add(entry, loop.context.listen_fd, posix.POLLIN)
        loop.listening = READY
    else:
        liburing.io_uring_prep_multishot_accept(entry, loop.context.listen_fd, NULL, NULL,
                                                posix.SOCK_NONBLOCK | posix.SOCK_CLOEXEC)
        loop.listening = ACCEPT
        loop.descriptors = descriptor_limit()
    entry.user_data = loop.listening


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
        loop.listening = 0
    if token == ACCEPT:
        on_accepted(loop, result)
    elif result != -posix.ECANCELED:
        accept_burst(loop)
    if not accepting.resting(loop.context):
        listen(loop)


cdef void on_accepted(Loop *loop, int32_t result) noexcept nogil:
    if result == -posix.ECANCELED:
        return
    if result >= 0 and adopt(loop, result):
        loop.accepted = True
        return
    if after_failure(loop, accepting.accept_failed(
            loop.context, posix.ENOMEM if result >= 0 else -result)):
        loop.cautious = True


cdef void heed_limit(Loop *loop) noexcept nogil:
    """A multishot accept keeps to the descriptor limit that was when it began: begin it again."""
    loop.accepted = False
    if loop.listening == ACCEPT and descriptor_limit() != loop.descriptors:
        cancel_listener(loop)


cdef inline unsigned long descriptor_limit() noexcept nogil:
    cdef posix.rlimit limit
    return limit.rlim_cur if posix.getrlimit(posix.RLIMIT_NOFILE, &limit) == 0 else 0


cdef bint after_failure(Loop *loop, int ended) noexcept nogil:
    """True if accepting rests or has ended."""
    if ended == accepting.LISTENER_GONE:
        stop_accepting(loop)
    return ended == accepting.LISTENER_GONE or ended == accepting.MUST_REST


cdef bint accept_burst(Loop *loop) noexcept nogil:
    """True while there may be more in the queue."""
    cdef int fd, ended, _
    for _ in range(accepting.BURST):
        if accepting.full(loop.context, loop.table.open):
            ended = accepting.MUST_REST
        else:
            ended = accepting.accept_one(loop.context, posix.SOCK_NONBLOCK, &fd)
        if ended == accepting.ACCEPTED and not adopt(loop, fd):
            ended = accepting.accept_failed(loop.context, posix.ENOMEM)
        if ended == accepting.QUEUE_EMPTY:
            loop.cautious = loop.context.allow_count != 0 or loop.context.max_connections != 0
            return False
        if after_failure(loop, ended):
            return False
    return True


cdef bint adopt(Loop *loop, int fd) noexcept nogil:
    """Give a new connection a slot and begin with it; False, and closed, without memory."""
    cdef uint32_t slot = add_connection(&loop.table, loop.context, fd)
    cdef Flight *flight
    if slot == NO_SLOT:
        posix.close(fd)
        return False
    if loop.flights[slot >> CHUNK_BITS] == NULL:
        loop.flights[slot >> CHUNK_BITS] = <Flight *>calloc(CHUNK_SLOTS, sizeof(Flight))
    if loop.flights[slot >> CHUNK_BITS] == NULL:
        remove_connection(&loop.table, slot)
        return False
    flight = flight_at(loop, slot)
    flight.by_readiness = loop.by_readiness
    flight.stalled = flight.at_end = False
    flight.ending = flight.small = 0
    flight.first = NO_BUFFER
    atomic.count(&loop.context.counters.accepted, 1)
    settle(loop, slot)
    return True


# --- stopping -----------------------------------------------------------------------------------

cdef void watch_wake(Loop *loop) noexcept nogil:
    cdef liburing.io_uring_sqe *entry = new_entry(&loop.ring)
    liburing.io_uring_prep_poll_multishot(entry, loop.context.wake_fd, posix.POLLIN)
    entry.user_data = WAKE


cdef void stop_accepting(Loop *loop) noexcept nogil:
    accepting.close_listener(loop.context)


cdef void drain_queue(Loop *loop) noexcept nogil:
    """Once a stop is requested: take in what waits to be accepted, then stop listening.

    Closing a listener resets what waits in its queue, and those clients think they are connected.
    Without descriptors for them it listens on until there are some, or until the stop is due.
    And while accept() is under way close() does not stop it, and shutdown() would stop it for
    every process that has a copy: it is cancelled first.
    """
    cdef int _
    if loop.listening:
        cancel_listener(loop)
        return
    for _ in range(accepting.BURSTS_AT_STOP):
        if accepting.resting(loop.context) or not accept_burst(loop):
            break
    if loop.context.listen_fd < 0:
        return
    if not accepting.resting(loop.context) or engine.stop_due(loop.context):
        stop_accepting(loop)


cdef void cancel_listener(Loop *loop) noexcept nogil:
    cdef liburing.io_uring_sqe *entry
    if loop.cancelling:
        return
    entry = new_entry(&loop.ring)
    liburing.io_uring_prep_cancel64(entry, loop.listening, 0)
    entry.user_data = CANCEL_LISTENER
    loop.cancelling = True


cdef inline bint finished(Loop *loop) noexcept nogil:
    if loop.context.listen_fd >= 0 or not engine.stop_requested(loop.context):
        return False
    return loop.table.open == 0 or engine.stop_due(loop.context)


cdef void give_up(Loop *loop, int error) noexcept nogil:
    """io_uring itself failed, as when something else in the process closed its descriptor."""
    loop.ring.failed = True
    atomic.lower_i64(&loop.context.stop_at, 0)
    accepting.note_failure(loop.context, error)
    if loop.context.listen_fd >= 0:
        stop_accepting(loop)


cdef void close_all(Loop *loop) noexcept nogil:
    """Echo what has arrived, as far as it goes without waiting, and close what is still open."""
    cdef uint32_t slot
    loop.closing = True
    for slot in range(loop.table.slots):
        if connection_at(&loop.table, slot).fd >= 0:
            cancel(loop, slot)
            settle(loop, slot)
    while loop.table.open and not loop.ring.failed:
        wait_and_serve(loop)
    for slot in range(loop.table.slots):
        if connection_at(&loop.table, slot).fd >= 0:    # of a ring that failed
            flight_at(loop, slot).under_way = 0
            end(loop, slot, engine.CLOSED_STOPPED)
