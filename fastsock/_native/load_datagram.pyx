"""The load client's loop for datagrams: one thread, many connected sockets, epoll(7).

A datagram can be lost, doubled, overtaken, late or changed, and each of these is told apart: its
first 8 bytes hold the number of its socket and its own, the rest is a stretch of the pattern that
differs from one to the next. A lost datagram stalls nothing. What is not back within a time, the
loss timeout, is given up, and in a closed loop the next one takes its place.

Closed loop: each socket keeps `depth` datagrams in flight. Open loop: they are sent on schedule,
and latency counts from the intended time; see load.pyx.

Between Unix sockets a queue that is full makes the sender wait, so there less is lost. The sockets
are bound, to names of the kernel's choice, because an answer needs an address to go to.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from fastsock._native cimport loading, pattern, posix
from fastsock._native.address cimport fill_address
from fastsock._native.ancillary cimport Arrival, Control, read_arrival, send_in_segments
from fastsock._native.check cimport os_error
from fastsock._native.histogram cimport Histogram, Recorder, record
from fastsock._native.loading cimport Frame, quota_of, watch

cdef enum:
    HEADER = 8                      # bytes: socket number << NUMBER_BITS | number of the datagram
    NUMBER_BITS = 48
    BUFFER = 65536                  # bytes; more than any datagram, so one too long is seen
    BURST = 64                      # datagrams of one socket before the others have their turn
    TOGETHER_MAX = 64               # datagrams in one call; the first kernels with GSO take no more
    TOGETHER_BYTES = 65000          # in one call; with headers it has to fit in 64 KiB
    SWEEPS = 20                     # looks for lost datagrams per loss timeout
    RING_START = 64                 # datagrams of a socket that are remembered
    RING_MAX = 65536

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
    uint64_t next_due               # open loop: number of the next datagram of this thread
    int64_t next_sweep
    char *pattern                   # the table that pattern.fill() made
    char *buffer                    # what was received last
    Peer *peers
    Recorder *from_intended         # NULL in a closed loop
    Recorder *from_send
    Recorder *send_delay            # how late datagrams were sent; NULL in a closed loop
    # What was seen; all but the first over the whole run
    uint64_t messages               # answers inside the window
    int64_t last_answer
    uint64_t sent, received, lost, duplicated, reordered, late
    uint64_t corrupt                # bytes
    uint64_t refused, other
    int other_errno


cdef class DatagramLoader:
    """One thread's share of a load run: sockets `first` to `first + count` of `everyone`.

    `size` is in bytes, at least 8; `rate` in datagrams per second over all threads' sockets, or 0
    for a closed loop; `messages` limits those of all sockets, or 0; `loss_timeout` is in seconds.
    With `gso`, datagrams of a socket that are due together leave in one call, and come so too.
    `spin` and `busy_poll` as in load.pyx.
    With `server_pid` that process's CPU time over the window is read too.
    """

    cdef Run run_state
    cdef readonly Histogram from_intended
    cdef readonly Histogram from_send
    cdef readonly Histogram send_delay
    cdef str where

    def __cinit__(self):
        cdef Frame *frame = &self.run_state.frame
        memset(&self.run_state, 0, sizeof(self.run_state))
        frame.epfd = frame.wake_fd = frame.timer_fd = -1

    def __init__(self, int family, str host, int port, int scope_id, str where, *,
                 uint32_t first, uint32_t count, uint32_t everyone, uint64_t size, uint32_t depth,
                 double rate, uint64_t messages, double loss_timeout, bint gso, bint verify,
                 bint spin, int64_t busy_poll=0, int server_pid=0):
        cdef Run *run = &self.run_state
        self.where = where
        run.address_size = fill_address(&run.address, family, host, port, scope_id)
        loading.set_share(&run.frame, first, count, everyone, rate, messages)
        loading.set_wait(&run.frame, spin, busy_poll)
        run.size = size
        run.depth = 0 if rate else depth
        run.loss_ns = <int64_t>(loss_timeout * 1e9)
        run.verify = verify
        run.gso = gso
        run.together = 1
        if gso and size <= TOGETHER_BYTES:
            run.together = <uint32_t>min(TOGETHER_BYTES // size, <uint64_t>TOGETHER_MAX)
        self.from_send = Histogram()
        run.from_send = self.from_send.recorder
        self.from_intended = self.from_send
        self.send_delay = Histogram()
        if rate:
            run.send_delay = self.send_delay.recorder
            self.from_intended = Histogram()
            run.from_intended = self.from_intended.recorder
        self._allocate()
        loading.open_frame(&run.frame, server_pid)

    def __dealloc__(self):
        cdef Run *run = &self.run_state
        cdef uint32_t i
        if run.peers != NULL:
            for i in range(run.frame.count):
                loading.close_once(&run.peers[i].fd)
                free(run.peers[i].ring)
        loading.close_frame(&run.frame)
        free(run.peers)
        free(run.buffer)
        free(run.pattern)

    def connect(self) -> None:
        """Step 1 and connect() for all sockets, which sends nothing.

        Raises OSError when a socket cannot be made or there is no route. A Unix server that is not
        there fails the socket, as it would a UDP socket with the first datagram.
        """
        cdef Run *run = &self.run_state
        cdef Peer *peer
        cdef uint32_t i
        for i in range(run.frame.count):
            peer = &run.peers[i]
            self._create(peer)
            if watch(&run.frame, posix.EPOLL_CTL_ADD, peer.fd, posix.EPOLLIN, i) < 0:
                raise os_error(posix.errno, "epoll_ctl", self.where)
            run.alive += 1
            if posix.connect(peer.fd, <posix.sockaddr *>&run.address, run.address_size) == 0:
                continue
            if run.address.ss_family != posix.AF_UNIX:
                raise os_error(posix.errno, "connect", self.where)
            fail(run, peer, posix.errno)

    cdef int _create(self, Peer *peer) except -1:
        cdef posix.sockaddr_storage *server = &self.run_state.address
        cdef posix.sockaddr_un anything
        peer.fd = posix.socket(server.ss_family, posix.SOCK_DGRAM | posix.SOCK_NONBLOCK
                               | posix.SOCK_CLOEXEC, 0)
        if peer.fd < 0:
            hint = "raise the limit: ulimit -n" if posix.errno == posix.EMFILE else ""
            raise os_error(posix.errno, "socket", self.where, hint)
        if server.ss_family != posix.AF_UNIX:
            if self.run_state.gso:
                self._receive_together(peer)
            return 0                # connect() binds it
        # A family and no name: the kernel picks an abstract one that is free (unix(7)).
        anything.sun_family = posix.AF_UNIX
        if posix.bind(peer.fd, <posix.sockaddr *>&anything, sizeof(posix.sa_family_t)) != 0:
            raise os_error(posix.errno, "bind", self.where)
        return 0

    cdef int _receive_together(self, Peer *peer) except -1:
        cdef int yes = 1
        if posix.setsockopt(peer.fd, posix.SOL_UDP, posix.UDP_GRO, &yes, sizeof(yes)) != 0:
            raise os_error(posix.errno, "setsockopt UDP_GRO", self.where, "gso needs Linux 5.0")
        return 0

    def run(self, int64_t begin_ns, int64_t warmup_ns, int64_t window_ns) -> None:
        """Load from CLOCK_MONOTONIC `begin_ns` on; `window_ns` 0 lasts until the quota is done."""
        loading.set_window(&self.run_state.frame, begin_ns, warmup_ns, window_ns)
        with nogil:
            load(&self.run_state)

    def cancel(self, bint drop_everything=False) -> None:
        """From any thread: end the window now, or give up on what is awaited too."""
        loading.cancel(&self.run_state.frame, drop_everything)

    def result(self) -> dict:
        """What was seen; call it after `run()` has returned."""
        cdef Run *run = &self.run_state
        cdef Frame *frame = &run.frame
        return {
            "messages": run.messages,
            "window_start_ns": frame.window_start,
            "window_end_ns": frame.window_end,
            "last_answer_ns": run.last_answer,
            "idle_ns": frame.idle_ns,
            "server_cpu_ns": loading.server_cpu_ns(frame),
            "lost_bytes": 0,
            "corrupt_bytes": run.corrupt,
            "other_errno": run.other_errno,
            "errors": {"refused": run.refused, "other": run.other},
            "datagrams": {
                "sent": run.sent,
                "received": run.received,
                "lost": run.lost,
                "duplicated": run.duplicated,
                "reordered": run.reordered,
                "late": run.late,
            },
        }

    def _allocate(self):
        cdef Run *run = &self.run_state
        cdef uint32_t i
        cdef uint64_t ring = RING_START
        while ring < run.depth:
            ring *= 2
        run.buffer = <char *>malloc(BUFFER)
        run.pattern = <char *>malloc(pattern.PERIOD + pattern.PIECE)
        run.peers = <Peer *>calloc(run.frame.count, sizeof(Peer))
        if run.buffer == NULL or run.pattern == NULL or run.peers == NULL:
            raise MemoryError
        for i in range(run.frame.count):
            run.peers[i].fd = -1
        for i in range(run.frame.count):
            run.peers[i].ring_mask = ring - 1
            run.peers[i].ring = <int64_t *>calloc(ring, sizeof(int64_t))
            if run.peers[i].ring == NULL:
                raise MemoryError
        pattern.fill(run.pattern)


# --- the loop -----------------------------------------------------------------------------------

cdef void load(Run *run) noexcept nogil:
    cdef Frame *frame = &run.frame
    cdef int64_t now = posix.monotonic_ns()
    while now < frame.begin_ns and not loading.cancelled(frame):
        wait_and_receive(run, frame.begin_ns)
        now = posix.monotonic_ns()
    run.last_answer = now
    if run.depth:
        start_closed_loop(run)
    while run.alive and frame.phase != loading.ABORTED:
        if frame.interval_ns and frame.phase == loading.RUNNING:
            start_due(run, now)
        wait_and_receive(run, loading.next_wake(frame, run.next_sweep, run.next_due))
        now = posix.monotonic_ns()
        if now >= run.next_sweep:
            sweep(run, now)
        loading.note_time(frame, now)
        if frame.phase == loading.RUNNING and finished(run, now):
            finish(run, now)
        if frame.phase == loading.FINISHING and run.waiting == 0:
            break
    give_up_everything(run)
    if frame.quota:
        frame.window_end = run.last_answer
    elif frame.phase != loading.FINISHING:
        loading.end_window(frame, now)      # no socket, or no wish, was left


cdef void wait_and_receive(Run *run, int64_t until) noexcept nogil:
    cdef int i, count = loading.wait_for_events(&run.frame, until)
    cdef uint64_t token
    for i in range(count):
        token = run.frame.events[i].data.u64
        if loading.is_connection(&run.frame, token) and run.peers[token].fd >= 0:
            receive(run, <uint32_t>token)
            send_more(run, <uint32_t>token)


cdef bint finished(Run *run, int64_t now) noexcept nogil:
    cdef Frame *frame = &run.frame
    cdef uint32_t i
    if now >= frame.window_end or loading.cancelled(frame):
        return True
    if not frame.quota:
        return False
    if frame.interval_ns:
        return run.next_due >= loading.quota_of_thread(frame)
    for i in range(frame.count):
        if run.peers[i].fd >= 0 and run.peers[i].started < quota_of(frame, i):
            return False
    return True


cdef void finish(Run *run, int64_t now) noexcept nogil:
    """Nothing more becomes due; what is in flight is awaited, the loss timeout at the longest."""
    cdef Frame *frame = &run.frame
    if frame.interval_ns and now >= frame.window_end:
        start_due(run, frame.window_end)
    frame.phase = loading.FINISHING
    loading.end_window(frame, now)


# --- sending ------------------------------------------------------------------------------------

cdef void start_closed_loop(Run *run) noexcept nogil:
    cdef uint32_t i
    for i in range(run.frame.count):
        if run.peers[i].fd >= 0:
            send_more(run, i)


cdef void start_due(Run *run, int64_t now) noexcept nogil:
    cdef Frame *frame = &run.frame
    cdef uint64_t limit = loading.quota_of_thread(frame) if frame.quota else <uint64_t>-1
    cdef uint64_t burst_end = run.next_due + BURST
    cdef uint32_t i
    while run.next_due < limit and loading.due_at(frame, run.next_due) <= now:
        i = <uint32_t>(run.next_due % frame.count)
        run.next_due += 1
        run.peers[i].due += 1
        if run.peers[i].fd >= 0:
            send_more(run, i)
        if run.next_due == burst_end and now < frame.window_end:
            return                  # answers must be looked at too


cdef void send_more(Run *run, uint32_t i) noexcept nogil:
    """Step 7: send what the depth or the schedule allows, as far as the socket takes it."""
    cdef Peer *peer = &run.peers[i]
    cdef int error
    if run.depth and run.frame.phase == loading.RUNNING:
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


cdef int send_next(Run *run, uint32_t i) noexcept nogil:
    """Send the next datagram of a socket, or the next few together; return an errno or 0."""
    cdef Peer *peer = &run.peers[i]
    cdef uint64_t remembered = peer.ring_mask + 1 - (peer.started - peer.oldest)
    cdef uint32_t n, count = <uint32_t>min(min(peer.due - peer.started, remembered),
                                           <uint64_t>run.together)
    cdef uint64_t headers[TOGETHER_MAX]
    cdef posix.iovec pieces[2 * TOGETHER_MAX]
    cdef posix.msghdr message
    cdef Control control
    cdef int64_t now = posix.monotonic_ns()
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
        note_sent(run, i, peer.started + n, now)
    peer.started += count
    peer.waiting += count
    run.waiting += count
    run.sent += count
    return 0


cdef inline void note_sent(Run *run, uint32_t i, uint64_t number, int64_t now) noexcept nogil:
    run.peers[i].ring[number & run.peers[i].ring_mask] = now
    if run.send_delay != NULL and now >= run.frame.window_start:
        record(run.send_delay, now - loading.intended_at(&run.frame, i, number))


cdef inline int send_failed(Run *run, uint32_t count, int error) noexcept nogil:
    if count == 1 or error not in (posix.EIO, posix.EINVAL, posix.EMSGSIZE):
        return error
    run.together = 1                # not every route can take apart what leaves together
    return posix.EINTR


cdef inline uint64_t header_of(Run *run, uint32_t i, uint64_t number) noexcept nogil:
    return <uint64_t>(run.frame.first + i) << NUMBER_BITS | number


cdef inline char *body_of(Run *run, uint32_t i, uint64_t number) noexcept nogil:
    """What follows the header: it differs from one datagram to the next, and by socket."""
    return run.pattern + (pattern.offset_of(run.frame.first + i) + number) % pattern.PERIOD


cdef bint grow_ring(Peer *peer) noexcept nogil:
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


cdef void set_blocked(Run *run, uint32_t i, bint blocked) noexcept nogil:
    cdef Peer *peer = &run.peers[i]
    if peer.blocked == blocked:
        return
    peer.blocked = blocked
    if watch(&run.frame, posix.EPOLL_CTL_MOD, peer.fd,
             posix.EPOLLIN | posix.EPOLLOUT if blocked else posix.EPOLLIN, i) < 0:
        fail(run, peer, posix.errno)


# --- receiving ----------------------------------------------------------------------------------

cdef void receive(Run *run, uint32_t i) noexcept nogil:
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


cdef ssize_t receive_together(Run *run, uint32_t i) noexcept nogil:
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


cdef void on_answer(Run *run, uint32_t i, const char *data, size_t size) noexcept nogil:
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
    cdef int64_t now = posix.monotonic_ns()
    run.peers[i].waiting -= 1
    run.waiting -= 1
    run.received += 1
    run.last_answer = now
    if now < run.frame.window_start:
        return
    record(run.from_send, now - sent_at)
    if run.from_intended != NULL:
        record(run.from_intended, now - loading.intended_at(&run.frame, i, number))
    if now < run.frame.window_end:
        run.messages += 1


cdef inline bint verified(Run *run, uint32_t i, const char *data, size_t size,
                          uint64_t *number) noexcept nogil:
    """Whether this is one of the datagrams that were sent here, and which."""
    cdef const char *body
    cdef size_t wrong = 0, place
    cdef uint64_t header
    if size != run.size:
        run.corrupt += max(size, <size_t>1)
        return False
    memcpy(&header, data, HEADER)
    number[0] = header & ((<uint64_t>1 << NUMBER_BITS) - 1)
    if header != header_of(run, i, number[0]) or number[0] >= run.peers[i].started:
        run.corrupt += size         # not one of ours; which one it was cannot be told
        return False
    body = body_of(run, i, number[0])
    if not run.verify or memcmp(data + HEADER, body, size - HEADER) == 0:
        return True
    for place in range(size - HEADER):
        wrong += data[HEADER + place] != body[place]
    run.corrupt += wrong
    return False


# --- losses and failures ------------------------------------------------------------------------

cdef void sweep(Run *run, int64_t now) noexcept nogil:
    """Give up what was not answered in time, and send what may take its place."""
    cdef uint32_t i
    cdef Peer *peer
    cdef int64_t fate
    run.next_sweep = now + max(run.loss_ns // SWEEPS, <int64_t>100000)
    for i in range(run.frame.count):
        peer = &run.peers[i]
        while peer.oldest < peer.started:
            fate = peer.ring[peer.oldest & peer.ring_mask]
            if fate > GIVEN_UP and now - fate < run.loss_ns:
                break
            give_up(run, peer)
        if peer.fd >= 0:
            send_more(run, i)


cdef void give_up(Run *run, Peer *peer) noexcept nogil:
    """Wait no longer for the oldest datagram; it is lost if no answer came."""
    cdef int64_t *fate = &peer.ring[peer.oldest & peer.ring_mask]
    peer.oldest += 1
    if fate[0] > GIVEN_UP:
        fate[0] = GIVEN_UP
        peer.waiting -= 1
        run.waiting -= 1
        run.lost += 1


cdef void give_up_everything(Run *run) noexcept nogil:
    cdef uint32_t i
    for i in range(run.frame.count):
        while run.peers[i].oldest < run.peers[i].started:
            give_up(run, &run.peers[i])


cdef void fail(Run *run, Peer *peer, int error) noexcept nogil:
    """The socket cannot be used: nobody listens, or some other errno."""
    # ENOENT: of a Unix path where there is no socket.
    if error == posix.ECONNREFUSED or error == posix.ENOENT:
        run.refused += 1
    else:
        run.other += 1
        run.other_errno = error
    while peer.oldest < peer.started:
        give_up(run, peer)
    loading.close_once(&peer.fd)
    run.alive -= 1
