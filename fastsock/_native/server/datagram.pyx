"""The datagram engine: one socket, batches of datagrams, recvmmsg(2) and sendmmsg(2).

Wait, receive what is there up to a batch, send all of it back in one call. One datagram in, one
out, with the same bytes. An empty datagram is answered too: a size of 0 does not mean the end, as
it does on a stream. There are no connections, so there is nothing to remember: what cannot be
answered at once is dropped and counted, as the network might have done, and no error about one
client ever ends the service of the others.

Datagrams of one client and one size that come together are received as one (UDP_GRO), and go back
as one, which the kernel or the network card splits (UDP_SEGMENT). Most of what a small datagram
costs is the way through the network stack, and they take it once. Those that came one by one, in
one call, are answered in this way too: a run.

A lone datagram costs one call less if recvmmsg() itself waits for it, instead of poll(). No eventfd
ends that wait, but shutdown() does: it fails, as the socket is not connected (ENOTCONN), and wakes
the call all the same, which then has received 0 bytes without a sender. Where that cannot be,
poll() waits: a socket that another process uses too must not be shut down, and to a Unix socket
that is shut down clients cannot send (EPIPE).

What must not be answered is in loop_guard.pxd, and how an answer gets its source in ancillary.pxd.

UDP and Unix datagrams differ in little. A Unix socket that is not bound has no name to answer to;
its datagrams may be longer than any of UDP. Where the kernel cannot refuse open files that come
along (SCM_RIGHTS), it closes them, because there is no buffer for control messages. An answer takes
up the server's own send buffer until its client has received it (unix(7)): a client that does not
read can fill that buffer, and then all answers are dropped until it reads or ends. To wait instead
would only make every client wait.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp

cimport fastsock._native.ancillary as ancillary
cimport fastsock._native.atomic as atomic
cimport fastsock._native.busy_poll as busy_poll
cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix
cimport fastsock._native.server.acceptor as acceptor
cimport fastsock._native.server.datagram_rules as datagram_rules
cimport fastsock._native.server.deadlines as deadlines
cimport fastsock._native.server.poll_list as poll_list
cimport fastsock._native.server.run_limits as run_limits
cimport fastsock._native.server.transient as transient
cimport fastsock._native.wakeup as wakeup
from fastsock._native.ancillary cimport Arrival, Control
from fastsock._native.busy_poll cimport BusyPoll
from fastsock._native.server.context cimport Context
from fastsock._native.server.datagram_rules cimport ANSWERED, BUFFER_STRIDE, SIZE_MAX, AnswerRules
from fastsock._native.server.datagram_socket cimport DatagramSocket
from fastsock._native.server.run_limits cimport RunLimits
from fastsock._native.server.worker cimport Worker

cdef enum:
    # Datagrams per call at most. UDP_SEGMENT takes 64 (UDP_MAX_SEGMENTS): fewer would cut a run.
    BATCH = 64
    # After one datagram recvmmsg() looks for the next, which costs 0.15 us (3.55 us with one place,
    # 3.70 us with 64; Linux 6.18). So after this many calls with one each, only one call of
    # FULL_BATCH_EVERY has room for more. If several wait then, a few of them go alone.
    SINGLE_MIN = 16
    FULL_BATCH_EVERY = 4
    RUN_BYTES = 65507               # of a run: sent as one datagram of IPv4 as far as the card

cdef struct Loop:
    Context *context
    AnswerRules rules
    size_t control_size             # of the buffer for control messages
    bint can_block                  # recvmmsg() may wait: shutdown() ends that
    int *waking                     # see DatagramWorker
    bint can_segment                # UDP, and the kernel has UDP_SEGMENT
    RunLimits limits
    unsigned int single_receives             # receives in a row that brought one datagram
    posix.mmsghdr received[BATCH]
    posix.sockaddr_storage sources[BATCH]
    posix.iovec pieces[BATCH]       # of `received`
    Control controls[BATCH]
    posix.mmsghdr answers[BATCH]    # each of one datagram, or of several
    posix.iovec parts[BATCH]        # of `answers`, in their order
    int segments[BATCH]             # of each answer: the bytes of one datagram, if it is several
    uint64_t datagrams[BATCH]       # of each answer: how many
    char *buffers                   # BATCH * BUFFER_STRIDE bytes


cdef class DatagramWorker(Worker):
    """A worker that serves one datagram socket; takes the descriptor over from `socket`.

    With `options.loop_guard`, datagrams that may be another server's answers are dropped. The
    options of streams have no effect.
    """

    cdef Loop *loop
    cdef AnswerRules rules
    cdef str where
    cdef int waking                 # threads that may shut the socket down just now
    cdef int pid                    # of the process that serves; 0: nothing to shut down

    def __init__(self, DatagramSocket socket not None, object options, *, int cpu=-1):
        self.where = socket.where
        datagram_rules.read_rules(&self.rules, socket.fd, socket.where, options)
        Worker.__init__(self, socket, options, cpu=cpu)

    cdef int prepare(self) except -1:
        cdef Loop *loop = <Loop *>calloc(1, sizeof(Loop))
        cdef int i
        if loop == NULL:
            raise MemoryError
        self.loop = loop
        loop.context = &self.context
        self.context.sweep_at = clock.NEVER     # there are no connections to sweep
        loop.rules = self.rules
        if self.rules.own.address.ss_family != posix.AF_UNIX:
            loop.control_size = sizeof(Control)
        loop.can_block = (not self.context.inherited
                          and self.rules.own.address.ss_family != posix.AF_UNIX
                          and shutdown_is_seen() and make_blocking(self.context.bound_fd))
        loop.waking = &self.waking
        self.pid = posix.getpid() if loop.can_block else 0
        loop.can_segment = can_segment(self.context.bound_fd)
        loop.buffers = <char *>malloc(BATCH * BUFFER_STRIDE)
        if loop.buffers == NULL:
            raise MemoryError
        for i in range(BATCH):
            make_ready(loop, i)
        datagram_rules.probe(self.context.bound_fd, self.where)
        self.main = run
        self.argument = loop
        return 0

    cdef void wake(self) noexcept:
        cdef int fd
        # A forked child has a copy of the socket, and must not shut it down for its parent.
        if self.pid != posix.getpid():
            return
        # The loop closes the socket without a lock, and its number may be that of another one at
        # once. So it waits while `waking` is set, and sets `bound_fd` to -1 before it looks.
        atomic.add_int(&self.waking, 1, atomic.SEQ_CST)
        fd = atomic.load_int(&self.context.bound_fd, atomic.SEQ_CST)
        if fd >= 0:
            posix.shutdown(fd, posix.SHUT_RD)
        atomic.add_int(&self.waking, -1, atomic.SEQ_CST)

    cdef void release(self) noexcept:
        cdef Loop *loop = self.loop
        if loop == NULL:
            return
        self.loop = NULL
        free(loop.buffers)
        free(loop)


cdef inline bint shutdown_is_seen() noexcept nogil:
    """Whether shutdown() acts on a UDP socket that is not connected, as it does on Linux itself.

    Other kernels with its interface, such as gVisor, or a seccomp filter may only refuse it.
    """
    cdef posix.pollfd probe
    cdef bint seen
    probe.fd = posix.socket(posix.AF_INET, posix.SOCK_DGRAM | posix.SOCK_CLOEXEC, 0)
    if probe.fd < 0:
        return False
    probe.events = posix.POLLIN | posix.POLLRDHUP
    posix.shutdown(probe.fd, posix.SHUT_RD)
    seen = posix.poll(&probe, 1, 0) == 1 and probe.revents & posix.POLLRDHUP
    posix.close(probe.fd)
    return seen


cdef inline bint make_blocking(int fd) noexcept nogil:
    cdef int flags = posix.fcntl(fd, posix.F_GETFL)
    return flags >= 0 and posix.fcntl(fd, posix.F_SETFL, flags & ~posix.O_NONBLOCK) == 0


cdef inline bint can_segment(int fd) noexcept nogil:
    """Whether UDP_SEGMENT works: a kernel before Linux 4.18 would send a run as one datagram."""
    cdef int segment
    cdef posix.socklen_t size = sizeof(segment)
    return posix.getsockopt(fd, posix.SOL_UDP, posix.UDP_SEGMENT, &segment, &size) == 0


cdef void *run(void *argument) noexcept nogil:
    cdef Loop *loop = <Loop *>argument
    cdef int count = 0
    while not deadlines.stop_requested(loop.context):
        if count == BATCH:          # more may wait
            count = busy_poll.found(&loop.context.busy_poll, echo_batch(loop))
        else:
            count = wait_and_echo(loop)
    # What waits in the queue is answered too while there is time. The queue of an inherited socket
    # is left to the next process that receives from it.
    while (not loop.context.inherited and not deadlines.stop_due(loop.context)
           and echo_batch(loop) != 0):
        pass
    close_socket(loop)
    wakeup.notify(loop.context.done_fd)
    return NULL


cdef void close_socket(Loop *loop) noexcept nogil:
    cdef int fd = loop.context.bound_fd
    atomic.store_int(&loop.context.bound_fd, -1, atomic.SEQ_CST)
    while atomic.load_int(loop.waking, atomic.SEQ_CST):
        posix.sched_yield()         # for the time of one shutdown() call
    posix.close(fd)


cdef int wait_and_echo(Loop *loop) noexcept nogil:
    """Wait for a datagram, and then as echo_batch()."""
    cdef BusyPoll *busy = &loop.context.busy_poll
    cdef int count
    busy_poll.begin_wait(busy)
    while not acceptor.paused(loop.context) and busy_poll.poll_again(busy):
        count = echo_batch(loop)
        if count != 0 or deadlines.stop_requested(loop.context):
            return busy_poll.found(busy, count)
    if loop.can_block and deadlines.timeout_ms(loop.context) < 0:
        count = receive(loop, posix.MSG_WAITFORONE)
    else:
        wait(loop)
        count = receive(loop, posix.MSG_DONTWAIT)
    return answer(loop, busy_poll.end_wait(busy, count))


cdef void wait(Loop *loop) noexcept nogil:
    cdef posix.pollfd list[2]
    list[0].fd = -1 if acceptor.paused(loop.context) else loop.context.bound_fd
    list[1].fd = loop.context.wake_fd
    list[0].events = posix.POLLIN | posix.POLLRDHUP
    list[1].events = posix.POLLIN
    list[0].revents = list[1].revents = 0
    if (posix.poll(list, 2, deadlines.timeout_ms(loop.context)) < 0
            and not poll_list.may_work_again(loop.context, posix.errno)):
        datagram_rules.fail(loop.context, transient.POLL, posix.errno)
    if list[1].revents:
        wakeup.clear(loop.context.wake_fd)
    # Another holder of an inherited socket has shut it down: it stays readable, with nothing to
    # receive. There is no errno for it; accept() on a listener that was shut down says EINVAL.
    # wake() shuts one down that is not inherited.
    if (list[0].revents & (posix.POLLHUP | posix.POLLRDHUP)
            and not deadlines.stop_requested(loop.context)):
        datagram_rules.fail(loop.context, transient.RECVMMSG, posix.EINVAL)
    loop.context.resume_at = clock.NEVER


cdef int echo_batch(Loop *loop) noexcept nogil:
    """Receive and answer; return the number received, 0 if none waits, -1 after a failure."""
    return answer(loop, receive(loop, posix.MSG_DONTWAIT))


cdef int receive(Loop *loop, int flags) noexcept nogil:
    """Receive a batch; return as echo_batch(). MSG_WAITFORONE: wait for the first datagram."""
    cdef bint only_one = (loop.single_receives >= SINGLE_MIN
                          and loop.single_receives % FULL_BATCH_EVERY != 0)
    cdef int count = posix.recvmmsg(loop.context.bound_fd, loop.received, 1 if only_one else BATCH,
                                    flags, NULL)
    if count < 0:
        return datagram_rules.receive_failed(loop.context, posix.errno)
    loop.context.failures = 0
    loop.single_receives = loop.single_receives + 1 if count == 1 else 0
    if count == 1 and loop.can_block and is_wakeup(&loop.received[0]):
        make_ready(loop, 0)
        if not deadlines.stop_requested(loop.context):      # another program has shut it down
            datagram_rules.fail(loop.context, transient.RECVMMSG, posix.EINVAL)
        return 0
    return count


cdef inline bint is_wakeup(const posix.mmsghdr *received) noexcept nogil:
    """Whether shutdown() has ended the wait: a UDP datagram has a sender, also an empty one."""
    return received.msg_len == 0 and received.msg_hdr.msg_namelen == 0


cdef int answer(Loop *loop, int count) noexcept nogil:
    """Answer what receive() has received; return `count`."""
    cdef int i
    if count > 0:
        send_all(loop, prepare_answers(loop, count))
        for i in range(count):
            make_ready(loop, i)
    return count


cdef inline void make_ready(Loop *loop, int i) noexcept nogil:
    """Let the next datagram come into place `i`: undo what recvmmsg wrote there."""
    cdef posix.msghdr *message = &loop.received[i].msg_hdr
    loop.pieces[i].iov_base = loop.buffers + i * BUFFER_STRIDE
    loop.pieces[i].iov_len = SIZE_MAX
    message.msg_iov = &loop.pieces[i]
    message.msg_iovlen = 1
    message.msg_name = &loop.sources[i]
    message.msg_namelen = sizeof(posix.sockaddr_storage)
    message.msg_control = &loop.controls[i]
    message.msg_controllen = loop.control_size


cdef int prepare_answers(Loop *loop, int count) noexcept nogil:
    """Turn what was received into answers; return how many there are."""
    cdef posix.msghdr *message
    cdef int i, answers = 0, parts = 0
    for i in range(count):
        if not prepare_answer(loop, i, answers):
            continue
        loop.parts[parts] = loop.pieces[i]
        loop.answers[answers].msg_hdr.msg_iov = &loop.parts[parts]
        parts += 1
        if answers > 0 and continues_run(loop, answers):
            loop.answers[answers - 1].msg_hdr.msg_iovlen += 1
            loop.datagrams[answers - 1] += 1
        else:
            answers += 1
    for i in range(answers):
        message = &loop.answers[i].msg_hdr
        if message.msg_iovlen > 1:
            loop.segments[i] = <int>message.msg_iov.iov_len
            ancillary.send_in_segments(message, loop.segments[i])
    return answers


cdef inline bint prepare_answer(Loop *loop, int i, int answer) noexcept nogil:
    """Turn the datagram in place `i` into an answer; False when it is dropped."""
    cdef posix.msghdr *message = &loop.received[i].msg_hdr
    cdef size_t size = loop.received[i].msg_len
    cdef uint64_t datagrams
    cdef int reason
    cdef Arrival arrival
    if loop.can_block and is_wakeup(&loop.received[i]):
        return False                # datagrams came behind it
    ancillary.read_arrival(message, &arrival)
    datagrams = datagram_rules.datagrams_in(size, arrival.segment)
    datagram_rules.count_received(loop.context, datagrams, size)
    reason = datagram_rules.why_unanswered(&loop.rules, message, &arrival)
    if reason != ANSWERED:
        return datagram_rules.drop(loop.context, reason, datagrams)
    message.msg_namelen = datagram_rules.sendable_name(message.msg_namelen)
    loop.pieces[i].iov_len = size
    ancillary.answer_from_asked(message, &arrival)
    if datagrams > 1:
        ancillary.send_in_segments(message, arrival.segment)
    loop.answers[answer].msg_hdr = message[0]
    loop.segments[answer] = arrival.segment
    loop.datagrams[answer] = datagrams
    return True


cdef inline bint continues_run(Loop *loop, int answer) noexcept nogil:
    """Whether this answer can leave as one with those before it: same size, client and source.

    Empty ones cannot: several would become one.
    """
    cdef posix.msghdr *run = &loop.answers[answer - 1].msg_hdr
    cdef posix.msghdr *message = &loop.answers[answer].msg_hdr
    cdef size_t size = message.msg_iov.iov_len
    return (loop.can_segment and size > 0 and size == run.msg_iov.iov_len
            and (run.msg_iovlen + 1) * size <= RUN_BYTES
            and loop.segments[answer - 1] == 0 and loop.segments[answer] == 0
            and message.msg_namelen == run.msg_namelen
            and memcmp(message.msg_name, run.msg_name, run.msg_namelen) == 0
            # The control messages hold the address that was asked, and nothing else yet.
            and message.msg_controllen == run.msg_controllen
            and memcmp(message.msg_control, run.msg_control, run.msg_controllen) == 0
            and run_limits.may_send(&loop.limits, run, size))


cdef void send_all(Loop *loop, int count) noexcept nogil:
    """Send the answers; one that cannot be sent is dropped, and the next one is tried."""
    cdef int next = 0, i, sent, error
    while next < count:
        sent = posix.sendmmsg(loop.context.bound_fd, loop.answers + next, count - next,
                              posix.MSG_DONTWAIT)
        for i in range(next, next + sent):
            datagram_rules.count_sent(loop.context, loop.datagrams[i], loop.answers[i].msg_len)
        if sent > 0:
            next += sent            # if it stopped before one that fails, the next call says why
            continue
        error = posix.errno
        if error == posix.EINTR:
            continue
        if not transient.ends_one_answer(error):
            datagram_rules.note_send_failure(loop.context, error, loop.datagrams[next])
            datagram_rules.fail(loop.context, transient.SENDMMSG, error)
        elif loop.datagrams[next] > 1:
            send_apart(loop, next, error)
        else:
            datagram_rules.note_send_failure(loop.context, error, 1)
        next += 1


cdef void send_apart(Loop *loop, int answer, int error) noexcept nogil:
    """Send the datagrams of an answer one by one, after all of them together failed with `error`.

    Not every route can split them, and a shortage may leave room for some of them.
    """
    cdef posix.msghdr message = loop.answers[answer].msg_hdr
    cdef posix.iovec *parts = message.msg_iov
    cdef posix.iovec piece
    cdef size_t i, left
    ancillary.send_in_one(&message)
    message.msg_iov = &piece
    message.msg_iovlen = 1
    if error in (posix.EMSGSIZE, posix.EIO, posix.EINVAL):
        run_limits.note_refusal(&loop.limits, &message, loop.segments[answer])
    for i in range(loop.answers[answer].msg_hdr.msg_iovlen):
        piece.iov_base = parts[i].iov_base
        left = parts[i].iov_len
        while left:
            piece.iov_len = min(left, <size_t>loop.segments[answer])
            send_one(loop, &message)
            left -= piece.iov_len
            piece.iov_base = <char *>piece.iov_base + piece.iov_len


cdef inline void send_one(Loop *loop, const posix.msghdr *message) noexcept nogil:
    cdef ssize_t sent = -1
    cdef int error = posix.EINTR
    while sent < 0 and error == posix.EINTR:
        sent = posix.sendmsg(loop.context.bound_fd, message, posix.MSG_DONTWAIT)
        error = posix.errno
    if sent < 0:
        datagram_rules.note_send_failure(loop.context, error, 1)
    else:
        datagram_rules.count_sent(loop.context, 1, sent)
