"""The datagram engine: one socket, batches of datagrams, recvmmsg(2) and sendmmsg(2).

Wait, receive what is there up to a batch, send all of it back in one call. One datagram in, one
out, with the same bytes; an empty one too, for with datagrams 0 is a size and not the end. There
are no connections, so there is nothing to remember: what cannot be answered at once is dropped and
counted, as the network might have done, and no error about one client ever ends the others.

What must not be answered is in loop_guard.pxd, and how an answer finds its source in ancillary.pxd.

UDP and Unix datagrams differ in little. A Unix socket that is not bound has no name to answer to;
its datagrams may be longer than any of UDP; and where the kernel cannot refuse open files that come
along (SCM_RIGHTS), it closes them, because there is no room to tell of them. An answer takes up the
server's own send buffer until its client has received it (unix(7)): a client that does not read can
fill that buffer, and then answers to anybody are dropped until it reads or ends. To wait instead
would only make everybody wait.
"""

from libc.stdlib cimport calloc, free, malloc

from fastsock._native cimport accepting, atomic, engine, posix
from fastsock._native.ancillary cimport Arrival, Control, answer_from_asked, read_arrival
from fastsock._native.check cimport os_error
from fastsock._native.datagram_socket cimport DatagramSocket
from fastsock._native.engine cimport Context
from fastsock._native.loop_guard cimport SocketName, may_loop
from fastsock._native.worker cimport Worker

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
    posix.sockaddr_storage sources[BATCH]
    posix.iovec pieces[BATCH]
    Control controls[BATCH]
    char *buffers                   # BATCH * SIZE_MAX bytes


cdef class DatagramWorker(Worker):
    """A worker that serves one datagram socket; takes the descriptor over from `socket`.

    With `loop_guard`, datagrams that may be another server's answers are dropped. The thread runs
    on `cpu`; -1 is any.
    """

    cdef Loop *loop
    cdef bint guarded
    cdef SocketName own

    def __init__(self, DatagramSocket socket not None, *, bint loop_guard, int cpu=-1):
        self.guarded = loop_guard
        self.own.size = sizeof(self.own.address)
        if posix.getsockname(socket.fd, <posix.sockaddr *>&self.own.address, &self.own.size) != 0:
            raise os_error(posix.errno, "getsockname", socket.where)
        Worker.__init__(self, socket, buffer_size=SIZE_MAX, cpu=cpu)

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
        if count < BATCH:           # a full batch was probably not all
            wait(loop)
        count = echo_batch(loop)
    # What waits in the queue is answered too, while there is time.
    while not engine.stop_due(loop.context) and echo_batch(loop) != 0:
        pass
    accepting.close_listener(loop.context)
    engine.notify(loop.context.done_fd)
    return NULL


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
        if prepare_answer(loop, i):
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


cdef inline bint prepare_answer(Loop *loop, int i) noexcept nogil:
    """Turn what was received into what is sent back; False when it is dropped."""
    cdef posix.msghdr *message = &loop.received[i].msg_hdr
    cdef size_t size = loop.received[i].msg_len
    cdef Arrival arrival
    atomic.count(&loop.context.counters.datagrams_in, 1)
    atomic.count(&loop.context.counters.bytes_in, size)
    if message.msg_flags & posix.MSG_TRUNC:
        return drop(loop, engine.DROPPED_TRUNCATED)
    if message.msg_namelen == 0:
        return drop(loop, engine.DROPPED_UNNAMED)
    read_arrival(message, &arrival)
    if loop.guarded and may_loop(message, &arrival, &loop.own):
        return drop(loop, engine.DROPPED_GUARD)
    # A path that leaves no room for its NUL is told with one, and so is too long to be asked for.
    message.msg_namelen = min(message.msg_namelen, <posix.socklen_t>sizeof(posix.sockaddr_un))
    loop.pieces[i].iov_len = size
    answer_from_asked(message, &arrival)
    return True


cdef void send_all(Loop *loop, int count) noexcept nogil:
    """Send the answers; one that cannot be sent is dropped, and the next has its turn."""
    cdef int next = 0, i, sent
    while next < count:
        sent = posix.sendmmsg(loop.context.listen_fd, loop.answers + next, count - next,
                              posix.MSG_DONTWAIT)
        for i in range(next, next + sent):
            atomic.count(&loop.context.counters.datagrams_out, 1)
            atomic.count(&loop.context.counters.bytes_out, loop.answers[i].msg_len)
        if sent > 0:
            next += sent            # it stopped before one that fails: the next call says why
        elif posix.errno != posix.EINTR:
            engine.count_error(loop.context, posix.errno)
            drop(loop, engine.DROPPED_SENDING)
            next += 1


cdef inline bint drop(Loop *loop, int reason) noexcept nogil:
    atomic.count(&loop.context.counters.dropped[reason], 1)
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
        loop.context.resume_at = posix.monotonic_ns() + accepting.REST_NS
        return 0
    return -1


cdef void give_up(Loop *loop, int error) noexcept nogil:
    atomic.lower_i64(&loop.context.stop_at, 0)
    accepting.note_failure(loop.context, error)
