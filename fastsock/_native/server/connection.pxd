# One connection, in an engine that never blocks: steps 6 and 7.
#
# send() may take less than it was given. The unsent bytes are kept for that connection, and
# nothing more is received from it until they are sent. So a client that never reads costs one
# buffer at most, and TCP's flow control does the rest. And because nothing is received while bytes
# are unsent, the end of the stream is seen only when all was sent: a half-close needs no state.

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

cimport fastsock._native.atomic as atomic
cimport fastsock._native.posix as posix
cimport fastsock._native.server.counters as counters
cimport fastsock._native.server.deadlines as deadlines
cimport fastsock._native.server.unsent as unsent
cimport fastsock._native.services as services
from fastsock._native.interest_list cimport Interest
from fastsock._native.server.context cimport Context

cdef enum:                          # what a connection waits for after advance()
    AWAITS_INPUT
    AWAITS_ROOM                     # in the socket's send buffer, which is full
    AWAITS_BOTH
    ENDED                           # nothing; `close_reason` says why

cdef struct Connection:
    int fd                          # -1: this record is free
    uint32_t generation             # of the record: an event for an earlier connection misses
    uint32_t next_free              # slot number, while free
    # The small ones share a word, as a server may hold a million idle connections.
    uint8_t awaits
    uint8_t close_reason            # once ENDED, CLOSED_EOF or another of counters.pxd
    uint8_t streaming               # 1: a recv() has filled its buffer, and all of it was sent
    uint8_t closing                 # the `close_on` line came: nothing more is sent back
    Interest interest               # of the epoll engine
    char *unsent                    # NULL while the client keeps up
    int64_t active_at               # when a byte last came or went; kept only for sweeps
    uint32_t unsent_start           # the unsent bytes are unsent[unsent_start:unsent_end]
    uint32_t unsent_end
    uint32_t line_matched           # of the current line, see services.end_of_line()
    uint32_t chargen_at             # next byte to send, in the period of the service's lines


cdef inline void init(Connection *connection, Context *context, int fd) noexcept nogil:
    connection.generation += 1
    connection.awaits = first_awaits(context)
    connection.active_at = context.now
    connection.line_matched = connection.chargen_at = 0
    connection.streaming = connection.closing = False
    connection.fd = fd


cdef inline uint32_t first_awaits(Context *context) noexcept nogil:
    """What a new connection waits for."""
    return AWAITS_BOTH if context.service == services.CHARGEN else AWAITS_INPUT


cdef inline uint32_t advance(Connection *connection, Context *context,
                             char *buffer) noexcept nogil:
    """Do what can be done now, and return what the connection waits for next.

    One recv() and one send() at most, so that every connection gets its turn: readiness that is
    left is reported again.
    """
    if lingers(connection):
        return discard(connection, context, buffer, counters.CLOSED_LINE)
    connection.active_at = context.now
    if connection.unsent != NULL:
        return flush(connection, context)
    if context.service == services.ECHO:
        return echo(connection, context, buffer)
    if context.service == services.DISCARD:
        return discard(connection, context, buffer, counters.CLOSED_EOF)
    return generate(connection, context, buffer)


cdef inline short poll_events(uint32_t awaits) noexcept nogil:
    """What poll(2), or epoll with the same bits, is to watch a connection for."""
    if awaits == AWAITS_INPUT:
        return posix.POLLIN
    return posix.POLLOUT if awaits == AWAITS_ROOM else posix.POLLIN | posix.POLLOUT


cdef inline bint overdue(Connection *connection, Context *context) noexcept nogil:
    """Whether a connection has been idle or has lingered for too long; sets its close reason.

    A connection with unsent bytes does not linger yet: only `idle_timeout` applies to it.
    """
    cdef bint lingering = lingers(connection)
    cdef int64_t limit = context.idle_ns
    if lingering and (limit == 0 or limit > deadlines.LINGER_NS):
        limit = deadlines.LINGER_NS
    if limit == 0 or context.now - connection.active_at < limit:
        return False
    connection.close_reason = counters.CLOSED_LINE if lingering else counters.CLOSED_IDLE
    return True


cdef inline bint is_untouched(Connection *connection) noexcept nogil:
    """Whether nothing of it is kept but the descriptor, so that it can be added again later."""
    return (connection.unsent == NULL and not connection.closing
            and connection.line_matched == 0 and connection.chargen_at == 0)


cdef inline bint lingers(Connection *connection) noexcept nogil:
    """Whether all up to the `close_on` line was sent, and only the client's end is awaited."""
    return connection.closing and connection.unsent == NULL


# --- echo ---------------------------------------------------------------------------------------

cdef inline uint32_t echo(Connection *connection, Context *context, char *buffer) noexcept nogil:
    cdef size_t limit = context.buffer_size
    cdef ssize_t size, sent
    if connection.streaming:
        limit = stream_limit(connection, context)
    size = posix.recv(connection.fd, buffer, limit, 0)
    if size <= 0:
        return nothing_received(connection, context, size, counters.CLOSED_EOF)
    atomic.count(&context.counters.bytes_in, size)
    if context.close_line != NULL:
        size = size_to_send(connection, context, buffer, size)
    sent = send_some(connection, context, buffer, size)
    # Half a buffer is enough to stay one: the server is often faster than the client for a while.
    connection.streaming = sent == size and (
        size >= <ssize_t>context.buffer_size >> connection.streaming)
    if sent == size:
        return after_all_sent(connection)
    if sent >= 0 and keep_unsent(connection, context, buffer + sent, size - sent):
        return AWAITS_ROOM
    return fail(connection, context, posix.errno)


cdef inline size_t stream_limit(Connection *connection, Context *context) noexcept nogil:
    """How many bytes to receive at once of a big stream while its client keeps up.

    More than a buffer costs fewer wake-ups on both sides and makes larger segments. No more than
    the socket can take back: else a client that stops reading would keep more than a buffer.
    """
    cdef uint32_t memory[posix.SK_MEMINFO_WMEM_QUEUED + 1]
    cdef posix.socklen_t size = sizeof(memory)
    cdef int64_t room
    if (posix.getsockopt(connection.fd, posix.SOL_SOCKET, posix.SO_MEMINFO, memory, &size) != 0
            # qemu-user fills in 4 bytes; what is behind them was never set.
            or size < sizeof(memory)):
        return context.buffer_size
    # A TCP socket counts what is queued, a Unix socket what the client has not read. Both count
    # the kernel's own share of it too, of which half is more than enough (socket(7)).
    room = <int64_t>memory[posix.SK_MEMINFO_SNDBUF] - <int64_t>max(
        memory[posix.SK_MEMINFO_WMEM_QUEUED], memory[posix.SK_MEMINFO_WMEM_ALLOC])
    return min(max(room // 2, <int64_t>context.buffer_size), <int64_t>context.stream_size)


cdef inline size_t size_to_send(Connection *connection, Context *context,
                                const char *data, size_t size) noexcept nogil:
    """How many bytes of `data` are sent back: those up to the `close_on` line, if it is there."""
    cdef size_t end = services.end_of_line(&connection.line_matched, context.close_line,
                                           context.close_line_size, data, size)
    connection.closing = end != 0
    return end if end else size


cdef inline uint32_t after_all_sent(Connection *connection) noexcept nogil:
    if connection.closing:
        # Not close(): with input unread that would be a reset, which may destroy what was just
        # sent (RFC 1122 4.2.2.13). The client sees the end and closes; see discard().
        posix.shutdown(connection.fd, posix.SHUT_WR)
    return AWAITS_INPUT


# --- the other services -------------------------------------------------------------------------

cdef inline uint32_t discard(Connection *connection, Context *context, char *buffer,
                             int reason) noexcept nogil:
    """Receive and throw away; `reason` is that of the end of the stream."""
    cdef ssize_t size = posix.recv(connection.fd, buffer, context.buffer_size, 0)
    if size <= 0:
        return nothing_received(connection, context, size, reason)
    atomic.count(&context.counters.bytes_in, size)
    return AWAITS_INPUT


cdef inline uint32_t generate(Connection *connection, Context *context,
                              char *buffer) noexcept nogil:
    """Throw away what comes in, and send the next lines of chargen."""
    cdef uint32_t awaits = discard(connection, context, buffer, counters.CLOSED_EOF)
    cdef ssize_t sent
    if awaits == ENDED:
        return ENDED
    sent = send_some(connection, context, context.chargen + connection.chargen_at,
                     context.buffer_size)
    if sent < 0:
        return fail(connection, context, posix.errno)
    connection.chargen_at = <uint32_t>((connection.chargen_at + sent) % services.PERIOD)
    return AWAITS_BOTH


# --- what recv() and send() may answer ----------------------------------------------------------

cdef inline uint32_t nothing_received(Connection *connection, Context *context, ssize_t size,
                                      int reason) noexcept nogil:
    """After recv() returned 0 or -1."""
    if size == 0:
        return end(connection, reason)
    if posix.errno == posix.EAGAIN or posix.errno == posix.EINTR:
        return AWAITS_INPUT
    return fail(connection, context, posix.errno)


cdef inline uint32_t flush(Connection *connection, Context *context) noexcept nogil:
    """Send more of the unsent bytes."""
    # A reset arrives here too, as an error or a hang-up: send() then says which it was.
    cdef ssize_t sent = send_some(connection, context,
                                  connection.unsent + connection.unsent_start,
                                  connection.unsent_end - connection.unsent_start)
    if sent < 0:
        return fail(connection, context, posix.errno)
    connection.unsent_start += <uint32_t>sent
    if connection.unsent_start < connection.unsent_end:
        return AWAITS_ROOM
    free_unsent(connection, context)
    return after_all_sent(connection)


cdef inline ssize_t send_some(Connection *connection, Context *context,
                              const char *data, size_t size) noexcept nogil:
    """Send what the socket takes now; -1 only for an error that ends the connection."""
    # MSG_NOSIGNAL: a library must not change what SIGPIPE does to the process.
    cdef ssize_t sent = posix.send(connection.fd, data, size, posix.MSG_NOSIGNAL)
    if sent >= 0:
        atomic.count(&context.counters.bytes_out, sent)
        return sent
    return 0 if posix.errno == posix.EAGAIN or posix.errno == posix.EINTR else -1


cdef inline bint keep_unsent(Connection *connection, Context *context,
                             const char *data, size_t size) noexcept nogil:
    """Keep what send() did not take; False, with errno ENOMEM, without memory."""
    connection.unsent = unsent.take(&context.unsent, size)
    if connection.unsent == NULL:
        return False
    memcpy(connection.unsent, data, size)
    connection.unsent_start = 0
    connection.unsent_end = <uint32_t>size
    return True


cdef inline void free_unsent(Connection *connection, Context *context) noexcept nogil:
    if connection.unsent != NULL:
        unsent.give_back(&context.unsent, connection.unsent, connection.unsent_end)
        connection.unsent = NULL


cdef inline uint32_t fail(Connection *connection, Context *context, int error) noexcept nogil:
    counters.count_error(&context.counters, error)
    return end(connection, counters.close_reason(error))


cdef inline uint32_t end(Connection *connection, int reason) noexcept nogil:
    connection.close_reason = reason
    return ENDED
