# One connection of the stream load client, the run that it belongs to, and how a connection ends.
#
# A connection is first connecting (again and again while a Unix listener's queue is full), then
# open, half-closed (all its bytes are sent) and closed. With `reconnect_every` it is opened again,
# with the same number and its place in the pattern. With `reconnect` it is opened again after a
# failure too: that is an outage, and the messages that were outstanding are dropped.
#
# In the mode echo a message is complete when it has come back, in an upload when the socket has
# taken it, in a download when it was received.

from libc.stdint cimport int64_t, uint32_t, uint64_t

cimport fastsock._native.atomic as atomic
cimport fastsock._native.client.load_run as load_run
cimport fastsock._native.client.tcp_info as tcp_info
cimport fastsock._native.clock as clock
cimport fastsock._native.interest_list as interest_list
cimport fastsock._native.posix as posix
from fastsock._native.client.arrivals cimport DueTimes
from fastsock._native.client.load_run cimport LoadRun
from fastsock._native.client.sources cimport Sources
from fastsock._native.client.tcp_info cimport TcpFigures
from fastsock._native.interest_list cimport Interest

cdef enum:
    MODE_ECHO
    MODE_SEND                       # upload, to a discard service
    MODE_RECEIVE                    # download, from a chargen service

cdef enum:
    RECONNECT_NS = 10000000         # between two tries in an outage

cdef enum:                          # state of a connection
    CONNECTING
    OPEN
    REOPENING                       # half-closed, to be opened again
    HALF_CLOSED
    CLOSED

cdef enum:                          # why a connection failed
    REFUSED
    RESET
    TIMEOUT
    CLOSED_EARLY
    MISMATCH
    OTHER
    FAILURE_KINDS

cdef struct Connection:
    int fd
    int state
    bint must_retry                 # while CONNECTING: connect() is to be tried again
    bint was_open                   # once
    uint32_t watched                # the events that are waited for
    Interest interest
    uint32_t send_offset            # into the pattern, of the next byte to send
    uint32_t receive_offset         # into the pattern, of the next byte to receive
    uint32_t ring_mask              # `sent_at` has ring_mask + 1 places
    int64_t *sent_at                # ns, by message number & ring_mask, while outstanding
    DueTimes due_times
    uint64_t due                    # messages that may have started so far
    uint64_t started                # messages: sent, or counted in `unsent`
    uint64_t completed              # messages
    uint64_t unsent                 # bytes of started messages that the socket has not taken
    uint64_t partial                # bytes received of the message number `completed`
    uint64_t reopen_after           # value of `started` at which the connection is opened again
    int64_t opened_at               # when connect() was called, ns
    int64_t progress_at             # last progress, ns
    int64_t room_since              # the socket takes what is sent since then, ns
    int64_t outage_since            # ns; 0: no outage
    int64_t half_closed_at          # ns
    int send_queue                  # send_queue_size() at the last look

cdef struct StreamRun:
    LoadRun base
    # Options
    int mode
    posix.sockaddr_storage address
    posix.socklen_t address_size
    uint64_t size                   # bytes per message
    uint32_t depth                  # outstanding messages per connection; 0 in an open loop
    int64_t timeout_ns
    uint64_t reconnect_every        # messages per opening of a connection; 0: unlimited
    Sources sources
    uint32_t next_source            # gives the next source address, where they are varied
    bint verify, nodelay
    bint half_close_at_once         # do not wait for the answers before
    bint reconnect                  # after a failure
    bint loading                    # all connections were opened
    int64_t eof_wait_ns             # for the server's end, once every answer is there
    # State
    uint32_t connecting_count       # connections in the state CONNECTING
    uint32_t unclosed_count         # connections in every state but CLOSED
    uint32_t retry_count            # connections with `must_retry`
    int64_t retry_at                # when the first of these calls connect() again
    int64_t next_sweep
    int64_t give_up_at              # when messages that are still being answered are given up, ns
    char *pattern                   # from pattern.fill(), or the lines of chargen
    char *buffer                    # the bytes of the last receive
    Connection *connections
    # Results
    uint64_t received, lost         # bytes, over the whole run
    uint64_t opened                 # connections, each time
    uint64_t failures[FAILURE_KINDS]                # read by other threads meanwhile
    uint64_t given_up               # connections that were still answering
    uint64_t no_eof                 # connections without the server's end
    uint64_t cut_off                # failures with answers outstanding after our half-close
    uint64_t outages
    uint64_t dropped                # messages that were outstanding when an outage began
    int64_t outage_ns, longest_outage_ns
    TcpFigures tcp                  # of the closed connections


cdef inline uint64_t outstanding_bytes(StreamRun *run, Connection *connection) noexcept nogil:
    """Bytes that the socket has taken and that have not come back."""
    if run.mode != MODE_ECHO:
        return 0
    return ((connection.started - connection.completed) * run.size
            - connection.partial - connection.unsent)


cdef inline bint has_started_quota(StreamRun *run, uint32_t i) noexcept nogil:
    """Whether the run has a quota and the connection has started its last message of it."""
    return (run.base.quota
            and run.connections[i].started == load_run.quota_of(&run.base, i))


cdef inline int send_queue_size(Connection *connection) noexcept nogil:
    """SIOCOUTQ: what the socket has taken and the other end has not.

    Only 0 and a change mean something. TCP counts unacknowledged bytes, and the FIN as one
    (tcp(7)). A Unix socket counts the memory of what the other end has not read.
    """
    cdef int size = 0
    posix.ioctl(connection.fd, posix.TIOCOUTQ, &size)
    return size


cdef inline void half_close(Connection *connection, int state, int64_t now) noexcept nogil:
    connection.state = state
    connection.progress_at = connection.half_closed_at = now
    posix.shutdown(connection.fd, posix.SHUT_WR)


cdef inline int failure_of(int error) noexcept nogil:
    if load_run.is_refusal(error):
        return REFUSED
    if error == posix.ECONNRESET or error == posix.EPIPE:
        return RESET
    if error == posix.ETIMEDOUT:
        return TIMEOUT
    return OTHER


cdef inline void fail_with_errno(StreamRun *run, Connection *connection,
                                 int error) noexcept nogil:
    cdef int failure = failure_of(error)
    if failure == OTHER:
        run.base.other_errno = error
    fail(run, connection, failure)


cdef inline void fail(StreamRun *run, Connection *connection, int failure) noexcept nogil:
    """Count the failure and the lost bytes, and close the connection; or begin an outage."""
    cdef int64_t now = clock.monotonic_ns()
    if is_outage(run, connection, failure, now):
        begin_outage(run, connection, now)
        return
    end_outage(run, connection, now)
    atomic.count(&run.failures[failure], 1)
    run.base.errors += 1
    if (connection.state == HALF_CLOSED or connection.state == REOPENING) and (
            run.mode == MODE_ECHO and connection.started > connection.completed):
        run.cut_off += 1
    if connection.state == CONNECTING:
        run.connecting_count -= 1
    elif connection.state != CLOSED:
        run.lost += outstanding_bytes(run, connection)
    close(run, connection)


cdef inline bint is_outage(StreamRun *run, Connection *connection, int failure,
                           int64_t now) noexcept nogil:
    """Whether a failure is one that the run goes on after.

    Before the load and after the window it is an error, and so is an outage without end. An outage
    that lasts when the window ends is none.
    """
    if not run.reconnect or not run.loading or not connection.was_open or failure == MISMATCH:
        return False
    if connection.outage_since:
        return now - connection.outage_since < run.timeout_ns
    return run.base.phase == load_run.RUNNING


cdef inline void close(StreamRun *run, Connection *connection) noexcept nogil:
    # A wait reports a descriptor once, and a token is the index of a connection. So no event of
    # this wait can be taken for one of a new descriptor with the same number.
    close_socket(run, connection)
    if connection.must_retry:
        end_retry(run, connection)
    drop_outstanding(run, connection)
    connection.state = CLOSED
    run.unclosed_count -= 1


cdef inline void drop_outstanding(StreamRun *run, Connection *connection) noexcept nogil:
    if run.mode == MODE_ECHO:
        run.base.outstanding -= <int64_t>(connection.started - connection.completed)


cdef inline void begin_outage(StreamRun *run, Connection *connection, int64_t now) noexcept nogil:
    """Drop what is outstanding, and connect again in a moment; at the end of the run, close."""
    if not connection.outage_since:
        connection.outage_since = now
        run.outages += 1
    if run.depth and run.mode == MODE_ECHO:
        # In a closed loop the next message takes the place of each.
        connection.due += connection.started - connection.completed
        if run.base.quota:
            connection.due = min(connection.due, load_run.quota_of(
                &run.base, <uint32_t>(connection - run.connections)))
    run.dropped += connection.started - connection.completed
    drop_outstanding(run, connection)
    connection.completed = connection.started
    connection.partial = connection.unsent = 0
    connection.receive_offset = connection.send_offset
    if run.base.phase != load_run.RUNNING:
        if connection.state == CONNECTING:
            run.connecting_count -= 1
        end_outage(run, connection, now)
        close(run, connection)
        return
    close_socket(run, connection)
    if connection.state != CONNECTING:
        connection.state = CONNECTING
        run.connecting_count += 1
    if not connection.must_retry:
        connection.must_retry = True
        run.retry_count += 1
    run.retry_at = min(run.retry_at, now + RECONNECT_NS)


cdef inline void end_outage(StreamRun *run, Connection *connection, int64_t now) noexcept nogil:
    cdef int64_t length = now - connection.outage_since
    if connection.outage_since:
        run.outage_ns += length
        run.longest_outage_ns = max(run.longest_outage_ns, length)
        connection.outage_since = 0


cdef inline void close_socket(StreamRun *run, Connection *connection) noexcept nogil:
    if run.address.ss_family != posix.AF_UNIX:
        tcp_info.read_figures(&run.tcp, connection.fd)
    interest_list.remove_before_close(&run.base.interest_list, &connection.interest)
    posix.close_once(&connection.fd)


cdef inline dict tcp_figures(StreamRun *run):
    """Those of all connections, also of what an aborted run left open; None on Unix sockets."""
    cdef TcpFigures figures = run.tcp
    cdef uint32_t i
    if run.address.ss_family == posix.AF_UNIX:
        return None
    for i in range(run.base.count):
        if run.connections[i].fd >= 0:
            tcp_info.read_figures(&figures, run.connections[i].fd)
    return tcp_info.figures_dict(&figures)


cdef inline void end_retry(StreamRun *run, Connection *connection) noexcept nogil:
    connection.must_retry = False
    run.retry_count -= 1


cdef inline void set_watched(StreamRun *run, uint32_t i, uint32_t events) noexcept nogil:
    """Wait for these events of the connection."""
    cdef Connection *connection = &run.connections[i]
    if connection.watched == events:
        return
    connection.watched = events
    if interest_list.change(&run.base.interest_list, &connection.interest, connection.fd, events,
                            i) < 0:
        fail_with_errno(run, connection, posix.errno)


cdef inline void note_event(StreamRun *run, uint32_t i) noexcept nogil:
    """After an event of the connection was handled."""
    cdef Connection *connection = &run.connections[i]
    if connection.fd >= 0:
        interest_list.note_event(&run.base.interest_list, &connection.interest, connection.fd,
                                 connection.watched, i)
