# One connection with faults, or one that is recorded, served by a thread of its own; all others are
# served by blocking.pxd.
#
# Here no call blocks but ppoll(), which ends with any deadline, and with the eventfd that is set
# when all handlers are to end. The order of the faults is that of the bytes:
#   refuse, before anything; no_read, which stops the receiving;
#   drop, corrupt, duplicate, on blocks of what came in, by their offset;
#   latency, by a queue of pieces, each with the time when it may leave;
#   bandwidth and slicer, which say how much leaves, and when;
#   reset_peer, limit_data, half_close, timeout, by what was sent; slow_close, at the end.

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

cimport fastsock._native.atomic as atomic
cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix
cimport fastsock._native.server.blocking as blocking
cimport fastsock._native.server.counters as counters
cimport fastsock._native.server.deadlines as deadlines
cimport fastsock._native.server.faults as faults
cimport fastsock._native.server.records as records
from fastsock._native.server.blocking cimport HandlerState
from fastsock._native.server.context cimport Context
from fastsock._native.server.faults cimport Fault, Plan
from fastsock._native.server.records cimport Record

cdef enum:
    BLOCK = 1024                    # bytes that drop, corrupt and duplicate act on
    QUEUE_MAX = 16 << 20            # bytes that latency holds back at most
    CHUNK_NS = 5000000              # bandwidth: the time that the bytes of one send() stand for
    CHUNK_MAX = 65536
    CATCH_UP_NS = 50000000          # bandwidth: how late a thread may be and still keep the rate
    LOOK_NS = 500000                # reset_peer: between two looks at the send queue
    STUCK_NS = 1000000000           # reset_peer: how long the send queue may stay as it is
    PRECISE_NS = 10000000           # a wait that poll() ends in time
    GO_ON = -1                      # not a reason of counters.pxd

cdef struct Piece:
    Piece *next
    int64_t due                     # when it may leave
    int64_t link_from               # bandwidth: since when it may be on its way
    size_t size, done               # bytes behind this struct, and those of them that were sent

cdef struct Faulty:
    Plan plan
    Record *record                  # or NULL
    int fd
    int end_fd                      # eventfd, set when all handlers are to end
    HandlerState *state
    Context *context
    char *buffer
    int64_t now, started
    int64_t active                  # when a byte last came or went
    int64_t until                   # of the next wait
    short events                    # of the next wait
    # What comes in
    int64_t received
    int64_t waiting_since           # what is received next was there then, or 0: it came later
    bint eof
    bint not_reading                # no_read acts
    bint dropping, corrupting, duplicating      # the block that is coming in
    char copy[BLOCK]                # of that block, if it is duplicated
    size_t copied
    uint64_t pieces                 # of which the delay was drawn
    # What waits to leave
    Piece *first
    Piece *last
    size_t queued                   # bytes, those of the structs too
    # What leaves
    int64_t sent
    size_t chunk                    # bytes that leave next, or 0; may be the unsent ones of a chunk
    int64_t chunk_due
    int64_t link_free               # bandwidth: when the last bit of the last chunk has left
    int64_t slice_due               # slicer: when the next slice may leave
    bint silent                     # timeout, half_close or limit_data acts: nothing more leaves
    int64_t close_at                # limit_data and slow_close


cdef inline bint has(Faulty *c, int kind) noexcept nogil:
    return c.plan.chosen[kind] != NULL


cdef inline void count(Faulty *c, int kind) noexcept nogil:
    atomic.count(&c.state.counters.faults[kind], 1)


cdef inline void serve(Faulty *c, int fd, int end_fd, HandlerState *state, char *buffer,
                       Context *context) noexcept nogil:
    """Serve until the connection has ended. `plan` and `record` are set, and all else is 0."""
    cdef int reason = GO_ON
    c.fd, c.end_fd, c.state, c.buffer, c.context = fd, end_fd, state, buffer, context
    c.started = c.active = clock.monotonic_ns()
    c.close_at = clock.NEVER
    count_lasting(c)
    while reason == GO_ON:
        reason = counters.CLOSED_STOPPED if blocking.is_ending(state) else turn(c)
    if reason == counters.CLOSED_STOPPED and not c.plan.any:
        echo_last(c)
    forget_queue(c)
    atomic.count(&state.counters.closed[reason], 1)


cdef inline void echo_last(Faulty *c) noexcept nogil:
    """At a stop, without faults: echo what has arrived, as far as that needs no waiting."""
    if send_due(c, last=True) == GO_ON and may_receive(c) and receive(c) == GO_ON:
        send_due(c, last=True)


cdef inline void count_lasting(Faulty *c) noexcept nogil:
    """Count the faults that act on all of a connection."""
    if has(c, counters.FAULT_LATENCY):
        count(c, counters.FAULT_LATENCY)
    if has(c, counters.FAULT_BANDWIDTH):
        count(c, counters.FAULT_BANDWIDTH)
    if has(c, counters.FAULT_SLICER):
        count(c, counters.FAULT_SLICER)


cdef inline int turn(Faulty *c) noexcept nogil:
    """Do all that is due, and wait; return the reason of the end, or GO_ON."""
    cdef int reason
    cdef short found
    c.now = clock.monotonic_ns()
    c.until, c.events = clock.NEVER, 0
    reason = cut(c)
    if reason == GO_ON:
        reason = send_due(c, last=False)
    if reason == GO_ON and c.eof and c.first == NULL:
        reason = finish(c)
    if reason != GO_ON:
        return reason
    if may_receive(c):
        c.events |= posix.POLLIN
    elif c.not_reading and c.first == NULL:
        c.events |= posix.POLLRDHUP     # with bytes unread before it, POLLIN would not tell
    if c.context.idle_ns:
        if c.now - c.active >= c.context.idle_ns:
            return counters.CLOSED_IDLE
        c.until = min(c.until, c.active + c.context.idle_ns)
    found = wait(c)
    if found & (posix.POLLIN | posix.POLLHUP | posix.POLLERR) and may_receive(c):
        return receive(c)
    if found & (posix.POLLRDHUP | posix.POLLHUP | posix.POLLERR):
        return client_ended(c)
    return GO_ON


cdef inline short wait(Faulty *c) noexcept nogil:
    """Wait for `events` until `until`; return what has come of the connection."""
    cdef posix.pollfd list[2]
    cdef posix.timespec time
    cdef int64_t left
    list[0].fd, list[0].events, list[0].revents = c.fd, c.events, 0
    list[1].fd, list[1].events, list[1].revents = c.end_fd, posix.POLLIN, 0
    if c.until == clock.NEVER:
        posix.ppoll(list, 2, NULL, NULL)
    else:
        left = max(c.until - clock.monotonic_ns(), <int64_t>0)
        # The kernel lets poll() end up to 0.1 % of its time late, so the last part is waited for
        # apart: the caller finds that nothing is due yet.
        if left > PRECISE_NS:
            left -= left >> 8
        time.tv_sec, time.tv_nsec = left // 1000000000, left % 1000000000
        posix.ppoll(list, 2, &time, NULL)
    return list[0].revents


# --- what comes in ------------------------------------------------------------------------------

cdef inline bint may_receive(Faulty *c) noexcept nogil:
    return not c.eof and not c.not_reading and c.queued < queue_limit(c)


cdef inline size_t queue_limit(Faulty *c) noexcept nogil:
    if has(c, counters.FAULT_LATENCY):
        return QUEUE_MAX
    # With a bandwidth the next piece must be there before the last one has left: a link that is
    # idle meanwhile would be slower.
    return 2 * c.context.buffer_size if has(c, counters.FAULT_BANDWIDTH) else 1


cdef inline int receive(Faulty *c) noexcept nogil:
    cdef Fault *no_read = c.plan.chosen[counters.FAULT_NO_READ]
    cdef size_t most = c.context.buffer_size
    cdef ssize_t received
    if no_read != NULL:             # at least 1: after the last byte it is not_reading
        most = min(most, <size_t>(no_read.after - c.received))
    received = posix.recv(c.fd, c.buffer, most, posix.MSG_DONTWAIT)
    c.now = clock.monotonic_ns()
    if received > 0:
        c.active = c.now
        atomic.count(&c.state.counters.bytes_in, received)
        records.note_received(c.record, c.buffer, received)
        if not c.silent and not enqueue(c, c.buffer, received):
            return blocking.fail(c.state, posix.ENOMEM)
        c.received += received
        # A full buffer: more bytes were waiting then, and the link was not idle.
        c.waiting_since = c.now if <size_t>received == most else 0
    elif received == 0:
        c.eof = True
        if c.copied and not c.silent and not append(c, c.copy, c.copied):
            return blocking.fail(c.state, posix.ENOMEM)
    elif posix.errno != posix.EAGAIN and posix.errno != posix.EINTR:
        return blocking.fail(c.state, posix.errno)
    return GO_ON


cdef inline int client_ended(Faulty *c) noexcept nogil:
    """The client has ended while nothing is received from it."""
    cdef int error = 0
    cdef posix.socklen_t size = sizeof(error)
    posix.getsockopt(c.fd, posix.SOL_SOCKET, posix.SO_ERROR, &error, &size)
    if error:
        return blocking.fail(c.state, error)
    if blocking.is_ending(c.state):
        return counters.CLOSED_STOPPED
    if c.first != NULL:
        return blocking.fail(c.state, posix.EPIPE)  # as send() would
    return counters.CLOSED_FAULT if c.silent or c.not_reading else counters.CLOSED_EOF


cdef inline bint enqueue(Faulty *c, const char *data, size_t size) noexcept nogil:
    """Queue what was received, changed block by block; False without memory."""
    cdef size_t in_block, length
    cdef int64_t offset = c.received
    cdef Piece *piece
    cdef char *out
    if not (has(c, counters.FAULT_DROP) or has(c, counters.FAULT_CORRUPT)
            or has(c, counters.FAULT_DUPLICATE)):
        return append(c, data, size)
    piece = new_piece(2 * size + BLOCK)     # each block twice, and one that had come before
    if piece == NULL:
        return False
    out = bytes_of(piece)
    while size:
        in_block = offset % BLOCK
        length = min(size, BLOCK - in_block)
        if in_block == 0:
            begin_block(c, offset // BLOCK)
        if not c.dropping:
            memcpy(out, data, length)
            if c.corrupting and in_block == 0:
                out[0] = ~out[0]
            if c.duplicating:
                memcpy(c.copy + c.copied, out, length)
                c.copied += length
            out += length
            if c.copied == BLOCK:
                memcpy(out, c.copy, BLOCK)
                out += BLOCK
                c.copied = 0
        data += length
        size -= length
        offset += length
    piece.size = out - bytes_of(piece)
    if piece.size:
        link(c, fitted(piece))
    else:
        free(piece)
    return True


cdef inline void begin_block(Faulty *c, uint64_t block) noexcept nogil:
    c.dropping = faults.hits_block(&c.plan, counters.FAULT_DROP, block)
    c.corrupting = not c.dropping and faults.hits_block(&c.plan, counters.FAULT_CORRUPT, block)
    c.duplicating = (not c.dropping
                     and faults.hits_block(&c.plan, counters.FAULT_DUPLICATE, block))
    if c.dropping:
        count(c, counters.FAULT_DROP)
    if c.corrupting:
        count(c, counters.FAULT_CORRUPT)
    if c.duplicating:
        count(c, counters.FAULT_DUPLICATE)


# --- what waits to leave ------------------------------------------------------------------------

cdef inline char *bytes_of(Piece *piece) noexcept nogil:
    return <char *>(piece + 1)


cdef inline Piece *new_piece(size_t size) noexcept nogil:
    cdef Piece *piece = <Piece *>malloc(sizeof(Piece) + size)
    if piece != NULL:
        piece.next = NULL
        piece.size, piece.done = size, 0
    return piece


cdef inline Piece *fitted(Piece *piece) noexcept nogil:
    """Without the memory that it does not need: what is queued is limited by what is used."""
    cdef Piece *smaller = <Piece *>realloc(piece, sizeof(Piece) + piece.size)
    return smaller if smaller != NULL else piece


cdef inline bint append(Faulty *c, const char *data, size_t size) noexcept nogil:
    cdef Piece *piece = new_piece(size)
    if piece == NULL:
        return False
    memcpy(bytes_of(piece), data, size)
    link(c, piece)
    return True


cdef inline void link(Faulty *c, Piece *piece) noexcept nogil:
    """Put a piece at the end of the queue; it does not leave before those that came earlier."""
    cdef Fault *latency = c.plan.chosen[counters.FAULT_LATENCY]
    piece.due = c.now
    if latency != NULL:
        piece.due += latency.delay_ns
        if latency.jitter_ns:
            piece.due += <int64_t>(latency.jitter_ns * (2 * faults.fraction(
                faults.derived(~c.plan.key, c.pieces)) - 1))
            c.pieces += 1
    piece.link_from = piece.due
    if c.waiting_since:
        piece.link_from -= c.now - c.waiting_since
    if c.last == NULL:
        c.first = piece
    else:
        piece.due = max(piece.due, c.last.due)
        c.last.next = piece
    c.last = piece
    c.queued += sizeof(Piece) + piece.size


cdef inline void forget_first(Faulty *c) noexcept nogil:
    cdef Piece *piece = c.first
    c.first = piece.next
    if c.first == NULL:
        c.last = NULL
    c.queued -= sizeof(Piece) + piece.size
    free(piece)


cdef inline void forget_queue(Faulty *c) noexcept nogil:
    c.chunk = 0
    while c.first != NULL:
        forget_first(c)


# --- what leaves --------------------------------------------------------------------------------

cdef inline int send_due(Faulty *c, bint last) noexcept nogil:
    """Send what may leave now; return GO_ON, or the reason of the end."""
    cdef ssize_t sent
    cdef int reason
    # Many slices of one byte may be due at once: a stop does not wait for them.
    while c.first != NULL and (last or not blocking.is_ending(c.state)):
        if c.chunk == 0:
            choose_chunk(c)
        if c.chunk_due > c.now:
            c.now = clock.monotonic_ns()
            if c.chunk_due > c.now:
                c.until = min(c.until, c.chunk_due)
                return GO_ON
        sent = records.send(c.record, c.fd, bytes_of(c.first) + c.first.done, c.chunk)
        if sent < 0:
            if posix.errno == posix.EAGAIN:
                c.events |= posix.POLLOUT
                return GO_ON
            if posix.errno != posix.EINTR:
                return blocking.fail(c.state, posix.errno)
            continue
        c.now = c.active = clock.monotonic_ns()
        atomic.count(&c.state.counters.bytes_out, sent)
        c.sent += sent
        c.chunk -= sent
        c.first.done += sent
        if c.chunk == 0 and has(c, counters.FAULT_SLICER):
            c.slice_due = c.now + c.plan.chosen[counters.FAULT_SLICER].delay_ns
        if c.first.done == c.first.size:
            forget_first(c)
        reason = cut(c)
        if reason != GO_ON:
            return reason
    return GO_ON


cdef inline void choose_chunk(Faulty *c) noexcept nogil:
    """What leaves next, all of it from the first piece, and when.

    A chunk leaves at the end of the time that its bytes take: in no time do more bytes leave than
    the bandwidth allows.
    """
    cdef Fault *slicer = c.plan.chosen[counters.FAULT_SLICER]
    cdef Fault *bandwidth = c.plan.chosen[counters.FAULT_BANDWIDTH]
    cdef int64_t size = c.first.size - c.first.done
    c.chunk_due = c.first.due
    size = min(size, until_cut(c))
    if slicer != NULL:
        size = min(size, slicer.size)
        c.chunk_due = max(c.chunk_due, c.slice_due)
    elif bandwidth != NULL:
        size = min(size, max(<int64_t>(min(bandwidth.rate * (CHUNK_NS * 1e-9),
                                           <double>CHUNK_MAX)), <int64_t>1))
    if bandwidth != NULL:
        # From the end of the last chunk, so that what a wait is late by is made good.
        c.link_free = max(max(c.link_free, c.first.link_from), c.now - CATCH_UP_NS)
        c.link_free += <int64_t>(size * 1e9 / bandwidth.rate)
        c.chunk_due = max(c.chunk_due, c.link_free)
    c.chunk = size


# --- the faults that cut ------------------------------------------------------------------------

cdef inline int64_t until_cut(Faulty *c) noexcept nogil:
    """How many bytes may leave before a fault acts; at least 1 after cut()."""
    cdef int64_t after = clock.NEVER
    if has(c, counters.FAULT_RESET_PEER):
        after = min(after, c.plan.chosen[counters.FAULT_RESET_PEER].after)
    if has(c, counters.FAULT_LIMIT_DATA):
        after = min(after, c.plan.chosen[counters.FAULT_LIMIT_DATA].after)
    if has(c, counters.FAULT_HALF_CLOSE):
        after = min(after, c.plan.chosen[counters.FAULT_HALF_CLOSE].after)
    if has(c, counters.FAULT_TIMEOUT):
        after = min(after, c.plan.chosen[counters.FAULT_TIMEOUT].after)
    return after - c.sent


cdef inline bint is_due(Faulty *c, int kind, int64_t bytes_) noexcept nogil:
    """Whether a fault acts from now on; if not, the next wait ends when it may."""
    cdef Fault *fault = c.plan.chosen[kind]
    if fault == NULL:
        return False
    if bytes_ >= fault.after:
        return True
    if fault.after_ns == clock.NEVER:
        return False
    c.until = min(c.until, c.started + fault.after_ns)
    return c.now - c.started >= fault.after_ns


cdef inline int cut(Faulty *c) noexcept nogil:
    """Let the faults act whose bytes or time have come; return the reason of the end, or GO_ON.

    Several at the same byte: reset_peer before limit_data before half_close before timeout.
    """
    if has(c, counters.FAULT_REFUSE):
        return reset(c, counters.FAULT_REFUSE)
    if is_due(c, counters.FAULT_RESET_PEER, c.sent):
        return reset(c, counters.FAULT_RESET_PEER)
    if not c.silent:
        if is_due(c, counters.FAULT_LIMIT_DATA, c.sent):
            finish_sending(c, counters.FAULT_LIMIT_DATA)
            c.close_at = c.now + deadlines.LINGER_NS    # see blocking.linger()
        elif is_due(c, counters.FAULT_HALF_CLOSE, c.sent):
            finish_sending(c, counters.FAULT_HALF_CLOSE)
        elif is_due(c, counters.FAULT_TIMEOUT, c.sent):
            fall_silent(c, counters.FAULT_TIMEOUT)
    if not c.not_reading and is_due(c, counters.FAULT_NO_READ, c.received):
        c.not_reading = True
        count(c, counters.FAULT_NO_READ)
    if c.silent and c.close_at != clock.NEVER:
        if c.now >= c.close_at:
            return counters.CLOSED_FAULT
        c.until = min(c.until, c.close_at)
    return GO_ON


cdef inline void fall_silent(Faulty *c, int kind) noexcept nogil:
    c.silent = True
    count(c, kind)
    forget_queue(c)


cdef inline void finish_sending(Faulty *c, int kind) noexcept nogil:
    fall_silent(c, kind)
    posix.shutdown(c.fd, posix.SHUT_WR)


cdef inline int finish(Faulty *c) noexcept nogil:
    """The client has finished and everything was sent; return the reason of the end, or GO_ON."""
    cdef Fault *slow_close = c.plan.chosen[counters.FAULT_SLOW_CLOSE]
    if slow_close != NULL and c.close_at == clock.NEVER:
        count(c, counters.FAULT_SLOW_CLOSE)
        c.close_at = c.now + slow_close.delay_ns
    if slow_close != NULL and c.now < c.close_at:
        c.until = min(c.until, c.close_at)
        return GO_ON
    if blocking.is_ending(c.state):
        return counters.CLOSED_STOPPED
    return counters.CLOSED_FAULT if c.silent else counters.CLOSED_EOF


cdef inline int reset(Faulty *c, int kind) noexcept nogil:
    """Reset the connection; return the reason of the end."""
    cdef posix.linger_t linger
    forget_queue(c)
    if kind == counters.FAULT_RESET_PEER:
        wait_until_sent(c)
    linger.l_onoff, linger.l_linger = 1, 0      # close() resets, and throws away what is unsent
    posix.setsockopt(c.fd, posix.SOL_SOCKET, posix.SO_LINGER, &linger, sizeof(linger))
    count(c, kind)
    return counters.CLOSED_FAULT


cdef inline void wait_until_sent(Faulty *c) noexcept nogil:
    """Wait until TCP has nothing in the send queue that is not acknowledged: a reset would lose it.

    Not for ever: only while the queue becomes shorter. A Unix socket's queue is the client's
    already, and nothing is lost.
    """
    cdef int family = 0, unsent = 0, before = 0
    cdef int64_t give_up = 0
    cdef posix.socklen_t size = sizeof(family)
    posix.getsockopt(c.fd, posix.SOL_SOCKET, posix.SO_DOMAIN, &family, &size)
    if family == posix.AF_UNIX:
        return
    while not blocking.is_ending(c.state):
        if posix.ioctl(c.fd, posix.TIOCOUTQ, &unsent) != 0 or unsent == 0:
            return
        c.now = clock.monotonic_ns()
        if before == 0 or unsent < before:
            before, give_up = unsent, c.now + STUCK_NS
        if c.now >= give_up:
            return
        c.until, c.events = c.now + LOOK_NS, 0
        if wait(c) & (posix.POLLERR | posix.POLLHUP):
            return                  # the client was faster
