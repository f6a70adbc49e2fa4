"""The threads engine: one native thread per connection.

The classic: accept, start a thread, and let it receive and send until the client has finished. The
calls block, so a slow client holds up its own thread only, and an echo costs two system calls. The
price is a thread for each client: its stack, its buffer, and a context switch for every echo.

How a thread serves its connection is in blocking.pxd, accepting in acceptor.pxd, and how the
threads are known, counted and ended in handlers.pxd.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc

cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix
cimport fastsock._native.server.acceptor as acceptor
cimport fastsock._native.server.blocking as blocking
cimport fastsock._native.server.handlers as handlers
cimport fastsock._native.server.poll_list as poll_list
cimport fastsock._native.server.thread as thread
cimport fastsock._native.server.transient as transient
cimport fastsock._native.wakeup as wakeup
from fastsock._native.server.acceptor cimport Acceptor
from fastsock._native.server.context cimport Context
from fastsock._native.server.counters cimport Counters
from fastsock._native.server.handlers cimport Handler, Handlers
from fastsock._native.server.worker cimport Worker

cdef struct Loop:
    Context *context
    Acceptor acceptor
    posix.pollfd list[poll_list.FIRST_OWN]
    Handlers handlers
    size_t stack_bytes              # of each handler's thread; its buffer is elsewhere


cdef class ThreadsWorker(Worker):
    """A worker that serves one listener with a thread for each connection."""

    cdef Loop loop

    def __cinit__(self):
        handlers.init(&self.loop.handlers, posix.MAP_PRIVATE)
        self.loop.acceptor.held = -1

    cdef int prepare(self) except -1:
        self.loop.context = &self.context
        acceptor.init(&self.loop.acceptor, &self.context, 0, &self.loop.handlers.open)
        poll_list.init(&self.context, self.loop.list)
        self.loop.stack_bytes = thread.stack_bytes()
        # The kernel watches the time instead: see limit_waiting() in blocking.pxd.
        self.context.sweep_at = clock.NEVER
        self.main = run
        self.argument = &self.loop
        return 0

    cdef void release(self) noexcept:
        handlers.free_chunks(&self.loop.handlers)

    cdef void abandon(self) noexcept:
        acceptor.close_held(&self.loop.acceptor)
        handlers.close_copies(&self.loop.handlers)

    cdef void snapshot(self, Counters *total) noexcept:
        handlers.add_counters(&self.loop.handlers, &self.context, total)


cdef void *run(void *argument) noexcept nogil:
    cdef Loop *loop = <Loop *>argument
    cdef int fd
    while not acceptor.finished(&loop.acceptor, loop.handlers.open > 0):
        poll_list.wait(&loop.acceptor, loop.list, poll_list.FIRST_OWN, for_clients=True)
        join_ended(loop)
        fd = acceptor.next_client(&loop.acceptor)
        while fd >= 0:
            start_handler(loop, fd)
            fd = acceptor.next_client(&loop.acceptor)
    acceptor.close_held(&loop.acceptor)
    handlers.end_threads(&loop.handlers)
    join_all(loop)
    wakeup.notify(loop.context.done_fd)
    return NULL


cdef void start_handler(Loop *loop, int fd) noexcept nogil:
    """Give a new connection its thread; without memory or threads it is held, and tried again."""
    cdef int error = posix.ENOMEM, call = transient.MALLOC
    cdef Handler *handler
    cdef uint32_t slot = handlers.add(&loop.handlers, fd)
    if slot != handlers.NO_SLOT:
        handler = handlers.at(&loop.handlers, slot)
        handler.loop = loop
        handler.buffer = <char *>malloc(loop.context.buffer_size)
        if handler.buffer != NULL:
            # It inherits that all signals are blocked.
            call = transient.PTHREAD_CREATE
            error = thread.start(&handler.thread, loop.stack_bytes, -1, serve, handler)
        if not error:
            return
        free(handler.buffer)
        handlers.note_end(&loop.handlers, slot, by_itself=False)
        handlers.remove(&loop.handlers, slot)
    acceptor.hold(&loop.acceptor, fd, call, error)


cdef void *serve(void *argument) noexcept nogil:
    """The thread of one connection."""
    cdef Handler *handler = <Handler *>argument
    cdef Loop *loop = <Loop *>handler.loop
    cdef int fd = handler.fd
    blocking.serve(fd, handler.state, handler.buffer, loop.context)
    free(handler.buffer)
    handlers.note_end(&loop.handlers, handler.slot, by_itself=True)
    posix.close(fd)
    wakeup.notify(loop.context.wake_fd)
    return NULL


cdef void join_ended(Loop *loop) noexcept nogil:
    """Join the threads that have ended: until then a thread keeps its stack."""
    cdef uint32_t slot = handlers.next_ended(&loop.handlers)
    while slot != handlers.NO_SLOT:
        join(loop, slot)
        acceptor.resume(loop.context)
        slot = handlers.next_ended(&loop.handlers)


cdef void join_all(Loop *loop) noexcept nogil:
    """No thread may run any more when the worker's memory is freed, so none is detached either."""
    cdef uint32_t slot
    for slot in range(loop.handlers.slots):
        if handlers.at(&loop.handlers, slot).in_use:
            join(loop, slot)


cdef void join(Loop *loop, uint32_t slot) noexcept nogil:
    posix.pthread_join(handlers.at(&loop.handlers, slot).thread, NULL)
    handlers.remove(&loop.handlers, slot)
