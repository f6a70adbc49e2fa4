"""The datagram engine: one socket, batches of datagrams, recvmmsg(2) and sendmmsg(2).

Wait, receive what is there up to a batch, send all of it back in one call. One datagram in, one
out, with the same bytes; an empty one too, for with datagrams 0 is a size and not the end. There
are no connections, so there is nothing to remember: what cannot be answered at once is dropped and
counted, as the network might have done, and no error about one client ever ends the others.

Datagrams of one client and one size that come together are handed over as one (UDP_GRO), and go
back as one, for the kernel or the network card to take apart (UDP_SEGMENT): most of what a small
datagram costs is the way through the network stack, and they take it once.

What must not be answered is in loop_guard.pxd, and how an answer finds its source in ancillary.pxd.

UDP and Unix datagrams differ in little. A Unix socket that is not bound has no name to answer to;
its datagrams may be longer than any of UDP; and where the kernel cannot refuse open files that come
along (SCM_RIGHTS), it closes them, because there is no room to tell of them. An answer takes up the
server's own send buffer until its client has received it (unix(7)): a client that does not read can
fill that buffer, and then answers to anybody are dropped until it reads or ends. To wait instead
would only make everybody wait.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

cimport fastsock._native.clock as clock
cimport fastsock._native.server.acceptor as accepting
cimport fastsock._native.atomic as atomic
cimport fastsock._native.server.engine as engine
cimport fastsock._native.posix as posix
from fastsock._native.ancillary cimport Arrival, Control, answer_from_asked, send_in_one
from fastsock._native.ancillary cimport send_in_segments, read_arrival
from fastsock._native.busy_poll cimport BusyPoll, asks_on, begin_wait, end_wait
from fastsock._native.check cimport os_error
from fastsock._native.server.datagram_socket cimport DatagramSocket
from fastsock._native.server.engine cimport Context
from fastsock._native.server.loop_guard cimport SocketName, may_loop
from fastsock._native.server.worker cimport Worker

cdef extern from *:                 # so that other lengths can be measured
    """
    #ifndef FASTSOCK_BATCH
    #define FASTSOCK_BATCH 16
    #endif
    """
    enum:
        BATCH "FASTSOCK_BATCH"      # datagrams per call at most

cdef enum:
    SIZE_MAX = 65535                # bytes; no UDP datagram is longer
    FAILURES_MAX = 64               # failed calls in a row before it rests

cdef struct Loop:
    Context *context
    bint guarded
    SocketName own
    size_t control_size             # room for what is told beside the bytes
    int failures                    # of recvmmsg, in a row
    posix.mmsghdr received[BATCH]
    posix.mmsghdr answers[BATCH]    # those of `received` that are sent back, closed up
    int segments[BATCH]             # of each answer: the bytes of one datagram, if it is several
    posix.sockaddr_storage sources[BATCH]
    posix.iovec pieces[BATCH]
    Control controls[BATCH]
    char *buffers                   # BATCH * SIZE_MAX bytes


cdef class DatagramWorker(Worker):
    """A worker that serves one datagram socket; takes the descriptor over from `socket`.

    With `loop_guard`, datagrams that may be another server's answers are dropped. `busy_poll` is
    the longest time spent asking before blocking, in microseconds. The thread runs on `cpu`; -1 is
    any.
    """

    cdef Loop *loop
    cdef bint guarded
    cdef SocketName own

    def __init__(self, DatagramSocket socket not None, *, bint loop_guard, int64_t busy_poll=0,
                 int cpu=-1):
        self.guarded = loop_guard
        self.own.size = sizeof(self.own.address)
        if posix.getsockname(socket.fd, <posix.sockaddr *>&self.own.address, &self.own.size) != 0:
            raise os_error(posix.errno, "getsockname", socket.where)
        Worker.__init__(self, socket, buffer_size=SIZE_MAX, busy_poll=busy_poll, cpu=cpu)

    cdef int prepare(self) except -1:
        cdef Loop *loop = <Loop *>calloc(1, sizeof(Loop))
        cdef int i
        if loop == NULL:
            raise MemoryError
        self.loop = loop
        loop.context = &self.context
        loop.guarded = self.guarded
        loop.own = self.own
        if self.own.address.ss_family != posix.AF_UNIX:
            loop.control_size = sizeof(Control)
        loop.buffers = <char *>malloc(BATCH * SIZE_MAX)
        if loop.buffers == NULL:
            raise MemoryError
        for i in range(BATCH):
            make_ready(loop, i)
        self.main = run
        self.argument = loop
        return 0

    cdef void release(self) noexcept:
        cdef Loop *loop = self.loop
        if loop == NULL:
            return
        self.loop = NULL
        free(loop.buffers)
        free(loop)


cdef void *run(void *argument) noexcept nogil:
    cdef Loop *loop = <Loop *>argument
    cdef int count = 0
    while not engine.stop_requested(loop.context):
        if count == BATCH:          # it was probably not all
            count = echo_batch(loop)
        else:
            count = wait_and_echo(loop)
    # What waits in the queue is answered too, while there is time, unless somebody else goes on.
    while (not loop.context.inherited and not engine.stop_due(loop.context)
           and echo_batch(loop) != 0):
        pass
    accepting.close_listener(loop.context)
    engine.notify(loop.context.done_fd)
    return NULL


cdef int wait_and_echo(Loop *loop) noexcept nogil:
    """As echo_batch(), when there is something."""
    cdef BusyPoll *busy_poll = &loop.context.busy_poll
    cdef int count
    begin_wait(busy_poll)
    while not accepting.resting(loop.context) and asks_on(busy_poll):
        count = echo_batch(loop)
        if count != 0 or engine.stop_requested(loop.context):
            return count
    wait(loop)
    end_wait(busy_poll)
    return echo_batch(loop)


cdef void wait(Loop *loop) noexcept nogil:
    cdef posix.pollfd list[2]
    list[0].fd = -1 if accepting.resting(loop.context) else loop.context.listen_fd
    list[1].fd = loop.context.wake_fd
    list[0].events = list[1].events = posix.POLLIN
    list[0].revents = list[1].revents = 0
    if (posix.poll(list, 2, engine.timeout_ms(loop.context)) < 0
            and not engine.poll_may_work_again(posix.errno)):
        give_up(loop, posix.errno)
    if list[1].revents:
        engine.clear(loop.context.wake_fd)
    loop.context.resume_at = engine.NEVER


cdef int echo_batch(Loop *loop) noexcept nogil:
    """Receive and answer; how many datagrams came, 0 if none waits, -1 if something failed."""
    cdef int i, answers = 0
    cdef int count = posix.recvmmsg(loop.context.listen_fd, loop.received, BATCH,
                                    posix.MSG_DONTWAIT, NULL)
    if count < 0:
        return receive_failed(loop, posix.errno)
    loop.failures = 0
    for i in range(count):
        if prepare_answer(loop, i, &loop.segments[answers]):
            loop.answers[answers].msg_hdr = loop.received[i].msg_hdr
            answers += 1
    send_all(loop, answers)
    for i in range(count):
        make_ready(loop, i)
    return count


cdef inline void make_ready(Loop *loop, int i) noexcept nogil:
    """Let the next datagram come into place `i`: what recvmmsg wrote there is room again."""
    cdef posix.msghdr *message = &loop.received[i].msg_hdr
    loop.pieces[i].iov_base = loop.buffers + i * SIZE_MAX
    loop.pieces[i].iov_len = SIZE_MAX
    message.msg_iov = &loop.pieces[i]
    message.msg_iovlen = 1
    message.msg_name = &loop.sources[i]
    message.msg_namelen = sizeof(posix.sockaddr_storage)
    message.msg_control = &loop.controls[i]
    message.msg_controllen = loop.control_size


cdef inline bint prepare_answer(Loop *loop, int i, int *segment) noexcept nogil:
    """Turn what was received into what is sent back; False when it is dropped."""
    cdef posix.msghdr *message = &loop.received[i].msg_hdr
    cdef size_t size = loop.received[i].msg_len
    cdef uint64_t datagrams
    cdef Arrival arrival
    read_arrival(message, &arrival)
    segment[0] = arrival.segment
    datagrams = datagrams_in(size, arrival.segment)
    atomic.count(&loop.context.counters.datagrams_in, datagrams)
    atomic.count(&loop.context.counters.bytes_in, size)
    if message.msg_flags & posix.MSG_TRUNC:
        return drop(loop, engine.DROPPED_TRUNCATED, datagrams)
    if message.msg_namelen == 0:
        return drop(loop, engine.DROPPED_UNNAMED, datagrams)
    if loop.guarded and may_loop(message, &arrival, &loop.own):
        return drop(loop, engine.DROPPED_GUARD, datagrams)
    # A path that leaves no room for its NUL is told with one, and so is too long to be asked for.
    message.msg_namelen = min(message.msg_namelen, <posix.socklen_t>sizeof(posix.sockaddr_un))
    loop.pieces[i].iov_len = size
    answer_from_asked(message, &arrival)
    if datagrams > 1:
        send_in_segments(message, arrival.segment)
    return True


cdef inline uint64_t datagrams_in(size_t size, int segment) noexcept nogil:
    """How many datagrams the kernel has put together (UDP_GRO)."""
    return 1 if segment <= 0 or size <= <size_t>segment else (size - 1) // segment + 1


cdef void send_all(Loop *loop, int count) noexcept nogil:
    """Send the answers; one that cannot be sent is dropped, and the next has its turn."""
    cdef int next = 0, i, sent, error
    while next < count:
        sent = posix.sendmmsg(loop.context.listen_fd, loop.answers + next, count - next,
                              posix.MSG_DONTWAIT)
        for i in range(next, next + sent):
            count_sent(loop, datagrams_of(loop, i), loop.answers[i].msg_len)
        if sent > 0:
            next += sent            # it stopped before one that fails: the next call says why
            continue
        error = posix.errno
        if error == posix.EINTR:
            continue
        if datagrams_of(loop, next) > 1 and error in (posix.EIO, posix.EINVAL, posix.EMSGSIZE):
            send_apart(loop, next)
        else:
            could_not_send(loop, error, datagrams_of(loop, next))
        next += 1


cdef void send_apart(Loop *loop, int answer) noexcept nogil:
    """Send datagrams one by one that came as one: not every route can take them apart itself."""
    cdef posix.msghdr *message = &loop.answers[answer].msg_hdr
    cdef posix.iovec *piece = message.msg_iov
    cdef size_t left = piece.iov_len, segment = loop.segments[answer]
    cdef ssize_t sent
    send_in_one(message)
    while left:
        piece.iov_len = min(left, segment)
        sent = posix.sendmsg(loop.context.listen_fd, message, posix.MSG_DONTWAIT)
        if sent < 0 and posix.errno == posix.EINTR:
            continue
        if sent < 0:
            could_not_send(loop, posix.errno, 1)
        else:
            count_sent(loop, 1, sent)
        left -= piece.iov_len
        piece.iov_base = <char *>piece.iov_base + piece.iov_len


cdef inline uint64_t datagrams_of(Loop *loop, int answer) noexcept nogil:
    return datagrams_in(loop.answers[answer].msg_hdr.msg_iov.iov_len, loop.segments[answer])


cdef inline void count_sent(Loop *loop, uint64_t datagrams, size_t size) noexcept nogil:
    atomic.count(&loop.context.counters.datagrams_out, datagrams)
    atomic.count(&loop.context.counters.bytes_out, size)


cdef inline void could_not_send(Loop *loop, int error, uint64_t datagrams) noexcept nogil:
    engine.count_error(loop.context, error)
    drop(loop, engine.DROPPED_SENDING, datagrams)


cdef inline bint drop(Loop *loop, int reason, uint64_t datagrams) noexcept nogil:
    atomic.count(&loop.context.counters.dropped[reason], datagrams)
    return False


cdef int receive_failed(Loop *loop, int error) noexcept nogil:
    if error == posix.EAGAIN:
        loop.failures = 0
        return 0
    if error == posix.EINTR:
        return -1
    engine.count_error(loop.context, error)
    if error == posix.EBADF or error == posix.ENOTSOCK:
        give_up(loop, error)        # something else in the process closed the descriptor
        return 0
    # Most are news of an answer that did not arrive (ICMP), told once. One that stays, as when
    # there is no memory, would make the loop spin.
    loop.failures += 1
    if loop.failures >= FAILURES_MAX:
        loop.context.resume_at = clock.monotonic_ns() + accepting.REST_NS
        return 0
    return -1


cdef void give_up(Loop *loop, int error) noexcept nogil:
    atomic.lower_i64(&loop.context.stop_at, 0)
    accepting.note_failure(loop.context, error)
