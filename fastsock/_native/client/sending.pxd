# How the load client sends on streams: the messages that are due, and then the half-close.

from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

cimport fastsock._native.client.connection as connection
cimport fastsock._native.client.load_run as load_run
cimport fastsock._native.client.pattern as pattern
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
        note_send(run, i, now)
        conn.started += 1
        run.base.outstanding += 1
        conn.unsent += run.size


cdef inline void note_send(StreamRun *run, uint32_t i, int64_t now) noexcept nogil:
    cdef Connection *conn = &run.connections[i]
    if run.base.open_loop:
        load_run.note_send(
            &run.base, load_run.intended_at(&run.base, &conn.due_times, i, conn.started),
            conn.room_since, now)


cdef inline void half_close_if_done(StreamRun *run, uint32_t i, int64_t now) noexcept nogil:
    """Half-close after the last answer, of the run or of this opening of the connection.

    Or after the last byte, where the half-close itself is tested or nothing is answered. A proxy
    may take a half-close for the end of both directions.

    A connection that has sent its quota does not wait for the others: a server with a limit of
    connections may accept the next one only when this one is closed.
    """
    cdef Connection *conn = &run.connections[i]
    if conn.state != connection.OPEN or conn.unsent:
        return
    if conn.completed < conn.started and not run.half_close_at_once:
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
            note_send(run, i, now)
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
        now = conn.progress_at = load_run.read_clock(&run.base)
        if conn.unsent == 0:
            note_uploaded(run, i, now)
        burst += sent
        if burst >= pattern.PIECE:
            break
    if conn.unsent or conn.started < min(conn.due, conn.reopen_after):
        connection.set_watched(run, i, posix.EPOLLIN | posix.EPOLLOUT)
    else:
        has_room(run, i, now)
    half_close_if_done(run, i, now)


cdef inline void has_room(StreamRun *run, uint32_t i, int64_t now) noexcept nogil:
    """The socket has taken all there was, and takes more at once."""
    if run.connections[i].watched & posix.EPOLLOUT:
        run.connections[i].room_since = now
        connection.set_watched(run, i, posix.EPOLLIN)


cdef inline void note_uploaded(StreamRun *run, uint32_t i, int64_t now) noexcept nogil:
    cdef Connection *conn = &run.connections[i]
    cdef int64_t intended
    cdef bint in_window = load_run.is_in_window(&run.base, now)
    run.base.in_window += in_window
    if run.base.open_loop:
        intended = load_run.intended_at(&run.base, &conn.due_times, i, conn.completed)
        if load_run.is_in_window(&run.base, intended):
            load_run.note_scheduled(&run.base, intended, now - intended)
    else:
        run.base.messages += in_window
        run.base.recorded += in_window
    conn.completed += 1
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
            now = load_run.read_clock(&run.base)
    has_room(run, i, now)
    half_close_if_done(run, i, now)


cdef inline void add_due(StreamRun *run, uint32_t i, uint64_t messages) noexcept nogil:
    """Make `messages` more due, within the connection's quota."""
    cdef Connection *conn = &run.connections[i]
    conn.due += messages
    if run.base.quota:
        conn.due = min(conn.due, load_run.quota_of(&run.base, i))


cdef inline void start_closed_loop(StreamRun *run) noexcept nogil:
    cdef uint32_t i
    for i in range(run.base.count):
        if run.connections[i].state != connection.CLOSED:
            # An upload gets no answers, and each answer would make one message due.
            add_due(run, i, UINT64_MAX if run.mode == connection.MODE_SEND else run.depth)
        if run.connections[i].state == connection.OPEN:
            send_due(run, i, load_run.read_clock(&run.base))


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
    cdef Connection *conn
    while base.next_due < limit and load_run.next_due_at(base) <= now:
        i = <uint32_t>(base.next_due % base.count)
        conn = &run.connections[i]
        if not load_run.take_next(base, &conn.due_times, conn.completed, conn.due):
            return                  # too many of this connection's messages wait for their answer
        # A connection that is being opened again sends the message late, when it is open.
        if conn.state != connection.CLOSED:
            conn.due += 1
        # What a full socket does not take, and what is left when the window has ended, goes out as
        # the sockets take it: trying each message would keep answers waiting for seconds.
        if (conn.state == connection.OPEN and not conn.watched & posix.EPOLLOUT
                and now < base.window_end):
            send_due(run, i, load_run.read_clock(base))
        if (base.next_due == burst_end and base.phase == load_run.RUNNING
                and now < base.window_end):
            return
