# What every engine is given, counts, and decides alike.

from libc.stdint cimport int64_t, uint64_t

from fastsock._native cimport atomic, posix

cdef extern from "<stdint.h>" nogil:
    const int64_t NEVER "INT64_MAX"

cdef enum:
    ERRNO_LIMIT = 134                   # one past Linux's last errno, EHWPOISON
    ACCEPT_BURST = 64                   # connections taken before the others get their turn again
    ACCEPT_PAUSE_NS = 100000000         # how long a listener rests for want of descriptors
    NOTICE_INTERVAL_NS = 1000000000     # at most one notice, so one log line, in this time

cdef enum:                          # reasons of a connection's end
    CLOSED_EOF = 0                  # the client half-closed and got everything back
    CLOSED_RESET = 1                # ECONNRESET or EPIPE
    CLOSED_ERROR = 2                # any other errno
    CLOSED_STOPPED = 3              # still open when the server stopped
    CLOSE_REASONS = 4

cdef enum:                          # what an errno of accept() asks for
    ACCEPT_DONE                     # the queue is empty
    ACCEPT_RETRY                    # this connection failed; the next may not
    ACCEPT_PAUSE                    # no descriptors or memory: try again later
    ACCEPT_FAILED                   # the listener itself is gone

cdef struct Counters:               # written by the worker's thread alone, read by any
    uint64_t accepted
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t accept_pauses
    uint64_t closed[CLOSE_REASONS]
    uint64_t errors[ERRNO_LIMIT]

cdef struct Context:                # one worker: what it serves, and how others talk to it
    int listen_fd                   # owned by the worker; -1 once closed
    int wake_fd                     # eventfd, others to worker: look at stop_at
    int notice_fd                   # eventfd, worker to others: look at the two errnos below
    int done_fd                     # eventfd, worker to others: the loop has ended
    size_t buffer_size              # bytes per recv, and the most a slow reader can keep
    int64_t stop_at                 # CLOCK_MONOTONIC ns; NEVER while serving; only ever lowered
    int64_t noticed_at              # when notice_fd was last written, ns
    int pause_errno                 # why accepting was last paused
    int failed_errno                # why the worker cannot go on accepting, or 0
    Counters counters


cdef inline void count_error(Context *context, int error) noexcept nogil:
    if 0 < error < ERRNO_LIMIT:
        atomic.count(&context.counters.errors[error], 1)


cdef inline int close_reason(int error) noexcept nogil:
    if error == posix.ECONNRESET or error == posix.EPIPE:
        return CLOSED_RESET
    return CLOSED_ERROR


cdef inline int accept_verdict(int error) noexcept nogil:
    if error == posix.EAGAIN:
        return ACCEPT_DONE
    if error in (posix.EMFILE, posix.ENFILE, posix.ENOBUFS, posix.ENOMEM):
        return ACCEPT_PAUSE
    # EINVAL: somebody else shut the listener down, which `ss -K` can do too.
    if error in (posix.EINVAL, posix.EBADF, posix.ENOTSOCK):
        return ACCEPT_FAILED
    # EINTR, ECONNABORTED, EPERM, and the network errors that Linux passes from the new
    # connection to accept(): accept(2) asks to treat them like EAGAIN by retrying.
    return ACCEPT_RETRY


cdef inline void notify(int fd) noexcept nogil:
    """Make an eventfd readable; it can only fail when it is so already."""
    cdef uint64_t one = 1
    posix.write(fd, &one, sizeof(one))


cdef inline bint stop_requested(Context *context) noexcept nogil:
    return atomic.load_i64(&context.stop_at, atomic.ACQUIRE) != NEVER
