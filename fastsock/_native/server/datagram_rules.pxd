# What the engines of datagrams share: which datagrams get no answer, and what a failed call means.

from libc.stdint cimport uint64_t

cimport fastsock._native.atomic as atomic
cimport fastsock._native.check as check
cimport fastsock._native.posix as posix
cimport fastsock._native.server.acceptor as acceptor
cimport fastsock._native.server.counters as counters
cimport fastsock._native.server.loop_guard as loop_guard
cimport fastsock._native.server.transient as transient
from fastsock._native.ancillary cimport Arrival
from fastsock._native.server.context cimport Context
from fastsock._native.server.loop_guard cimport SocketName

cdef enum:
    SIZE_MAX = 65535                # bytes; no UDP datagram is longer
    # From one buffer to the next. With a power of 2 the first bytes of all buffers would share a
    # few lines of the caches and entries of the TLB. Pages that no datagram reaches are not used.
    BUFFER_STRIDE = 17 * 4096 + 64
    ANSWERED = -1                   # by why_unanswered(): there is no reason against an answer

cdef struct AnswerRules:
    bint guarded                    # datagrams that may be another server's answers are dropped
    bint shares_port                # other sockets have it too: each gets a copy of a broadcast
    SocketName own


cdef inline int read_rules(AnswerRules *rules, int fd, str where, object options) except -1:
    rules.guarded = options.loop_guard
    rules.shares_port = options.workers > 1 or options.reuse_port
    rules.own.size = sizeof(rules.own.address)
    if posix.getsockname(fd, <posix.sockaddr *>&rules.own.address, &rules.own.size) != 0:
        raise check.os_error(posix.errno, "getsockname", where)
    return 0


cdef inline int probe(int fd, str where) except -1:
    """Make the loop's calls once, with no datagram: what is forbidden is known at the start."""
    cdef posix.mmsghdr none
    cdef int error
    if posix.recvmmsg(fd, &none, 0, posix.MSG_DONTWAIT, NULL) < 0:
        error = posix.errno
        if not transient.can_pass(error):
            raise check.os_error(error, "recvmmsg", where, check.forbidden(error))
    if posix.sendmmsg(fd, &none, 0, posix.MSG_DONTWAIT) < 0:
        error = posix.errno
        # With no answer to send, no firewall forbids one.
        if error == posix.EPERM or not transient.ends_one_answer(error):
            raise check.os_error(error, "sendmmsg", where, check.forbidden(error))
    return 0


cdef inline int why_unanswered(AnswerRules *rules, const posix.msghdr *message,
                               const Arrival *arrival) noexcept nogil:
    """Why a datagram that was received gets no answer, or ANSWERED."""
    if message.msg_flags & posix.MSG_TRUNC:
        return counters.DROPPED_TRUNCATED
    if message.msg_namelen == 0:
        return counters.DROPPED_UNNAMED
    if rules.guarded and loop_guard.may_loop(message, arrival, &rules.own):
        return counters.DROPPED_GUARD
    # SO_REUSEPORT spreads clients over the sockets, but not what is sent to a group of hosts: one
    # datagram would get the answers of all workers.
    if rules.shares_port and loop_guard.asked_group(arrival):
        return counters.DROPPED_GUARD
    return ANSWERED


cdef inline posix.socklen_t sendable_name(posix.socklen_t size) noexcept nogil:
    """The bytes of a sender's name that sendmsg() takes.

    The kernel adds a NUL to a path of 108 bytes, which makes the name too long.
    """
    return min(size, <posix.socklen_t>sizeof(posix.sockaddr_un))


cdef inline uint64_t datagrams_in(size_t size, int segment) noexcept nogil:
    """How many datagrams the kernel has merged into one (UDP_GRO)."""
    return 1 if segment <= 0 or size <= <size_t>segment else (size - 1) // segment + 1


cdef inline void count_received(Context *context, uint64_t datagrams, size_t size) noexcept nogil:
    atomic.count(&context.counters.datagrams_in, datagrams)
    atomic.count(&context.counters.bytes_in, size)


cdef inline void count_sent(Context *context, uint64_t datagrams, size_t size) noexcept nogil:
    atomic.count(&context.counters.datagrams_out, datagrams)
    atomic.count(&context.counters.bytes_out, size)


cdef inline bint drop(Context *context, int reason, uint64_t datagrams) noexcept nogil:
    atomic.count(&context.counters.dropped[reason], datagrams)
    return False


cdef inline void note_send_failure(Context *context, int error, uint64_t datagrams) noexcept nogil:
    counters.count_error(&context.counters, error)
    drop(context, counters.DROPPED_SENDING, datagrams)


cdef inline int receive_failed(Context *context, int error) noexcept nogil:
    """After recvmmsg() failed: 0 if there is nothing to receive now, -1 to call it again."""
    if error == posix.EAGAIN:
        context.failures = 0
        return 0
    if error == posix.EINTR:
        return -1
    counters.count_error(&context.counters, error)
    if not transient.can_pass(error):
        fail(context, transient.RECVMMSG, error)
        return 0
    # Most errors report an answer that did not arrive (ICMP), once. One that stays, such as
    # ENOMEM, would make the loop spin.
    context.failures += 1
    if context.failures >= acceptor.FAILURES_MAX:
        acceptor.pause(context, transient.RECVMMSG, error)
        return 0
    return -1


cdef inline void fail(Context *context, int call, int error) noexcept nogil:
    """End the service: the call fails for a reason that does not pass."""
    atomic.lower_i64(&context.stop_at, 0)
    acceptor.note_failure(context, call, error)
