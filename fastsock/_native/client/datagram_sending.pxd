# How the load client sends datagrams: what is due, one by one or several in one call.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix
from fastsock._native.ancillary cimport Control, send_in_segments
from fastsock._native.client.datagram_socket cimport BURST, HEADER, Peer, Run, body_of, fail, give_up
from fastsock._native.client.datagram_socket cimport grow_ring, header_of, set_blocked
from fastsock._native.client.load_run cimport RUNNING, Frame, due_at, note_delay, quota_of, quota_of_thread

cdef enum:
    TOGETHER_MAX = 64               # datagrams in one call; the first kernels with GSO take no more
    TOGETHER_BYTES = 65000          # in one call; with headers it has to fit in 64 KiB


cdef inline uint32_t most_together(size_t size) noexcept nogil:
    """How many datagrams of that size can leave in one call."""
    return <uint32_t>max(min(TOGETHER_BYTES // size, <size_t>TOGETHER_MAX), <size_t>1)


cdef inline void send_more(Run *run, uint32_t i) noexcept nogil:
    """Step 7: send what the depth or the schedule allows, as far as the socket takes it."""
    cdef Peer *peer = &run.peers[i]
    cdef int error
    if run.depth and run.frame.phase == RUNNING:
        peer.due = peer.started + run.depth - min(peer.waiting, <uint64_t>run.depth)
        if run.frame.quota:
            peer.due = min(peer.due, quota_of(&run.frame, i))
    while peer.started < peer.due and peer.fd >= 0:
        if peer.started - peer.oldest > peer.ring_mask and not grow_ring(peer):
            give_up(run, peer)      # so many are in flight that the oldest counts as lost
        error = send_next(run, i)
        if error == posix.EINTR:
            continue
        if error == posix.EAGAIN:
            set_blocked(run, i, True)
            return
        if error:
            fail(run, peer, error)
    if peer.blocked and peer.fd >= 0:
        set_blocked(run, i, False)


cdef inline int send_next(Run *run, uint32_t i) noexcept nogil:
    """Send the next datagram of a socket, or the next few together; return an errno or 0."""
    cdef Peer *peer = &run.peers[i]
    cdef uint64_t remembered = peer.ring_mask + 1 - (peer.started - peer.oldest)
    cdef uint32_t n, count = <uint32_t>min(min(peer.due - peer.started, remembered),
                                           <uint64_t>run.together)
    cdef uint64_t headers[TOGETHER_MAX]
    cdef posix.iovec pieces[2 * TOGETHER_MAX]
    cdef posix.msghdr message
    cdef Control control
    cdef int64_t now = clock.monotonic_ns()
    memset(&message, 0, sizeof(message))
    message.msg_iov = pieces
    message.msg_iovlen = 2 * count
    for n in range(count):
        headers[n] = header_of(run, i, peer.started + n)
        pieces[2 * n].iov_base = &headers[n]
        pieces[2 * n].iov_len = HEADER
        pieces[2 * n + 1].iov_base = body_of(run, i, peer.started + n)
        pieces[2 * n + 1].iov_len = run.size - HEADER
    if count > 1:
        message.msg_control = &control
        send_in_segments(&message, <int>run.size)
    if posix.sendmsg(peer.fd, &message, 0) < 0:
        return send_failed(run, count, posix.errno)
    for n in range(count):
        peer.ring[(peer.started + n) & peer.ring_mask] = now
        note_delay(&run.frame, i, peer.started + n, now)
    peer.started += count
    peer.waiting += count
    run.waiting += count
    run.sent += count
    return 0


cdef inline int send_failed(Run *run, uint32_t count, int error) noexcept nogil:
    if count == 1 or error not in (posix.EIO, posix.EINVAL, posix.EMSGSIZE):
        return error
    run.together = 1                # not every route can take apart what leaves together
    return posix.EINTR


cdef inline void start_closed_loop(Run *run) noexcept nogil:
    cdef uint32_t i
    for i in range(run.frame.count):
        if run.peers[i].fd >= 0:
            send_more(run, i)


cdef inline void start_due(Run *run, int64_t now) noexcept nogil:
    cdef Frame *frame = &run.frame
    cdef uint64_t limit = quota_of_thread(frame) if frame.quota else <uint64_t>-1
    cdef uint64_t burst_end = frame.next_due + BURST
    cdef uint32_t i
    while frame.next_due < limit and due_at(frame, frame.next_due) <= now:
        i = <uint32_t>(frame.next_due % frame.count)
        frame.next_due += 1
        run.peers[i].due += 1
        if run.peers[i].fd >= 0:
            send_more(run, i)
        if frame.next_due == burst_end and now < frame.window_end:
            return                  # answers must be looked at too
