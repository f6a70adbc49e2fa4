# One connection, served by a thread or a process of its own that blocks: steps 6 and 7.
#
# recv() waits for data and send() for room. So a client that does not read stops its own connection
# alone, nothing more is received from it, and TCP's flow control does the rest. An echo costs two
# system calls.
#
# A call that blocks must be ended from outside: by another thread or by a signal handler. end()
# shuts the socket down, which wakes a call that sleeps in it and lets none sleep again.

from libc.stdint cimport int64_t, uint32_t

cimport fastsock._native.atomic as atomic
cimport fastsock._native.posix as posix
cimport fastsock._native.server.counters as counters
cimport fastsock._native.server.deadlines as deadlines
cimport fastsock._native.services as services
from fastsock._native.server.context cimport Context
from fastsock._native.server.counters cimport Counters

cdef struct HandlerState:           # shared between the handler and the loop that accepts
    int ending                      # set before the socket is shut down
    int waiting_for_room            # send() may be asleep
    Counters counters               # of this connection


cdef inline void serve(int fd, HandlerState *state, char *buffer,
                       Context *context) noexcept nogil:
    """Serve until the client has finished or end() is called."""
    cdef int reason
    if context.idle_ns:
        limit_waiting(fd, context.idle_ns)
    if context.service == services.CHARGEN:
        reason = generate(fd, state, buffer, context)
    else:
        reason = echo_or_discard(fd, state, buffer, context)
    atomic.count(&state.counters.closed[reason], 1)


cdef inline int echo_or_discard(int fd, HandlerState *state, char *buffer,
                                Context *context) noexcept nogil:
    """Return the reason of the end."""
    cdef bint last = False
    cdef uint32_t matched = 0
    cdef size_t end_of_line
    cdef ssize_t received
    while not last:
        last = is_ending(state)     # before recv(): what has arrived by then is still echoed
        received = posix.recv(fd, buffer, context.buffer_size, 0)
        if received < 0 and posix.errno == posix.EINTR:
            continue
        if received <= 0:
            return nothing_received(state, received)
        atomic.count(&state.counters.bytes_in, received)
        if context.service == services.DISCARD:
            continue
        end_of_line = 0
        if context.close_line != NULL:
            end_of_line = services.end_of_line(&matched, context.close_line,
                                               context.close_line_size, buffer, received)
        if not send_all(fd, state, buffer, end_of_line if end_of_line else received):
            return fail(state, posix.errno)
        if end_of_line:
            return linger(fd, state, buffer, context)
    return counters.CLOSED_STOPPED


cdef inline int generate(int fd, HandlerState *state, char *buffer,
                         Context *context) noexcept nogil:
    """Send the lines of chargen, and throw away what comes in meanwhile."""
    cdef size_t chargen_at = 0
    cdef ssize_t received
    while not is_ending(state):
        received = posix.recv(fd, buffer, context.buffer_size, posix.MSG_DONTWAIT)
        if received > 0:
            atomic.count(&state.counters.bytes_in, received)
        elif received == 0 or (posix.errno != posix.EAGAIN and posix.errno != posix.EINTR):
            return nothing_received(state, received)
        if not send_all(fd, state, context.chargen + chargen_at, context.buffer_size):
            return fail(state, posix.errno)
        chargen_at = (chargen_at + context.buffer_size) % services.PERIOD
    return counters.CLOSED_STOPPED


cdef inline int linger(int fd, HandlerState *state, char *buffer, Context *context) noexcept nogil:
    """After the `close_on` line was sent back: wait for the client's end, LINGER_NS at most.

    Not close(): with input unread that would be a reset, which may destroy what was just sent
    (RFC 1122 4.2.2.13).
    """
    cdef ssize_t received = 1
    limit_waiting(fd, deadlines.LINGER_NS)
    posix.shutdown(fd, posix.SHUT_WR)
    while received > 0 and not is_ending(state):
        received = posix.recv(fd, buffer, context.buffer_size, 0)
        if received > 0:
            atomic.count(&state.counters.bytes_in, received)
    return counters.CLOSED_LINE


cdef inline void limit_waiting(int fd, int64_t ns) noexcept nogil:
    """Let recv() and send() fail with EAGAIN after `ns` without a byte (socket(7))."""
    cdef posix.timeval limit
    limit.tv_sec = ns // 1000000000
    limit.tv_usec = max(ns % 1000000000 // 1000, 1)     # 0 would be no limit
    posix.setsockopt(fd, posix.SOL_SOCKET, posix.SO_RCVTIMEO, &limit, sizeof(limit))
    posix.setsockopt(fd, posix.SOL_SOCKET, posix.SO_SNDTIMEO, &limit, sizeof(limit))


cdef inline bint send_all(int fd, HandlerState *state, const char *data,
                          size_t size) noexcept nogil:
    """Send everything; False, with errno, if that fails or end() is called."""
    # First without waiting, which is enough as long as the client keeps up.
    cdef int flags = posix.MSG_NOSIGNAL | posix.MSG_DONTWAIT
    cdef size_t done = 0
    cdef ssize_t sent
    while True:
        # MSG_NOSIGNAL: a library must not change what SIGPIPE does to the process.
        sent = posix.send(fd, data + done, size - done, flags)
        if sent >= 0:
            atomic.count(&state.counters.bytes_out, sent)
            done += sent
            if done == size:
                break
        elif posix.errno == posix.EAGAIN and not flags & posix.MSG_DONTWAIT:
            return False            # SO_SNDTIMEO: it waited for as long as it may
        elif posix.errno != posix.EAGAIN and posix.errno != posix.EINTR:
            return False
        # The order of this store and this load matters, and so does the order in end(): at least
        # one of the two sides sees what the other has written.
        atomic.store_int(&state.waiting_for_room, 1, atomic.SEQ_CST)
        if is_ending(state):
            return False
        flags = posix.MSG_NOSIGNAL
    atomic.store_int(&state.waiting_for_room, 0, atomic.RELAXED)
    return True


cdef inline int nothing_received(HandlerState *state, ssize_t received) noexcept nogil:
    if received == 0:
        return counters.CLOSED_STOPPED if is_ending(state) else counters.CLOSED_EOF
    return fail(state, posix.errno)


cdef inline int fail(HandlerState *state, int error) noexcept nogil:
    """Return the reason of the end."""
    if is_ending(state):
        return counters.CLOSED_STOPPED  # EPIPE, which end() has caused
    if error == posix.EAGAIN:
        return counters.CLOSED_IDLE
    counters.count_error(&state.counters, error)
    return counters.close_reason(error)


cdef inline bint is_ending(HandlerState *state) noexcept nogil:
    return atomic.load_int(&state.ending, atomic.SEQ_CST) != 0


cdef inline void end(int fd, HandlerState *state) noexcept nogil:
    """End the connection without waiting; what has arrived is still echoed where there is room.

    Called from another thread, while `fd` cannot be closed, or from a signal handler.
    """
    atomic.store_int(&state.ending, 1, atomic.SEQ_CST)
    if atomic.load_int(&state.waiting_for_room, atomic.SEQ_CST):
        posix.shutdown(fd, posix.SHUT_RDWR)
    else:
        posix.shutdown(fd, posix.SHUT_RD)
