# How the load client receives datagrams: it identifies, verifies and counts each.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

cimport fastsock._native.ancillary as ancillary
cimport fastsock._native.atomic as atomic
cimport fastsock._native.client.datagram_socket as datagram_socket
cimport fastsock._native.client.load_run as load_run
cimport fastsock._native.posix as posix
from fastsock._native.ancillary cimport Arrival, Control
from fastsock._native.client.datagram_socket cimport DatagramRun, DatagramSocket


cdef inline void receive_burst(DatagramRun *run, uint32_t i) noexcept nogil:
    """Step 6: receive at least once, until nothing is outstanding or the burst is over."""
    cdef DatagramSocket *sock = &run.sockets[i]
    cdef ssize_t size
    cdef int _
    for _ in range(datagram_socket.BURST):
        size = receive_segments(run, i) if run.gso else receive_one(run, i)
        if size < 0 and posix.errno == posix.EAGAIN:
            return
        if size < 0 and posix.errno != posix.EINTR:
            datagram_socket.fail_with_errno(run, sock, posix.errno)
            return
        if sock.outstanding == 0:
            return                  # no more is expected; epoll reports what still comes


cdef inline ssize_t receive_one(DatagramRun *run, uint32_t i) noexcept nogil:
    cdef ssize_t size = posix.recv(run.sockets[i].fd, run.buffer, datagram_socket.BUFFER_BYTES, 0)
    if size >= 0:
        on_datagram(run, i, run.buffer, size)
    return size


cdef inline ssize_t receive_segments(DatagramRun *run, uint32_t i) noexcept nogil:
    """Receive the next datagram, or several that the kernel has joined (UDP_GRO)."""
    cdef posix.iovec piece
    cdef posix.msghdr message
    cdef Control control
    cdef Arrival arrival
    cdef ssize_t size
    cdef size_t left, segment
    cdef const char *data = run.buffer
    memset(&message, 0, sizeof(message))
    piece.iov_base = run.buffer
    piece.iov_len = datagram_socket.BUFFER_BYTES
    message.msg_iov = &piece
    message.msg_iovlen = 1
    message.msg_control = &control
    message.msg_controllen = sizeof(control)
    size = posix.recvmsg(run.sockets[i].fd, &message, 0)
    if size < 0:
        return size
    ancillary.read_arrival(&message, &arrival)
    left = size
    segment = arrival.segment if arrival.segment > 0 else size
    while left > segment:
        on_datagram(run, i, data, segment)
        data += segment
        left -= segment
    on_datagram(run, i, data, left)
    return size


cdef inline void on_datagram(DatagramRun *run, uint32_t i, const char *data,
                             size_t size) noexcept nogil:
    cdef DatagramSocket *sock = &run.sockets[i]
    cdef uint64_t number
    cdef int64_t *state
    if not verify_datagram(run, i, data, size, &number):
        return
    if number + sock.ring_mask + 1 < sock.started:
        atomic.count(&run.late, 1)  # no longer in the ring, so it was given up
        return
    state = &sock.ring[number & sock.ring_mask]
    if state[0] == datagram_socket.GIVEN_UP:
        atomic.count(&run.late, 1)
        state[0] = datagram_socket.ANSWERED
    elif state[0] == datagram_socket.ANSWERED:
        atomic.count(&run.duplicated, 1)
    else:
        count_answer(run, i, number, state[0])
        state[0] = datagram_socket.ANSWERED
        if number < sock.next_expected:
            atomic.count(&run.reordered, 1)     # a datagram sent later came before it (RFC 4737)
        sock.next_expected = max(sock.next_expected, number + 1)


cdef inline void count_answer(DatagramRun *run, uint32_t i, uint64_t number,
                              int64_t sent_at) noexcept nogil:
    cdef int64_t intended = 0
    run.sockets[i].outstanding -= 1
    run.base.outstanding -= 1
    atomic.count(&run.received, 1)
    if run.base.open_loop:
        intended = load_run.intended_at(&run.base, &run.sockets[i].due_times, i, number)
    load_run.note_answer(&run.base, intended, sent_at, load_run.read_clock(&run.base))


cdef inline bint verify_datagram(DatagramRun *run, uint32_t i, const char *data, size_t size,
                                 uint64_t *number) noexcept nogil:
    """Whether this socket sent this datagram; `number` becomes the datagram's number."""
    cdef const char *body
    cdef size_t wrong = 0, place
    cdef uint64_t header
    if size != run.size:
        run.base.corrupt += max(size, <size_t>1)
        return False
    memcpy(&header, data, datagram_socket.HEADER_BYTES)
    number[0] = header & ((<uint64_t>1 << datagram_socket.NUMBER_BITS) - 1)
    if (header != datagram_socket.header_of(run, i, number[0])
            or number[0] >= run.sockets[i].started):
        run.base.corrupt += size    # the number cannot be trusted: count all bytes
        return False
    body = datagram_socket.body_of(run, i, number[0])
    size -= datagram_socket.HEADER_BYTES
    data += datagram_socket.HEADER_BYTES
    if not run.verify or memcmp(data, body, size) == 0:
        return True
    for place in range(size):
        wrong += data[place] != body[place]
    run.base.corrupt += wrong
    return False
