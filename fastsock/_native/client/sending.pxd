# How the load client sends: what is due, when it was handed to the socket, and the half-close.

from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

cimport fastsock._native.clock as clock
cimport fastsock._native.client.pattern as pattern
cimport fastsock._native.posix as posix
from fastsock._native.client.load_run cimport FINISHING, RUNNING, Frame
from fastsock._native.client.load_run cimport due_at, note_delay, note_last, quota_of, quota_of_thread
from fastsock._native.client.connection cimport CLOSED, HALF_CLOSED, LEAVING, OPEN, SEND, Peer, Run
from fastsock._native.client.connection cimport fail, failure_of_errno, half_close, has_done_its_share, rewatch

cdef enum:
    DUE_BURST = 1024                # messages started before answers are looked at again
    UPLOAD_BURST = 64               # send() calls on a connection before the others have their turn
    IN_FLIGHT_MAX = 65536           # per connection; bounds the memory for send times


cdef inline bint grow_ring(Peer *peer) noexcept nogil:
    cdef uint32_t mask = peer.ring_mask * 2 + 1
    cdef int64_t *ring
    cdef uint64_t message
    if mask >= IN_FLIGHT_MAX:
        return False
    ring = <int64_t *>malloc((<size_t>mask + 1) * sizeof(int64_t))
    if ring == NULL:
        return False
    message = peer.answered
    while message < peer.started:
        ring[message & mask] = peer.sent_at[message & peer.ring_mask]
        message += 1
    free(peer.sent_at)
    peer.sent_at = ring
    peer.ring_mask = mask
    return True


cdef inline void start_messages(Run *run, uint32_t i, int64_t now) noexcept nogil:
    """Note the send time of what is sent next, a piece at most: the rest may have to wait."""
    cdef Peer *peer = &run.peers[i]
    if peer.started == peer.answered:
        peer.active_at = now        # the time without progress starts with the first one owed
    while peer.started < min(peer.due, peer.leave_after) and peer.to_send < pattern.PIECE:
        if peer.started - peer.answered > peer.ring_mask and not grow_ring(peer):
            return
        peer.sent_at[peer.started & peer.ring_mask] = now
        note_delay(&run.frame, i, peer.started, now)
        peer.started += 1
        peer.to_send += run.size


cdef inline void leave_if_done(Run *run, uint32_t i, int64_t now) noexcept nogil:
    """Half-close after the last byte, of the run or of this opening of the connection.

    A connection that has done its share does not wait for the others: a server that serves only so
    many at a time may be waiting for its place.
    """
    cdef Peer *peer = &run.peers[i]
    if peer.state != OPEN or peer.to_send:
        return
    if has_done_its_share(run, i) or (run.frame.phase == FINISHING and peer.started == peer.due):
        half_close(peer, HALF_CLOSED, now)
    elif peer.started == peer.leave_after:
        half_close(peer, LEAVING, now)


cdef inline void upload(Run *run, uint32_t i, int64_t now) noexcept nogil:
    """A message per send(), of which nothing comes back; more of them when there is room again.

    Only a burst: a server that takes as fast as it is sent to would keep the others waiting.
    """
    cdef Peer *peer = &run.peers[i]
    cdef ssize_t sent, burst = 0
    cdef int _
    for _ in range(UPLOAD_BURST):
        if peer.to_send == 0:
            if peer.started == min(peer.due, peer.leave_after):
                break
            note_delay(&run.frame, i, peer.started, now)
            peer.started += 1
            peer.to_send = run.size
        sent = posix.send(peer.fd, run.pattern + peer.send_offset,
                          min(peer.to_send, <uint64_t>pattern.PIECE), posix.MSG_NOSIGNAL)
        if sent < 0:
            if posix.errno == posix.EINTR:
                continue
            if posix.errno == posix.EAGAIN:
                break
            fail(run, peer, failure_of_errno(run, posix.errno))
            return
        peer.to_send -= sent
        peer.send_offset = pattern.advance(peer.send_offset, sent)
        now = peer.active_at = clock.monotonic_ns()
        if peer.to_send == 0:
            on_taken(run, peer, now)
        burst += sent
        if burst >= pattern.PIECE:
            break
    if peer.to_send or peer.started < min(peer.due, peer.leave_after):
        rewatch(run, i, posix.EPOLLIN | posix.EPOLLOUT)
    else:
        rewatch(run, i, posix.EPOLLIN)
    leave_if_done(run, i, now)


cdef inline void on_taken(Run *run, Peer *peer, int64_t now) noexcept nogil:
    peer.answered += 1
    run.frame.messages += run.frame.window_start <= now < run.frame.window_end
    note_last(&run.frame, now)


cdef inline void send_more(Run *run, uint32_t i, int64_t now) noexcept nogil:
    """Step 7: start what is due, send what the socket takes, half-close after the last byte."""
    if run.mode == SEND:
        upload(run, i, now)
    else:
        send_requests(run, i, now)


cdef inline void send_requests(Run *run, uint32_t i, int64_t now) noexcept nogil:
    cdef Peer *peer = &run.peers[i]
    cdef ssize_t sent
    while True:
        if peer.to_send == 0:
            start_messages(run, i, now)
            if peer.to_send == 0:
                break
        sent = posix.send(peer.fd, run.pattern + peer.send_offset,
                          min(peer.to_send, <uint64_t>pattern.PIECE), posix.MSG_NOSIGNAL)
        if sent < 0:
            if posix.errno == posix.EINTR:
                continue
            if posix.errno != posix.EAGAIN:
                fail(run, peer, failure_of_errno(run, posix.errno))
                return
            rewatch(run, i, posix.EPOLLIN | posix.EPOLLOUT)
            return
        peer.to_send -= sent
        peer.send_offset = pattern.advance(peer.send_offset, sent)
        if peer.to_send == 0 and peer.started < min(peer.due, peer.leave_after):
            now = clock.monotonic_ns()
    if peer.watched != posix.EPOLLIN:
        rewatch(run, i, posix.EPOLLIN)
    leave_if_done(run, i, now)


cdef inline void allow(Run *run, uint32_t i, uint64_t messages) noexcept nogil:
    """Let a connection send `messages` more, within its share of the quota."""
    cdef Peer *peer = &run.peers[i]
    peer.due += messages
    if run.frame.quota:
        peer.due = min(peer.due, quota_of(&run.frame, i))


cdef inline void start_closed_loop(Run *run, int64_t now) noexcept nogil:
    cdef uint32_t i
    for i in range(run.frame.count):
        if run.peers[i].state == OPEN:
            # Of an upload no answer allows the next message: all are due.
            allow(run, i, UINT64_MAX if run.mode == SEND else run.depth)
            send_more(run, i, now)


cdef inline void start_open_loop(Run *run, int64_t now) noexcept nogil:
    cdef uint32_t i
    for i in range(run.frame.count):
        leave_if_done(run, i, now)              # with fewer messages than connections


cdef inline void start_due(Run *run, int64_t now) noexcept nogil:
    cdef Frame *frame = &run.frame
    cdef uint64_t limit = quota_of_thread(frame) if frame.quota else <uint64_t>-1
    cdef uint64_t burst_end = frame.next_due + DUE_BURST
    cdef uint32_t i
    while frame.next_due < limit and due_at(frame, frame.next_due) <= now:
        i = <uint32_t>(frame.next_due % frame.count)
        frame.next_due += 1
        # Also for one that is being opened again: it is sent then, late.
        if run.peers[i].state != CLOSED:
            run.peers[i].due += 1
        if run.peers[i].state == OPEN:
            send_more(run, i, clock.monotonic_ns())
        if frame.next_due == burst_end and frame.phase == RUNNING and now < frame.window_end:
            return
