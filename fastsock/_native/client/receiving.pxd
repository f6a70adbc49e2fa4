# How the load client receives: every byte is compared with what must come, and answers are counted.
#
# The bytes that a connection sends are a stretch of a fixed pattern, at an offset that differs by
# connection, or the lines of RFC 864 from their beginning. So one memcmp per piece sees every lost,
# doubled, reordered or foreign byte.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp

cimport fastsock._native.clock as clock
cimport fastsock._native.client.pattern as pattern
cimport fastsock._native.posix as posix
cimport fastsock._native.services as service
from fastsock._native.client.connecting cimport open_again
from fastsock._native.client.load_run cimport RUNNING, note_answer, note_last, quota_of
from fastsock._native.client.connection cimport CLOSED_EARLY, HALF_CLOSED, LEAVING, MISMATCH, OPEN
from fastsock._native.client.connection cimport RECEIVE, SEND, Peer, Run, close_peer, fail, failure_of_errno
from fastsock._native.client.connection cimport owed, rewatch, still_held
from fastsock._native.client.sending cimport allow, leave_if_done, send_more


cdef inline bint verified(Run *run, Peer *peer, size_t size) noexcept nogil:
    """Whether the next bytes of this connection are in the buffer; it has failed if not."""
    cdef const char *expected = run.pattern + peer.receive_offset
    cdef size_t wrong = 0, i
    if run.mode != RECEIVE and size > owed(run, peer):
        wrong = size - owed(run, peer)          # more than was ever sent, or was to come back
    elif not run.verify or memcmp(run.buffer, expected, size) == 0:
        return True
    else:
        for i in range(size):
            wrong += run.buffer[i] != expected[i]
    run.frame.corrupt += wrong
    fail(run, peer, MISMATCH)
    return False


cdef inline void on_answers(Run *run, uint32_t i, int64_t now) noexcept nogil:
    cdef Peer *peer = &run.peers[i]
    cdef uint64_t before = peer.answered
    while peer.partial >= run.size:
        peer.partial -= run.size
        note_answer(&run.frame, i, peer.answered, peer.sent_at[peer.answered & peer.ring_mask], now)
        peer.answered += 1
    if run.depth and run.frame.phase == RUNNING:
        allow(run, i, peer.answered - before)
        if peer.state == OPEN:
            send_more(run, i, now)
    elif peer.state == OPEN and peer.started < peer.due:
        send_more(run, i, now)                  # the ring of send times had been full


cdef inline void start_download(Run *run, int64_t now) noexcept nogil:
    cdef uint32_t i
    for i in range(run.frame.count):
        if run.peers[i].state == OPEN:
            run.peers[i].active_at = now
            rewatch(run, i, posix.EPOLLIN)
            leave_if_done(run, i, now)


cdef inline void on_lines(Run *run, uint32_t i) noexcept nogil:
    """Count the messages that are complete; what comes after the half-close is only verified."""
    cdef Peer *peer = &run.peers[i]
    cdef uint64_t complete = peer.partial // run.size
    cdef int64_t now = clock.monotonic_ns()
    if peer.state != OPEN:
        return
    if run.frame.quota:
        complete = min(complete, quota_of(&run.frame, i) - peer.answered)
    peer.partial -= complete * run.size
    peer.answered += complete
    peer.started = peer.answered
    if run.frame.window_start <= now < run.frame.window_end:
        run.frame.messages += complete
    note_last(&run.frame, now)
    leave_if_done(run, i, now)


cdef inline void on_eof(Run *run, uint32_t i) noexcept nogil:
    cdef Peer *peer = &run.peers[i]
    if owed(run, peer) or (peer.state != HALF_CLOSED and peer.state != LEAVING):
        fail(run, peer, CLOSED_EARLY)
        return
    if run.mode == SEND:
        if still_held(peer) > 1:                # besides the FIN, which the server's own answers
            fail(run, peer, CLOSED_EARLY)
            return
        note_last(&run.frame, clock.monotonic_ns())    # all of it was taken by the server
    if peer.state == LEAVING and (run.frame.phase == RUNNING or peer.started < peer.due):
        open_again(run, i)
    else:
        close_peer(run, peer)


cdef inline uint32_t advance(Run *run, uint32_t offset, size_t size) noexcept nogil:
    if run.mode == RECEIVE:
        return <uint32_t>((offset + size) % service.PERIOD)
    return pattern.advance(offset, size)


cdef inline void receive(Run *run, uint32_t i, int64_t now) noexcept nogil:
    """Step 6: receive once, verify, count."""
    cdef Peer *peer = &run.peers[i]
    cdef ssize_t size = posix.recv(peer.fd, run.buffer, pattern.PIECE, 0)
    if size > 0:
        peer.active_at = now
        run.received += size
        if verified(run, peer, size):
            peer.partial += size
            peer.receive_offset = advance(run, peer.receive_offset, size)
            if peer.partial < run.size:
                return
            if run.mode == RECEIVE:
                on_lines(run, i)
            else:
                # Taken after the answer was received and checked; one reading does for all the
                # answers that came in one piece.
                on_answers(run, i, clock.monotonic_ns())
    elif size == 0:
        on_eof(run, i)
    elif posix.errno != posix.EAGAIN and posix.errno != posix.EINTR:
        fail(run, peer, failure_of_errno(run, posix.errno))
