# How the load client sends on streams: the messages that are due, and then the half-close.

from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

cimport fastsock._native.client.connection as connection
cimport fastsock._native.client.load_run as load_run
cimport fastsock._native.client.pattern as pattern
cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix
from fastsock._native.client.connection cimport Connection, StreamRun
from fastsock._native.client.load_run cimport LoadRun

cdef enum:
    DUE_BURST = 1024                # messages started before the next receive
    UPLOAD_BURST = 64               # send() calls on one connection before the next one's turn
    OUTSTANDING_MAX = 65536         # messages per connection; bounds the memory of send times


cdef inline bint grow_ring(Connection *conn) noexcept nogil:
    cdef uint32_t mask = conn.ring_mask * 2 + 1
    cdef int64_t *ring
    cdef uint64_t message
    if mask >= OUTSTANDING_MAX:
        return False
    ring = <int64_t *>malloc((<size_t>mask + 1) * sizeof(int64_t))
    if ring == NULL:
        return False
    message = conn.completed
    while message < conn.started:
        ring[message & mask] = conn.sent_at[message & conn.ring_mask]
        message += 1
    free(conn.sent_at)
    conn.sent_at = ring
    conn.ring_mask = mask
    return True


cdef inline void start_messages(StreamRun *run, uint32_t i, int64_t now) noexcept nogil:
    """Start due messages, up to a piece: the send times of later ones would be too early."""
    cdef Connection *conn = &run.connections[i]
    if conn.started == conn.completed:
        conn.progress_at = now      # nothing was outstanding: the timeout starts now
    while conn.started < min(conn.due, conn.reopen_after) and conn.unsent < pattern.PIECE:
        if conn.started - conn.completed > conn.ring_mask and not grow_ring(conn):
            return
        conn.sent_at[conn.started & conn.ring_mask] = now
        load_run.note_send(&run.base, i, conn.started, now)
        conn.started += 1
        conn.unsent += run.size


cdef inline void half_close_if_done(StreamRun *run, uint32_t i, int64_t now) noexcept nogil:
    """Half-close after the last byte, of the run or of this opening of the connection.

    A connection that has sent its quota does not wait for the others: a server with a limit of
    connections may accept the next one only when this one is closed.
    """
    cdef Connection *conn = &run.connections[i]
    if conn.state != connection.OPEN or conn.unsent:
        return
    if connection.has_started_quota(run, i) or (
            run.base.phase == load_run.FINISHING and conn.started == conn.due):
        connection.half_close(conn, connection.HALF_CLOSED, now)
    elif conn.started == conn.reopen_after:
        connection.half_close(conn, connection.REOPENING, now)


cdef inline void upload(StreamRun *run, uint32_t i, int64_t now) noexcept nogil:
    """One send() per message while the socket has room; nothing comes back.

    The burst is limited: a fast server would otherwise keep the other connections waiting.
    """
    cdef Connection *conn = &run.connections[i]
    cdef ssize_t sent, burst = 0
    cdef int _
    for _ in range(UPLOAD_BURST):
        if conn.unsent == 0:
            if conn.started == min(conn.due, conn.reopen_after):
                break
            load_run.note_send(&run.base, i, conn.started, now)
            conn.started += 1
            conn.unsent = run.size
        sent = posix.send(conn.fd, run.pattern + conn.send_offset,
                          min(conn.unsent, <uint64_t>pattern.PIECE), posix.MSG_NOSIGNAL)
        if sent < 0:
            if posix.errno == posix.EINTR:
                continue
            if posix.errno == posix.EAGAIN:
                break
            connection.fail_with_errno(run, conn, posix.errno)
            return
        conn.unsent -= sent
        conn.send_offset = pattern.advance(conn.send_offset, sent)
        now = conn.progress_at = clock.monotonic_ns()
        if conn.unsent == 0:
            note_uploaded(run, conn, now)
        burst += sent
        if burst >= pattern.PIECE:
            break
    if conn.unsent or conn.started < min(conn.due, conn.reopen_after):
        connection.set_watched(run, i, posix.EPOLLIN | posix.EPOLLOUT)
    else:
        connection.set_watched(run, i, posix.EPOLLIN)
    half_close_if_done(run, i, now)


cdef inline void note_uploaded(StreamRun *run, Connection *conn, int64_t now) noexcept nogil:
    conn.completed += 1
    run.base.messages += run.base.window_start <= now < run.base.window_end
    load_run.note_complete(&run.base, now)


cdef inline void send_due(StreamRun *run, uint32_t i, int64_t now) noexcept nogil:
    """Step 7: start due messages, send what the socket takes, half-close after the last byte."""
    if run.mode == connection.MODE_SEND:
        upload(run, i, now)
    else:
        send_messages(run, i, now)


cdef inline void send_messages(StreamRun *run, uint32_t i, int64_t now) noexcept nogil:
    cdef Connection *conn = &run.connections[i]
    cdef ssize_t sent
    while True:
        if conn.unsent == 0:
            start_messages(run, i, now)
            if conn.unsent == 0:
                break
        sent = posix.send(conn.fd, run.pattern + conn.send_offset,
                          min(conn.unsent, <uint64_t>pattern.PIECE), posix.MSG_NOSIGNAL)
        if sent < 0:
            if posix.errno == posix.EINTR:
                continue
            if posix.errno != posix.EAGAIN:
                connection.fail_with_errno(run, conn, posix.errno)
                return
            connection.set_watched(run, i, posix.EPOLLIN | posix.EPOLLOUT)
            return
        conn.unsent -= sent
        conn.send_offset = pattern.advance(conn.send_offset, sent)
        if conn.unsent == 0 and conn.started < min(conn.due, conn.reopen_after):
            now = clock.monotonic_ns()
    if conn.watched != posix.EPOLLIN:
        connection.set_watched(run, i, posix.EPOLLIN)
    half_close_if_done(run, i, now)


cdef inline void add_due(StreamRun *run, uint32_t i, uint64_t messages) noexcept nogil:
    """Make `messages` more due, within the connection's quota."""
    cdef Connection *conn = &run.connections[i]
    conn.due += messages
    if run.base.quota:
        conn.due = min(conn.due, load_run.quota_of(&run.base, i))


cdef inline void start_closed_loop(StreamRun *run, int64_t now) noexcept nogil:
    cdef uint32_t i
    for i in range(run.base.count):
        if run.connections[i].state == connection.OPEN:
            # An upload gets no answers, and each answer would make one message due.
            add_due(run, i, UINT64_MAX if run.mode == connection.MODE_SEND else run.depth)
            send_due(run, i, now)


cdef inline void start_open_loop(StreamRun *run, int64_t now) noexcept nogil:
    cdef uint32_t i
    for i in range(run.base.count):
        half_close_if_done(run, i, now)         # the quota may be less than the connections


cdef inline void follow_schedule(StreamRun *run, int64_t now) noexcept nogil:
    """Open loop: send the messages that are due by now."""
    cdef LoadRun *base = &run.base
    cdef uint64_t limit = load_run.quota_of_thread(base) if base.quota else UINT64_MAX
    cdef uint64_t burst_end = base.next_due + DUE_BURST
    cdef uint32_t i
    while base.next_due < limit and load_run.due_at(base, base.next_due) <= now:
        i = <uint32_t>(base.next_due % base.count)
        base.next_due += 1
        # A connection that is being opened again sends the message late, when it is open.
        if run.connections[i].state != connection.CLOSED:
            run.connections[i].due += 1
        if run.connections[i].state == connection.OPEN:
            send_due(run, i, clock.monotonic_ns())
        if (base.next_due == burst_end and base.phase == load_run.RUNNING
                and now < base.window_end):
            return
