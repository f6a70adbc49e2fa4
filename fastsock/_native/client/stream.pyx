"""The load client's loop: one thread, many connections, epoll(7), every answer verified.

Closed loop: each connection keeps `depth` messages in flight; an answer allows the next message.
Open loop: messages have intended send times, fixed in advance by the rate, and are sent on
schedule whether or not answers came. A message that could not be sent in time is late, and its
latency counts from the intended time: a stalled server cannot hide its stall by slowing the
client down (coordinated omission).

Messages that go one way only have no answer: an upload sends as much as the sockets take, or on
schedule, and is complete when the server has closed in good order; a download takes what comes.

What a connection is and how it ends is in peer.pxd, how it is opened in connecting.pxd, sent to in
sending.pxd and received from in receiving.pxd.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

cimport fastsock._native.clock as clock
cimport fastsock._native.client.load_run as loading
cimport fastsock._native.client.pattern as pattern
cimport fastsock._native.posix as posix
cimport fastsock._native.services as service
from fastsock._native.address cimport fill_address
from fastsock._native.check cimport os_error
from fastsock._native.client.connecting cimport SOURCES_APART, open_peer, retry_time, try_again
from fastsock._native.client.histogram cimport Histogram, record
from fastsock._native.client.load_run cimport ABORTED, FINISHING, RUNNING, Frame
from fastsock._native.client.connection cimport CLOSED, CONNECTING, HALF_CLOSED, OPEN
from fastsock._native.client.connection cimport CLOSED_EARLY, MISMATCH, OTHER, REFUSED, RESET, TIMEOUT
from fastsock._native.client.connection cimport ECHO, RECEIVE, SEND, Peer, Run, close_peer, fail
from fastsock._native.client.connection cimport failure_of_errno, half_close, has_done_its_share, rewatch
from fastsock._native.client.connection cimport still_held
from fastsock._native.client.receiving cimport receive, start_download
from fastsock._native.client.sending cimport send_more, start_closed_loop, start_due, start_open_loop

cdef enum:
    SWEEP_NS = 50000000             # how often silent connections are looked for
    LINGER_NS = 1000000000          # how long a chargen service may take to see the half-close
    RING_START = 16


cdef class Loader:
    """One thread's share of a load run: connections `first` to `first + count` of `everyone`.

    `mode` is "echo", "send" or "receive"; `depth` is for echo only, and `rate` not for receive.
    `rate` is in messages per second over all threads' connections, or 0 for a closed loop;
    `messages` limits those of all connections, or 0; `timeout` is in seconds without progress.
    With `spin` the thread never sleeps, otherwise `busy_poll` is the longest time in microseconds
    for which it asks the kernel again before it does; 0 is never.
    For AF_UNIX `host` is the path, and `nodelay` means nothing. With `server_pid` that process's
    CPU time over the window is read too.
    """

    cdef Run run_state
    cdef readonly Histogram from_intended
    cdef readonly Histogram from_send
    cdef readonly Histogram send_delay
    cdef readonly Histogram connects
    cdef str where

    def __cinit__(self):
        cdef Frame *frame = &self.run_state.frame
        memset(&self.run_state, 0, sizeof(self.run_state))
        frame.epfd = frame.wake_fd = frame.timer_fd = -1

    def __init__(self, int family, str host, int port, int scope_id, str where, *,
                 str mode, uint32_t first, uint32_t count, uint32_t everyone, uint64_t size,
                 uint32_t depth, double rate, uint64_t messages, double timeout, bint verify,
                 bint spin, bint nodelay, int64_t busy_poll=0, uint64_t reconnect_every=0,
                 int server_pid=0):
        cdef Run *run = &self.run_state
        self.where = where
        run.address_size = fill_address(&run.address, family, host, port, scope_id)
        loading.set_share(&run.frame, first, count, everyone, rate, messages)
        loading.set_wait(&run.frame, spin, busy_poll)
        run.mode = {"echo": ECHO, "send": SEND, "receive": RECEIVE}[mode]
        run.size = size
        run.depth = 0 if rate else depth
        run.timeout_ns = <int64_t>(timeout * 1e9)
        run.reconnect_every = reconnect_every
        run.next_source = first * SOURCES_APART
        run.verify, run.nodelay = verify, nodelay
        self.from_intended, self.from_send, self.send_delay = loading.open_histograms(&run.frame)
        self.connects = Histogram()
        run.connects = self.connects.recorder
        self._allocate()
        loading.open_frame(&run.frame, server_pid)

    def __dealloc__(self):
        cdef Run *run = &self.run_state
        cdef uint32_t i
        if run.peers != NULL:
            for i in range(run.frame.count):
                posix.close_once(&run.peers[i].fd)
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
        return loading.seen(&run.frame) | {
            "received_bytes": run.received,
            "lost_bytes": run.lost,
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
        if run.mode == RECEIVE:
            run.pattern = service.chargen_table(pattern.PIECE)
        else:
            run.pattern = <char *>malloc(pattern.PERIOD + pattern.PIECE)
        run.peers = <Peer *>calloc(run.frame.count, sizeof(Peer))
        if run.buffer == NULL or run.pattern == NULL or run.peers == NULL:
            raise MemoryError
        for i in range(run.frame.count):
            run.peers[i].fd = -1
            run.peers[i].state = CLOSED
            run.peers[i].ring_mask = ring - 1
            if run.mode != RECEIVE:
                run.peers[i].send_offset = pattern.offset_of(run.frame.first + i)
            run.peers[i].receive_offset = run.peers[i].send_offset
            run.peers[i].sent_at = <int64_t *>malloc(ring * sizeof(int64_t))
            if run.peers[i].sent_at == NULL:
                raise MemoryError
        if run.mode != RECEIVE:
            pattern.fill(run.pattern)


# --- the loop -----------------------------------------------------------------------------------

cdef void load(Run *run) noexcept nogil:
    cdef int64_t now = clock.monotonic_ns()
    while now < run.frame.begin_ns and not loading.cancelled(&run.frame):
        wait_for_events(run, run.frame.begin_ns)
        now = clock.monotonic_ns()
    run.next_sweep = now + SWEEP_NS
    run.frame.last_answer = now
    if run.mode == RECEIVE:
        if run.frame.quota:
            # It may have sent since the first connect(), into sockets that nobody read.
            run.frame.window_start = run.peers[0].opened_at
        start_download(run, now)
    elif run.frame.interval_ns:
        start_open_loop(run, now)
    else:
        start_closed_loop(run, now)
    while run.alive and run.frame.phase != ABORTED:
        if run.frame.interval_ns and run.frame.phase == RUNNING:
            start_due(run, now)
        wait_for_events(run, loading.next_wake(
            &run.frame, min(run.next_sweep, retry_time(run))))
        now = clock.monotonic_ns()
        if now >= retry_time(run):
            try_again(run)
        if now >= run.next_sweep:
            sweep(run, now)
        loading.note_time(&run.frame, now)
        if run.frame.phase == RUNNING and finished(run, now):
            finish(run, now)
    loading.end_run(&run.frame, now)


cdef bint finished(Run *run, int64_t now) noexcept nogil:
    cdef uint32_t i
    if loading.is_over(&run.frame, now):
        return True
    if not run.frame.quota or run.frame.interval_ns:
        return False
    for i in range(run.frame.count):
        if run.peers[i].state != CLOSED and not has_done_its_share(run, i):
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
        if run.mode == SEND and not run.frame.interval_ns:
            run.peers[i].due = run.peers[i].started
        if run.peers[i].state != OPEN:
            continue
        if run.mode == RECEIVE:
            half_close(&run.peers[i], HALF_CLOSED, now)
        else:
            send_more(run, i, now)


cdef void wait_for_events(Run *run, int64_t until) noexcept nogil:
    cdef int i, count = loading.wait_for_events(&run.frame, until)
    cdef int64_t now = clock.monotonic_ns()
    cdef uint64_t token
    for i in range(count):
        token = run.frame.events[i].data.u64
        if loading.is_connection(&run.frame, token):
            on_peer(run, <uint32_t>token, run.frame.events[i].events, now)


# --- one connection -----------------------------------------------------------------------------

cdef void wait_connected(Run *run) noexcept nogil:
    cdef int64_t now = clock.monotonic_ns()
    run.next_sweep = now + SWEEP_NS
    while run.connecting and run.frame.phase != ABORTED:
        if loading.cancelled(&run.frame):
            return
        wait_for_events(run, min(retry_time(run), run.next_sweep))
        now = clock.monotonic_ns()
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
    record(run.connects, clock.monotonic_ns() - peer.opened_at)
    # A download begins for all at once: what comes until then waits in the socket.
    rewatch(run, i, 0 if run.mode == RECEIVE else posix.EPOLLIN)
    if peer.state == OPEN and (peer.due or run.frame.phase == FINISHING):
        send_more(run, i, now)


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
        elif run.mode == RECEIVE and peer.state == HALF_CLOSED:
            if now - peer.left_at >= LINGER_NS:
                close_peer(run, peer)           # nothing is owed to a client that has gone
        elif now - peer.active_at < SWEEP_NS or (run.mode == SEND and drains(peer, now)):
            continue
        elif now - peer.active_at >= run.timeout_ns and awaits_server(run, peer):
            fail(run, peer, TIMEOUT)


cdef bint awaits_server(Run *run, Peer *peer) noexcept nogil:
    """Whether a connection goes on only when the server does something."""
    if peer.state != OPEN or peer.started > peer.answered:
        return True
    # For room in a full socket, or for the lines of chargen.
    return peer.watched & posix.EPOLLOUT or (run.mode == RECEIVE and peer.watched)


cdef bint drains(Peer *peer, int64_t now) noexcept nogil:
    """Whether the other end has taken some of what the socket holds: that is progress too."""
    cdef int held = still_held(peer)
    if held == peer.unacknowledged:
        return False
    peer.unacknowledged = held
    peer.active_at = now
    return True
