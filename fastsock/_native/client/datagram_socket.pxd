# One socket of the load client for datagrams and the run that it belongs to.
#
# A datagram can be lost, doubled, overtaken, late or changed, and each of these is told apart: its
# first 8 bytes hold the number of its socket and its own, the rest is a stretch of the pattern that
# differs from one to the next. When it was sent, and then what became of it, is remembered in a
# ring. A lost datagram stalls nothing: what is not back within a time is given up.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

cimport fastsock._native.client.pattern as pattern
cimport fastsock._native.posix as posix
from fastsock._native.client.load_run cimport Frame, nobody_listens, watch

cdef enum:
    HEADER = 8                      # bytes: socket number << NUMBER_BITS | number of the datagram
    NUMBER_BITS = 48
    BUFFER = 65536                  # bytes; more than any datagram, so one too long is seen
    BURST = 64                      # datagrams of one socket before the others have their turn
    RING_MAX = 65536                # datagrams of a socket that are remembered

cdef enum:                          # in a ring in place of a send time, which is above all these
    ANSWERED = 0
    GIVEN_UP = 1

cdef struct Peer:                   # one socket
    int fd                          # -1 once it failed
    bint blocked                    # the socket is full: watched for room
    uint64_t due                    # datagrams that may be sent, ever
    uint64_t started                # datagrams sent
    uint64_t oldest                 # all before it are answered or given up
    uint64_t waiting                # those neither answered nor given up
    uint64_t next_expected          # one more than the highest number that was answered
    uint64_t ring_mask              # `ring` has ring_mask + 1 places
    int64_t *ring                   # send time or fate of a datagram, by number & ring_mask

cdef struct Run:
    Frame frame
    posix.sockaddr_storage address
    posix.socklen_t address_size
    size_t size                     # bytes per datagram
    uint32_t depth                  # datagrams in flight per socket; 0 in an open loop
    int64_t loss_ns                 # after which a datagram is given up
    bint verify
    bint gso
    uint32_t together               # datagrams that may leave in one call
    uint32_t alive                  # sockets that did not fail
    uint64_t waiting                # of all sockets
    int64_t next_sweep
    char *pattern                   # the table that pattern.fill() made
    char *buffer                    # what was received last
    Peer *peers
    # What was seen over the whole run
    uint64_t sent, received, lost, duplicated, reordered, late      # datagrams
    uint64_t refused, other         # sockets


cdef inline uint64_t header_of(Run *run, uint32_t i, uint64_t number) noexcept nogil:
    return <uint64_t>(run.frame.first + i) << NUMBER_BITS | number


cdef inline char *body_of(Run *run, uint32_t i, uint64_t number) noexcept nogil:
    """What follows the header: it differs from one datagram to the next, and by socket."""
    return run.pattern + (pattern.offset_of(run.frame.first + i) + number) % pattern.PERIOD


cdef inline bint grow_ring(Peer *peer) noexcept nogil:
    cdef uint64_t mask = peer.ring_mask * 2 + 1, number
    cdef int64_t *ring
    if mask >= RING_MAX:
        return False
    ring = <int64_t *>calloc(mask + 1, sizeof(int64_t))     # of what is forgotten: ANSWERED
    if ring == NULL:
        return False
    number = peer.started - (peer.ring_mask + 1)
    while number < peer.started:
        ring[number & mask] = peer.ring[number & peer.ring_mask]
        number += 1
    free(peer.ring)
    peer.ring = ring
    peer.ring_mask = mask
    return True


cdef inline void give_up(Run *run, Peer *peer) noexcept nogil:
    """Wait no longer for the oldest datagram; it is lost if no answer came."""
    cdef int64_t *fate = &peer.ring[peer.oldest & peer.ring_mask]
    peer.oldest += 1
    if fate[0] > GIVEN_UP:
        fate[0] = GIVEN_UP
        peer.waiting -= 1
        run.waiting -= 1
        run.lost += 1


cdef inline void fail(Run *run, Peer *peer, int error) noexcept nogil:
    """The socket cannot be used: nobody listens, or some other errno."""
    if nobody_listens(error):
        run.refused += 1
    else:
        run.other += 1
        run.frame.other_errno = error
    while peer.oldest < peer.started:
        give_up(run, peer)
    posix.close_once(&peer.fd)
    run.alive -= 1


cdef inline void set_blocked(Run *run, uint32_t i, bint blocked) noexcept nogil:
    cdef Peer *peer = &run.peers[i]
    if peer.blocked == blocked:
        return
    peer.blocked = blocked
    if watch(&run.frame, posix.EPOLL_CTL_MOD, peer.fd,
             posix.EPOLLIN | posix.EPOLLOUT if blocked else posix.EPOLLIN, i) < 0:
        fail(run, peer, posix.errno)
