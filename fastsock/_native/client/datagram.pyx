"""The datagram load client's loop: one thread, many connected sockets, epoll(7).

Closed loop: each socket keeps `depth` datagrams outstanding; the next one replaces one that was
answered or given up. Open loop: datagrams are sent on schedule, and latency counts from the
intended send time; see stream.pyx.

Unix sockets lose less: a full queue makes the sender wait. They are bound to names that the kernel
chooses, because the server needs an address to answer to.

datagram_socket.pxd has the structs and the states of a datagram; datagram_sending.pxd and
datagram_receiving.pxd have the steps.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

cimport fastsock._native.address as address
cimport fastsock._native.atomic as atomic
cimport fastsock._native.check as check
cimport fastsock._native.client.away as away
cimport fastsock._native.client.datagram_receiving as datagram_receiving
cimport fastsock._native.client.datagram_sending as datagram_sending
cimport fastsock._native.client.datagram_socket as datagram_socket
cimport fastsock._native.client.intervals as intervals
cimport fastsock._native.client.load_run as load_run
cimport fastsock._native.client.pattern as pattern
cimport fastsock._native.client.sources as sources
cimport fastsock._native.clock as clock
cimport fastsock._native.interest_list as interest_list
cimport fastsock._native.posix as posix
from fastsock._native.client.datagram_socket cimport DatagramRun, DatagramSocket
from fastsock._native.client.load_run cimport LoadRun

cdef enum:
    SWEEPS = 20                     # searches for lost datagrams per loss timeout
    GIVE_UP_NS = 1000000000         # the shortest wait for datagrams that no socket takes
    RING_START = 64                 # datagrams that a socket remembers, at first


cdef class DatagramLoader:
    """One thread's share of a load run over datagrams: sockets `first` to `first + count`.

    `server` is a SocketAddress (family, host, port, scope_id, path), `where` its text for error
    messages, `options` a LoadOptions; the size is at least 8 bytes. The sockets take
    `local_addresses` in turn. With `options.gso` one call sends several datagrams of a socket, and
    one call receives several. The loader with `first` 0 also reads the CPU time of
    `options.server_pid`.
    """

    cdef DatagramRun run_state
    cdef readonly dict histograms
    cdef str where

    def __cinit__(self):
        memset(&self.run_state, 0, sizeof(self.run_state))
        self.run_state.base.interest_list.epfd = self.run_state.base.wake_fd = -1
        self.run_state.base.timer_fd = -1

    def __init__(self, server, str where, options, *, uint32_t first, uint32_t count,
                 local_addresses=()):
        cdef DatagramRun *run = &self.run_state
        self.where = where
        run.address_size = address.fill_address(
            &run.address, server.family, server.path or server.host, server.port, server.scope_id)
        load_run.open_run(&run.base, options, first, count, &run.received)
        run.size = options.size
        run.depth = 0 if run.base.open_loop else options.depth
        run.loss_ns = int(options.loss_timeout * 1e9)
        run.verify = options.verify
        run.gso = options.gso
        run.per_call = datagram_sending.max_per_call(run.size) if run.gso else 1
        self.histograms = load_run.open_histograms(&run.base, options.stages is not None)
        sources.fill(&run.sources, local_addresses)
        self._allocate()

    def __dealloc__(self):
        cdef DatagramRun *run = &self.run_state
        cdef uint32_t i
        if run.sockets != NULL:
            for i in range(run.base.count):
                posix.close_once(&run.sockets[i].fd)
                free(run.sockets[i].ring)
                free(run.sockets[i].due_times.times)
        load_run.close_run(&run.base)
        sources.release(&run.sources)
        free(run.sockets)
        free(run.buffer)
        free(run.pattern)

    def connect(self) -> None:
        """Step 1 and connect() for all sockets, which sends nothing.

        Raises OSError when a socket cannot be created or there is no route. Where no Unix server
        listens, the socket fails and is counted, as with the first datagram of a UDP socket.
        """
        cdef DatagramRun *run = &self.run_state
        cdef DatagramSocket *sock
        cdef uint32_t i
        for i in range(run.base.count):
            sock = &run.sockets[i]
            self._create(sock, run.base.first + i)
            if interest_list.add(&run.base.interest_list, &sock.interest, sock.fd,
                                 posix.EPOLLIN, i) < 0:
                raise check.os_error(posix.errno, "epoll_ctl", self.where)
            run.open_count += 1
            if posix.connect(sock.fd, <posix.sockaddr *>&run.address, run.address_size) == 0:
                continue
            if run.address.ss_family != posix.AF_UNIX:
                hint = ("no local port is free (net.ipv4.ip_local_port_range)"
                        if posix.errno == posix.EAGAIN else "")
                raise check.os_error(posix.errno, "connect", self.where, hint)
            datagram_socket.fail_with_errno(run, sock, posix.errno)

    cdef int _create(self, DatagramSocket *sock, uint32_t number) except -1:
        cdef int error, family = self.run_state.address.ss_family
        cdef posix.sockaddr_un unnamed
        sock.fd = posix.socket(
            family, posix.SOCK_DGRAM | posix.SOCK_NONBLOCK | posix.SOCK_CLOEXEC, 0)
        if sock.fd < 0:
            hint = "raise the limit: ulimit -n" if posix.errno == posix.EMFILE else ""
            raise check.os_error(posix.errno, "socket", self.where, hint)
        if family != posix.AF_UNIX:
            if self.run_state.gso:
                self._enable_gro(sock)
            error = sources.bind_source(&self.run_state.sources, sock.fd, number)
            if error:
                raise check.os_error(error, "bind", self.where)
            return 0                # connect() chooses the port
        # A family without a name: the kernel chooses a free abstract name (unix(7)).
        unnamed.sun_family = posix.AF_UNIX
        if posix.bind(sock.fd, <posix.sockaddr *>&unnamed, sizeof(posix.sa_family_t)) != 0:
            raise check.os_error(posix.errno, "bind", self.where)
        return 0

    cdef int _enable_gro(self, DatagramSocket *sock) except -1:
        cdef int on = 1
        if posix.setsockopt(sock.fd, posix.SOL_UDP, posix.UDP_GRO, &on, sizeof(on)) != 0:
            raise check.os_error(
                posix.errno, "setsockopt UDP_GRO", self.where, "gso needs Linux 5.0")
        return 0

    def run(self, int64_t begin_ns, int64_t warmup_ns, int64_t window_ns) -> None:
        """Load from CLOCK_MONOTONIC `begin_ns` on; `window_ns` 0: until the quota is done."""
        load_run.set_window(&self.run_state.base, begin_ns, warmup_ns, window_ns)
        with nogil:
            load(&self.run_state)

    def cancel(self, bint drop_everything=False) -> None:
        """From any thread: end the window now, or also give up the outstanding datagrams."""
        load_run.cancel(&self.run_state.base, drop_everything)

    def take_intervals(self, bint last=False) -> list:
        """What each interval that has ended brought, oldest first; for one thread to call.

        `last`: also what is left, once no other thread runs. `histograms` are whole only then.
        """
        return load_run.take_chunks(&self.run_state.base, self.histograms, last)

    @property
    def intervals_taken(self) -> bool:
        """Whether the run has ended and every interval was taken."""
        return self.run_state.base.intervals.length == 0

    def failures(self) -> dict:
        """The failed sockets and the datagrams so far; from any thread, at any time."""
        cdef DatagramRun *run = &self.run_state
        return {
            "errors": {
                "refused": atomic.load_u64(&run.refused, atomic.RELAXED),
                "other": atomic.load_u64(&run.other, atomic.RELAXED),
            },
            "datagrams": {
                "sent": atomic.load_u64(&run.sent, atomic.RELAXED),
                "received": atomic.load_u64(&run.received, atomic.RELAXED),
                "lost": atomic.load_u64(&run.lost, atomic.RELAXED),
                "duplicated": atomic.load_u64(&run.duplicated, atomic.RELAXED),
                "reordered": atomic.load_u64(&run.reordered, atomic.RELAXED),
                "late": atomic.load_u64(&run.late, atomic.RELAXED),
            },
        }

    def result(self) -> dict:
        """The counters and times of the run; call it after `run()` has returned."""
        cdef DatagramRun *run = &self.run_state
        return load_run.results(&run.base) | self.failures() | {
            "lost_bytes": 0,
            "given_up": run.unsent,
        }

    def _allocate(self):
        cdef DatagramRun *run = &self.run_state
        cdef uint32_t i
        cdef uint64_t ring = RING_START
        while ring < run.depth:
            ring *= 2
        run.buffer = <char *>malloc(datagram_socket.BUFFER_BYTES)
        run.pattern = <char *>malloc(pattern.PERIOD + pattern.PIECE)
        run.sockets = <DatagramSocket *>calloc(run.base.count, sizeof(DatagramSocket))
        if run.sockets != NULL:
            for i in range(run.base.count):
                run.sockets[i].fd = -1
        if run.buffer == NULL or run.pattern == NULL or run.sockets == NULL:
            raise MemoryError
        for i in range(run.base.count):
            run.sockets[i].ring_mask = ring - 1
            run.sockets[i].ring = <int64_t *>calloc(ring, sizeof(int64_t))
            if run.sockets[i].ring == NULL:
                raise MemoryError
        pattern.fill(run.pattern)


# --- the loop -----------------------------------------------------------------------------------

cdef void load(DatagramRun *run) noexcept nogil:
    cdef LoadRun *base = &run.base
    cdef int64_t until, now = clock.monotonic_ns()
    away.begin(&base.away, now)
    while now < base.begin_ns and not load_run.is_cancelled(base):
        wait_and_handle(run, base.begin_ns)
        now = load_run.read_clock(base)
    base.last_complete = now
    intervals.begin(&base.intervals, base.window_start, base.window_end)
    if run.depth:
        datagram_sending.start_closed_loop(run)
    while run.open_count and base.phase != load_run.ABORTED:
        if base.open_loop and base.phase == load_run.RUNNING:
            datagram_sending.follow_schedule(run, now)
        until = load_run.next_wake(base, run.next_sweep)
        if base.phase == load_run.FINISHING and send_rest(run):
            until = now             # the sockets take more at once
        wait_and_handle(run, until)
        now = load_run.read_clock(base)
        if now >= run.next_sweep:
            sweep(run, now)
        load_run.note_server_cpu(base, now)
        if base.phase == load_run.RUNNING and should_finish(run, now):
            finish(run, now)
        if base.phase == load_run.FINISHING and (
                now >= run.give_up_at or run.base.outstanding == 0 and count_unsent(run) == 0):
            break
    run.unsent = count_unsent(run)
    give_up_outstanding(run)
    load_run.end_run(base, now)


cdef void wait_and_handle(DatagramRun *run, int64_t until) noexcept nogil:
    cdef int i, count = load_run.wait_for_events(&run.base, until)
    cdef uint64_t token
    for i in range(count):
        token = run.base.interest_list.events[i].data.u64
        if not load_run.handle_wakeup(&run.base, token) and run.sockets[token].fd >= 0:
            datagram_receiving.receive_burst(run, <uint32_t>token)
            datagram_sending.send_due(run, <uint32_t>token)
            datagram_socket.note_event(run, <uint32_t>token)


cdef bint should_finish(DatagramRun *run, int64_t now) noexcept nogil:
    cdef LoadRun *base = &run.base
    cdef uint32_t i
    if load_run.nothing_more_due(base, now):
        return True
    if not base.quota or base.open_loop:
        return False
    for i in range(base.count):
        if run.sockets[i].fd >= 0 and run.sockets[i].started < load_run.quota_of(base, i):
            return False
    return True


cdef void finish(DatagramRun *run, int64_t now) noexcept nogil:
    """No new datagram becomes due; outstanding ones are awaited up to the loss timeout."""
    cdef LoadRun *base = &run.base
    if base.open_loop and now >= base.window_end:
        datagram_sending.follow_schedule(run, base.window_end)
        load_run.count_rest(base)
    base.phase = load_run.FINISHING
    load_run.end_window(base, now)
    # A server that keeps up takes what is due in far less than one more window.
    run.give_up_at = clock.NEVER
    if base.open_loop:
        run.give_up_at = now + max(now - base.window_start, <int64_t>GIVE_UP_NS)


cdef void sweep(DatagramRun *run, int64_t now) noexcept nogil:
    """Give up datagrams that were not answered in time, and send those that replace them."""
    cdef uint32_t i
    cdef DatagramSocket *sock
    cdef int64_t state
    run.next_sweep = now + max(run.loss_ns // SWEEPS, <int64_t>100000)
    for i in range(run.base.count):
        sock = &run.sockets[i]
        while sock.oldest < sock.started:
            state = sock.ring[sock.oldest & sock.ring_mask]
            if state > datagram_socket.GIVEN_UP and now - state < run.loss_ns:
                break
            datagram_socket.give_up_oldest(run, sock)
        if sock.fd >= 0:
            datagram_sending.send_due(run, i)


cdef bint send_rest(DatagramRun *run) noexcept nogil:
    """Send what is still due, a burst of each socket; return whether more can be sent now."""
    cdef DatagramSocket *sock
    cdef bint more = False
    cdef uint32_t i
    if not run.base.open_loop:
        return False
    for i in range(run.base.count):
        sock = &run.sockets[i]
        if sock.fd >= 0 and not sock.blocked and sock.started < sock.due:
            datagram_sending.send_due(run, i)
            more = more or (sock.fd >= 0 and not sock.blocked and sock.started < sock.due)
    return more


cdef uint64_t count_unsent(DatagramRun *run) noexcept nogil:
    """Datagrams that are due and that no socket has taken; in an open loop."""
    cdef uint64_t count = 0
    cdef uint32_t i
    if run.base.open_loop:
        for i in range(run.base.count):
            if run.sockets[i].fd >= 0:
                count += run.sockets[i].due - run.sockets[i].started
    return count


cdef void give_up_outstanding(DatagramRun *run) noexcept nogil:
    cdef uint32_t i
    for i in range(run.base.count):
        datagram_socket.give_up_all(run, &run.sockets[i])
