"""The threads engine: one native thread per connection.

The classic: accept, start a thread, and let it receive and send until the client has finished. The
calls block, so a slow client holds up its own thread only, and an echo costs two system calls. The
price is a thread for each client: its stack, its buffer, and a context switch for every echo.

How a thread serves its connection is in blocking.pxd, or with faults or records in faulty.pxd,
accepting in acceptor.pxd, and how the threads are known, counted and ended in handlers.pxd.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free, malloc

cimport fastsock._native.atomic as atomic
cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix
cimport fastsock._native.server.acceptor as acceptor
cimport fastsock._native.server.blocking as blocking
cimport fastsock._native.server.counters as counters
cimport fastsock._native.server.deadlines as deadlines
cimport fastsock._native.server.faults as faults
cimport fastsock._native.server.faulty as faulty
cimport fastsock._native.server.handlers as handlers
cimport fastsock._native.server.poll_list as poll_list
cimport fastsock._native.server.records as records
cimport fastsock._native.server.thread as thread
cimport fastsock._native.server.transient as transient
cimport fastsock._native.wakeup as wakeup
from fastsock._native.server.acceptor cimport Acceptor
from fastsock._native.server.context cimport Context
from fastsock._native.server.counters cimport Counters
from fastsock._native.server.faults cimport Plan, Table
from fastsock._native.server.faulty cimport Faulty
from fastsock._native.server.handlers cimport Handler, Handlers
from fastsock._native.server.records cimport Records
from fastsock._native.server.worker cimport Worker

cdef struct Loop:
    Context *context
    Acceptor acceptor
    posix.pollfd list[poll_list.FIRST_OWN]
    Handlers handlers
    size_t stack_bytes              # of each handler's thread; its buffer is elsewhere
    int end_fd                      # eventfd that ends the waits in faulty.pxd
    Table *table                    # of new connections, or NULL; read and changed under the lock
    Plan next                       # of the next connection, if `planned`
    bint planned
    int has_table                   # what can be read without the lock
    int64_t accept_at               # accept_delay: when the next connection is accepted; 0: now
    bint was_delayed                # the planned connection
    Records *records                # or NULL: nothing is recorded


cdef class ThreadsWorker(Worker):
    """A worker that serves one listener with a thread for each connection."""

    cdef Loop loop

    def __cinit__(self):
        handlers.init(&self.loop.handlers, posix.MAP_PRIVATE)
        self.loop.acceptor.held = -1
        self.loop.end_fd = -1

    cdef int prepare(self) except -1:
        self.loop.context = &self.context
        acceptor.init(&self.loop.acceptor, &self.context, 0, &self.loop.handlers.open)
        poll_list.init(&self.context, self.loop.list)
        self.loop.stack_bytes = thread.stack_bytes()
        self.loop.end_fd = wakeup.new_eventfd()
        # The kernel watches the time instead: see limit_waiting() in blocking.pxd.
        self.context.sweep_at = clock.NEVER
        self.main = run
        self.argument = &self.loop
        return 0

    cdef void take_faults(self, Table *table) noexcept:
        cdef Table *before
        posix.pthread_mutex_lock(&self.loop.handlers.lock)
        before = self.loop.table
        self.loop.table = faults.acquire(table)
        atomic.store_int(&self.loop.has_table, table.count > 0, atomic.RELAXED)
        posix.pthread_mutex_unlock(&self.loop.handlers.lock)
        faults.release(before)
        wakeup.notify(self.context.wake_fd)     # it may wait for accept_delay

    cdef void take_records(self, Records *table) noexcept:
        self.loop.records = records.acquire(table)

    cdef void release(self) noexcept:
        handlers.free_chunks(&self.loop.handlers)
        forget_plan(&self.loop)
        faults.release(self.loop.table)
        self.loop.table = NULL
        records.release(self.loop.records)
        self.loop.records = NULL
        posix.close_once(&self.loop.end_fd)

    cdef void abandon(self) noexcept:
        acceptor.close_held(&self.loop.acceptor)
        handlers.close_copies(&self.loop.handlers)

    cdef void snapshot(self, Counters *total) noexcept:
        handlers.add_counters(&self.loop.handlers, &self.context, total)


cdef void *run(void *argument) noexcept nogil:
    cdef Loop *loop = <Loop *>argument
    cdef int fd
    while not acceptor.finished(&loop.acceptor, loop.handlers.open > 0):
        poll_list.wait(&loop.acceptor, loop.list, poll_list.FIRST_OWN,
                       for_clients=loop.accept_at == 0)
        join_ended(loop)
        while not accept_delayed(loop):
            fd = acceptor.next_client(&loop.acceptor)
            if fd < 0:
                break
            start_handler(loop, fd)
    acceptor.close_held(&loop.acceptor)
    handlers.end_threads(&loop.handlers)
    wakeup.notify(loop.end_fd)
    join_all(loop)
    wakeup.notify(loop.context.done_fd)
    return NULL


# --- faults -------------------------------------------------------------------------------------

cdef Table *current_table(Loop *loop) noexcept nogil:
    """A new reference of the table for new connections, or NULL."""
    cdef Table *table
    posix.pthread_mutex_lock(&loop.handlers.lock)
    table = faults.acquire(loop.table)
    posix.pthread_mutex_unlock(&loop.handlers.lock)
    return table


cdef void plan_next(Loop *loop) noexcept nogil:
    """Decide the faults of the next connection, if that was not done with the present table."""
    cdef Table *table = current_table(loop)
    if loop.planned and loop.next.table == table:
        faults.release(table)
        return
    forget_plan(loop)
    if table != NULL:
        faults.decide(&loop.next, table)
        loop.planned = True


cdef void forget_plan(Loop *loop) noexcept nogil:
    if loop.planned:
        faults.release(loop.next.table)
    loop.planned = loop.was_delayed = False


cdef bint accept_delayed(Loop *loop) noexcept nogil:
    """Whether the connection that waits to be accepted must wait on, for accept_delay.

    The kernel's queue fills meanwhile. Its time begins when the listener is found readable, which
    is no earlier than the end of the one before. A stop accepts all at once.
    """
    if loop.accept_at == 0 and not has_table(loop):
        return False
    if (deadlines.stop_requested(loop.context) or loop.acceptor.held >= 0
            or loop.accept_at and not is_planned_now(loop)):
        loop.accept_at = 0
    elif loop.accept_at:
        if clock.monotonic_ns() < loop.accept_at:
            return True
        atomic.count(&loop.context.counters.faults[counters.FAULT_ACCEPT_DELAY], 1)
        loop.accept_at = 0
        loop.was_delayed = True
    elif delays_accepting(loop) and not loop.was_delayed:
        if not is_readable(loop.context.bound_fd):
            return True
        plan_next(loop)
        if loop.planned and loop.next.chosen[counters.FAULT_ACCEPT_DELAY] != NULL:
            loop.accept_at = (clock.monotonic_ns()
                              + loop.next.chosen[counters.FAULT_ACCEPT_DELAY].delay_ns)
    # Nothing else uses it in this engine; it ends the wait in poll_list.wait().
    loop.context.sweep_at = loop.accept_at if loop.accept_at else clock.NEVER
    return loop.accept_at != 0


cdef bint is_planned_now(Loop *loop) noexcept nogil:
    """Whether the plan for the next connection is of the present table."""
    cdef Table *table = current_table(loop)
    cdef bint same = loop.planned and loop.next.table == table
    faults.release(table)
    return same


cdef bint has_table(Loop *loop) noexcept nogil:
    return atomic.load_int(&loop.has_table, atomic.RELAXED) != 0


cdef bint delays_accepting(Loop *loop) noexcept nogil:
    cdef Table *table = current_table(loop)
    cdef bint delays = table != NULL and table.any_of[counters.FAULT_ACCEPT_DELAY]
    faults.release(table)
    return delays


cdef bint is_readable(int fd) noexcept nogil:
    cdef posix.pollfd one
    one.fd, one.events = fd, posix.POLLIN
    return posix.poll(&one, 1, 0) > 0


cdef Faulty *new_faulty(Loop *loop, int fd, bint has_faults) noexcept nogil:
    """What serves the planned connection, or one without faults; NULL without memory."""
    cdef Faulty *made = <Faulty *>calloc(1, sizeof(Faulty))
    if made == NULL:
        return NULL
    if loop.records != NULL:
        made.record = records.begin(loop.records, fd)
        if made.record == NULL:
            free(made)
            return NULL
    if has_faults:
        made.plan = loop.next
    return made


# --- handlers -----------------------------------------------------------------------------------

cdef void start_handler(Loop *loop, int fd) noexcept nogil:
    """Give a new connection its thread; without memory or threads it is held, and tried again."""
    cdef int error = posix.ENOMEM, call = transient.MALLOC
    cdef Handler *handler
    cdef Faulty *own = NULL
    cdef bint has_faults, has_own
    cdef uint32_t slot = handlers.add(&loop.handlers, fd)
    if has_table(loop) or loop.planned:
        plan_next(loop)
    has_faults = loop.planned and loop.next.any
    has_own = has_faults or loop.records != NULL
    if slot != handlers.NO_SLOT:
        handler = handlers.at(&loop.handlers, slot)
        handler.loop = loop
        handler.buffer = <char *>malloc(loop.context.buffer_size)
        if has_own:
            own = new_faulty(loop, fd, has_faults)
        handler.faulty = own
        if handler.buffer != NULL and not (has_own and own == NULL):
            # It inherits that all signals are blocked.
            call = transient.PTHREAD_CREATE
            error = thread.start(&handler.thread, loop.stack_bytes, -1, serve, handler)
        if not error:
            if has_faults:
                loop.planned = False    # its reference is the handler's
            forget_plan(loop)
            return
        if own != NULL:
            records.undo_begin(own.record)
        free(own)
        free(handler.buffer)
        handlers.note_end(&loop.handlers, slot, by_itself=False)
        handlers.remove(&loop.handlers, slot)
    acceptor.hold(&loop.acceptor, fd, call, error)


cdef void *serve(void *argument) noexcept nogil:
    """The thread of one connection."""
    cdef Handler *handler = <Handler *>argument
    cdef Loop *loop = <Loop *>handler.loop
    cdef int fd = handler.fd
    cdef Faulty *own = <Faulty *>handler.faulty
    if own == NULL:
        blocking.serve(fd, handler.state, handler.buffer, loop.context)
    else:
        faulty.serve(own, fd, loop.end_fd, handler.state, handler.buffer, loop.context)
        records.note_end(own.record)
        faults.release(own.plan.table)
        free(own)
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
