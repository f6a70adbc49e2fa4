"""The thread that runs an engine's loop: started, watched, stopped and joined.

A worker is one native thread that never holds the GIL and takes no signals. Everything that can
fail is prepared in the caller of `start()`, so that the caller gets the error. Other threads talk
to the loop through the Context: `stop_at` with an eventfd to wake the loop, and counters that are
read without a lock. An engine that no eventfd wakes has a `wake()` of its own.
"""

from libc.stdint cimport int64_t
from libc.string cimport memset

cimport fastsock._native.atomic as atomic
cimport fastsock._native.busy_poll as busy_poll
cimport fastsock._native.check as check
cimport fastsock._native.posix as posix
cimport fastsock._native.server.context as context
cimport fastsock._native.server.counters as counting
cimport fastsock._native.server.thread as thread
cimport fastsock._native.server.transient as transient
cimport fastsock._native.server.unsent as unsent
cimport fastsock._native.wakeup as wakeup
from fastsock._native.server.counters cimport Counters
from fastsock._native.server.debug cimport must_hold
from fastsock._native.server.faults cimport FaultTable, Table
from fastsock._native.server.listener cimport BoundSocket
from fastsock._native.server.records cimport Records, RecordTable

import errno as errno_names


cdef class Worker:
    """Base of the engines' workers; takes the descriptor over from `socket`.

    `options` has the checked options of a server as attributes, those of ServerOptions.
    `max_connections` is this worker's share, 0 for no limit. The thread runs on `cpu`; -1 is any.
    """

    def __cinit__(self):
        memset(&self.context, 0, sizeof(self.context))
        context.init(&self.context)
        self.cpu = -1

    def __init__(self, BoundSocket socket not None, object options, *,
                 unsigned int max_connections=0, int cpu=-1):
        self.cpu = cpu
        context.read_options(&self.context, options, max_connections)
        self.context.wake_fd = wakeup.new_eventfd()
        self.context.notice_fd = wakeup.new_eventfd()
        self.context.done_fd = wakeup.new_eventfd()
        self.context.inherited = socket.inherited
        self.context.bound_fd = socket.detach()

    def __dealloc__(self):
        if self.running:
            self.request_stop(0)
            with nogil:
                posix.pthread_join(self.thread, NULL)
        self._free()
        context.free_options(&self.context)
        # Only here: until the last reference is gone, another thread may wait for them.
        posix.close_once(&self.context.wake_fd)
        posix.close_once(&self.context.notice_fd)
        posix.close_once(&self.context.done_fd)

    @property
    def done_fd(self) -> int:
        """Readable once the loop has ended; wait for it before `join()`."""
        return self.context.done_fd

    @property
    def notice_fd(self) -> int:
        """Readable when `notice()` has something new, at most once a second."""
        return self.context.notice_fd

    def set_faults(self, FaultTable table not None) -> None:
        """Serve new connections with these faults, also while the loop runs."""
        self.take_faults(table.table)

    def set_records(self, RecordTable table not None) -> None:
        """Record the last bytes of each connection; before `start()`."""
        self.take_records(table.records)

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
        error = thread.start(&self.thread, thread.stack_bytes(), self.cpu, self.main,
                             self.argument)
        posix.pthread_sigmask(posix.SIG_SETMASK, &before, NULL)
        if error:
            raise check.os_error(error, "pthread_create", "")
        self.running = True

    def request_stop(self, int64_t at_ns) -> None:
        """Ask the loop to end at CLOCK_MONOTONIC `at_ns` at the latest; an earlier time stands.

        Takes no lock and never waits, so that a signal handler may call it.
        """
        atomic.lower_i64(&self.context.stop_at, at_ns)
        wakeup.notify(self.context.wake_fd)
        self.wake()

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
        # The thread may have been changing the list of spare blocks. A leak is better than
        # unmapping memory that is in use.
        self.context.unsent.spares = 0
        self._free()

    def counters(self) -> dict:
        """Copy the counters, each read whole, without stopping the loop."""
        cdef Counters total
        cdef dict errors = {}
        cdef int error, kind
        memset(&total, 0, sizeof(total))
        self.snapshot(&total)
        for error in range(1, counting.ERRNO_LIMIT):
            if total.errors[error]:
                errors[errno_names.errorcode.get(error, str(error))] = total.errors[error]
        return {
            "closed": {
                "eof": total.closed[counting.CLOSED_EOF],
                "reset": total.closed[counting.CLOSED_RESET],
                "error": total.closed[counting.CLOSED_ERROR],
                "stopped": total.closed[counting.CLOSED_STOPPED],
                "idle": total.closed[counting.CLOSED_IDLE],
                "close_on": total.closed[counting.CLOSED_LINE],
                "fault": total.closed[counting.CLOSED_FAULT],
            },
            "accepted": total.accepted,
            "bytes_in": total.bytes_in,
            "bytes_out": total.bytes_out,
            "datagrams_in": total.datagrams_in,
            "datagrams_out": total.datagrams_out,
            "dropped": {
                "loop_guard": total.dropped[counting.DROPPED_GUARD],
                "truncated": total.dropped[counting.DROPPED_TRUNCATED],
                "unnamed": total.dropped[counting.DROPPED_UNNAMED],
                "send_error": total.dropped[counting.DROPPED_SENDING],
                "queue_full": total.dropped[counting.DROPPED_QUEUE],
                "stopped": total.dropped[counting.DROPPED_STOPPED],
            },
            "rejected": total.rejected,
            "accept_pauses": total.accept_pauses,
            "errors": errors,
            "faults": [total.faults[kind] for kind in range(counting.FAULT_KINDS)],
            "busy_poll": busy_poll.results(&self.context.busy_poll),
        }

    def notice(self) -> tuple:
        """Clear `notice_fd`; return the last pause and what ended the service.

        Each is an errno, or 0, and the call that failed with it.
        """
        wakeup.clear(self.context.notice_fd)
        return ((atomic.load_int(&self.context.pause_errno, atomic.RELAXED),
                 transient.name_of(atomic.load_int(&self.context.pause_call, atomic.RELAXED))),
                (atomic.load_int(&self.context.failed_errno, atomic.RELAXED),
                 transient.name_of(atomic.load_int(&self.context.failed_call, atomic.RELAXED))))

    cdef int prepare(self) except -1:
        """Engine: get everything the loop needs, and set `main` and `argument`."""
        raise NotImplementedError

    cdef void take_faults(self, Table *table) noexcept:
        """Engine: keep a reference of the table, instead of the one before."""

    cdef void take_records(self, Records *records) noexcept:
        """Engine: keep a reference, if connections can be recorded; called once."""

    cdef void wake(self) noexcept:
        """Engine: end a wait of the loop that `wake_fd` does not end; takes no lock."""

    cdef void release(self) noexcept:
        """Engine: free what `prepare` got. The thread has ended."""

    cdef void abandon(self) noexcept:
        """Engine, in a forked child: close the copies of the connections' descriptors."""

    cdef void snapshot(self, Counters *total) noexcept:
        """Engine: add up what was counted so far, the loop still running or ended."""
        counting.add(total, &self.context.counters)

    cdef void _check_balance(self) noexcept:
        cdef Counters total
        memset(&total, 0, sizeof(total))
        self.snapshot(&total)
        must_hold(counting.open_connections(&total) == 0)
        must_hold(self.context.unsent.used == 0)

    cdef void _free(self) noexcept:
        self.release()
        unsent.free_spares(&self.context.unsent)
        posix.close_once(&self.context.bound_fd)
