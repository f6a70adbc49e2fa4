"""The thread that runs an engine's loop: how it is started, watched, stopped and joined.

A worker is one native thread that never holds the GIL and takes no signals. Everything that can
fail is prepared in the caller of `start()`, so that the caller gets the error. Other threads talk
to the loop through the Context alone: `stop_at` with an eventfd to wake the loop, and counters
that are read without a lock.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

cimport fastsock._native.atomic as atomic
cimport fastsock._native.server.engine as engine
cimport fastsock._native.posix as posix
cimport fastsock._native.services as services
from fastsock._native.server.ranges cimport Range
from fastsock._native.server.debug cimport must_hold
from fastsock._native.check cimport os_error
from fastsock._native.server.engine cimport Counters
from fastsock._native.server.listener cimport BoundSocket
from fastsock._native.server.unsent cimport rests_free, rests_init
from fastsock._native.server.thread cimport spawn

import errno as errno_names

cdef dict SERVICES = {
    "echo": services.ECHO,
    "discard": services.DISCARD,
    "chargen": services.CHARGEN,
}

# glibc's default of 8 MiB is reserved per thread; the loops need a few KiB.
cdef enum:
    STACK_BYTES = 256 * 1024


cdef class Worker:
    """Base of the engines' workers; takes the descriptor over from `socket`.

    `buffer_size` is in bytes. `service` is "echo", "discard" or "chargen"; a line equal to
    `close_on` ends an echo. `allow` holds (16-byte IPv6 network, prefix length) pairs. 0 stands for
    no limit in `max_connections` and in `idle_timeout`, which is in seconds. `busy_poll` is the
    longest time spent asking before blocking, in microseconds. The thread runs on `cpu`; -1 is any.
    """

    def __cinit__(self):
        memset(&self.context, 0, sizeof(self.context))
        self.context.listen_fd = -1
        self.context.wake_fd = -1
        self.context.notice_fd = -1
        self.context.done_fd = -1
        self.context.stop_at = engine.NEVER
        self.context.resume_at = engine.NEVER
        self.context.sweep_at = engine.NEVER
        self.cpu = -1

    def __init__(self, BoundSocket socket not None, *, size_t buffer_size, str service="echo",
                 bytes close_on=b"", unsigned int max_connections=0, tuple allow=(),
                 double idle_timeout=0.0, int64_t busy_poll=0, int cpu=-1):
        self.cpu = cpu
        self.context.buffer_size = buffer_size
        self.context.stream_size = buffer_size * engine.STREAM_BUFFERS
        rests_init(&self.context.rests, buffer_size)
        self.context.max_connections = max_connections
        self.context.idle_ns = <int64_t>(idle_timeout * 1e9)
        self.context.busy_poll.cap_ns = busy_poll * 1000
        if idle_timeout or close_on:
            self.context.sweep_at = 0
        self._set_service(service, close_on)
        self._set_allow(allow)
        self.context.wake_fd = new_eventfd()
        self.context.notice_fd = new_eventfd()
        self.context.done_fd = new_eventfd()
        self.context.inherited = socket.inherited
        self.context.listen_fd = socket.detach()

    def __dealloc__(self):
        if self.running:
            self.request_stop(0)
            with nogil:
                posix.pthread_join(self.thread, NULL)
        self._free()
        free(self.context.chargen)
        free(self.context.close_line)
        free(self.context.allow)
        # Only here: until the last reference is gone, somebody may be waiting for them.
        close_once(&self.context.wake_fd)
        close_once(&self.context.notice_fd)
        close_once(&self.context.done_fd)

    @property
    def done_fd(self) -> int:
        """Readable once the loop has ended; wait for it before `join()`."""
        return self.context.done_fd

    @property
    def notice_fd(self) -> int:
        """Readable when `notice()` has something new, at most once a second."""
        return self.context.notice_fd

    def start(self) -> None:
        """Prepare the engine and start its thread.

        Raises OSError or MemoryError, with nothing left running.
        """
        cdef posix.sigset_t every, before
        cdef int error
        self.prepare()
        # The new thread inherits the mask: no signal can reach it, not even at its very start.
        posix.sigfillset(&every)
        posix.pthread_sigmask(posix.SIG_SETMASK, &every, &before)
        error = spawn(&self.thread, STACK_BYTES, self.cpu, self.main, self.argument)
        posix.pthread_sigmask(posix.SIG_SETMASK, &before, NULL)
        if error:
            raise os_error(error, "pthread_create", "")
        self.running = True

    def request_stop(self, int64_t at_ns) -> None:
        """Ask the loop to end at CLOCK_MONOTONIC `at_ns` at the latest; an earlier time stands.

        Takes no lock and never waits, so that a signal handler may call it.
        """
        atomic.lower_i64(&self.context.stop_at, at_ns)
        engine.notify(self.context.wake_fd)

    def join(self) -> None:
        """Wait for the thread and free what it used; at once when `done_fd` is readable."""
        if self.running:
            with nogil:
                posix.pthread_join(self.thread, NULL)
            self.running = False
            self._check_balance()
        self._free()

    def forget_after_fork(self) -> None:
        """In a forked child: close the copies of every descriptor, and touch nothing else.

        The thread was not copied. A copy kept open would hold the port and would keep the
        parent's clients from ever seeing the end of their connections.
        """
        self.running = False
        self.abandon()
        self.context.rests.spares = 0   # the thread may have been at them: better lost than wrong
        self._free()

    def counters(self) -> dict:
        """Copy the counters, each read whole, without stopping the loop."""
        cdef engine.Counters total
        cdef dict errors = {}
        cdef int error
        memset(&total, 0, sizeof(total))
        self.snapshot(&total)
        for error in range(1, engine.ERRNO_LIMIT):
            if total.errors[error]:
                errors[errno_names.errorcode.get(error, str(error))] = total.errors[error]
        return {
            "closed": {
                "eof": total.closed[engine.CLOSED_EOF],
                "reset": total.closed[engine.CLOSED_RESET],
                "error": total.closed[engine.CLOSED_ERROR],
                "stopped": total.closed[engine.CLOSED_STOPPED],
                "idle": total.closed[engine.CLOSED_IDLE],
                "close_on": total.closed[engine.CLOSED_LINE],
            },
            "accepted": total.accepted,
            "bytes_in": total.bytes_in,
            "bytes_out": total.bytes_out,
            "datagrams_in": total.datagrams_in,
            "datagrams_out": total.datagrams_out,
            "dropped": {
                "loop_guard": total.dropped[engine.DROPPED_GUARD],
                "truncated": total.dropped[engine.DROPPED_TRUNCATED],
                "unnamed": total.dropped[engine.DROPPED_UNNAMED],
                "send_error": total.dropped[engine.DROPPED_SENDING],
            },
            "rejected": total.rejected,
            "accept_pauses": total.accept_pauses,
            "errors": errors,
        }

    def notice(self) -> tuple:
        """Clear `notice_fd`; return the errnos of the last accept pause and of what ended it."""
        cdef unsigned long long count
        posix.read(self.context.notice_fd, &count, sizeof(count))
        return (atomic.load_int(&self.context.pause_errno, atomic.RELAXED),
                atomic.load_int(&self.context.failed_errno, atomic.RELAXED))

    def _set_service(self, str name, bytes close_on):
        self.context.service = SERVICES[name]
        if self.context.service == services.CHARGEN:
            self.context.chargen = services.chargen_table(self.context.buffer_size)
            if self.context.chargen == NULL:
                raise MemoryError
        if close_on:
            self.context.close_line_size = len(close_on)
            self.context.close_line = <char *>malloc(len(close_on))
            if self.context.close_line == NULL:
                raise MemoryError
            memcpy(self.context.close_line, <char *>close_on, len(close_on))

    def _set_allow(self, tuple ranges):
        cdef bytes network
        cdef int i
        if not ranges:
            return
        self.context.allow = <Range *>calloc(len(ranges), sizeof(Range))
        if self.context.allow == NULL:
            raise MemoryError
        self.context.allow_count = len(ranges)
        for i in range(self.context.allow_count):
            network, self.context.allow[i].bits = ranges[i]
            memcpy(self.context.allow[i].network, <char *>network, 16)

    cdef int prepare(self) except -1:
        """Engine: get everything the loop needs, and set `main` and `argument`."""
        raise NotImplementedError

    cdef void release(self) noexcept:
        """Engine: free what `prepare` got. The thread is gone."""

    cdef void abandon(self) noexcept:
        """Engine, in a forked child: close the copies of the connections' descriptors."""

    cdef void snapshot(self, Counters *total) noexcept:
        """Engine: add up what was counted so far, the loop still running or long ended."""
        engine.add_counters(total, &self.context.counters)

    cdef void _check_balance(self) noexcept:
        cdef engine.Counters total
        memset(&total, 0, sizeof(total))
        self.snapshot(&total)
        must_hold(engine.open_connections(&total) == 0)
        must_hold(self.context.rests.count == 0)

    cdef void _free(self) noexcept:
        self.release()
        rests_free(&self.context.rests)
        close_once(&self.context.listen_fd)


cdef int new_eventfd() except -1:
    cdef int fd = posix.eventfd(0, posix.EFD_NONBLOCK | posix.EFD_CLOEXEC)
    if fd < 0:
        raise os_error(posix.errno, "eventfd", "")
    return fd


cdef void close_once(int *fd) noexcept:
    if fd[0] >= 0:
        posix.close(fd[0])
        fd[0] = -1
