# One connection of the load client and the run that it belongs to, and how a connection ends.
#
# A connection's life: connect (again and again while a Unix listener's queue is full), open,
# half-closed (all was sent; the rest is awaited), closed; with `reconnect_every` it then begins
# again, as the same connection with the same place in the pattern.
#
# A message goes there and back, or in two modes one way only: of an upload it is complete when the
# socket has taken it, of a download when it has come.

from libc.stdint cimport int64_t, uint32_t, uint64_t

cimport fastsock._native.posix as posix
from fastsock._native.client.histogram cimport Recorder
from fastsock._native.client.load_run cimport Frame, nobody_listens, quota_of, watch

cdef enum:                          # mode: what the load is
    ECHO
    SEND                            # upload, to a discard service
    RECEIVE                         # download, from a chargen service

cdef enum:                          # a connection's state
    CONNECTING
    OPEN
    LEAVING                         # half-closed, to be opened again
    HALF_CLOSED
    CLOSED

cdef enum:                          # why a connection failed
    REFUSED
    RESET
    TIMEOUT
    CLOSED_EARLY
    MISMATCH
    OTHER
    FAILURES

cdef struct Peer:                   # one connection
    int fd
    int state
    bint turned_away                # while CONNECTING: connect() is to be tried again
    uint32_t watched                # the events that epoll watches it for
    uint32_t send_offset            # into the pattern, of the next byte to send
    uint32_t receive_offset         # into the pattern, of the next byte to come
    uint32_t ring_mask              # sent_at has ring_mask + 1 places
    int64_t *sent_at                # ns, by message number & ring_mask, while in flight
    uint64_t due                    # messages that may be sent, ever
    uint64_t started                # messages whose first byte was offered to send()
    uint64_t answered               # messages that came back whole; one way: complete messages
    uint64_t to_send                # bytes of started messages not yet taken by the socket
    uint64_t partial                # bytes received of the message number `answered`
    uint64_t leave_after            # how many messages this opening may start in all
    int64_t opened_at               # when connect() was called, ns
    int64_t active_at               # last progress, ns
    int64_t left_at                 # when it was half-closed, ns
    int unacknowledged              # see still_held(); what it was when last looked at

cdef struct Run:
    Frame frame
    # What was asked for
    int mode
    posix.sockaddr_storage address
    posix.socklen_t address_size
    uint64_t size                   # bytes per message
    uint32_t depth                  # messages in flight per connection; 0 in an open loop
    int64_t timeout_ns
    uint64_t reconnect_every        # messages per opening of a connection; 0 without a limit
    uint32_t next_source            # last octets of the next source address, if they are varied
    bint verify, nodelay
    # How it goes
    uint32_t connecting, alive      # connections in these states; alive counts until closed
    uint32_t turned_away            # of those connecting
    int64_t retry_at                # when those are tried again
    int64_t next_sweep
    int64_t give_up_at              # when what is owed at the end is given up, ns
    char *pattern                   # the table that pattern.fill() made, or the lines of chargen
    char *buffer                    # what was received last
    Peer *peers
    Recorder *connects              # from connect() to connected
    # What was seen
    uint64_t received, lost         # bytes, over the whole run
    uint64_t failures[FAILURES]


cdef inline uint64_t owed(Run *run, Peer *peer) noexcept nogil:
    """Bytes that the socket has taken and that have not come back."""
    if run.mode != ECHO:
        return 0
    return (peer.started - peer.answered) * run.size - peer.partial - peer.to_send


cdef inline bint has_done_its_share(Run *run, uint32_t i) noexcept nogil:
    """Whether a connection of a run of so many messages has started the last of its own."""
    return run.frame.quota and run.peers[i].started == quota_of(&run.frame, i)


cdef inline int still_held(Peer *peer) noexcept nogil:
    """What the socket has taken and the other end has not; only 0 and change mean something.

    TCP counts bytes without acknowledgement, and the FIN as one; a Unix socket counts the memory of
    what the other end has not read.
    """
    cdef int held = 0
    posix.ioctl(peer.fd, posix.TIOCOUTQ, &held)
    return held


cdef inline void half_close(Peer *peer, int state, int64_t now) noexcept nogil:
    peer.state = state
    peer.active_at = peer.left_at = now
    posix.shutdown(peer.fd, posix.SHUT_WR)


cdef inline int failure_of(int error) noexcept nogil:
    if nobody_listens(error):
        return REFUSED
    if error == posix.ECONNRESET or error == posix.EPIPE:
        return RESET
    if error == posix.ETIMEDOUT:
        return TIMEOUT
    return OTHER


cdef inline int failure_of_errno(Run *run, int error) noexcept nogil:
    if failure_of(error) == OTHER:
        run.frame.other_errno = error
    return failure_of(error)


cdef inline void fail(Run *run, Peer *peer, int failure) noexcept nogil:
    run.failures[failure] += 1
    if peer.turned_away:
        admit(run, peer)
    if peer.state == CONNECTING:
        run.connecting -= 1
    elif peer.state != CLOSED:
        run.lost += owed(run, peer)
    close_peer(run, peer)


cdef inline void close_peer(Run *run, Peer *peer) noexcept nogil:
    # epoll reports a descriptor once in a batch, and tokens are numbers of connections: no event
    # that is still to come can be taken for that of a descriptor with a reused number.
    posix.close_once(&peer.fd)
    peer.state = CLOSED
    run.alive -= 1


cdef inline void admit(Run *run, Peer *peer) noexcept nogil:
    peer.turned_away = False
    run.turned_away -= 1


cdef inline void rewatch(Run *run, uint32_t i, uint32_t events) noexcept nogil:
    cdef Peer *peer = &run.peers[i]
    if peer.watched == events:
        return
    peer.watched = events
    if watch(&run.frame, posix.EPOLL_CTL_MOD, peer.fd, events, i) < 0:
        fail(run, peer, failure_of_errno(run, posix.errno))
