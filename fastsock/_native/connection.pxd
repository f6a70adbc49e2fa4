# One connection, and how an engine that never blocks goes on with it: steps 6 and 7.
#
# `send` may take less than it was given. The rest is kept for that connection, and nothing more is
# read from it until the rest is gone. So a client that never reads costs at most one buffer, and
# TCP's flow control does the rest. And because nothing is read while something is owed, end-of-file
# can only be seen when nothing is owed: a half-close needs no state of its own.

from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastsock._native cimport atomic, engine, posix
from fastsock._native.engine cimport Context

cdef enum:                          # what a connection waits for after advance()
    AWAITS_INPUT
    AWAITS_ROOM                     # for output: the socket's send buffer is full
    ENDED                           # nothing; ENDED + a close reason says why

cdef struct Connection:
    int fd                          # -1: this record is free
    uint32_t generation             # goes up with each owner, so that old events miss
    uint32_t next_free              # slot number, while free
    uint32_t awaits                 # AWAITS_INPUT or AWAITS_ROOM
    uint32_t rest_start             # what send() left: rest[rest_start:rest_end]
    uint32_t rest_end
    char *rest                      # NULL while the client keeps up


cdef inline uint32_t advance(Connection *connection, Context *context,
                             char *buffer) noexcept nogil:
    """Do what can be done now, one recv and one send at most; say what comes next.

    One of each, so that every connection gets its turn: readiness that is left is reported again.
    """
    if connection.rest != NULL:
        return flush(connection, context)
    return receive(connection, context, buffer)


cdef inline uint32_t receive(Connection *connection, Context *context,
                             char *buffer) noexcept nogil:
    cdef ssize_t size = posix.recv(connection.fd, buffer, context.buffer_size, 0)
    cdef ssize_t sent
    if size > 0:
        atomic.count(&context.counters.bytes_in, size)
        sent = send_some(connection, context, buffer, size)
        if sent == size:
            return AWAITS_INPUT
        if sent >= 0 and keep_rest(connection, buffer + sent, size - sent):
            return AWAITS_ROOM
        return failed(context, posix.errno)
    if size == 0:
        return ENDED + engine.CLOSED_EOF
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
    forget_rest(connection)
    return AWAITS_INPUT


cdef inline ssize_t send_some(Connection *connection, Context *context,
                              const char *data, size_t size) noexcept nogil:
    """Send what the socket takes now; -1 only for an error that ends the connection."""
    # MSG_NOSIGNAL: a library must not change what SIGPIPE does to the process.
    cdef ssize_t sent = posix.send(connection.fd, data, size, posix.MSG_NOSIGNAL)
    if sent >= 0:
        atomic.count(&context.counters.bytes_out, sent)
        return sent
    return 0 if posix.errno == posix.EAGAIN or posix.errno == posix.EINTR else -1


cdef inline bint keep_rest(Connection *connection, const char *data, size_t size) noexcept nogil:
    """Keep what was not sent; False, with errno ENOMEM, without memory for it."""
    connection.rest = <char *>malloc(size)
    if connection.rest == NULL:
        return False
    memcpy(connection.rest, data, size)
    connection.rest_start = 0
    connection.rest_end = <uint32_t>size
    return True


cdef inline void forget_rest(Connection *connection) noexcept nogil:
    free(connection.rest)
    connection.rest = NULL


cdef inline uint32_t failed(Context *context, int error) noexcept nogil:
    engine.count_error(context, error)
    return ENDED + engine.close_reason(error)
