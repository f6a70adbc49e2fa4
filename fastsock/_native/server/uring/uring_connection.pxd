# One connection of the io_uring engine, and what the kernel has under way for it.
#
# A connection goes on by completion: a multishot receive, and one send at a time of what came. One
# that does not keep up, or has large pieces, goes on by readiness, as in the other loops.
#
# Every function that ends something calls `settle()`, which alone decides what comes next. Nothing
# is closed, and no slot used again, while anything is under way.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

cimport fastsock._native.server.acceptor as accepting
cimport fastsock._native.atomic as atomic
cimport fastsock._native.server.engine as engine
cimport fastsock._native.server.uring.liburing as liburing
cimport fastsock._native.posix as posix
cimport fastsock._native.services as service
from fastsock._native.server.connection cimport AWAITS_INPUT, AWAITS_ROOM, ENDED, Connection
from fastsock._native.server.connection cimport advance, idle_reason, overdue, poll_events
from fastsock._native.server.engine cimport Context
from fastsock._native.server.unsent cimport take_room
from fastsock._native.server.uring.ring cimport NO_BUFFER, Ring, buffer_at, buffer_of, new_entry, recycle
from fastsock._native.server.uring.ring cimport ring_close
from fastsock._native.server.connections cimport CHUNK_BITS, CHUNK_SLOTS, CHUNKS_MAX, NO_SLOT, Table
from fastsock._native.server.connections cimport add_connection, connection_at, owner_of, remove_connection
from fastsock._native.server.connections cimport table_free, table_init, token_of, vacate

cdef enum:
    SMALL_AGAIN = 4                 # receives that would fit a buffer before a stream is none

cdef enum:                          # what is under way; part of the token of a result
    RECV = 1
    SEND = 2
    POLL = 4
    CANCEL = 8                      # of RECV or POLL
    SENDING = 16                    # on the list of those who have something to send
    STARVED = 32                    # in the queue of those who wait for a buffer

cdef enum:
    OPERATION_SHIFT = 24            # a slot has no more than 20 bits
    SLOT_MASK = (1 << OPERATION_SHIFT) - 1

cdef struct Flight:                 # what the kernel has of one connection, beside its record
    uint8_t under_way               # RECV, ...
    bint by_readiness               # it goes on with poll, recv and send
    bint stalled                    # the socket took less than it was given
    bint at_end                     # the client has closed its side
    bint limited                    # its receive, by `length_limit`
    uint32_t ending                 # 1 + the reason to close, once there is one
    uint32_t small                  # receives in a row that would have fitted a buffer
    uint16_t first, last            # received and not sent yet: a queue of buffers
    uint32_t sent                   # of the first
    uint32_t next_sending           # by slot
    uint32_t next_starved, previous_starved

cdef struct Flights:                # all of one loop
    Context *context
    Ring ring
    Table table
    Flight *chunks[CHUNKS_MAX]      # as those of the table
    char *buffer                    # of those who go on by readiness
    bint by_readiness               # nobody may do otherwise
    uint32_t length_limit           # bytes a multishot receive may bring; 0: the kernel has none
    bint one_shot                   # a receive brings one buffer, see `receive()`
    bint closing                    # every connection goes as soon as nothing is under way for it
    uint32_t sending                # head of the list
    uint32_t first_starved, last_starved


cdef inline bint flights_init(Flights *flights, Context *context) noexcept nogil:
    """The ring is yet to be opened; False without memory."""
    flights.context = context
    flights.by_readiness = context.service != service.ECHO or context.close_line != NULL
    flights.length_limit = <uint32_t>context.buffer_size
    flights.one_shot = is_unix(context.listen_fd)
    flights.sending = flights.first_starved = flights.last_starved = NO_SLOT
    table_init(&flights.table)
    flights.buffer = <char *>malloc(context.stream_size)
    return flights.buffer != NULL


cdef inline bint is_unix(int fd) noexcept nogil:
    cdef int domain = 0
    cdef posix.socklen_t size = sizeof(domain)
    posix.getsockopt(fd, posix.SOL_SOCKET, posix.SO_DOMAIN, &domain, &size)
    return domain == posix.AF_UNIX


cdef inline void flights_free(Flights *flights) noexcept nogil:
    cdef int chunk
    ring_close(&flights.ring)
    table_free(&flights.table)
    for chunk in range(CHUNKS_MAX):
        free(flights.chunks[chunk])
    free(flights.buffer)


cdef inline Flight *flight_at(Flights *flights, uint32_t slot) noexcept nogil:
    return &flights.chunks[slot >> CHUNK_BITS][slot & (CHUNK_SLOTS - 1)]


cdef inline liburing.io_uring_sqe *begin(Flights *flights, uint32_t slot, uint8_t operation,
                                         uint64_t *token) noexcept nogil:
    """Note an operation of a connection; its entry is still to be prepared, and gets `token`."""
    token[0] = token_of(connection_at(&flights.table, slot), slot) | operation << OPERATION_SHIFT
    flight_at(flights, slot).under_way |= operation
    return new_entry(&flights.ring)


cdef inline void on_result(Flights *flights, uint64_t token, int32_t result,
                           uint32_t flags) noexcept nogil:
    cdef uint32_t slot = <uint32_t>token & SLOT_MASK
    cdef uint8_t operation = <uint8_t>(token >> OPERATION_SHIFT)
    if owner_of(&flights.table, token & ~(<uint64_t>0xFF << OPERATION_SHIFT)) == NULL:
        return                      # nobody's any more; see `settle_end()` why this cannot be
    if operation == RECV:
        on_received(flights, slot, result, flags)
    elif operation == SEND:
        on_sent(flights, slot, result)
    elif operation == POLL:
        on_ready(flights, slot, result)
    else:
        on_cancelled(flights, slot)


# --- one connection, by completion --------------------------------------------------------------

cdef inline void receive(Flights *flights, uint32_t slot) noexcept nogil:
    """Step 6, from now on, until what it brings no longer has MORE set.

    On a Unix socket once and no more. Linux 6.18 takes a socket for empty once it has received all
    bytes; and where the client's end came with these, as it began to watch, it never tells of it.
    """
    cdef uint64_t token
    cdef liburing.io_uring_sqe *entry = begin(flights, slot, RECV, &token)
    cdef int fd = connection_at(&flights.table, slot).fd
    if flights.one_shot:
        liburing.io_uring_prep_recv(entry, fd, NULL, 0, 0)
    else:
        liburing.io_uring_prep_recv_multishot(entry, fd, NULL, 0, 0)
        # `optlen` of Linux 6.17: so much and no more, however fast it comes. It shares this place.
        entry.file_index = flights.length_limit
        flight_at(flights, slot).limited = flights.length_limit != 0
    entry.flags = liburing.IOSQE_BUFFER_SELECT
    entry.buf_group = 0
    entry.user_data = token


cdef inline void on_received(Flights *flights, uint32_t slot, int32_t result,
                             uint32_t flags) noexcept nogil:
    cdef Flight *flight = flight_at(flights, slot)
    cdef uint16_t number = buffer_of(flags)
    if number != NO_BUFFER:
        flights.ring.home -= 1
        if result > 0 and not flight.ending:
            keep(flights, slot, number, <uint32_t>result)
        else:
            recycle(&flights.ring, number)
    if flags & liburing.IORING_CQE_F_MORE:
        if flight.by_readiness:
            cancel(flights, slot)
        return
    # The last one. It may have brought data all the same, where there was no room for another.
    flight.under_way &= ~RECV
    if result > 0 and flights.one_shot and not (
            flight.by_readiness or flight.ending or flights.closing):
        receive(flights, slot)
    elif result == 0:
        flight.at_end = True
    elif result == -posix.ENOBUFS:
        starve(flights, slot)
    elif result == -posix.EINVAL and flight.limited:
        flights.length_limit = 0    # before Linux 6.17
    elif result < 0 and result not in (-posix.ECANCELED, -posix.EINTR, -posix.EAGAIN):
        fail(flights, slot, -result)
        return
    settle(flights, slot)


cdef inline void keep(Flights *flights, uint32_t slot, uint16_t number,
                      uint32_t size) noexcept nogil:
    """Queue a buffer to be sent back."""
    cdef Flight *flight = flight_at(flights, slot)
    cdef Ring *ring = &flights.ring
    atomic.count(&flights.context.counters.bytes_in, size)
    connection_at(&flights.table, slot).active_at = flights.context.now
    if size == ring.buffer_size:
        leave_ring(flights, slot)
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
    want_to_send(flights, slot)


cdef inline void want_to_send(Flights *flights, uint32_t slot) noexcept nogil:
    cdef Flight *flight = flight_at(flights, slot)
    if flight.under_way & (SEND | SENDING) or flight.stalled:
        return
    flight.under_way |= SENDING
    flight.next_sending = flights.sending
    flights.sending = slot


cdef inline void send_all(Flights *flights) noexcept nogil:
    """Step 7 for everybody who has something, handed over with the next wait."""
    cdef uint32_t slot
    cdef Flight *flight
    while flights.sending != NO_SLOT:
        slot = flights.sending
        flight = flight_at(flights, slot)
        flights.sending = flight.next_sending
        flight.under_way &= ~SENDING
        if flight.first != NO_BUFFER and not flight.ending:
            send_first(flights, slot)
        else:
            settle(flights, slot)


cdef inline void send_first(Flights *flights, uint32_t slot) noexcept nogil:
    cdef uint64_t token
    cdef uint16_t number = flight_at(flights, slot).first
    cdef liburing.io_uring_sqe *entry = begin(flights, slot, SEND, &token)
    # Never waiting: it has its result at the next turn, so that no client can keep a buffer. And
    # one at a time: two could overtake each other when the socket is full.
    liburing.io_uring_prep_send(entry, connection_at(&flights.table, slot).fd,
                                buffer_at(&flights.ring, number), flights.ring.buffers[number].size,
                                posix.MSG_NOSIGNAL | posix.MSG_DONTWAIT)
    entry.user_data = token


cdef inline void on_sent(Flights *flights, uint32_t slot, int32_t result) noexcept nogil:
    cdef Flight *flight = flight_at(flights, slot)
    flight.under_way &= ~SEND
    if result < 0 and result not in (-posix.EAGAIN, -posix.EINTR):
        fail(flights, slot, -result)
        return
    flight.sent = max(result, 0)
    atomic.count(&flights.context.counters.bytes_out, flight.sent)
    connection_at(&flights.table, slot).active_at = flights.context.now
    if flight.sent == flights.ring.buffers[flight.first].size:
        drop_first(flights, flight)
    else:
        flight.stalled = True
        leave_ring(flights, slot)
        cancel(flights, slot)
    settle(flights, slot)


cdef inline void drop_first(Flights *flights, Flight *flight) noexcept nogil:
    cdef uint16_t number = flight.first
    flight.first = flights.ring.buffers[number].next
    flight.sent = 0
    recycle(&flights.ring, number)


# --- without a buffer ---------------------------------------------------------------------------
#
# First come, first fed. And nobody waits here with buffers that are not being sent, or those who
# wait could hold all of them: who needs none any more leaves, and gives back its own.

cdef inline void starve(Flights *flights, uint32_t slot) noexcept nogil:
    cdef Flight *flight = flight_at(flights, slot)
    if flight.by_readiness or flight.ending or flights.closing:
        return
    flight.under_way |= STARVED
    flight.next_starved = NO_SLOT
    flight.previous_starved = flights.last_starved
    if flights.last_starved == NO_SLOT:
        flights.first_starved = slot
    else:
        flight_at(flights, flights.last_starved).next_starved = slot
    flights.last_starved = slot


cdef inline void leave_starved(Flights *flights, uint32_t slot) noexcept nogil:
    cdef Flight *flight = flight_at(flights, slot)
    if not flight.under_way & STARVED:
        return
    flight.under_way &= ~STARVED
    if flight.previous_starved == NO_SLOT:
        flights.first_starved = flight.next_starved
    else:
        flight_at(flights, flight.previous_starved).next_starved = flight.next_starved
    if flight.next_starved == NO_SLOT:
        flights.last_starved = flight.previous_starved
    else:
        flight_at(flights, flight.next_starved).previous_starved = flight.previous_starved


cdef inline void feed_starved(Flights *flights) noexcept nogil:
    """Receive again for those who found no buffer, as far as some have come back."""
    cdef uint32_t slot, receiving = 0
    while flights.first_starved != NO_SLOT and flights.ring.home > receiving:
        slot = flights.first_starved
        leave_starved(flights, slot)
        settle(flights, slot)
        receiving += flight_at(flights, slot).under_way & RECV != 0


# --- one connection, by readiness ---------------------------------------------------------------

cdef inline void leave_ring(Flights *flights, uint32_t slot) noexcept nogil:
    """Go on by readiness, once all that is under way has ended."""
    flight_at(flights, slot).by_readiness = True
    flight_at(flights, slot).small = 0
    leave_starved(flights, slot)


cdef inline void watch(Flights *flights, uint32_t slot) noexcept nogil:
    cdef uint64_t token
    cdef Connection *connection = connection_at(&flights.table, slot)
    cdef liburing.io_uring_sqe *entry = begin(flights, slot, POLL, &token)
    liburing.io_uring_prep_poll_add(entry, connection.fd, poll_events(connection.awaits))
    entry.user_data = token


cdef inline void on_ready(Flights *flights, uint32_t slot, int32_t result) noexcept nogil:
    cdef Flight *flight = flight_at(flights, slot)
    flight.under_way &= ~POLL
    if result < 0 and result != -posix.ECANCELED:
        fail(flights, slot, -result)
        return
    if result >= 0 and not flight.ending and not flights.closing:
        go_on(flights, slot)
    settle(flights, slot)


cdef inline void go_on(Flights *flights, uint32_t slot) noexcept nogil:
    """One recv and one send; see whether the connection has small messages again."""
    cdef Connection *connection = connection_at(&flights.table, slot)
    cdef Flight *flight = flight_at(flights, slot)
    cdef uint64_t before = flights.context.counters.bytes_in
    cdef uint32_t awaits = advance(connection, flights.context, flights.buffer)
    if awaits >= ENDED:
        flight.ending = 1 + awaits - ENDED
        return
    connection.awaits = awaits
    if flights.by_readiness or awaits != AWAITS_INPUT:
        return
    if flights.context.counters.bytes_in - before < flights.ring.buffer_size:
        flight.small += 1
    else:
        flight.small = 0
    if flight.small == SMALL_AGAIN:
        flight.by_readiness = False


cdef inline bint keep_rest(Flights *flights, uint32_t slot) noexcept nogil:
    """Move what the socket did not take out of the ring's buffers; False without memory."""
    cdef Connection *connection = connection_at(&flights.table, slot)
    cdef Flight *flight = flight_at(flights, slot)
    cdef uint16_t number = flight.first
    cdef size_t size = 0
    while number != NO_BUFFER:
        size += flights.ring.buffers[number].size
        number = flights.ring.buffers[number].next
    connection.rest = take_room(&flights.context.rests, size)
    if connection.rest == NULL:
        return False
    connection.rest_start = flight.sent
    connection.rest_end = 0
    while flight.first != NO_BUFFER:
        size = flights.ring.buffers[flight.first].size
        memcpy(connection.rest + connection.rest_end, buffer_at(&flights.ring, flight.first), size)
        connection.rest_end += <uint32_t>size
        drop_first(flights, flight)
    flight.stalled = False
    connection.awaits = AWAITS_ROOM
    return True


# --- beginning and end --------------------------------------------------------------------------

cdef inline void settle(Flights *flights, uint32_t slot) noexcept nogil:
    """What comes next for a connection, now that something has ended."""
    cdef Connection *connection = connection_at(&flights.table, slot)
    cdef Flight *flight = flight_at(flights, slot)
    if flight.ending:
        settle_end(flights, slot)
        return
    if flight.first != NO_BUFFER and not flight.stalled:
        want_to_send(flights, slot)
    if flight.under_way:
        return
    if flight.stalled and not keep_rest(flights, slot):
        fail(flights, slot, posix.ENOMEM)
    elif flight.at_end and connection.rest == NULL:
        flight.ending = 1 + engine.CLOSED_EOF
        settle_end(flights, slot)
    elif flights.closing:
        go_on(flights, slot)
        if not flight.ending:
            flight.ending = 1 + engine.CLOSED_STOPPED
        settle_end(flights, slot)
    elif flight.by_readiness:
        watch(flights, slot)
    else:
        receive(flights, slot)


cdef inline void fail(Flights *flights, uint32_t slot, int error) noexcept nogil:
    if flight_at(flights, slot).ending:
        settle_end(flights, slot)   # for a reason that was counted before
        return
    engine.count_error(flights.context, error)
    end(flights, slot, engine.close_reason(error))


cdef inline void end(Flights *flights, uint32_t slot, int reason) noexcept nogil:
    """Let a connection go, whatever it is owed."""
    flight_at(flights, slot).ending = 1 + reason
    settle_end(flights, slot)


cdef inline void settle_end(Flights *flights, uint32_t slot) noexcept nogil:
    """Close an ending connection, or cancel what keeps it from that."""
    cdef Flight *flight = flight_at(flights, slot)
    leave_starved(flights, slot)
    if flight.under_way:
        cancel(flights, slot)
        return
    while flight.first != NO_BUFFER:
        drop_first(flights, flight)
    remove_connection(&flights.table, flights.context, slot)
    atomic.count(&flights.context.counters.closed[flight.ending - 1], 1)
    if accepting.resting(flights.context):
        flights.context.resume_at = 0   # a descriptor is free again


cdef inline void cancel(Flights *flights, uint32_t slot) noexcept nogil:
    """Ask for the end of what waits for the client: its own result says when that has come."""
    cdef Flight *flight = flight_at(flights, slot)
    cdef uint8_t waiting = flight.under_way & (RECV | POLL)
    cdef uint64_t token
    cdef liburing.io_uring_sqe *entry
    if not waiting or flight.under_way & CANCEL:
        return
    entry = begin(flights, slot, CANCEL, &token)
    liburing.io_uring_prep_cancel64(
        entry, token ^ (CANCEL ^ waiting) << OPERATION_SHIFT, 0)
    entry.user_data = token


cdef inline void on_cancelled(Flights *flights, uint32_t slot) noexcept nogil:
    cdef Flight *flight = flight_at(flights, slot)
    flight.under_way &= ~CANCEL
    cancel(flights, slot)           # again, if the kernel was just moving it between its lists
    settle(flights, slot)


cdef inline void close_overdue(Flights *flights) noexcept nogil:
    cdef uint32_t slot
    cdef Connection *connection
    for slot in range(flights.table.slots):
        connection = connection_at(&flights.table, slot)
        if (connection.fd >= 0 and not flight_at(flights, slot).ending
                and overdue(connection, flights.context)):
            end(flights, slot, idle_reason(connection))


cdef inline bint adopt(Flights *flights, int fd) noexcept nogil:
    """Give a new connection a slot and begin with it; False without memory."""
    cdef uint32_t slot = add_connection(&flights.table, flights.context, fd)
    cdef Flight *flight
    if slot == NO_SLOT:
        return False
    if flights.chunks[slot >> CHUNK_BITS] == NULL:
        flights.chunks[slot >> CHUNK_BITS] = <Flight *>calloc(CHUNK_SLOTS, sizeof(Flight))
    if flights.chunks[slot >> CHUNK_BITS] == NULL:
        vacate(&flights.table, flights.context, slot)
        return False
    flight = flight_at(flights, slot)
    flight.by_readiness = flights.by_readiness
    flight.stalled = flight.at_end = False
    flight.ending = flight.small = 0
    flight.first = NO_BUFFER
    settle(flights, slot)
    return True


# --- all of them --------------------------------------------------------------------------------

cdef inline void settle_all(Flights *flights) noexcept nogil:
    """Let each go once it has sent back what has arrived, as far as that needs no waiting."""
    cdef uint32_t slot
    flights.closing = True
    for slot in range(flights.table.slots):
        if connection_at(&flights.table, slot).fd >= 0:
            leave_starved(flights, slot)
            cancel(flights, slot)
            settle(flights, slot)


cdef inline void end_all(Flights *flights) noexcept nogil:
    """Close those that are left of a ring that failed."""
    cdef uint32_t slot
    for slot in range(flights.table.slots):
        if connection_at(&flights.table, slot).fd >= 0:
            flight_at(flights, slot).under_way = 0
            end(flights, slot, engine.CLOSED_STOPPED)
