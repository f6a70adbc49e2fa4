"""The load client's loop: one thread, many connections, epoll(7), every answer verified.

Closed loop: each connection keeps `depth` messages in flight; an answer allows the next message.
Open loop: messages have intended send times, fixed in advance by the rate, and are sent on
schedule whether or not answers came. A message that could not be sent in time is late, and its
latency counts from the intended time: a stalled server cannot hide its stall by slowing the
client down (coordinated omission).

A connection's life: connect (again and again while a Unix listener's queue is full), open,
half-closed (all was sent; the rest is awaited), closed; with `reconnect_every` it then begins
again, as the same connection with the same place in the pattern. The bytes it sends are a stretch
of a fixed pattern, at an offset that differs by connection. So one memcmp per answer sees every
lost, doubled, reordered or foreign byte.
"""

from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memset

from fastsock._native cimport engine, loading, pattern, posix
from fastsock._native.address cimport fill_address
from fastsock._native.check cimport os_error
from fastsock._native.histogram cimport Histogram, Recorder, record
from fastsock._native.loading cimport ABORTED, FINISHING, RUNNING, Frame, close_once
from fastsock._native.loading cimport due_at, intended_at, quota_of, quota_of_thread, watch

cdef enum:
    SWEEP_NS = 50000000             # how often silent connections are looked for
    RETRY_NS = 1000000              # how often connect() is tried again
    DUE_BURST = 1024                # messages started before answers are looked at again
    IN_FLIGHT_MAX = 65536           # per connection; bounds the memory for send times
    RING_START = 16
    LOOPBACK_NET = 127
    SOURCES = 60000                 # addresses that are used as sources, from 127.1.0.1 on
    SOURCES_APART = 997             # between the first of two threads

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
    uint32_t receive_offset         # into the pattern, of the next byte to come back
    uint32_t ring_mask              # sent_at has ring_mask + 1 places
    int64_t *sent_at                # ns, by message number & ring_mask, while in flight
    uint64_t due                    # messages that may be sent, ever
    uint64_t started                # messages whose first byte was offered to send()
    uint64_t answered               # messages that came back whole
    uint64_t to_send                # bytes of started messages not yet taken by the socket
    uint64_t partial                # bytes received of the message number `answered`
    uint64_t leave_after            # how many messages this opening may start in all
    int64_t opened_at               # when connect() was called, ns
    int64_t active_at               # last progress, ns

cdef struct Run:
    Frame frame
    # What was asked for
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
    uint64_t next_due               # open loop: number of the next message of this thread
    int64_t next_sweep
    int64_t give_up_at              # when what is owed at the end is given up, ns
    char *pattern                   # the table that pattern.fill() made
    char *buffer                    # what was received last
    Peer *peers
    Recorder *from_intended         # NULL in a closed loop
    Recorder *from_send
    Recorder *connects              # from connect() to connected
    # What was seen
    uint64_t messages               # answers inside the window
    int64_t last_answer
    uint64_t lost, corrupt          # bytes
    uint64_t failures[FAILURES]
    int other_errno                 # the last errno behind OTHER


cdef class Loader:
    """One thread's share of a load run: connections `first` to `first + count` of `everyone`.

    `rate` is in messages per second over all threads' connections, or 0 for a closed loop;
    `messages` limits those of all connections, or 0; `timeout` is in seconds without progress.
    For AF_UNIX `host` is the path, and `nodelay` means nothing. With `server_pid` that process's
    CPU time over the window is read too.
    """

    cdef Run run_state
    cdef readonly Histogram from_intended
    cdef readonly Histogram from_send
    cdef readonly Histogram connects
    cdef str where

    def __cinit__(self):
        cdef Frame *frame = &self.run_state.frame
        memset(&self.run_state, 0, sizeof(self.run_state))
        frame.epfd = frame.wake_fd = frame.timer_fd = -1

    def __init__(self, int family, str host, int port, int scope_id, str where, *,
                 uint32_t first, uint32_t count, uint32_t everyone, uint64_t size, uint32_t depth,
                 double rate, uint64_t messages, double timeout, bint verify, bint spin,
                 bint nodelay, uint64_t reconnect_every=0, int server_pid=0):
        cdef Run *run = &self.run_state
        self.where = where
        run.address_size = fill_address(&run.address, family, host, port, scope_id)
        run.frame.first, run.frame.count, run.frame.everyone = first, count, everyone
        run.size = size
        run.depth = 0 if rate else depth
        run.frame.interval_ns = 1e9 / rate if rate else 0
        run.frame.quota = messages
        run.timeout_ns = <int64_t>(timeout * 1e9)
        run.reconnect_every = reconnect_every
        run.next_source = first * SOURCES_APART
        run.verify, run.frame.spin, run.nodelay = verify, spin, nodelay
        self.from_send = Histogram()
        run.from_send = self.from_send.recorder
        self.connects = Histogram()
        run.connects = self.connects.recorder
        self.from_intended = self.from_send
        if rate:
            self.from_intended = Histogram()
            run.from_intended = self.from_intended.recorder
        self._allocate()
        loading.open_frame(&run.frame, server_pid)

    def __dealloc__(self):
        cdef Run *run = &self.run_state
        cdef uint32_t i
        if run.peers != NULL:
            for i in range(run.frame.count):
                close_once(&run.peers[i].fd)
                free(run.peers[i].sent_at)
        loading.close_frame(&run.frame)
        free(run.peers)
        free(run.buffer)
        free(run.pattern)

    def connect(self) -> None:
        """Step 1 and connect() for all connections; wait until each is open or has failed.

        Raises OSError when a socket cannot even be made; what goes wrong with a connection later
        is counted.
        """
        cdef uint32_t i
        cdef int error
        for i in range(self.run_state.frame.count):
            self.run_state.alive += 1
            error = open_peer(&self.run_state, i)
            if error:
                hint = "raise the limit: ulimit -n" if error == posix.EMFILE else ""
                raise os_error(error, "socket", self.where, hint)
        with nogil:
            wait_connected(&self.run_state)

    def run(self, int64_t begin_ns, int64_t warmup_ns, int64_t window_ns) -> None:
        """Load from CLOCK_MONOTONIC `begin_ns` on; `window_ns` 0 lasts until the quota is done."""
        loading.set_window(&self.run_state.frame, begin_ns, warmup_ns, window_ns)
        with nogil:
            load(&self.run_state)

    def cancel(self, bint drop_everything=False) -> None:
        """From any thread: end the window now, or give up on what is owed too."""
        loading.cancel(&self.run_state.frame, drop_everything)

    def result(self) -> dict:
        """What was seen; call it after `run()` has returned."""
        cdef Run *run = &self.run_state
        return {
            "messages": run.messages,
            "window_start_ns": run.frame.window_start,
            "window_end_ns": run.frame.window_end,
            "last_answer_ns": run.last_answer,
            "idle_ns": run.frame.idle_ns,
            "server_cpu_ns": loading.server_cpu_ns(&run.frame),
            "lost_bytes": run.lost,
            "corrupt_bytes": run.corrupt,
            "other_errno": run.other_errno,
            "errors": {
                "refused": run.failures[REFUSED],
                "reset": run.failures[RESET],
                "timeout": run.failures[TIMEOUT],
                "closed_early": run.failures[CLOSED_EARLY],
                "mismatch": run.failures[MISMATCH],
                "other": run.failures[OTHER],
            },
        }

    def _allocate(self):
        cdef Run *run = &self.run_state
        cdef uint32_t i, ring = RING_START
        while ring < run.depth:
            ring *= 2
        run.buffer = <char *>malloc(pattern.PIECE)
        run.pattern = <char *>malloc(pattern.PERIOD + pattern.PIECE)
        run.peers = <Peer *>calloc(run.frame.count, sizeof(Peer))
        if run.buffer == NULL or run.pattern == NULL or run.peers == NULL:
            raise MemoryError
        for i in range(run.frame.count):
            run.peers[i].fd = -1
            run.peers[i].state = CLOSED
            run.peers[i].ring_mask = ring - 1
            run.peers[i].send_offset = pattern.offset_of(run.frame.first + i)
            run.peers[i].receive_offset = run.peers[i].send_offset
            run.peers[i].sent_at = <int64_t *>malloc(ring * sizeof(int64_t))
            if run.peers[i].sent_at == NULL:
                raise MemoryError
        pattern.fill(run.pattern)


# --- the loop -----------------------------------------------------------------------------------

cdef void load(Run *run) noexcept nogil:
    cdef int64_t now = posix.monotonic_ns()
    while now < run.frame.begin_ns and not loading.cancelled(&run.frame):
        wait_for_events(run, run.frame.begin_ns)
        now = posix.monotonic_ns()
    run.next_sweep = now + SWEEP_NS
    run.last_answer = now
    if run.depth:
        start_closed_loop(run, now)
    while run.alive and run.frame.phase != ABORTED:
        if run.frame.interval_ns and run.frame.phase == RUNNING:
            start_due(run, now)
        wait_for_events(run, next_wake(run))
        now = posix.monotonic_ns()
        if now >= retry_time(run):
            try_again(run)
        if now >= run.next_sweep:
            sweep(run, now)
        loading.note_time(&run.frame, now)
        if run.frame.phase == RUNNING and finished(run, now):
            finish(run, now)
    if run.frame.quota:
        run.frame.window_end = run.last_answer
    elif run.frame.phase != FINISHING:
        loading.end_window(&run.frame, now)     # no connection, or no wish, was left


cdef bint finished(Run *run, int64_t now) noexcept nogil:
    cdef uint32_t i
    if now >= run.frame.window_end or loading.cancelled(&run.frame):
        return True
    if not run.frame.quota:
        return False
    if run.frame.interval_ns:
        return run.next_due >= quota_of_thread(&run.frame)
    for i in range(run.frame.count):
        if run.peers[i].state != CLOSED and run.peers[i].started < quota_of(&run.frame, i):
            return False
    return True


cdef void finish(Run *run, int64_t now) noexcept nogil:
    """Nothing more becomes due: half-close each connection as soon as its last byte is sent."""
    cdef uint32_t i
    if run.frame.interval_ns and now >= run.frame.window_end:
        start_due(run, run.frame.window_end)
    run.frame.phase = FINISHING
    # A backlog may take as long to work off as it took to build up, and no longer.
    run.give_up_at = now + max(now - run.frame.begin_ns, 0) + run.timeout_ns
    loading.end_window(&run.frame, now)
    for i in range(run.frame.count):
        if run.peers[i].state == OPEN:
            send_more(run, i, now)


cdef int64_t next_wake(Run *run) noexcept nogil:
    """When there is something to do even if no event comes, ns."""
    cdef int64_t wake = min(run.next_sweep, retry_time(run)), due
    if run.frame.phase != RUNNING:
        return wake
    wake = min(wake, run.frame.window_end)
    if run.frame.interval_ns:
        due = due_at(&run.frame, run.next_due)
        wake = min(wake, due)
    return wake


cdef void wait_for_events(Run *run, int64_t until) noexcept nogil:
    cdef int i, count = loading.wait_for_events(&run.frame, until)
    cdef int64_t now = posix.monotonic_ns()
    cdef uint64_t token
    for i in range(count):
        token = run.frame.events[i].data.u64
        if loading.is_connection(&run.frame, token):
            on_peer(run, <uint32_t>token, run.frame.events[i].events, now)


# --- what is due --------------------------------------------------------------------------------

cdef void start_closed_loop(Run *run, int64_t now) noexcept nogil:
    cdef uint32_t i
    for i in range(run.frame.count):
        if run.peers[i].state == OPEN:
            allow(run, i, run.depth)
            send_more(run, i, now)


cdef inline void allow(Run *run, uint32_t i, uint64_t messages) noexcept nogil:
    """Let a connection send `messages` more, within its share of the quota."""
    cdef Peer *peer = &run.peers[i]
    peer.due += messages
    if run.frame.quota:
        peer.due = min(peer.due, quota_of(&run.frame, i))


cdef void start_due(Run *run, int64_t now) noexcept nogil:
    cdef uint64_t limit = quota_of_thread(&run.frame) if run.frame.quota else <uint64_t>-1
    cdef uint64_t burst_end = run.next_due + DUE_BURST
    cdef uint32_t i
    while run.next_due < limit and due_at(&run.frame, run.next_due) <= now:
        i = <uint32_t>(run.next_due % run.frame.count)
        run.next_due += 1
        # Also for one that is being opened again: it is sent then, late.
        if run.peers[i].state != CLOSED:
            run.peers[i].due += 1
        if run.peers[i].state == OPEN:
            send_more(run, i, posix.monotonic_ns())
        if run.next_due == burst_end and run.frame.phase == RUNNING and now < run.frame.window_end:
            return


# --- one connection -----------------------------------------------------------------------------

cdef int open_peer(Run *run, uint32_t i) noexcept nogil:
    """Start a connect; return the errno of socket(), or 0."""
    cdef Peer *peer = &run.peers[i]
    cdef int on = 1
    peer.fd = posix.socket(run.address.ss_family,
                           posix.SOCK_STREAM | posix.SOCK_NONBLOCK | posix.SOCK_CLOEXEC, 0)
    if peer.fd < 0:
        return posix.errno
    if run.nodelay and run.address.ss_family != posix.AF_UNIX:
        # Otherwise Nagle's algorithm holds a small message back until the last answer's ACK.
        posix.setsockopt(peer.fd, posix.IPPROTO_TCP, posix.TCP_NODELAY, &on, sizeof(on))
    peer.state = CONNECTING
    peer.leave_after = peer.started + run.reconnect_every if run.reconnect_every else UINT64_MAX
    peer.opened_at = peer.active_at = posix.monotonic_ns()
    run.connecting += 1
    if run.reconnect_every:
        vary_source(run, peer.fd)
    start_connect(run, i)
    return 0


cdef void start_connect(Run *run, uint32_t i) noexcept nogil:
    cdef Peer *peer = &run.peers[i]
    if (posix.connect(peer.fd, <posix.sockaddr *>&run.address, run.address_size) != 0
            and posix.errno != posix.EINPROGRESS):
        # A full queue: TCP tries again by itself, a Unix socket leaves that to its owner, with no
        # event to wait for (connect(2)). For TCP the same errno means that no port is left.
        if posix.errno == posix.EAGAIN and run.address.ss_family == posix.AF_UNIX:
            peer.turned_away = True
            run.turned_away += 1
            run.retry_at = posix.monotonic_ns() + RETRY_NS
        else:
            fail(run, peer, failure_of_errno(run, posix.errno))
        return
    peer.watched = posix.EPOLLOUT
    if watch(&run.frame, posix.EPOLL_CTL_ADD, peer.fd, posix.EPOLLOUT, i) < 0:
        fail(run, peer, failure_of_errno(run, posix.errno))


cdef void try_again(Run *run) noexcept nogil:
    """connect() once more for those that a full queue turned away."""
    cdef uint32_t i
    for i in range(run.frame.count):
        if run.peers[i].turned_away:
            admit(run, &run.peers[i])
            start_connect(run, i)
            if run.peers[i].turned_away:
                return              # full again, and for all that follow


cdef inline int64_t retry_time(Run *run) noexcept nogil:
    return run.retry_at if run.turned_away else engine.NEVER


cdef inline void admit(Run *run, Peer *peer) noexcept nogil:
    peer.turned_away = False
    run.turned_away -= 1


cdef void wait_connected(Run *run) noexcept nogil:
    cdef int64_t now = posix.monotonic_ns()
    run.next_sweep = now + SWEEP_NS
    while run.connecting and run.frame.phase != ABORTED:
        if loading.cancelled(&run.frame):
            return
        wait_for_events(run, min(retry_time(run), run.next_sweep))
        now = posix.monotonic_ns()
        if now >= retry_time(run):
            try_again(run)
        if now >= run.next_sweep:
            sweep(run, now)


cdef void on_peer(Run *run, uint32_t i, uint32_t events, int64_t now) noexcept nogil:
    cdef Peer *peer = &run.peers[i]
    if peer.state == CONNECTING:
        on_connected(run, i, now)
        return
    if events & ~posix.EPOLLOUT and peer.state != CLOSED:
        receive(run, i, now)
    if events & posix.EPOLLOUT and peer.state == OPEN:
        send_more(run, i, now)


cdef void on_connected(Run *run, uint32_t i, int64_t now) noexcept nogil:
    cdef Peer *peer = &run.peers[i]
    cdef int error = 0
    cdef posix.socklen_t size = sizeof(error)
    posix.getsockopt(peer.fd, posix.SOL_SOCKET, posix.SO_ERROR, &error, &size)
    if error:
        fail(run, peer, failure_of_errno(run, error))
        return
    peer.state = OPEN
    peer.active_at = now
    run.connecting -= 1
    record(run.connects, posix.monotonic_ns() - peer.opened_at)
    rewatch(run, i, posix.EPOLLIN)
    if peer.state == OPEN and (peer.due or run.frame.phase == FINISHING):
        send_more(run, i, now)


cdef void send_more(Run *run, uint32_t i, int64_t now) noexcept nogil:
    """Step 7: start what is due, send what the socket takes, half-close after the last byte."""
    cdef Peer *peer = &run.peers[i]
    cdef ssize_t sent
    while True:
        if peer.to_send == 0:
            start_messages(run, peer, now)
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
            now = posix.monotonic_ns()
    if peer.watched != posix.EPOLLIN:
        rewatch(run, i, posix.EPOLLIN)
    if peer.state != OPEN:
        return
    if run.frame.phase == FINISHING and peer.started == peer.due:
        peer.state = HALF_CLOSED
    elif peer.started == peer.leave_after:
        peer.state = LEAVING
    else:
        return
    peer.active_at = now
    posix.shutdown(peer.fd, posix.SHUT_WR)


cdef inline void start_messages(Run *run, Peer *peer, int64_t now) noexcept nogil:
    """Note the send time of what is sent next, a piece at most: the rest may have to wait."""
    if peer.started == peer.answered:
        peer.active_at = now        # the time without progress starts with the first one owed
    while peer.started < min(peer.due, peer.leave_after) and peer.to_send < pattern.PIECE:
        if peer.started - peer.answered > peer.ring_mask and not grow_ring(peer):
            return
        peer.sent_at[peer.started & peer.ring_mask] = now
        peer.started += 1
        peer.to_send += run.size


cdef bint grow_ring(Peer *peer) noexcept nogil:
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


cdef void receive(Run *run, uint32_t i, int64_t now) noexcept nogil:
    """Step 6: receive once, verify, count."""
    cdef Peer *peer = &run.peers[i]
    cdef ssize_t size = posix.recv(peer.fd, run.buffer, pattern.PIECE, 0)
    if size > 0:
        peer.active_at = now
        if verified(run, peer, size):
            peer.partial += size
            peer.receive_offset = pattern.advance(peer.receive_offset, size)
            if peer.partial >= run.size:
                # Taken after the answer was received and checked; one reading does for all the
                # answers that came in one piece.
                on_answers(run, i, posix.monotonic_ns())
    elif size == 0:
        on_eof(run, i)
    elif posix.errno != posix.EAGAIN and posix.errno != posix.EINTR:
        fail(run, peer, failure_of_errno(run, posix.errno))


cdef inline bint verified(Run *run, Peer *peer, size_t size) noexcept nogil:
    cdef const char *expected = run.pattern + peer.receive_offset
    cdef size_t wrong = 0, i
    if size > owed(run, peer):
        wrong = size - owed(run, peer)          # more than was ever sent
    elif not run.verify or memcmp(run.buffer, expected, size) == 0:
        return True
    else:
        for i in range(size):
            wrong += run.buffer[i] != expected[i]
    run.corrupt += wrong
    fail(run, peer, MISMATCH)
    return False


cdef inline void on_answers(Run *run, uint32_t i, int64_t now) noexcept nogil:
    cdef Peer *peer = &run.peers[i]
    cdef uint64_t before = peer.answered
    cdef bint counted = now >= run.frame.window_start
    while peer.partial >= run.size:
        peer.partial -= run.size
        if counted:
            record(run.from_send, now - peer.sent_at[peer.answered & peer.ring_mask])
            if run.from_intended != NULL:
                record(run.from_intended, now - intended_at(&run.frame, i, peer.answered))
        peer.answered += 1
    if counted and now < run.frame.window_end:
        run.messages += peer.answered - before
    run.last_answer = now
    if run.depth and run.frame.phase == RUNNING:
        allow(run, i, peer.answered - before)
        if peer.state == OPEN:
            send_more(run, i, now)
    elif peer.state == OPEN and peer.started < peer.due:
        send_more(run, i, now)                  # the ring of send times had been full


cdef void on_eof(Run *run, uint32_t i) noexcept nogil:
    cdef Peer *peer = &run.peers[i]
    if owed(run, peer) or (peer.state != HALF_CLOSED and peer.state != LEAVING):
        fail(run, peer, CLOSED_EARLY)
    elif peer.state == LEAVING and (run.frame.phase == RUNNING or peer.started < peer.due):
        open_again(run, i)
    else:
        close_peer(run, peer)


cdef void open_again(Run *run, uint32_t i) noexcept nogil:
    cdef Peer *peer = &run.peers[i]
    cdef int error
    close_once(&peer.fd)
    error = open_peer(run, i)
    if error:
        fail(run, peer, failure_of_errno(run, error))


cdef void vary_source(Run *run, int fd) noexcept nogil:
    """On loopback, connect from one address of 127.0.0.0/8 after the other.

    The ports of one address would run out: each of its closed connections keeps one for a minute
    (TIME_WAIT). A failure is no matter here: connect() then chooses the address, or says why not.
    """
    cdef posix.sockaddr_in source
    cdef int on = 1
    cdef uint32_t target = posix.ntohl((<posix.sockaddr_in *>&run.address).sin_addr.s_addr)
    if run.address.ss_family != posix.AF_INET or target >> 24 != LOOPBACK_NET:
        return
    memset(&source, 0, sizeof(source))
    source.sin_family = posix.AF_INET
    source.sin_addr.s_addr = posix.htonl(
        <uint32_t>LOOPBACK_NET << 24 | 1 << 16 | run.next_source % SOURCES + 1)
    run.next_source += 1
    # The port is chosen by connect(), which knows that only the four-tuple must be unique (ip(7)).
    posix.setsockopt(fd, posix.IPPROTO_IP, posix.IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on))
    posix.bind(fd, <posix.sockaddr *>&source, sizeof(source))


cdef inline uint64_t owed(Run *run, Peer *peer) noexcept nogil:
    """Bytes that the socket has taken and that have not come back."""
    return (peer.started - peer.answered) * run.size - peer.partial - peer.to_send


cdef void sweep(Run *run, int64_t now) noexcept nogil:
    """Fail the connections that are owed something and made no progress for too long."""
    cdef uint32_t i
    cdef Peer *peer
    run.next_sweep = now + SWEEP_NS
    for i in range(run.frame.count):
        peer = &run.peers[i]
        if peer.state == CLOSED:
            continue
        if run.frame.phase == FINISHING and now >= run.give_up_at:
            fail(run, peer, TIMEOUT)
        elif now - peer.active_at < run.timeout_ns:
            continue
        elif peer.state != OPEN or peer.started > peer.answered:
            fail(run, peer, TIMEOUT)


cdef inline int failure_of(int error) noexcept nogil:
    # ENOENT: of a Unix path where there is no socket.
    if error == posix.ECONNREFUSED or error == posix.ENOENT:
        return REFUSED
    if error == posix.ECONNRESET or error == posix.EPIPE:
        return RESET
    if error == posix.ETIMEDOUT:
        return TIMEOUT
    return OTHER


cdef int failure_of_errno(Run *run, int error) noexcept nogil:
    if failure_of(error) == OTHER:
        run.other_errno = error
    return failure_of(error)


cdef void fail(Run *run, Peer *peer, int failure) noexcept nogil:
    run.failures[failure] += 1
    if peer.turned_away:
        admit(run, peer)
    if peer.state == CONNECTING:
        run.connecting -= 1
    elif peer.state != CLOSED:
        run.lost += owed(run, peer)
    close_peer(run, peer)


cdef void close_peer(Run *run, Peer *peer) noexcept nogil:
    # epoll reports a descriptor once in a batch, and tokens are numbers of connections: no event
    # that is still to come can be taken for that of a descriptor with a reused number.
    close_once(&peer.fd)
    peer.state = CLOSED
    run.alive -= 1


cdef void rewatch(Run *run, uint32_t i, uint32_t events) noexcept nogil:
    cdef Peer *peer = &run.peers[i]
    if peer.watched == events:
        return
    peer.watched = events
    if watch(&run.frame, posix.EPOLL_CTL_MOD, peer.fd, events, i) < 0:
        fail(run, peer, failure_of_errno(run, posix.errno))
