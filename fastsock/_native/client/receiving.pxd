# How the load client receives on streams: it compares every byte, and counts complete messages.
#
# The bytes of a connection are a stretch of a fixed pattern, from an offset that differs by
# connection, or the lines of RFC 864 from their beginning. So one memcmp() per piece detects every
# lost, doubled, reordered or foreign byte.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp

cimport fastsock._native.client.connecting as connecting
cimport fastsock._native.client.connection as connection
cimport fastsock._native.client.load_run as load_run
cimport fastsock._native.client.pattern as pattern
cimport fastsock._native.client.sending as sending
cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix
cimport fastsock._native.services as services
from fastsock._native.client.connection cimport Connection, StreamRun


cdef inline bint verify_bytes(StreamRun *run, Connection *conn, size_t size) noexcept nogil:
    """Whether the buffer holds the connection's next bytes; if not, the connection fails."""
    cdef const char *expected = run.pattern + conn.receive_offset
    cdef size_t wrong = 0, i
    if (run.mode != connection.MODE_RECEIVE
            and size > connection.outstanding_bytes(run, conn)):
        wrong = size - connection.outstanding_bytes(run, conn)      # more bytes than were sent
    elif not run.verify or memcmp(run.buffer, expected, size) == 0:
        return True
    else:
        for i in range(size):
            wrong += run.buffer[i] != expected[i]
    run.base.corrupt += wrong
    connection.fail(run, conn, connection.MISMATCH)
    return False


cdef inline void on_answers(StreamRun *run, uint32_t i, int64_t now) noexcept nogil:
    cdef Connection *conn = &run.connections[i]
    cdef uint64_t before = conn.completed
    cdef int64_t intended = 0
    while conn.partial >= run.size:
        conn.partial -= run.size
        if run.base.open_loop:
            intended = load_run.intended_at(&run.base, &conn.due_times, i, conn.completed)
        load_run.note_answer(
            &run.base, intended, conn.sent_at[conn.completed & conn.ring_mask], now)
        conn.completed += 1
        run.base.outstanding -= 1
    if run.depth and run.base.phase == load_run.RUNNING:
        sending.add_due(run, i, conn.completed - before)
        if conn.state == connection.OPEN:
            sending.send_due(run, i, now)
    elif conn.state == connection.OPEN and conn.started < conn.due:
        conn.room_since = now                   # the ring of send times has room again
        sending.send_due(run, i, now)
    sending.half_close_if_done(run, i, now)


cdef inline void start_download(StreamRun *run, int64_t now) noexcept nogil:
    cdef uint32_t i
    for i in range(run.base.count):
        if run.connections[i].state == connection.OPEN:
            run.connections[i].progress_at = now
            connection.set_watched(run, i, posix.EPOLLIN)
            sending.half_close_if_done(run, i, now)


cdef inline void on_download(StreamRun *run, uint32_t i) noexcept nogil:
    """Count complete messages; bytes that come after the half-close are only verified."""
    cdef Connection *conn = &run.connections[i]
    cdef uint64_t complete = conn.partial // run.size
    cdef int64_t now = load_run.read_clock(&run.base)
    if conn.state != connection.OPEN:
        return
    if run.base.quota:
        complete = min(complete, load_run.quota_of(&run.base, i) - conn.completed)
    conn.partial -= complete * run.size
    conn.completed += complete
    conn.started = conn.completed
    if load_run.is_in_window(&run.base, now):
        run.base.messages += complete
        run.base.in_window += complete
        run.base.recorded += complete
    load_run.note_complete(&run.base, now)
    sending.half_close_if_done(run, i, now)


cdef inline void on_eof(StreamRun *run, uint32_t i) noexcept nogil:
    cdef Connection *conn = &run.connections[i]
    if connection.outstanding_bytes(run, conn) or (
            conn.state != connection.HALF_CLOSED and conn.state != connection.REOPENING):
        connection.fail(run, conn, connection.CLOSED_EARLY)
        return
    end_opening(run, i)


cdef inline void end_opening(StreamRun *run, uint32_t i) noexcept nogil:
    """A half-closed connection has everything: open it again, or close it."""
    cdef Connection *conn = &run.connections[i]
    if run.mode == connection.MODE_SEND:
        if connection.send_queue_size(conn) > 1:    # 1: our FIN, not yet acknowledged
            connection.fail(run, conn, connection.CLOSED_EARLY)
            return
        load_run.note_complete(&run.base, clock.monotonic_ns())    # the server has taken all
    if conn.state == connection.REOPENING and (
            run.base.phase == load_run.RUNNING or conn.started < conn.due):
        connecting.reopen(run, i)
    else:
        connection.close(run, conn)


cdef inline uint32_t next_offset(StreamRun *run, uint32_t offset, size_t size) noexcept nogil:
    if run.mode == connection.MODE_RECEIVE:
        return <uint32_t>((offset + size) % services.PERIOD)
    return pattern.advance(offset, size)


cdef inline void receive_once(StreamRun *run, uint32_t i, int64_t now) noexcept nogil:
    """Step 6: receive once, verify, count."""
    cdef Connection *conn = &run.connections[i]
    cdef ssize_t size = posix.recv(conn.fd, run.buffer, pattern.PIECE, 0)
    if size > 0:
        conn.progress_at = now
        run.received += size
        if verify_bytes(run, conn, size):
            conn.partial += size
            conn.receive_offset = next_offset(run, conn.receive_offset, size)
            if conn.partial < run.size:
                load_run.read_clock(&run.base)  # many large pieces take milliseconds
                return
            if run.mode == connection.MODE_RECEIVE:
                on_download(run, i)
            else:
                # The clock is read after the bytes were received and verified, once for all the
                # answers of one piece.
                on_answers(run, i, load_run.read_clock(&run.base))
    elif size == 0:
        on_eof(run, i)
    elif posix.errno != posix.EAGAIN and posix.errno != posix.EINTR:
        connection.fail_with_errno(run, conn, posix.errno)
