# One connection, served by somebody of its own who may block: steps 6 and 7.
#
# recv() waits for data and send() for room, so a client that does not read stops its own
# conversation, nothing more is read from it, and TCP's flow control does the rest. Two system calls
# an echo, nothing else.
#
# What blocks must be ended by somebody else: another thread, or a signal handler. end_talk() shuts
# the socket down, which wakes whoever sleeps in it, and nobody can fall asleep there again.

from libc.stdint cimport int64_t, uint32_t

cimport fastsock._native.atomic as atomic
cimport fastsock._native.server.engine as engine
cimport fastsock._native.posix as posix
cimport fastsock._native.services as service
from fastsock._native.server.engine cimport Context, Counters

cdef struct Talk:
    int ending                      # somebody wants an end; set before the socket is shut down
    int waiting_for_room            # send() may be asleep
    Counters counters               # of this conversation alone


cdef inline void converse(int fd, Talk *talk, char *buffer, Context *context) noexcept nogil:
    """Serve until the client has finished or end_talk() is called; count everything."""
    cdef int reason
    if context.idle_ns:
        limit_waiting(fd, context.idle_ns)
    if context.service == service.CHARGEN:
        reason = generate(fd, talk, buffer, context)
    else:
        reason = receive(fd, talk, buffer, context)
    atomic.count(&talk.counters.closed[reason], 1)


cdef inline int receive(int fd, Talk *talk, char *buffer, Context *context) noexcept nogil:
    """Echo or discard; returns the reason of the end."""
    cdef bint last = False
    cdef uint32_t matched = 0
    cdef size_t end
    cdef ssize_t received
    while not last:
        last = is_ending(talk)      # before recv(): what has arrived by then is still echoed
        received = posix.recv(fd, buffer, context.buffer_size, 0)
        if received < 0 and posix.errno == posix.EINTR:
            continue
        if received <= 0:
            return nothing_received(talk, received)
        atomic.count(&talk.counters.bytes_in, received)
        if context.service == service.DISCARD:
            continue
        end = 0
        if context.close_line != NULL:
            end = service.end_of_line(&matched, context.close_line, context.close_line_size,
                                      buffer, received)
        if not send_all(fd, talk, buffer, end if end else received):
            return failed(talk, posix.errno)
        if end:
            return take_leave(fd, talk, buffer, context)
    return engine.CLOSED_STOPPED


cdef inline int generate(int fd, Talk *talk, char *buffer, Context *context) noexcept nogil:
    """Send the lines, and throw away what has come in meanwhile."""
    cdef size_t place = 0
    cdef ssize_t received
    while not is_ending(talk):
        received = posix.recv(fd, buffer, context.buffer_size, posix.MSG_DONTWAIT)
        if received > 0:
            atomic.count(&talk.counters.bytes_in, received)
        elif received == 0 or (posix.errno != posix.EAGAIN and posix.errno != posix.EINTR):
            return nothing_received(talk, received)
        if not send_all(fd, talk, context.chargen + place, context.buffer_size):
            return failed(talk, posix.errno)
        place = (place + context.buffer_size) % service.PERIOD
    return engine.CLOSED_STOPPED


cdef inline int take_leave(int fd, Talk *talk, char *buffer, Context *context) noexcept nogil:
    """The `close_on` line was sent back: wait for the client's end, though not for long.

    Not close(): with input unread that would be a reset, which may destroy what was just sent
    (RFC 1122 4.2.2.13).
    """
    cdef ssize_t received = 1
    limit_waiting(fd, engine.LINGER_NS)
    posix.shutdown(fd, posix.SHUT_WR)
    while received > 0 and not is_ending(talk):
        received = posix.recv(fd, buffer, context.buffer_size, 0)
        if received > 0:
            atomic.count(&talk.counters.bytes_in, received)
    return engine.CLOSED_LINE


cdef inline void limit_waiting(int fd, int64_t ns) noexcept nogil:
    """recv() and send() fail with EAGAIN after so long without a byte (socket(7))."""
    cdef posix.timeval limit
    limit.tv_sec = ns // 1000000000
    limit.tv_usec = max(ns % 1000000000 // 1000, 1)     # 0 would be for ever
    posix.setsockopt(fd, posix.SOL_SOCKET, posix.SO_RCVTIMEO, &limit, sizeof(limit))
    posix.setsockopt(fd, posix.SOL_SOCKET, posix.SO_SNDTIMEO, &limit, sizeof(limit))


cdef inline bint send_all(int fd, Talk *talk, const char *data, size_t size) noexcept nogil:
    """Send everything; False, with errno, if that is not to be."""
    # First without waiting, which is enough as long as the client keeps up.
    cdef int flags = posix.MSG_NOSIGNAL | posix.MSG_DONTWAIT
    cdef size_t done = 0
    cdef ssize_t sent
    while True:
        # MSG_NOSIGNAL: a library must not change what SIGPIPE does to the process.
        sent = posix.send(fd, data + done, size - done, flags)
        if sent >= 0:
            atomic.count(&talk.counters.bytes_out, sent)
            done += sent
            if done == size:
                break
        elif posix.errno == posix.EAGAIN and not flags & posix.MSG_DONTWAIT:
            return False            # it waited for as long as it may
        elif posix.errno != posix.EAGAIN and posix.errno != posix.EINTR:
            return False
        # The order of these two matters, and so does that of the two in end_talk(): of both sides
        # at least one sees what the other has written.
        atomic.store_int(&talk.waiting_for_room, 1, atomic.SEQ_CST)
        if is_ending(talk):
            return False
        flags = posix.MSG_NOSIGNAL
    atomic.store_int(&talk.waiting_for_room, 0, atomic.RELAXED)
    return True


cdef inline int nothing_received(Talk *talk, ssize_t received) noexcept nogil:
    if received == 0:
        return engine.CLOSED_STOPPED if is_ending(talk) else engine.CLOSED_EOF
    return failed(talk, posix.errno)


cdef inline int failed(Talk *talk, int error) noexcept nogil:
    if is_ending(talk):
        return engine.CLOSED_STOPPED    # EPIPE then, and of our own making
    if error == posix.EAGAIN:
        return engine.CLOSED_IDLE
    engine.tally_error(&talk.counters, error)
    return engine.close_reason(error)


cdef inline bint is_ending(Talk *talk) noexcept nogil:
    return atomic.load_int(&talk.ending, atomic.SEQ_CST) != 0


cdef inline void end_talk(int fd, Talk *talk) noexcept nogil:
    """End it without waiting; what has arrived is still echoed, unless that would have to wait.

    From another thread, while `fd` cannot be closed, or from a signal handler.
    """
    atomic.store_int(&talk.ending, 1, atomic.SEQ_CST)
    if atomic.load_int(&talk.waiting_for_room, atomic.SEQ_CST):
        posix.shutdown(fd, posix.SHUT_RDWR)
    else:
        posix.shutdown(fd, posix.SHUT_RD)
