# One socket of the load client for datagrams, the run that it belongs to, and how a datagram is
# given up.
#
# A datagram can be lost, doubled, reordered, late or corrupt. To tell these apart, its first 8
# bytes hold the number of its socket and its own, and its other bytes are a stretch of the pattern
# that differs from one datagram to the next. A ring remembers each datagram's send time, and then
# its state. A lost datagram stalls nothing: after the loss timeout it is given up.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

cimport fastsock._native.atomic as atomic
cimport fastsock._native.client.load_run as load_run
cimport fastsock._native.client.pattern as pattern
cimport fastsock._native.interest_list as interest_list
cimport fastsock._native.posix as posix
from fastsock._native.client.arrivals cimport DueTimes
from fastsock._native.client.load_run cimport LoadRun
from fastsock._native.client.sources cimport Sources
from fastsock._native.interest_list cimport Interest

cdef enum:
    HEADER_BYTES = 8                # socket number << NUMBER_BITS | number of the datagram
    NUMBER_BITS = 48
    BUFFER_BYTES = 65536            # more than any datagram, so that one too long is detected
    BURST = 64                      # datagrams of one socket before the next one's turn
    RING_MAX = 65536                # datagrams that a socket remembers

cdef enum:                          # states in the ring; every send time is above them
    ANSWERED = 0
    GIVEN_UP = 1

cdef struct DatagramSocket:
    int fd                          # -1 once it failed
    bint blocked                    # its send buffer is full: wait until it has room
    Interest interest
    DueTimes due_times
    int64_t room_since              # the socket takes what is sent since then, ns
    uint64_t due                    # datagrams that may have been sent so far
    uint64_t started                # datagrams sent
    uint64_t oldest                 # all datagrams before this number are answered or given up
    uint64_t outstanding            # datagrams neither answered nor given up
    uint64_t next_expected          # one more than the highest number that was answered
    uint64_t ring_mask              # `ring` has ring_mask + 1 places
    int64_t *ring                   # send time or state of a datagram, by number & ring_mask

cdef struct DatagramRun:
    LoadRun base
    posix.sockaddr_storage address
    posix.socklen_t address_size
    Sources sources
    size_t size                     # bytes per datagram
    uint32_t depth                  # outstanding datagrams per socket; 0 in an open loop
    int64_t loss_ns                 # the loss timeout
    bint verify
    bint gso
    uint32_t per_call               # datagrams that one call may send
    uint32_t open_count             # sockets that did not fail
    int64_t next_sweep
    int64_t give_up_at              # when unsent datagrams are given up at the end, ns
    char *pattern                   # from pattern.fill()
    char *buffer                    # the bytes of the last receive
    DatagramSocket *sockets
    # Results over the whole run. Other threads read the first two lines meanwhile.
    uint64_t sent, received, lost, duplicated, reordered, late      # datagrams
    uint64_t refused, other         # failed sockets
    uint64_t unsent                 # datagrams that were due


cdef inline uint64_t header_of(DatagramRun *run, uint32_t i, uint64_t number) noexcept nogil:
    return <uint64_t>(run.base.first + i) << NUMBER_BITS | number


cdef inline char *body_of(DatagramRun *run, uint32_t i, uint64_t number) noexcept nogil:
    """The bytes after the header: they differ by datagram and by socket."""
    return run.pattern + (pattern.offset_of(run.base.first + i) + number) % pattern.PERIOD


cdef inline bint grow_ring(DatagramSocket *sock) noexcept nogil:
    cdef uint64_t mask = sock.ring_mask * 2 + 1, number
    cdef int64_t *ring
    if mask >= RING_MAX:
        return False
    # calloc(): datagrams older than the old ring count as ANSWERED.
    ring = <int64_t *>calloc(mask + 1, sizeof(int64_t))
    if ring == NULL:
        return False
    number = sock.started - (sock.ring_mask + 1)
    while number < sock.started:
        ring[number & mask] = sock.ring[number & sock.ring_mask]
        number += 1
    free(sock.ring)
    sock.ring = ring
    sock.ring_mask = mask
    return True


cdef inline void give_up_oldest(DatagramRun *run, DatagramSocket *sock) noexcept nogil:
    """Stop waiting for the oldest datagram; it is lost if it was not answered."""
    cdef int64_t *state = &sock.ring[sock.oldest & sock.ring_mask]
    sock.oldest += 1
    if state[0] > GIVEN_UP:
        state[0] = GIVEN_UP
        sock.outstanding -= 1
        run.base.outstanding -= 1
        atomic.count(&run.lost, 1)


cdef inline void give_up_all(DatagramRun *run, DatagramSocket *sock) noexcept nogil:
    while sock.oldest < sock.started:
        give_up_oldest(run, sock)


cdef inline void fail_with_errno(DatagramRun *run, DatagramSocket *sock,
                                 int error) noexcept nogil:
    """Count the failure, give up the socket's datagrams and close it."""
    if load_run.is_refusal(error):
        atomic.count(&run.refused, 1)
    else:
        atomic.count(&run.other, 1)
        run.base.other_errno = error
    run.base.errors += 1
    give_up_all(run, sock)
    interest_list.remove_before_close(&run.base.interest_list, &sock.interest)
    posix.close_once(&sock.fd)
    run.open_count -= 1


cdef inline void set_blocked(DatagramRun *run, uint32_t i, bint blocked) noexcept nogil:
    """Wait, or no longer wait, for room in the socket."""
    cdef DatagramSocket *sock = &run.sockets[i]
    if sock.blocked == blocked:
        return
    sock.blocked = blocked
    if interest_list.change(&run.base.interest_list, &sock.interest, sock.fd, events_of(sock),
                            i) < 0:
        fail_with_errno(run, sock, posix.errno)


cdef inline uint32_t events_of(DatagramSocket *sock) noexcept nogil:
    return posix.EPOLLIN | posix.EPOLLOUT if sock.blocked else posix.EPOLLIN


cdef inline void note_event(DatagramRun *run, uint32_t i) noexcept nogil:
    """After an event of the socket was handled."""
    cdef DatagramSocket *sock = &run.sockets[i]
    if sock.fd >= 0:
        interest_list.note_event(&run.base.interest_list, &sock.interest, sock.fd,
                                 events_of(sock), i)
