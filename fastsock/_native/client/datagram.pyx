"""The load client's loop for datagrams: one thread, many connected sockets, epoll(7).

Closed loop: each socket keeps `depth` datagrams in flight, and the next one takes the place of one
that is given up. Open loop: they are sent on schedule, and latency counts from the intended time;
see load.pyx.

Between Unix sockets a queue that is full makes the sender wait, so there less is lost. The sockets
are bound, to names of the kernel's choice, because an answer needs an address to go to.

What a datagram is and what becomes of it is in datagram_peer.pxd, how it is sent in
datagram_sending.pxd and received in datagram_receiving.pxd.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

cimport fastsock._native.clock as clock
cimport fastsock._native.client.load_run as loading
cimport fastsock._native.client.pattern as pattern
cimport fastsock._native.posix as posix
from fastsock._native.address cimport fill_address
from fastsock._native.check cimport os_error
from fastsock._native.client.datagram_socket cimport BUFFER, GIVEN_UP, Peer, Run, fail, give_up
from fastsock._native.client.datagram_receiving cimport receive
from fastsock._native.client.datagram_sending cimport most_together, send_more, start_closed_loop
from fastsock._native.client.datagram_sending cimport start_due
from fastsock._native.client.histogram cimport Histogram
from fastsock._native.client.load_run cimport Frame, quota_of, watch

cdef enum:
    SWEEPS = 20                     # looks for lost datagrams per loss timeout
    RING_START = 64                 # datagrams of a socket that are remembered, at first


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
        run.together = most_together(size) if gso else 1
        self.from_intended, self.from_send, self.send_delay = loading.open_histograms(&run.frame)
        self._allocate()
        loading.open_frame(&run.frame, server_pid)

    def __dealloc__(self):
        cdef Run *run = &self.run_state
        cdef uint32_t i
        if run.peers != NULL:
            for i in range(run.frame.count):
                posix.close_once(&run.peers[i].fd)
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
        return loading.seen(&run.frame) | {
            "lost_bytes": 0,
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
    cdef int64_t now = clock.monotonic_ns()
    while now < frame.begin_ns and not loading.cancelled(frame):
        wait_and_receive(run, frame.begin_ns)
        now = clock.monotonic_ns()
    frame.last_answer = now
    if run.depth:
        start_closed_loop(run)
    while run.alive and frame.phase != loading.ABORTED:
        if frame.interval_ns and frame.phase == loading.RUNNING:
            start_due(run, now)
        wait_and_receive(run, loading.next_wake(frame, run.next_sweep))
        now = clock.monotonic_ns()
        if now >= run.next_sweep:
            sweep(run, now)
        loading.note_time(frame, now)
        if frame.phase == loading.RUNNING and finished(run, now):
            finish(run, now)
        if frame.phase == loading.FINISHING and run.waiting == 0:
            break
    give_up_everything(run)
    loading.end_run(frame, now)


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
    if loading.is_over(frame, now):
        return True
    if not frame.quota or frame.interval_ns:
        return False
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


cdef void give_up_everything(Run *run) noexcept nogil:
    cdef uint32_t i
    for i in range(run.frame.count):
        while run.peers[i].oldest < run.peers[i].started:
            give_up(run, &run.peers[i])
