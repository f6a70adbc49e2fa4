# One connection of the io_uring engine, and which operations the kernel has pending for it.
#
# A connection works by completion: a multishot receive, and one send at a time of what came. One
# that does not keep up, or has large pieces, works by readiness, as in the other loops.
#
# Every function that ends an operation calls decide_next(), which alone decides what comes next.
# Nothing is closed, and no slot is used again, while an operation is pending.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

cimport fastsock._native.atomic as atomic
cimport fastsock._native.posix as posix
cimport fastsock._native.server.acceptor as acceptor
cimport fastsock._native.server.connection as connection
cimport fastsock._native.server.connections as connections
cimport fastsock._native.server.counters as counters
cimport fastsock._native.server.unsent as unsent
cimport fastsock._native.server.uring.liburing as liburing
cimport fastsock._native.server.uring.ring as ring
cimport fastsock._native.services as services
from fastsock._native.server.connection cimport Connection
from fastsock._native.server.connections cimport Connections
from fastsock._native.server.context cimport Context
from fastsock._native.server.uring.ring cimport Ring

cdef enum:
    SMALL_RECEIVES = 4              # in a row, after which a connection is no stream any more

cdef enum:                          # pending operations; part of the token of a result
    RECV = 1
    SEND = 2
    POLL = 4
    CANCEL = 8                      # of RECV or POLL
    QUEUED_TO_SEND = 16             # in the list of connections with something to send
    QUEUED_FOR_BUFFER = 32          # in the queue of connections that wait for a buffer

cdef enum:
    OPERATION_SHIFT = 24            # a slot has no more than 20 bits
    SLOT_MASK = (1 << OPERATION_SHIFT) - 1

cdef struct UringConnection:        # what this engine keeps of a connection beside its record
    uint8_t pending                 # RECV, ...
    bint by_readiness               # it works with poll, recv and send
    bint stalled                    # the socket took less than it was given
    bint at_end                     # the client has half-closed
    bint limited                    # its receive, by `length_limit`
    bint ending                     # it closes as soon as nothing is pending
    uint32_t small                  # receives in a row that would have fitted a buffer
    uint16_t first, last            # received and not sent yet: a queue of buffers
    uint32_t sent                   # bytes of the first
    uint32_t next_to_send           # slot, in the list
    uint32_t next_waiting, previous_waiting     # slots, in the queue for buffers

cdef struct UringConnections:       # all of one loop
    Context *context
    Ring ring
    Connections connections
    UringConnection *chunks[connections.CHUNKS_MAX]     # as those of `connections`
    char *buffer                    # for connections that work by readiness
    bint by_readiness               # all of them do
    uint32_t length_limit           # bytes of a multishot receive; 0: the kernel has no limit
    bint one_shot                   # a receive brings one buffer, see start_receive()
    bint closing                    # every connection closes as soon as nothing is pending for it
    uint32_t first_to_send
    uint32_t first_waiting, last_waiting


cdef inline bint init(UringConnections *uring, Context *context) noexcept nogil:
    """The ring is opened later; False without memory."""
    uring.context = context
    uring.by_readiness = context.service != services.ECHO or context.close_line != NULL
    uring.length_limit = <uint32_t>context.buffer_size
    uring.one_shot = is_unix(context.bound_fd)
    uring.first_to_send = connections.NO_SLOT
    uring.first_waiting = uring.last_waiting = connections.NO_SLOT
    connections.init(&uring.connections)
    uring.buffer = <char *>malloc(context.stream_size)
    return uring.buffer != NULL


cdef inline bint is_unix(int fd) noexcept nogil:
    cdef int domain = 0
    cdef posix.socklen_t size = sizeof(domain)
    posix.getsockopt(fd, posix.SOL_SOCKET, posix.SO_DOMAIN, &domain, &size)
    return domain == posix.AF_UNIX


cdef inline void free_all(UringConnections *uring) noexcept nogil:
    cdef int chunk
    ring.close_ring(&uring.ring)
    connections.free_chunks(&uring.connections)
    for chunk in range(connections.CHUNKS_MAX):
        free(uring.chunks[chunk])
    free(uring.buffer)


cdef inline UringConnection *at(UringConnections *uring, uint32_t slot) noexcept nogil:
    return &uring.chunks[slot >> connections.CHUNK_BITS][slot & (connections.CHUNK_SLOTS - 1)]


cdef inline Connection *record_at(UringConnections *uring, uint32_t slot) noexcept nogil:
    return connections.at(&uring.connections, slot)


cdef inline liburing.io_uring_sqe *begin(UringConnections *uring, uint32_t slot,
                                         uint8_t operation, uint64_t *token) noexcept nogil:
    """Note a pending operation; its entry is still to be prepared, and gets `token`."""
    token[0] = (connections.token_of(record_at(uring, slot), slot)
                | operation << OPERATION_SHIFT)
    at(uring, slot).pending |= operation
    return ring.new_entry(&uring.ring)


cdef inline void on_result(UringConnections *uring, uint64_t token, int32_t result,
                           uint32_t flags) noexcept nogil:
    cdef uint32_t slot = <uint32_t>token & SLOT_MASK
    cdef uint8_t operation = <uint8_t>(token >> OPERATION_SHIFT)
    if connections.at_token(&uring.connections,
                            token & ~(<uint64_t>0xFF << OPERATION_SHIFT)) == NULL:
        return                      # it has closed; close_if_idle() prevents this
    if operation == RECV:
        on_received(uring, slot, result, flags)
    elif operation == SEND:
        on_sent(uring, slot, result)
    elif operation == POLL:
        on_ready(uring, slot, result)
    else:
        on_cancelled(uring, slot)


# --- by completion ------------------------------------------------------------------------------

cdef inline void start_receive(UringConnections *uring, uint32_t slot) noexcept nogil:
    """Step 6, from now on, until a result no longer has MORE set.

    On a Unix socket for one result only. Linux 6.18 takes such a socket for empty once it has
    received all bytes. If the client has half-closed together with these bytes, the kernel never
    reports that.
    """
    cdef uint64_t token
    cdef liburing.io_uring_sqe *entry = begin(uring, slot, RECV, &token)
    cdef int fd = record_at(uring, slot).fd
    if uring.one_shot:
        liburing.io_uring_prep_recv(entry, fd, NULL, 0, 0)
    else:
        liburing.io_uring_prep_recv_multishot(entry, fd, NULL, 0, 0)
        # `optlen` of Linux 6.17: so many bytes at most, however fast they come. It has no field of
        # its own in the structure, and shares this one.
        entry.file_index = uring.length_limit
        at(uring, slot).limited = uring.length_limit != 0
    entry.flags = liburing.IOSQE_BUFFER_SELECT
    entry.buf_group = 0
    entry.user_data = token


cdef inline void on_received(UringConnections *uring, uint32_t slot, int32_t result,
                             uint32_t flags) noexcept nogil:
    cdef UringConnection *io = at(uring, slot)
    cdef uint16_t number = ring.buffer_of(flags)
    if number != ring.NO_BUFFER:
        uring.ring.available -= 1
        if result > 0 and not io.ending:
            queue_received(uring, slot, number, <uint32_t>result)
        else:
            ring.recycle(&uring.ring, number)
    if flags & liburing.IORING_CQE_F_MORE:
        if io.by_readiness:
            cancel(uring, slot)
        return
    # The last result. It may have brought data all the same, where there was no room for another.
    io.pending &= ~RECV
    if result > 0 and uring.one_shot and not (io.by_readiness or io.ending or uring.closing):
        start_receive(uring, slot)
    elif result == 0:
        io.at_end = True
    elif result == -posix.ENOBUFS:
        wait_for_buffer(uring, slot)
    elif result == -posix.EINVAL and io.limited:
        uring.length_limit = 0      # before Linux 6.17
    elif result < 0 and result not in (-posix.ECANCELED, -posix.EINTR, -posix.EAGAIN):
        fail(uring, slot, -result)
        return
    decide_next(uring, slot)


cdef inline void queue_received(UringConnections *uring, uint32_t slot, uint16_t number,
                                uint32_t size) noexcept nogil:
    """Queue a buffer to be sent back."""
    cdef UringConnection *io = at(uring, slot)
    cdef ring.Buffer *buffers = uring.ring.buffers
    atomic.count(&uring.context.counters.bytes_in, size)
    record_at(uring, slot).active_at = uring.context.now
    if size == uring.ring.buffer_size:
        use_readiness(uring, slot)
    if io.first == ring.NO_BUFFER:
        io.first = number
    elif (not (io.pending & SEND and io.first == io.last)
            and buffers[io.last].size + size <= uring.ring.buffer_size):
        # Small pieces go out together.
        memcpy(ring.buffer_at(&uring.ring, io.last) + buffers[io.last].size,
               ring.buffer_at(&uring.ring, number), size)
        buffers[io.last].size += size
        ring.recycle(&uring.ring, number)
        return
    else:
        buffers[io.last].next = number
    io.last = number
    buffers[number].size = size
    buffers[number].next = ring.NO_BUFFER
    queue_to_send(uring, slot)


cdef inline void queue_to_send(UringConnections *uring, uint32_t slot) noexcept nogil:
    cdef UringConnection *io = at(uring, slot)
    if io.pending & (SEND | QUEUED_TO_SEND) or io.stalled:
        return
    io.pending |= QUEUED_TO_SEND
    io.next_to_send = uring.first_to_send
    uring.first_to_send = slot


cdef inline void send_queued(UringConnections *uring) noexcept nogil:
    """Step 7 for all connections that have something to send; submitted with the next wait."""
    cdef uint32_t slot
    cdef UringConnection *io
    while uring.first_to_send != connections.NO_SLOT:
        slot = uring.first_to_send
        io = at(uring, slot)
        uring.first_to_send = io.next_to_send
        io.pending &= ~QUEUED_TO_SEND
        if io.first != ring.NO_BUFFER and not io.ending:
            send_first(uring, slot)
        else:
            decide_next(uring, slot)


cdef inline void send_first(UringConnections *uring, uint32_t slot) noexcept nogil:
    cdef uint64_t token
    cdef uint16_t number = at(uring, slot).first
    cdef liburing.io_uring_sqe *entry = begin(uring, slot, SEND, &token)
    # Never waiting: the result comes with the next turn, so that no client can keep a buffer. And
    # one at a time: of two sends the second could overtake the first when the socket is full.
    liburing.io_uring_prep_send(entry, record_at(uring, slot).fd,
                                ring.buffer_at(&uring.ring, number),
                                uring.ring.buffers[number].size,
                                posix.MSG_NOSIGNAL | posix.MSG_DONTWAIT)
    entry.user_data = token


cdef inline void on_sent(UringConnections *uring, uint32_t slot, int32_t result) noexcept nogil:
    cdef UringConnection *io = at(uring, slot)
    io.pending &= ~SEND
    if result < 0 and result not in (-posix.EAGAIN, -posix.EINTR):
        fail(uring, slot, -result)
        return
    io.sent = max(result, 0)
    atomic.count(&uring.context.counters.bytes_out, io.sent)
    record_at(uring, slot).active_at = uring.context.now
    if io.sent == uring.ring.buffers[io.first].size:
        recycle_first(uring, io)
    else:
        io.stalled = True
        use_readiness(uring, slot)
        cancel(uring, slot)
    decide_next(uring, slot)


cdef inline void recycle_first(UringConnections *uring, UringConnection *io) noexcept nogil:
    cdef uint16_t number = io.first
    io.first = uring.ring.buffers[number].next
    io.sent = 0
    ring.recycle(&uring.ring, number)


# --- waiting for a buffer -----------------------------------------------------------------------
#
# In the order in which they came. No connection waits here with buffers that are not being sent:
# else those that wait could hold all buffers. A connection that needs none any more leaves the
# queue, and gives back its own.

cdef inline void wait_for_buffer(UringConnections *uring, uint32_t slot) noexcept nogil:
    cdef UringConnection *io = at(uring, slot)
    if io.by_readiness or io.ending or uring.closing:
        return
    io.pending |= QUEUED_FOR_BUFFER
    io.next_waiting = connections.NO_SLOT
    io.previous_waiting = uring.last_waiting
    if uring.last_waiting == connections.NO_SLOT:
        uring.first_waiting = slot
    else:
        at(uring, uring.last_waiting).next_waiting = slot
    uring.last_waiting = slot


cdef inline void stop_waiting_for_buffer(UringConnections *uring, uint32_t slot) noexcept nogil:
    cdef UringConnection *io = at(uring, slot)
    if not io.pending & QUEUED_FOR_BUFFER:
        return
    io.pending &= ~QUEUED_FOR_BUFFER
    if io.previous_waiting == connections.NO_SLOT:
        uring.first_waiting = io.next_waiting
    else:
        at(uring, io.previous_waiting).next_waiting = io.next_waiting
    if io.next_waiting == connections.NO_SLOT:
        uring.last_waiting = io.previous_waiting
    else:
        at(uring, io.next_waiting).previous_waiting = io.previous_waiting


cdef inline void receive_waiting(UringConnections *uring) noexcept nogil:
    """Receive again for connections that wait for a buffer, as many as are available."""
    cdef uint32_t slot, receiving = 0
    while uring.first_waiting != connections.NO_SLOT and uring.ring.available > receiving:
        slot = uring.first_waiting
        stop_waiting_for_buffer(uring, slot)
        decide_next(uring, slot)
        receiving += at(uring, slot).pending & RECV != 0


# --- by readiness -------------------------------------------------------------------------------

cdef inline void use_readiness(UringConnections *uring, uint32_t slot) noexcept nogil:
    """Work by readiness, once all that is pending has ended."""
    at(uring, slot).by_readiness = True
    at(uring, slot).small = 0
    stop_waiting_for_buffer(uring, slot)


cdef inline void start_poll(UringConnections *uring, uint32_t slot) noexcept nogil:
    cdef uint64_t token
    cdef Connection *conn = record_at(uring, slot)
    cdef liburing.io_uring_sqe *entry = begin(uring, slot, POLL, &token)
    liburing.io_uring_prep_poll_add(entry, conn.fd, connection.poll_events(conn.awaits))
    entry.user_data = token


cdef inline void on_ready(UringConnections *uring, uint32_t slot, int32_t result) noexcept nogil:
    cdef UringConnection *io = at(uring, slot)
    io.pending &= ~POLL
    if result < 0 and result != -posix.ECANCELED:
        fail(uring, slot, -result)
        return
    if result >= 0 and not io.ending and not uring.closing:
        advance(uring, slot)
    decide_next(uring, slot)


cdef inline void advance(UringConnections *uring, uint32_t slot) noexcept nogil:
    """One recv and one send; notes whether the connection has small messages again."""
    cdef Connection *conn = record_at(uring, slot)
    cdef UringConnection *io = at(uring, slot)
    cdef uint64_t before = uring.context.counters.bytes_in
    cdef uint32_t awaits = connection.advance(conn, uring.context, uring.buffer)
    if awaits == connection.ENDED:
        io.ending = True
        return
    conn.awaits = awaits
    if uring.by_readiness or awaits != connection.AWAITS_INPUT:
        return
    if uring.context.counters.bytes_in - before < uring.ring.buffer_size:
        io.small += 1
    else:
        io.small = 0
    if io.small == SMALL_RECEIVES:
        io.by_readiness = False


cdef inline bint move_to_unsent(UringConnections *uring, uint32_t slot) noexcept nogil:
    """Move what the socket did not take out of the ring's buffers; False without memory."""
    cdef Connection *conn = record_at(uring, slot)
    cdef UringConnection *io = at(uring, slot)
    cdef uint16_t number = io.first
    cdef size_t size = 0
    while number != ring.NO_BUFFER:
        size += uring.ring.buffers[number].size
        number = uring.ring.buffers[number].next
    conn.unsent = unsent.take(&uring.context.unsent, size)
    if conn.unsent == NULL:
        return False
    conn.unsent_start = io.sent
    conn.unsent_end = 0
    while io.first != ring.NO_BUFFER:
        size = uring.ring.buffers[io.first].size
        memcpy(conn.unsent + conn.unsent_end, ring.buffer_at(&uring.ring, io.first), size)
        conn.unsent_end += <uint32_t>size
        recycle_first(uring, io)
    io.stalled = False
    conn.awaits = connection.AWAITS_ROOM
    return True


# --- beginning and end --------------------------------------------------------------------------

cdef inline bint add(UringConnections *uring, int fd) noexcept nogil:
    """Give a new connection a slot and start receiving; False without memory."""
    cdef uint32_t slot = connections.add(&uring.connections, uring.context, fd)
    cdef UringConnection **chunk
    cdef UringConnection *io
    if slot == connections.NO_SLOT:
        return False
    chunk = &uring.chunks[slot >> connections.CHUNK_BITS]
    if chunk[0] == NULL:
        chunk[0] = <UringConnection *>calloc(connections.CHUNK_SLOTS, sizeof(UringConnection))
    if chunk[0] == NULL:
        connections.free_slot(&uring.connections, uring.context, slot)
        return False
    io = at(uring, slot)
    io.by_readiness = uring.by_readiness
    io.stalled = io.at_end = io.ending = False
    io.small = 0
    io.first = ring.NO_BUFFER
    decide_next(uring, slot)
    return True


cdef inline void decide_next(UringConnections *uring, uint32_t slot) noexcept nogil:
    """Start what comes next for a connection, now that an operation has ended."""
    cdef UringConnection *io = at(uring, slot)
    if io.ending:
        close_if_idle(uring, slot)
        return
    if io.first != ring.NO_BUFFER and not io.stalled:
        queue_to_send(uring, slot)
    if io.pending:
        return
    if io.stalled and not move_to_unsent(uring, slot):
        fail(uring, slot, posix.ENOMEM)
    elif io.at_end and record_at(uring, slot).unsent == NULL:
        end(uring, slot, counters.CLOSED_EOF)
    elif uring.closing:
        advance(uring, slot)
        if io.ending:
            close_if_idle(uring, slot)
        else:
            end(uring, slot, counters.CLOSED_STOPPED)
    elif io.by_readiness:
        start_poll(uring, slot)
    else:
        start_receive(uring, slot)


cdef inline void fail(UringConnections *uring, uint32_t slot, int error) noexcept nogil:
    if at(uring, slot).ending:
        close_if_idle(uring, slot)  # for a reason that was counted before
        return
    counters.count_error(&uring.context.counters, error)
    end(uring, slot, counters.close_reason(error))


cdef inline void end(UringConnections *uring, uint32_t slot, int reason) noexcept nogil:
    """Close a connection as soon as nothing is pending, whatever is unsent."""
    at(uring, slot).ending = True
    record_at(uring, slot).close_reason = reason
    close_if_idle(uring, slot)


cdef inline void close_if_idle(UringConnections *uring, uint32_t slot) noexcept nogil:
    """Close an ending connection, or cancel what is pending.

    The kernel holds on to a socket with a pending operation, and a later connection could get its
    slot: so nothing is closed before the last result.
    """
    cdef UringConnection *io = at(uring, slot)
    cdef int reason = record_at(uring, slot).close_reason
    stop_waiting_for_buffer(uring, slot)
    if io.pending:
        cancel(uring, slot)
        return
    while io.first != ring.NO_BUFFER:
        recycle_first(uring, io)
    connections.remove(&uring.connections, uring.context, slot)
    atomic.count(&uring.context.counters.closed[reason], 1)
    acceptor.resume(uring.context)


cdef inline void cancel(UringConnections *uring, uint32_t slot) noexcept nogil:
    """Cancel the pending receive or poll. It has ended only when its own result comes."""
    cdef UringConnection *io = at(uring, slot)
    cdef uint8_t waiting = io.pending & (RECV | POLL)
    cdef uint64_t token
    cdef liburing.io_uring_sqe *entry
    if not waiting or io.pending & CANCEL:
        return
    entry = begin(uring, slot, CANCEL, &token)
    liburing.io_uring_prep_cancel64(
        entry, token ^ (CANCEL ^ waiting) << OPERATION_SHIFT, 0)
    entry.user_data = token


cdef inline void on_cancelled(UringConnections *uring, uint32_t slot) noexcept nogil:
    at(uring, slot).pending &= ~CANCEL
    cancel(uring, slot)             # again, if the kernel was just moving it between its lists
    decide_next(uring, slot)


cdef inline void close_overdue(UringConnections *uring) noexcept nogil:
    cdef uint32_t slot
    cdef Connection *conn
    for slot in range(uring.connections.slots):
        conn = record_at(uring, slot)
        if (conn.fd >= 0 and not at(uring, slot).ending
                and connection.overdue(conn, uring.context)):
            end(uring, slot, conn.close_reason)


cdef inline void start_closing(UringConnections *uring) noexcept nogil:
    """Close each connection once it has sent back what has arrived, without waiting for room."""
    cdef uint32_t slot
    uring.closing = True
    for slot in range(uring.connections.slots):
        if record_at(uring, slot).fd >= 0:
            stop_waiting_for_buffer(uring, slot)
            cancel(uring, slot)
            decide_next(uring, slot)


cdef inline void close_all(UringConnections *uring) noexcept nogil:
    """Close the connections that are left after the ring has failed."""
    cdef uint32_t slot
    for slot in range(uring.connections.slots):
        if record_at(uring, slot).fd >= 0:
            at(uring, slot).pending = 0
            end(uring, slot, counters.CLOSED_STOPPED)
