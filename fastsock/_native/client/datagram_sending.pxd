# How the load client sends datagrams that are due: one per call, or several (UDP_SEGMENT).

from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memset

cimport fastsock._native.ancillary as ancillary
cimport fastsock._native.atomic as atomic
cimport fastsock._native.client.datagram_socket as datagram_socket
cimport fastsock._native.client.load_run as load_run
cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix
from fastsock._native.ancillary cimport Control
from fastsock._native.client.datagram_socket cimport DatagramRun, DatagramSocket
from fastsock._native.client.load_run cimport LoadRun

cdef enum:
    PER_CALL_MAX = 64               # datagrams; the first kernels with UDP_SEGMENT take no more
    CALL_BYTES_MAX = 65000          # per call; with headers it has to fit in 64 KiB


cdef inline uint32_t max_per_call(size_t size) noexcept nogil:
    """How many datagrams of `size` bytes one call can send."""
    return <uint32_t>max(min(CALL_BYTES_MAX // size, <size_t>PER_CALL_MAX), <size_t>1)


cdef inline void send_due(DatagramRun *run, uint32_t i) noexcept nogil:
    """Step 7: send what the depth or the schedule makes due, as far as the socket takes it."""
    cdef DatagramSocket *sock = &run.sockets[i]
    cdef LoadRun *base = &run.base
    cdef uint64_t burst_end = UINT64_MAX
    cdef int error
    if run.depth and run.base.phase == load_run.RUNNING:
        sock.due = sock.started + run.depth - min(sock.outstanding, <uint64_t>run.depth)
        if run.base.quota:
            sock.due = min(sock.due, load_run.quota_of(&run.base, i))
    if base.phase == load_run.FINISHING:
        burst_end = sock.started + datagram_socket.BURST    # answers must not wait for the rest
    while sock.started < min(sock.due, burst_end) and sock.fd >= 0:
        if (sock.started - sock.oldest > sock.ring_mask
                and not datagram_socket.grow_ring(sock)):
            # The ring is full and cannot grow: the oldest datagram counts as lost.
            datagram_socket.give_up_oldest(run, sock)
        error = send_batch(run, i)
        if error == posix.EINTR:
            continue
        if error == posix.EAGAIN:
            datagram_socket.set_blocked(run, i, True)
            return
        if error:
            datagram_socket.fail_with_errno(run, sock, error)
    if sock.blocked and sock.fd >= 0:
        datagram_socket.set_blocked(run, i, False)
        sock.room_since = clock.monotonic_ns()


cdef inline int send_batch(DatagramRun *run, uint32_t i) noexcept nogil:
    """Send the next datagrams of a socket in one call; return 0 or an errno, EINTR to retry."""
    cdef DatagramSocket *sock = &run.sockets[i]
    cdef uint64_t places = sock.ring_mask + 1 - (sock.started - sock.oldest)
    cdef uint32_t n, count = <uint32_t>min(min(sock.due - sock.started, places),
                                           <uint64_t>run.per_call)
    cdef uint64_t headers[PER_CALL_MAX]
    cdef posix.iovec pieces[2 * PER_CALL_MAX]
    cdef posix.msghdr message
    cdef Control control
    cdef int64_t now = load_run.read_clock(&run.base)
    memset(&message, 0, sizeof(message))
    message.msg_iov = pieces
    message.msg_iovlen = 2 * count
    for n in range(count):
        headers[n] = datagram_socket.header_of(run, i, sock.started + n)
        pieces[2 * n].iov_base = &headers[n]
        pieces[2 * n].iov_len = datagram_socket.HEADER_BYTES
        pieces[2 * n + 1].iov_base = datagram_socket.body_of(run, i, sock.started + n)
        pieces[2 * n + 1].iov_len = run.size - datagram_socket.HEADER_BYTES
    if count > 1:
        message.msg_control = &control
        ancillary.send_in_segments(&message, <int>run.size)
    if posix.sendmsg(sock.fd, &message, 0) < 0:
        return on_send_error(run, count, posix.errno)
    for n in range(count):
        sock.ring[(sock.started + n) & sock.ring_mask] = now
        if run.base.open_loop:
            load_run.note_send(
                &run.base,
                load_run.intended_at(&run.base, &sock.due_times, i, sock.started + n),
                sock.room_since, now)
    sock.started += count
    sock.outstanding += count
    run.base.outstanding += count
    atomic.count(&run.sent, count)
    return 0


cdef inline int on_send_error(DatagramRun *run, uint32_t count, int error) noexcept nogil:
    """The errno, or EINTR where one datagram per call may work: not every route can segment."""
    if count == 1 or error not in (posix.EIO, posix.EINVAL, posix.EMSGSIZE):
        return error
    run.per_call = 1
    return posix.EINTR


cdef inline void start_closed_loop(DatagramRun *run) noexcept nogil:
    cdef uint32_t i
    for i in range(run.base.count):
        if run.sockets[i].fd >= 0:
            send_due(run, i)


cdef inline void follow_schedule(DatagramRun *run, int64_t now) noexcept nogil:
    """Open loop: send the datagrams that are due by now."""
    cdef LoadRun *base = &run.base
    cdef uint64_t limit = load_run.quota_of_thread(base) if base.quota else UINT64_MAX
    cdef uint64_t burst_end = base.next_due + datagram_socket.BURST
    cdef uint32_t i
    cdef DatagramSocket *sock
    while base.next_due < limit and load_run.next_due_at(base) <= now:
        i = <uint32_t>(base.next_due % base.count)
        sock = &run.sockets[i]
        if not load_run.take_next(base, &sock.due_times, sock.oldest, sock.due):
            return                  # too many of this socket's datagrams wait to be sent
        if sock.fd >= 0:
            sock.due += 1           # a failed socket must not fill its list of times
        if sock.fd >= 0 and not sock.blocked and now < base.window_end:
            send_due(run, i)
        if base.next_due == burst_end and now < base.window_end:
            return                  # receive answers first
