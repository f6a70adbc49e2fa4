# How the load client receives datagrams: which one it is, whether it is right, what it means.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix
from fastsock._native.ancillary cimport Arrival, Control, read_arrival
from fastsock._native.client.datagram_socket cimport ANSWERED, BUFFER, BURST, GIVEN_UP, HEADER, NUMBER_BITS
from fastsock._native.client.datagram_socket cimport Peer, Run, body_of, fail, header_of
from fastsock._native.client.load_run cimport note_answer


cdef inline void receive(Run *run, uint32_t i) noexcept nogil:
    """Step 6: receive what is there, and at least once."""
    cdef Peer *peer = &run.peers[i]
    cdef ssize_t size
    cdef int _
    for _ in range(BURST):
        size = receive_together(run, i) if run.gso else receive_one(run, i)
        if size < 0 and posix.errno == posix.EAGAIN:
            return
        if size < 0 and posix.errno != posix.EINTR:
            fail(run, peer, posix.errno)
            return
        if peer.waiting == 0:
            return                  # whatever still comes is not awaited, and is reported again


cdef inline ssize_t receive_one(Run *run, uint32_t i) noexcept nogil:
    cdef ssize_t size = posix.recv(run.peers[i].fd, run.buffer, BUFFER, 0)
    if size >= 0:
        on_answer(run, i, run.buffer, size)
    return size


cdef inline ssize_t receive_together(Run *run, uint32_t i) noexcept nogil:
    """Receive the next datagram, or several that the kernel has put together (UDP_GRO)."""
    cdef posix.iovec piece
    cdef posix.msghdr message
    cdef Control control
    cdef Arrival arrival
    cdef ssize_t size
    cdef size_t left, segment
    cdef const char *data = run.buffer
    memset(&message, 0, sizeof(message))
    piece.iov_base = run.buffer
    piece.iov_len = BUFFER
    message.msg_iov = &piece
    message.msg_iovlen = 1
    message.msg_control = &control
    message.msg_controllen = sizeof(control)
    size = posix.recvmsg(run.peers[i].fd, &message, 0)
    if size < 0:
        return size
    read_arrival(&message, &arrival)
    left = size
    segment = arrival.segment if arrival.segment > 0 else size
    while left > segment:
        on_answer(run, i, data, segment)
        data += segment
        left -= segment
    on_answer(run, i, data, left)
    return size


cdef inline void on_answer(Run *run, uint32_t i, const char *data, size_t size) noexcept nogil:
    cdef Peer *peer = &run.peers[i]
    cdef uint64_t number
    cdef int64_t *fate
    if not verified(run, i, data, size, &number):
        return
    if number + peer.ring_mask + 1 < peer.started:
        run.late += 1               # forgotten, so given up long ago
        return
    fate = &peer.ring[number & peer.ring_mask]
    if fate[0] == GIVEN_UP:
        run.late += 1
        fate[0] = ANSWERED
    elif fate[0] == ANSWERED:
        run.duplicated += 1
    else:
        count_answer(run, i, number, fate[0])
        fate[0] = ANSWERED
        if number < peer.next_expected:
            run.reordered += 1      # RFC 4737: a later one came before it
        peer.next_expected = max(peer.next_expected, number + 1)


cdef inline void count_answer(Run *run, uint32_t i, uint64_t number,
                              int64_t sent_at) noexcept nogil:
    run.peers[i].waiting -= 1
    run.waiting -= 1
    run.received += 1
    note_answer(&run.frame, i, number, sent_at, clock.monotonic_ns())


cdef inline bint verified(Run *run, uint32_t i, const char *data, size_t size,
                          uint64_t *number) noexcept nogil:
    """Whether this is one of the datagrams that were sent here, and which."""
    cdef const char *body
    cdef size_t wrong = 0, place
    cdef uint64_t header
    if size != run.size:
        run.frame.corrupt += max(size, <size_t>1)
        return False
    memcpy(&header, data, HEADER)
    number[0] = header & ((<uint64_t>1 << NUMBER_BITS) - 1)
    if header != header_of(run, i, number[0]) or number[0] >= run.peers[i].started:
        run.frame.corrupt += size         # not one of ours; which one it was cannot be told
        return False
    body = body_of(run, i, number[0])
    if not run.verify or memcmp(data + HEADER, body, size - HEADER) == 0:
        return True
    for place in range(size - HEADER):
        wrong += data[HEADER + place] != body[place]
    run.frame.corrupt += wrong
    return False
