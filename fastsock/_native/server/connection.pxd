# One connection, and how an engine that never blocks goes on with it: steps 6 and 7.
#
# `send` may take less than it was given. The rest is kept for that connection, and nothing more is
# read from it until the rest is gone. So a client that never reads costs at most one buffer, and
# TCP's flow control does the rest. And because nothing is read while something is owed, end-of-file
# can only be seen when nothing is owed: a half-close needs no state of its own.

from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy

cimport fastsock._native.atomic as atomic
cimport fastsock._native.server.engine as engine
cimport fastsock._native.posix as posix
cimport fastsock._native.services as service
from fastsock._native.server.engine cimport Context
from fastsock._native.server.unsent cimport give_back, take_room

cdef enum:                          # what a connection waits for after advance()
    AWAITS_INPUT
    AWAITS_ROOM                     # for output: the socket's send buffer is full
    AWAITS_BOTH
    ENDED                           # nothing; ENDED + a close reason says why

cdef struct Connection:
    int fd                          # -1: this record is free
    uint32_t generation             # goes up with each owner, so that old events miss
    uint32_t next_free              # slot number, while free
    uint32_t awaits
    uint32_t line_matched           # of the current line, see service.end_of_line()
    bint streaming                  # the last recv() filled its buffer, and all of it was sent
    bint closing                    # the `close_on` line came: nothing more is sent back
    int64_t active_at               # when something last came or went, if somebody sweeps
    uint32_t rest_start             # what send() left: rest[rest_start:rest_end]
    uint32_t rest_end
    char *rest                      # NULL while the client keeps up


cdef inline uint32_t advance(Connection *connection, Context *context,
                             char *buffer) noexcept nogil:
    """Do what can be done now, one recv and one send at most; say what comes next.

    One of each, so that every connection gets its turn: readiness that is left is reported again.
    """
    if leaving(connection):
        return discard(connection, context, buffer, engine.CLOSED_LINE)
    connection.active_at = context.now
    if connection.rest != NULL:
        return flush(connection, context)
    if context.service == service.ECHO:
        return echo(connection, context, buffer)
    if context.service == service.DISCARD:
        return discard(connection, context, buffer, engine.CLOSED_EOF)
    return generate(connection, context, buffer)


cdef inline uint32_t first_awaits(Context *context) noexcept nogil:
    """What a new connection waits for."""
    return AWAITS_BOTH if context.service == service.CHARGEN else AWAITS_INPUT


cdef inline short poll_events(uint32_t awaits) noexcept nogil:
    """What poll(2) is to watch a connection for."""
    if awaits == AWAITS_INPUT:
        return posix.POLLIN
    return posix.POLLOUT if awaits == AWAITS_ROOM else posix.POLLIN | posix.POLLOUT


cdef inline bint overdue(Connection *connection, Context *context) noexcept nogil:
    """Whether a connection has been idle, or is taking its leave, for too long.

    It takes its leave when all is sent: who is still owed bytes may be as slow as anybody.
    """
    cdef int64_t limit = context.idle_ns
    if leaving(connection) and (limit == 0 or limit > engine.LINGER_NS):
        limit = engine.LINGER_NS
    return limit != 0 and context.now - connection.active_at >= limit


cdef inline bint leaving(Connection *connection) noexcept nogil:
    """Whether all up to the `close_on` line was sent back, and only the client's end is awaited."""
    return connection.closing and connection.rest == NULL


cdef inline int idle_reason(Connection *connection) noexcept nogil:
    return engine.CLOSED_LINE if leaving(connection) else engine.CLOSED_IDLE


cdef inline uint32_t echo(Connection *connection, Context *context, char *buffer) noexcept nogil:
    cdef size_t limit = context.buffer_size
    cdef ssize_t size, sent
    if connection.streaming:
        limit = stream_limit(connection, context)
    size = posix.recv(connection.fd, buffer, limit, 0)
    if size <= 0:
        return nothing_received(context, size, engine.CLOSED_EOF)
    atomic.count(&context.counters.bytes_in, size)
    if context.close_line != NULL:
        size = up_to_closing_line(connection, context, buffer, size)
    sent = send_some(connection, context, buffer, size)
    connection.streaming = sent == size and size >= <ssize_t>context.buffer_size
    if sent == size:
        return sent_all(connection)
    if sent >= 0 and keep_rest(connection, context, buffer + sent, size - sent):
        return AWAITS_ROOM
    return failed(context, posix.errno)


cdef inline size_t stream_limit(Connection *connection, Context *context) noexcept nogil:
    """How much to take in at once of a big stream whose client keeps up.

    More than a buffer costs fewer wake-ups on both sides and larger segments; but no more than the
    socket will take back, or a client that stops reading would keep more than a buffer.
    """
    cdef int owed = 0, room = 0
    cdef posix.socklen_t size = sizeof(room)
    if (posix.ioctl(connection.fd, posix.TIOCOUTQ, &owed) != 0
            or posix.getsockopt(connection.fd, posix.SOL_SOCKET, posix.SO_SNDBUF, &room,
                                &size) != 0):
        return context.buffer_size
    # Of SO_SNDBUF the kernel keeps half for its own (socket(7)).
    room = room // 2 - owed
    return min(max(<int64_t>room, <int64_t>context.buffer_size), <int64_t>context.stream_size)


cdef inline size_t up_to_closing_line(Connection *connection, Context *context,
                                      const char *data, size_t size) noexcept nogil:
    """How much of `data` is to be sent back; notes when that is the end."""
    cdef size_t end = service.end_of_line(&connection.line_matched, context.close_line,
                                          context.close_line_size, data, size)
    connection.closing = end != 0
    return end if end else size


cdef inline uint32_t sent_all(Connection *connection) noexcept nogil:
    if connection.closing:
        # Not close(): with input unread that would be a reset, which may destroy what was just
        # sent (RFC 1122 4.2.2.13). The client sees the end and closes; see discard().
        posix.shutdown(connection.fd, posix.SHUT_WR)
    return AWAITS_INPUT


cdef inline uint32_t discard(Connection *connection, Context *context, char *buffer,
                             int reason) noexcept nogil:
    cdef ssize_t size = posix.recv(connection.fd, buffer, context.buffer_size, 0)
    if size <= 0:
        return nothing_received(context, size, reason)
    atomic.count(&context.counters.bytes_in, size)
    return AWAITS_INPUT


cdef inline uint32_t generate(Connection *connection, Context *context,
                              char *buffer) noexcept nogil:
    """Throw away what comes in, and send on from where the lines stopped: at `rest_start`."""
    cdef uint32_t awaits = discard(connection, context, buffer, engine.CLOSED_EOF)
    cdef ssize_t sent
    if awaits >= ENDED:
        return awaits
    sent = send_some(connection, context, context.chargen + connection.rest_start,
                     context.buffer_size)
    if sent < 0:
        return failed(context, posix.errno)
    connection.rest_start = <uint32_t>((connection.rest_start + sent) % service.PERIOD)
    return AWAITS_BOTH


cdef inline uint32_t nothing_received(Context *context, ssize_t size, int reason) noexcept nogil:
    """What recv() returning 0 or -1 means; `reason` is that of an end in good order."""
    if size == 0:
        return ENDED + reason
    if posix.errno == posix.EAGAIN or posix.errno == posix.EINTR:
        return AWAITS_INPUT
    return failed(context, posix.errno)


cdef inline uint32_t flush(Connection *connection, Context *context) noexcept nogil:
    # A reset arrives here too, as an error or a hang-up: send() then says which it was.
    cdef ssize_t sent = send_some(connection, context,
                                  connection.rest + connection.rest_start,
                                  connection.rest_end - connection.rest_start)
    if sent < 0:
        return failed(context, posix.errno)
    connection.rest_start += <uint32_t>sent
    if connection.rest_start < connection.rest_end:
        return AWAITS_ROOM
    forget_rest(connection, context)
    return sent_all(connection)


cdef inline ssize_t send_some(Connection *connection, Context *context,
                              const char *data, size_t size) noexcept nogil:
    """Send what the socket takes now; -1 only for an error that ends the connection."""
    # MSG_NOSIGNAL: a library must not change what SIGPIPE does to the process.
    cdef ssize_t sent = posix.send(connection.fd, data, size, posix.MSG_NOSIGNAL)
    if sent >= 0:
        atomic.count(&context.counters.bytes_out, sent)
        return sent
    return 0 if posix.errno == posix.EAGAIN or posix.errno == posix.EINTR else -1


cdef inline bint keep_rest(Connection *connection, Context *context,
                           const char *data, size_t size) noexcept nogil:
    """Keep what was not sent; False, with errno ENOMEM, without memory for it."""
    connection.rest = take_room(&context.rests, size)
    if connection.rest == NULL:
        return False
    memcpy(connection.rest, data, size)
    connection.rest_start = 0
    connection.rest_end = <uint32_t>size
    return True


cdef inline void forget_rest(Connection *connection, Context *context) noexcept nogil:
    if connection.rest != NULL:
        give_back(&context.rests, connection.rest, connection.rest_end)
        connection.rest = NULL


cdef inline uint32_t failed(Context *context, int error) noexcept nogil:
    engine.count_error(context, error)
    return ENDED + engine.close_reason(error)
