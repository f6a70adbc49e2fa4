"""The datagram engine that misbehaves on request: it loses, doubles, delays and changes datagrams.

It is simpler than datagram.pyx, and slower: each datagram is copied into a queue that is ordered by
the time of sending, and leaves in a call of its own, from the address that was asked. A wait lasts
until a datagram comes or the first of the queue is due. What must not be answered is not answered
here either, and a datagram is answered once, or twice where `duplicate` is asked for.

What is done to a datagram is in datagram_treatment.pxd, the queue in timed_queue.pxd.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

cimport fastsock._native.ancillary as ancillary
cimport fastsock._native.atomic as atomic
cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix
cimport fastsock._native.server.acceptor as acceptor
cimport fastsock._native.server.counters as counters
cimport fastsock._native.server.datagram_rules as datagram_rules
cimport fastsock._native.server.datagram_treatment as datagram_treatment
cimport fastsock._native.server.deadlines as deadlines
cimport fastsock._native.server.faults as faults
cimport fastsock._native.server.poll_list as poll_list
cimport fastsock._native.server.timed_queue as timed_queue
cimport fastsock._native.server.transient as transient
cimport fastsock._native.wakeup as wakeup
from fastsock._native.ancillary cimport Arrival, Control
from fastsock._native.server.context cimport Context
from fastsock._native.server.datagram_rules cimport ANSWERED, BUFFER_STRIDE, SIZE_MAX, AnswerRules
from fastsock._native.server.datagram_socket cimport DatagramSocket
from fastsock._native.server.datagram_treatment cimport Treatment
from fastsock._native.server.debug cimport must_hold
from fastsock._native.server.faults cimport Table
from fastsock._native.server.timed_queue cimport Answer, TimedQueue
from fastsock._native.server.worker cimport Worker

cdef enum:
    BATCH = 16                      # datagrams per call at most

cdef struct Loop:
    Context *context
    AnswerRules rules
    size_t control_size             # of the buffer for control messages
    void **new_table                # see FaultyDatagramWorker
    Table *table
    uint64_t number                 # of the next datagram
    TimedQueue queue
    posix.mmsghdr received[BATCH]
    posix.sockaddr_storage sources[BATCH]
    posix.iovec pieces[BATCH]
    Control controls[BATCH]
    char *buffers                   # BATCH * BUFFER_STRIDE bytes


cdef class FaultyDatagramWorker(Worker):
    """A worker that serves one datagram socket, with faults; takes the descriptor from `socket`.

    set_faults() comes before start(); faults of streams are passed over. The options of streams and
    `busy_poll` have no effect.
    """

    cdef Loop *loop
    cdef AnswerRules rules
    cdef str where
    cdef void *new_table            # a Table, with a reference, that the loop has not taken yet

    def __init__(self, DatagramSocket socket not None, object options, *, int cpu=-1):
        self.where = socket.where
        datagram_rules.read_rules(&self.rules, socket.fd, socket.where, options)
        Worker.__init__(self, socket, options, cpu=cpu)

    cdef void take_faults(self, Table *table) noexcept:
        # The loop reads its table without a lock, so only the loop may give that one back.
        faults.release(<Table *>atomic.swap_pointer(&self.new_table, faults.acquire(table),
                                                    atomic.ACQ_REL))

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
        loop.new_table = &self.new_table
        loop.buffers = <char *>malloc(BATCH * BUFFER_STRIDE)
        if loop.buffers == NULL or not timed_queue.init(&loop.queue):
            raise MemoryError
        take_new_table(loop)
        if loop.table == NULL:
            raise RuntimeError("call set_faults() before start()")
        for i in range(BATCH):
            make_ready(loop, i)
        datagram_rules.probe(self.context.bound_fd, self.where)
        self.main = run
        self.argument = loop
        return 0

    cdef void release(self) noexcept:
        cdef Loop *loop = self.loop
        self.take_faults(NULL)
        if loop == NULL:
            return
        self.loop = NULL
        must_hold(loop.queue.count == 0 and loop.queue.bytes == 0)
        faults.release(loop.table)
        free(loop.queue.heap)
        free(loop.buffers)
        free(loop)

    cdef void abandon(self) noexcept:
        # The parent's thread may have been changing them, and a leak is better than to free what
        # is in use.
        self.new_table = NULL
        self.loop = NULL


cdef void *run(void *argument) noexcept nogil:
    cdef Loop *loop = <Loop *>argument
    while not deadlines.stop_requested(loop.context):
        if wait(loop, for_clients=True):
            receive(loop)
        send_due(loop)
    # What waits to be received is answered too while there is time. The queue of an inherited
    # socket is left to the next process that receives from it.
    while (not loop.context.inherited and not deadlines.stop_due(loop.context)
           and receive(loop) != 0):
        send_due(loop)
    while loop.queue.count and not deadlines.stop_due(loop.context):
        wait(loop, for_clients=False)
        send_due(loop)
    drop_queue(loop)
    acceptor.close_bound(loop.context)
    wakeup.notify(loop.context.done_fd)
    return NULL


cdef bint wait(Loop *loop, bint for_clients) noexcept nogil:
    """Wait for a datagram or the next deadline; return whether there may be a datagram."""
    cdef Context *context = loop.context
    cdef posix.pollfd list[2]
    cdef posix.timespec time
    cdef int64_t until = min(min(deadlines.stop_time(context), context.resume_at),
                             timed_queue.next_due(&loop.queue))
    cdef int64_t left = max(until - clock.monotonic_ns(), <int64_t>0)
    time.tv_sec = left // 1000000000
    time.tv_nsec = left % 1000000000
    list[0].fd = context.bound_fd if for_clients and not acceptor.paused(context) else -1
    list[1].fd = context.wake_fd
    list[0].events = posix.POLLIN | posix.POLLRDHUP
    list[1].events = posix.POLLIN
    list[0].revents = list[1].revents = 0
    # Not poll(), which would wait up to a millisecond too long.
    if (posix.ppoll(list, 2, NULL if until == clock.NEVER else &time, NULL) < 0
            and not poll_list.may_work_again(context, posix.errno)):
        datagram_rules.fail(context, transient.POLL, posix.errno)
    if list[1].revents:
        wakeup.clear(context.wake_fd)
    # A socket that was shut down stays readable, with nothing to receive, and no errno says so.
    if (list[0].revents & (posix.POLLHUP | posix.POLLRDHUP)
            and not deadlines.stop_requested(context)):
        datagram_rules.fail(context, transient.RECVMMSG, posix.EINVAL)
    if context.resume_at != clock.NEVER and clock.monotonic_ns() >= context.resume_at:
        context.resume_at = clock.NEVER
    return list[0].revents != 0


# --- receiving ----------------------------------------------------------------------------------

cdef int receive(Loop *loop) noexcept nogil:
    """Receive a batch; return how many came, 0 if none waits, -1 after a failure."""
    cdef int64_t now
    cdef int i, count = posix.recvmmsg(loop.context.bound_fd, loop.received, BATCH,
                                       posix.MSG_DONTWAIT, NULL)
    if count < 0:
        return datagram_rules.receive_failed(loop.context, posix.errno)
    now = clock.monotonic_ns()
    loop.context.failures = 0
    take_new_table(loop)            # after the call: what is sent from then on meets the new faults
    for i in range(count):
        take(loop, i, now)
        make_ready(loop, i)
    return count


cdef void take_new_table(Loop *loop) noexcept nogil:
    cdef Table *table = <Table *>atomic.swap_pointer(loop.new_table, NULL, atomic.ACQ_REL)
    if table == loop.table:
        faults.release(table)
    elif table != NULL:
        faults.release(loop.table)
        loop.table = table
        loop.number = 0             # the same faults again for the same datagrams


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


cdef void take(Loop *loop, int i, int64_t now) noexcept nogil:
    """Queue the datagram in place `i`, or each of those that the kernel has merged (UDP_GRO)."""
    cdef posix.msghdr *message = &loop.received[i].msg_hdr
    cdef char *data = <char *>message.msg_iov.iov_base
    cdef size_t left = loop.received[i].msg_len, size
    cdef uint64_t datagrams
    cdef Arrival arrival
    cdef int reason
    ancillary.read_arrival(message, &arrival)
    datagrams = datagram_rules.datagrams_in(left, arrival.segment)
    datagram_rules.count_received(loop.context, datagrams, left)
    reason = datagram_rules.why_unanswered(&loop.rules, message, &arrival)
    if reason != ANSWERED:
        datagram_rules.drop(loop.context, reason, datagrams)
        return
    message.msg_namelen = datagram_rules.sendable_name(message.msg_namelen)
    ancillary.answer_from_asked(message, &arrival)
    while datagrams:
        size = left if datagrams == 1 else <size_t>arrival.segment
        add(loop, message, data, size, now)
        datagrams -= 1
        left -= size
        data += size


cdef void add(Loop *loop, const posix.msghdr *message, char *data, size_t size,
              int64_t now) noexcept nogil:
    """Decide on the faults of one datagram, and queue its answer."""
    cdef Treatment treatment
    cdef Answer *answer
    cdef Answer *held
    datagram_treatment.treat(loop.table, loop.number, data, size, &treatment)
    loop.number += 1
    if treatment.lost:
        count_done(loop, treatment.done)
        return
    # A client has one datagram held back at most: if each had to wait for a later one, none would
    # be sent before another.
    held = timed_queue.held_of(&loop.queue, message.msg_name, message.msg_namelen)
    if held != NULL:
        treatment.behind = 0
    elif treatment.behind:
        treatment.delay += treatment.hold
    answer = timed_queue.add(&loop.queue, message, data, treatment.size,
                             now + treatment.delay)
    if answer == NULL:
        datagram_rules.drop(loop.context, counters.DROPPED_QUEUE, 1)
        return
    answer.copies = treatment.copies
    answer.done = treatment.done
    if held != NULL:
        timed_queue.overtake(&loop.queue, held, answer)
    elif treatment.behind:
        timed_queue.hold(&loop.queue, answer, treatment.behind)


# --- sending ------------------------------------------------------------------------------------

cdef void send_due(Loop *loop) noexcept nogil:
    """Send what is due, each in a call of its own."""
    cdef int64_t now = clock.monotonic_ns()
    cdef Answer *answer
    while timed_queue.next_due(&loop.queue) <= now:
        answer = timed_queue.take_first(&loop.queue)
        if send(loop, answer):
            if answer.overtaken:
                answer.done |= <uint32_t>1 << counters.FAULT_REORDER
            count_done(loop, answer.done)
        timed_queue.release(&loop.queue, answer)


cdef bint send(Loop *loop, Answer *answer) noexcept nogil:
    """Send all copies of an answer; one that cannot be sent is dropped. Whether all were sent."""
    cdef posix.mmsghdr copies[2]
    cdef posix.iovec piece
    cdef unsigned int next = 0
    cdef bint whole = True
    cdef int i, sent, error
    memset(copies, 0, sizeof(copies))
    piece.iov_base = answer + 1
    piece.iov_len = answer.size
    for i in range(2):
        copies[i].msg_hdr.msg_name = &answer.client
        copies[i].msg_hdr.msg_namelen = answer.client_size
        copies[i].msg_hdr.msg_iov = &piece
        copies[i].msg_hdr.msg_iovlen = 1
        copies[i].msg_hdr.msg_control = &answer.control
        copies[i].msg_hdr.msg_controllen = answer.control_size
    while next < answer.copies:
        sent = posix.sendmmsg(loop.context.bound_fd, copies + next, answer.copies - next,
                              posix.MSG_DONTWAIT)
        if sent > 0:
            datagram_rules.count_sent(loop.context, sent, sent * answer.size)
            next += sent
            continue
        error = posix.errno
        if error == posix.EINTR:
            continue
        datagram_rules.note_send_failure(loop.context, error, 1)
        if not transient.ends_one_answer(error):
            datagram_rules.fail(loop.context, transient.SENDMMSG, error)
        whole = False
        next += 1
    return whole


cdef inline void count_done(Loop *loop, uint32_t done) noexcept nogil:
    """Count each kind of fault whose bit is set in `done`."""
    cdef int kind
    for kind in range(counters.FAULT_KINDS):
        if done >> kind & 1:
            atomic.count(&loop.context.counters.faults[kind], 1)


cdef void drop_queue(Loop *loop) noexcept nogil:
    datagram_rules.drop(loop.context, counters.DROPPED_STOPPED, loop.queue.count)
    timed_queue.clear(&loop.queue)
