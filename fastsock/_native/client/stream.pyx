"""The stream load client's loop: one thread, many connections, epoll(7), every byte verified.

Closed loop: each connection keeps `depth` messages outstanding; an answer makes the next one due.
Open loop: the rate fixes the intended send time of each message in advance, and messages are sent
on schedule whether or not answers came. A message belongs to the window in which it was to be
sent, and its answer is waited for. A message can be sent late, and its latency counts from
the intended time: so a server that stalls cannot hide it by slowing the client down (coordinated
omission).

Uploads and downloads have no answers. An upload sends as much as the sockets take, or on schedule,
and ends when the server has closed in good order. A download receives what comes.

connection.pxd has the structs and how a connection ends; connecting.pxd, sending.pxd and
receiving.pxd have the steps.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

cimport fastsock._native.address as address
cimport fastsock._native.atomic as atomic
cimport fastsock._native.check as check
cimport fastsock._native.client.away as away
cimport fastsock._native.client.connecting as connecting
cimport fastsock._native.client.connection as connection
cimport fastsock._native.client.histogram as histogram
cimport fastsock._native.client.intervals as intervals
cimport fastsock._native.client.load_run as load_run
cimport fastsock._native.client.pattern as pattern
cimport fastsock._native.client.receiving as receiving
cimport fastsock._native.client.sending as sending
cimport fastsock._native.client.sources as sources
cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix
cimport fastsock._native.services as services
from fastsock._native.client.connection cimport Connection, StreamRun

cdef enum:
    SWEEP_NS = 50000000             # between two searches for connections without progress
    EOF_WAIT_NS = 1000000000        # how long a server may take to close after our half-close
    RING_START = 16

# In the order of connection.pxd.
cdef tuple FAILURES = ("refused", "reset", "timeout", "closed_early", "mismatch", "other")


cdef class Loader:
    """One thread's share of a load run over streams: connections `first` to `first + count`.

    `server` is a SocketAddress (family, host, port, scope_id, path), `where` its text for error
    messages, `options` a LoadOptions. The connections take `local_addresses` in turn. The loader
    with `first` 0 also reads the CPU time of `options.server_pid`.
    """

    cdef StreamRun run_state
    cdef readonly dict histograms
    cdef str where
    cdef int64_t ramp_ns            # over which the connections are opened

    def __cinit__(self):
        memset(&self.run_state, 0, sizeof(self.run_state))
        self.run_state.base.interest_list.epfd = self.run_state.base.wake_fd = -1
        self.run_state.base.timer_fd = -1

    def __init__(self, server, str where, options, *, uint32_t first, uint32_t count,
                 local_addresses=()):
        cdef StreamRun *run = &self.run_state
        self.where = where
        run.address_size = address.fill_address(
            &run.address, server.family, server.path or server.host, server.port, server.scope_id)
        load_run.open_run(&run.base, options, first, count, &run.received)
        run.mode = {
            "echo": connection.MODE_ECHO,
            "send": connection.MODE_SEND,
            "receive": connection.MODE_RECEIVE,
        }[options.mode]
        self.ramp_ns = int(options.ramp_up * 1e9)
        run.size = options.size
        run.depth = 0 if run.base.open_loop else options.depth
        run.timeout_ns = int(options.timeout * 1e9)
        run.reconnect_every = options.reconnect_every or 0
        run.next_source = first * connecting.SOURCE_STRIDE
        run.verify, run.nodelay = options.verify, options.nodelay
        run.half_close_at_once = run.mode != connection.MODE_ECHO or options.finish == "half-close"
        run.retry_at = clock.NEVER
        run.reconnect = options.on_disconnect == "reconnect"
        run.eof_wait_ns = min(run.timeout_ns, <int64_t>EOF_WAIT_NS)
        self.histograms = load_run.open_histograms(&run.base, options.stages is not None)
        sources.fill(&run.sources, local_addresses)
        self._allocate()

    def __dealloc__(self):
        cdef StreamRun *run = &self.run_state
        cdef uint32_t i
        if run.connections != NULL:
            for i in range(run.base.count):
                posix.close_once(&run.connections[i].fd)
                free(run.connections[i].sent_at)
                free(run.connections[i].due_times.times)
        load_run.close_run(&run.base)
        sources.release(&run.sources)
        free(run.connections)
        free(run.buffer)
        free(run.pattern)

    def connect(self) -> None:
        """Step 1 and connect() for all connections; wait until each is open or has failed.

        They are opened evenly over `options.ramp_up`, those of all threads in turn.
        Raises OSError when a socket cannot be created. Later failures of a connection are counted.
        """
        cdef StreamRun *run = &self.run_state
        cdef int64_t start = clock.monotonic_ns()
        cdef uint32_t i
        cdef int error
        away.begin(&run.base.away, start)
        run.next_sweep = start + SWEEP_NS
        for i in range(run.base.count):
            if self.ramp_ns:
                with nogil:
                    wait_for_turn(run, start + <int64_t>(
                        <double>(run.base.first + i) / run.base.total_connections * self.ramp_ns))
                if load_run.is_cancelled(&run.base):
                    return
            run.unclosed_count += 1
            error = connecting.open_connection(run, i)
            if error:
                hint = "raise the limit: ulimit -n" if error == posix.EMFILE else ""
                raise check.os_error(error, "socket", self.where, hint)
        with nogil:
            wait_connected(run)

    def run(self, int64_t begin_ns, int64_t warmup_ns, int64_t window_ns) -> None:
        """Load from CLOCK_MONOTONIC `begin_ns` on; `window_ns` 0: until the quota is done."""
        load_run.set_window(&self.run_state.base, begin_ns, warmup_ns, window_ns)
        with nogil:
            load(&self.run_state)

    def cancel(self, bint drop_everything=False) -> None:
        """From any thread: end the window now, or also give up the outstanding messages."""
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

    @property
    def opened(self) -> int:
        """How often a connection was opened."""
        return self.run_state.opened

    def failures(self) -> dict:
        """The failed connections so far; from any thread, at any time."""
        cdef uint64_t *counts = self.run_state.failures
        return {"errors": {
            name: atomic.load_u64(&counts[i], atomic.RELAXED)
            for i, name in enumerate(FAILURES)
        }}

    def result(self) -> dict:
        """The counters and times of the run; call it after `run()` has returned."""
        cdef StreamRun *run = &self.run_state
        return load_run.results(&run.base) | self.failures() | {
            "received_bytes": run.received,
            "lost_bytes": run.lost,
            "given_up": run.given_up,
            "no_eof": run.no_eof,
            "cut_off": run.cut_off,
            "outages": {
                "count": run.outages,
                "total_ns": run.outage_ns,
                "longest_ns": run.longest_outage_ns,
                "messages": run.dropped,
            },
            "tcp": connection.tcp_figures(run),
        }

    def _allocate(self):
        cdef StreamRun *run = &self.run_state
        cdef Connection *conn
        cdef uint32_t i, ring = RING_START
        while ring < run.depth:
            ring *= 2
        run.buffer = <char *>malloc(pattern.PIECE)
        if run.mode == connection.MODE_RECEIVE:
            run.pattern = services.chargen_table(pattern.PIECE)
        else:
            run.pattern = <char *>malloc(pattern.PERIOD + pattern.PIECE)
        run.connections = <Connection *>calloc(run.base.count, sizeof(Connection))
        if run.connections != NULL:
            for i in range(run.base.count):
                run.connections[i].fd = -1
        if run.buffer == NULL or run.pattern == NULL or run.connections == NULL:
            raise MemoryError
        for i in range(run.base.count):
            conn = &run.connections[i]
            conn.state = connection.CLOSED
            conn.ring_mask = ring - 1
            if run.mode != connection.MODE_RECEIVE:
                conn.send_offset = pattern.offset_of(run.base.first + i)
            conn.receive_offset = conn.send_offset
            conn.sent_at = <int64_t *>malloc(ring * sizeof(int64_t))
            if conn.sent_at == NULL:
                raise MemoryError
        if run.mode != connection.MODE_RECEIVE:
            pattern.fill(run.pattern)


# --- the loop -----------------------------------------------------------------------------------

cdef void load(StreamRun *run) noexcept nogil:
    cdef uint32_t i
    cdef int64_t now = clock.monotonic_ns()
    away.begin(&run.base.away, now)
    while now < run.base.begin_ns and not load_run.is_cancelled(&run.base):
        wait_and_handle(run, run.base.begin_ns)
        now = load_run.read_clock(&run.base)
    run.next_sweep = now + SWEEP_NS
    run.base.last_complete = now
    run.loading = True
    intervals.begin(&run.base.intervals, run.base.window_start, run.base.window_end)
    if run.mode == connection.MODE_RECEIVE:
        if run.base.quota:
            # The server may have sent since the first connect(); the sockets hold these bytes.
            run.base.window_start = run.connections[0].opened_at
            intervals.begin(&run.base.intervals, run.base.window_start, run.base.window_end)
        receiving.start_download(run, now)
    elif run.base.open_loop:
        sending.start_open_loop(run, now)
    else:
        sending.start_closed_loop(run)
    while run.unclosed_count and run.base.phase != load_run.ABORTED:
        if run.base.open_loop and run.base.phase == load_run.RUNNING:
            sending.follow_schedule(run, now)
        wait_and_handle(run, load_run.next_wake(
            &run.base, min(run.next_sweep, connecting.next_retry(run))))
        now = load_run.read_clock(&run.base)
        if now >= connecting.next_retry(run):
            connecting.retry_connects(run)
        if now >= run.next_sweep:
            sweep(run, now)
        load_run.note_server_cpu(&run.base, now)
        if run.base.phase == load_run.RUNNING and should_finish(run, now):
            finish(run, now)
    for i in range(run.base.count):
        connection.end_outage(run, &run.connections[i], now)
    load_run.end_run(&run.base, now)


cdef bint should_finish(StreamRun *run, int64_t now) noexcept nogil:
    cdef uint32_t i
    if load_run.nothing_more_due(&run.base, now):
        return True
    if not run.base.quota or run.base.open_loop:
        return False
    for i in range(run.base.count):
        if (run.connections[i].state != connection.CLOSED
                and not connection.has_started_quota(run, i)):
            return False
    return True


cdef void finish(StreamRun *run, int64_t now) noexcept nogil:
    """No new message becomes due: half-close each connection when its last byte is sent."""
    cdef uint32_t i
    if run.base.open_loop and now >= run.base.window_end:
        sending.follow_schedule(run, run.base.window_end)
        load_run.count_rest(&run.base)
    run.base.phase = load_run.FINISHING
    if run.base.open_loop:
        # A server that keeps up answers in far less than one more window, if that is not tiny.
        run.give_up_at = now + max(now - run.base.window_start, <int64_t>EOF_WAIT_NS)
    else:
        # A backlog needs at most the time in which it built up.
        run.give_up_at = now + max(now - run.base.begin_ns, 0) + run.timeout_ns
    load_run.end_window(&run.base, now)
    for i in range(run.base.count):
        if run.mode == connection.MODE_SEND and not run.base.open_loop:
            run.connections[i].due = run.connections[i].started
        if run.connections[i].state != connection.OPEN:
            continue
        if run.mode == connection.MODE_RECEIVE:
            connection.half_close(&run.connections[i], connection.HALF_CLOSED, now)
        else:
            sending.send_due(run, i, now)


cdef void wait_and_handle(StreamRun *run, int64_t until) noexcept nogil:
    cdef int i, count = load_run.wait_for_events(&run.base, until)
    cdef int64_t now = load_run.read_clock(&run.base)
    cdef uint64_t token
    for i in range(count):
        token = run.base.interest_list.events[i].data.u64
        if not load_run.handle_wakeup(&run.base, token):
            on_event(run, <uint32_t>token, run.base.interest_list.events[i].events, now)
            connection.note_event(run, <uint32_t>token)


# --- one connection -----------------------------------------------------------------------------

cdef void wait_for_turn(StreamRun *run, int64_t until) noexcept nogil:
    """Before the next connection is opened. A server that refuses all is not asked slowly."""
    while (clock.monotonic_ns() < until and not load_run.is_cancelled(&run.base)
            and not (run.opened == 0 and run.base.errors)):
        connect_step(run, until)


cdef void wait_connected(StreamRun *run) noexcept nogil:
    while (run.connecting_count and run.base.phase != load_run.ABORTED
            and not load_run.is_cancelled(&run.base)):
        connect_step(run, clock.NEVER)


cdef void connect_step(StreamRun *run, int64_t until) noexcept nogil:
    cdef int64_t now
    wait_and_handle(run, min(until, min(connecting.next_retry(run), run.next_sweep)))
    now = clock.monotonic_ns()
    if now >= connecting.next_retry(run):
        connecting.retry_connects(run)
    if now >= run.next_sweep:
        sweep(run, now)


cdef void on_event(StreamRun *run, uint32_t i, uint32_t events, int64_t now) noexcept nogil:
    cdef Connection *conn = &run.connections[i]
    if conn.state == connection.CONNECTING:
        on_connected(run, i, now)
        return
    if events & ~posix.EPOLLOUT and conn.state != connection.CLOSED:
        receiving.receive_once(run, i, now)
    if events & posix.EPOLLOUT and conn.state == connection.OPEN:
        sending.send_due(run, i, now)


cdef void on_connected(StreamRun *run, uint32_t i, int64_t now) noexcept nogil:
    """connect() has succeeded or failed."""
    cdef Connection *conn = &run.connections[i]
    cdef int error = 0
    cdef posix.socklen_t size = sizeof(error)
    posix.getsockopt(conn.fd, posix.SOL_SOCKET, posix.SO_ERROR, &error, &size)
    if error:
        connection.fail_with_errno(run, conn, error)
        return
    connection.end_outage(run, conn, now)
    conn.state = connection.OPEN
    conn.was_open = True
    conn.progress_at = conn.room_since = now
    run.connecting_count -= 1
    run.opened += 1
    histogram.record(run.base.connects, clock.monotonic_ns() - conn.opened_at)
    # A download begins at the same time for all: until then received bytes stay in the socket.
    connection.set_watched(run, i, 0 if run.mode == connection.MODE_RECEIVE else posix.EPOLLIN)
    if conn.state == connection.OPEN and (conn.due or run.base.phase == load_run.FINISHING):
        sending.send_due(run, i, now)


cdef void sweep(StreamRun *run, int64_t now) noexcept nogil:
    """Fail the connections that wait for the server and made no progress for too long."""
    cdef uint32_t i
    cdef Connection *conn
    run.next_sweep = now + SWEEP_NS
    for i in range(run.base.count):
        conn = &run.connections[i]
        if conn.state == connection.CLOSED:
            continue
        if has_everything(run, conn):
            if now - conn.half_closed_at >= run.eof_wait_ns:
                run.no_eof += 1
                receiving.end_opening(run, i)
        elif (run.base.phase == load_run.FINISHING and now >= run.give_up_at
                and conn.state != connection.CONNECTING
                and now - conn.progress_at < run.timeout_ns // 2):
            run.given_up += 1       # it is still answered: the server has too much to do
            connection.close(run, conn)
        elif run.mode == connection.MODE_RECEIVE and conn.state == connection.HALF_CLOSED:
            if now - conn.half_closed_at >= EOF_WAIT_NS:
                # After its half-close a client of chargen expects no more bytes.
                connection.close(run, conn)
        elif now - conn.progress_at < SWEEP_NS or (
                run.mode == connection.MODE_SEND and queue_shrinks(conn, now)):
            continue
        elif now - conn.progress_at >= run.timeout_ns and awaits_server(run, conn):
            connection.fail(run, conn, connection.TIMEOUT)


cdef bint has_everything(StreamRun *run, Connection *conn) noexcept nogil:
    """Whether only the server's end is missing. It is asked for only with `half_close_at_once`."""
    return (not run.half_close_at_once and conn.started == conn.completed
            and conn.state in (connection.HALF_CLOSED, connection.REOPENING))


cdef bint awaits_server(StreamRun *run, Connection *conn) noexcept nogil:
    """Whether a connection can go on only after the server does something."""
    if conn.state != connection.OPEN or conn.started > conn.completed:
        return True
    # The server must make room in a full socket, or send the lines of chargen.
    return conn.watched & posix.EPOLLOUT or (
        run.mode == connection.MODE_RECEIVE and conn.watched)


cdef bint queue_shrinks(Connection *conn, int64_t now) noexcept nogil:
    """Whether the server has taken bytes out of the socket's send queue: that is progress too."""
    cdef int size = connection.send_queue_size(conn)
    if size == conn.send_queue:
        return False
    conn.send_queue = size
    conn.progress_at = now
    return True
