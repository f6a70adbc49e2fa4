"""The fork engine: one process per connection, the oldest classic.

Accept, copy the process, and let the copy serve the client while the original goes back to
accepting. Nothing that happens to one connection can harm another; the price is a process for each
client. An echo costs two system calls, as in the threads engine.

A copy of a process with threads has one thread, and a lock that another thread held stays locked in
it for ever. So the child touches no Python, no heap and no lock: it closes what is not its own,
makes system calls, and counts in memory that it shares with its parent.

It takes no signal but one, which only its parent sends. All others are blocked in the worker's
thread and so in its copies, also those that a terminal sends to the whole process group: the parent
answers Ctrl-C and hang-up, may want to drain, and ends its children in time. If the parent dies,
the kernel kills them.

How a process serves its connection is in blocking.pxd, accepting in acceptor.pxd, what the parent
knows of its children in handlers.pxd, and how processes are made and ended in clone.pxd.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, malloc

cimport fastsock._native.atomic as atomic
cimport fastsock._native.check as check
cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix
cimport fastsock._native.server.acceptor as acceptor
cimport fastsock._native.server.blocking as blocking
cimport fastsock._native.server.clone as clone
cimport fastsock._native.server.counters as counters
cimport fastsock._native.server.handlers as handlers
cimport fastsock._native.server.poll_list as poll_list
cimport fastsock._native.server.transient as transient
cimport fastsock._native.wakeup as wakeup
from fastsock._native.server.acceptor cimport Acceptor
from fastsock._native.server.blocking cimport HandlerState
from fastsock._native.server.context cimport Context
from fastsock._native.server.counters cimport Counters
from fastsock._native.server.handlers cimport Handler, Handlers
from fastsock._native.server.worker cimport Worker

cdef extern from *:
    """
    #if defined(__SANITIZE_THREAD__)
    #define UNDER_TSAN 1
    #elif defined(__has_feature)
    #if __has_feature(thread_sanitizer)
    #define UNDER_TSAN 1
    #endif
    #endif
    #ifndef UNDER_TSAN
    #define UNDER_TSAN 0
    #endif
    #define END_SIGNAL SIGUSR1
    """
    bint UNDER_TSAN
    int END_SIGNAL                  # sent by the parent alone: end the connection

cdef enum:
    EVENTS_MAX = 64
    PIDFDS = poll_list.FIRST_OWN    # place in the list of the epoll of all pidfds
    KILL_AFTER_NS = 1000000000      # from END_SIGNAL to SIGKILL

cdef struct Loop:
    Context *context
    Acceptor acceptor
    posix.pollfd list[PIDFDS + 1]
    Handlers handlers               # Handler.fd is the child's pidfd
    int pidfds                      # epoll that reports the children that have ended
    int pid
    char *buffer                    # each child has a copy of it


cdef class ForkWorker(Worker):
    """A worker that serves one listener with a process for each connection."""

    cdef Loop loop

    def __cinit__(self):
        self.loop.pidfds = -1
        handlers.init(&self.loop.handlers, posix.MAP_SHARED)
        self.loop.acceptor.held = -1

    cdef int prepare(self) except -1:
        cdef Loop *loop = &self.loop
        if UNDER_TSAN:
            raise NotImplementedError("engine 'fork': ThreadSanitizer cannot follow clone()")
        if clone.close_range(<unsigned int>-1, <unsigned int>-1) != 0:
            raise check.os_error(posix.errno, "close_range", "", likely_cause(posix.errno))
        # Without it no child could be ended. Where it is allowed, no descriptor is EBADF.
        if clone.send_signal(-1, 0) != 0 and posix.errno != posix.EBADF:
            raise check.os_error(posix.errno, "pidfd_send_signal", "", likely_cause(posix.errno))
        loop.context = &self.context
        acceptor.init(&loop.acceptor, &self.context, 0, &loop.handlers.open)
        loop.buffer = <char *>malloc(self.context.buffer_size)
        if loop.buffer == NULL:
            raise MemoryError
        loop.pidfds = posix.epoll_create1(posix.EPOLL_CLOEXEC)
        if loop.pidfds < 0:
            raise check.os_error(posix.errno, "epoll_create1", "")
        poll_list.init(&self.context, loop.list)
        loop.list[PIDFDS].fd = loop.pidfds
        loop.list[PIDFDS].events = posix.POLLIN
        # The kernel watches the time instead: see limit_waiting() in blocking.pxd.
        self.context.sweep_at = clock.NEVER
        self.main = run
        self.argument = loop
        return 0

    cdef void release(self) noexcept:
        handlers.free_chunks(&self.loop.handlers)
        free(self.loop.buffer)
        self.loop.buffer = NULL
        posix.close_once(&self.loop.pidfds)

    cdef void abandon(self) noexcept:
        acceptor.close_held(&self.loop.acceptor)
        handlers.close_copies(&self.loop.handlers)

    cdef void snapshot(self, Counters *total) noexcept:
        handlers.add_counters(&self.loop.handlers, &self.context, total)


cdef str likely_cause(int error):
    if error == posix.ENOSYS:
        return "the fork engine needs Linux 5.9, and a seccomp filter that allows this call"
    return check.forbidden(error)


cdef void *run(void *argument) noexcept nogil:
    cdef Loop *loop = <Loop *>argument
    cdef int fd
    loop.pid = posix.getpid()
    while not acceptor.finished(&loop.acceptor, loop.handlers.open > 0):
        poll_list.wait(&loop.acceptor, loop.list, PIDFDS + 1, for_clients=True)
        if loop.list[PIDFDS].revents:
            reap_ended(loop, 0)
        fd = acceptor.next_client(&loop.acceptor)
        while fd >= 0:
            start_handler(loop, fd)
            fd = acceptor.next_client(&loop.acceptor)
    acceptor.close_held(&loop.acceptor)
    end_children(loop)
    wakeup.notify(loop.context.done_fd)
    return NULL


# --- in the parent ------------------------------------------------------------------------------

cdef void start_handler(Loop *loop, int fd) noexcept nogil:
    """Give a new connection its process; if none can be made it is held, and tried again."""
    cdef int error = posix.ENOMEM, call = transient.MALLOC
    cdef int pid, pidfd = -1
    # Until the copy is made the connection itself is listed: an application that forks meanwhile
    # must find it, to close its own copy.
    cdef uint32_t slot = handlers.add(&loop.handlers, fd)
    if slot != handlers.NO_SLOT:
        pid = clone.clone_process(&pidfd)
        if pid == 0:
            serve_and_exit(loop, fd, handlers.at(&loop.handlers, slot).state)
        if pid > 0:
            handlers.at(&loop.handlers, slot).fd = pidfd
            posix.close(fd)         # from now on the connection is the child's alone
            watch_child(loop, slot)
            return
        call, error = transient.CLONE, posix.errno
        handlers.note_end(&loop.handlers, slot, by_itself=False)
        handlers.remove(&loop.handlers, slot)
    acceptor.hold(&loop.acceptor, fd, call, error)


cdef void watch_child(Loop *loop, uint32_t slot) noexcept nogil:
    """Have the end of a child reported; if epoll cannot watch it, the child is killed."""
    cdef posix.epoll_event event
    cdef int error
    cdef int pidfd = handlers.at(&loop.handlers, slot).fd
    event.events = posix.EPOLLIN
    event.data.u64 = slot
    if posix.epoll_ctl(loop.pidfds, posix.EPOLL_CTL_ADD, pidfd, &event) != 0:
        error = posix.errno
        clone.send_signal(pidfd, posix.SIGKILL)
        clone.reap(pidfd, 0)
        remove_handler(loop, slot)
        acceptor.hold(&loop.acceptor, -1, transient.EPOLL_CTL, error)


cdef void reap_ended(Loop *loop, int timeout_ms) noexcept nogil:
    """Reap the children that have ended: this loop's alone, each by its pidfd."""
    cdef posix.epoll_event events[EVENTS_MAX]
    cdef int i
    cdef Handler *handler
    cdef int count = posix.epoll_wait(loop.pidfds, events, EVENTS_MAX, timeout_ms)
    if count < 0 and not transient.epoll_wait_can_pass(posix.errno):
        acceptor.fail(&loop.acceptor, transient.EPOLL_WAIT, posix.errno)
    for i in range(count):
        handler = handlers.at(&loop.handlers, <uint32_t>events[i].data.u64)
        # Not in use: it was removed, and a copy of its pidfd keeps on reporting it.
        if handler.in_use and clone.reap(handler.fd, posix.WNOHANG):
            remove_handler(loop, handler.slot)


cdef void remove_handler(Loop *loop, uint32_t slot) noexcept nogil:
    """After its process was reaped."""
    cdef Handler *handler = handlers.at(&loop.handlers, slot)
    cdef HandlerState *state = handler.state
    cdef int pidfd = handler.fd
    cdef int reason
    cdef bint counted = False
    for reason in range(counters.CLOSE_REASONS):
        counted = counted or state.counters.closed[reason] > 0
    if not counted:                 # it was killed
        reason = counters.CLOSED_STOPPED if state.ending else counters.CLOSED_ERROR
        state.counters.closed[reason] = 1
    # Not by close() alone: a copy of the pidfd, in the child of an application's fork, would keep
    # on reporting it (epoll(7), question 6).
    posix.epoll_ctl(loop.pidfds, posix.EPOLL_CTL_DEL, pidfd, NULL)
    handlers.note_end(&loop.handlers, slot, by_itself=False)
    posix.close(pidfd)
    handlers.remove(&loop.handlers, slot)
    acceptor.resume(loop.context)


cdef void end_children(Loop *loop) noexcept nogil:
    """Tell all children to end, and kill those that do not, as a stopped one (SIGSTOP) does not."""
    cdef int64_t now = clock.monotonic_ns()
    cdef int64_t kill_at = now + KILL_AFTER_NS
    cdef uint32_t slot
    signal_all(loop, END_SIGNAL)
    while loop.handlers.open and now < kill_at:
        reap_ended(loop, <int>((kill_at - now) // 1000000) + 1)
        now = clock.monotonic_ns()
    signal_all(loop, posix.SIGKILL)
    for slot in range(loop.handlers.slots):     # also where epoll has failed
        if handlers.at(&loop.handlers, slot).in_use:
            clone.reap(handlers.at(&loop.handlers, slot).fd, 0)
            remove_handler(loop, slot)


cdef void signal_all(Loop *loop, int number) noexcept nogil:
    cdef uint32_t slot
    cdef Handler *handler
    for slot in range(loop.handlers.slots):
        handler = handlers.at(&loop.handlers, slot)
        if handler.in_use:
            atomic.store_int(&handler.state.ending, 1, atomic.SEQ_CST)
            clone.send_signal(handler.fd, number)


# --- in the child -------------------------------------------------------------------------------

cdef int own_fd                     # of this child, for its signal handler
cdef HandlerState *own_state


cdef void serve_and_exit(Loop *loop, int fd, HandlerState *state) noexcept nogil:
    """All that a child does; never returns."""
    global own_fd, own_state
    # It also acts when only the thread that cloned ends (prctl(2)); that thread ends after its
    # children. The parent may have died before this call.
    posix.prctl(posix.PR_SET_PDEATHSIG, posix.SIGKILL)
    # The listener, other connections and what the application has open: a copy kept here would
    # keep a port bound, and a peer waiting for an end that never comes.
    if posix.getppid() == loop.pid and clone.close_others(fd):
        own_fd, own_state = fd, state
        take_end_signal()
        blocking.serve(fd, state, loop.buffer, loop.context)
    posix._exit(0)


cdef void take_end_signal() noexcept nogil:
    cdef posix.sigaction_t action
    cdef posix.sigset_t one
    action.sa_handler = on_end_signal
    action.sa_flags = 0
    posix.sigfillset(&action.sa_mask)
    posix.sigaction(END_SIGNAL, &action, NULL)
    posix.sigemptyset(&one)
    posix.sigaddset(&one, END_SIGNAL)
    # A signal that was sent before has been pending, and comes now.
    posix.sigprocmask(posix.SIG_UNBLOCK, &one, NULL)


cdef void on_end_signal(int number) noexcept nogil:
    # A socket that is shut down stays so: it makes no difference whether the signal came before,
    # within or after a call that blocks.
    cdef int error = posix.errno    # of the call that it interrupts
    blocking.end(own_fd, own_state)
    (&posix.errno)[0] = error
