"""The fork engine: one process per connection, the oldest classic.

Accept, make a copy of the process, and let it converse with the client while the original goes back
to accepting. Nothing that happens to one conversation can harm another; the price is a process for
each client. An echo costs two system calls, as in the threads engine.

A copy of a process with threads has one thread, and whatever lock another thread held is locked in
it for ever. So the child touches no Python, no memory of the heap's and no lock: it closes what is
not its own, makes system calls, and counts in memory that it shares with its parent.

It takes no signal but one, which only its parent sends. All others are blocked in the worker's
thread and so in its copies, also what a terminal sends to the whole process group: Ctrl-C and
hang-up are the parent's to answer, which may want to drain, and which ends its children in time.
Should the parent die, the kernel kills them.

The conversation is in conversation.pxd, accepting in door.pxd, what the parent knows of its
children in roster.pxd, and how processes are handled in children.pxd.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, malloc

cimport fastsock._native.clock as clock
cimport fastsock._native.atomic as atomic
cimport fastsock._native.server.engine as engine
cimport fastsock._native.posix as posix
from fastsock._native.check cimport os_error
from fastsock._native.server.clone cimport clone_process, close_others, close_range, reap, send_signal
from fastsock._native.server.blocking cimport Talk, converse, end_talk
from fastsock._native.server.door cimport OWN, Door, door_init, end_rest, finished, hold, let_go
from fastsock._native.server.door cimport list_init, next_client, wait_at
from fastsock._native.server.engine cimport Context, Counters
from fastsock._native.server.handlers cimport NO_SLOT, Member, Roster, add_up, close_copies, dismiss
from fastsock._native.server.handlers cimport enlist, leave, member_at, roster_free, roster_init
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
    #define LAST_WORD SIGUSR1
    """
    bint UNDER_TSAN
    int LAST_WORD                   # from the parent alone: end the conversation

cdef enum:
    EVENTS_MAX = 64
    KILL_AFTER_NS = 1000000000      # a child that was told to end and is alive then is killed

cdef struct Family:
    Context *context
    Door door
    posix.pollfd list[OWN + 1]      # its own is `pidfds`
    Roster roster                   # Member.fd is the child's pidfd
    int pidfds                      # epoll: who has ended?
    int pid
    char *buffer                    # each child has a copy of it


cdef class ForkWorker(Worker):
    """A worker that serves one listener with a process for each connection."""

    cdef Family family

    def __cinit__(self):
        self.family.pidfds = -1
        roster_init(&self.family.roster, posix.MAP_SHARED)
        self.family.door.held = -1

    cdef int prepare(self) except -1:
        cdef Family *family = &self.family
        if UNDER_TSAN:
            raise NotImplementedError("engine 'fork': ThreadSanitizer cannot follow clone()")
        if close_range(<unsigned int>-1, <unsigned int>-1) != 0:
            raise os_error(posix.errno, "close_range", "", "the fork engine needs Linux 5.9")
        family.context = &self.context
        door_init(&family.door, &self.context, 0, &family.roster.open)
        family.buffer = <char *>malloc(self.context.buffer_size)
        if family.buffer == NULL:
            raise MemoryError
        family.pidfds = posix.epoll_create1(posix.EPOLL_CLOEXEC)
        if family.pidfds < 0:
            raise os_error(posix.errno, "epoll_create1", "")
        list_init(&family.door, family.list)
        family.list[OWN].fd = family.pidfds
        family.list[OWN].events = posix.POLLIN
        self.context.sweep_at = engine.NEVER    # the kernel watches the time, see conversation.pxd
        self.main = run
        self.argument = family
        return 0

    cdef void release(self) noexcept:
        roster_free(&self.family.roster)
        free(self.family.buffer)
        self.family.buffer = NULL
        if self.family.pidfds >= 0:
            posix.close(self.family.pidfds)
        self.family.pidfds = -1

    cdef void abandon(self) noexcept:
        let_go(&self.family.door)
        close_copies(&self.family.roster)

    cdef void snapshot(self, Counters *total) noexcept:
        add_up(&self.family.roster, &self.context, total)


cdef void *run(void *argument) noexcept nogil:
    cdef Family *family = <Family *>argument
    cdef int fd
    family.pid = posix.getpid()
    while not finished(&family.door, family.roster.open > 0):
        wait_at(&family.door, family.list, OWN + 1, for_clients=True)
        if family.list[OWN].revents:
            reap_ended(family, 0)
        fd = next_client(&family.door)
        while fd >= 0:
            start(family, fd)
            fd = next_client(&family.door)
    let_go(&family.door)
    end_children(family)
    engine.notify(family.context.done_fd)
    return NULL


# --- in the parent ------------------------------------------------------------------------------

cdef void start(Family *family, int fd) noexcept nogil:
    """Give a new client its process; if none is to be had, accepting rests, and it waits."""
    cdef int error = posix.ENOMEM
    cdef int pid, pidfd = -1
    # Until the copy is made the connection itself is listed: an application that forks meanwhile
    # must find it, to close its own copy.
    cdef uint32_t slot = enlist(&family.roster, fd)
    if slot != NO_SLOT:
        pid = clone_process(&pidfd)
        if pid == 0:
            live(family, fd, member_at(&family.roster, slot).talk)
        if pid > 0:
            member_at(&family.roster, slot).fd = pidfd
            posix.close(fd)         # the child's alone from now on
            watch(family, slot)
            return
        error = posix.errno
        leave(&family.roster, slot, by_itself=False)
        dismiss(&family.roster, slot)
    hold(&family.door, fd, error)


cdef void watch(Family *family, uint32_t slot) noexcept nogil:
    """Have it reported when a child ends; without memory for that it ends now."""
    cdef posix.epoll_event event
    cdef int error
    cdef int pidfd = member_at(&family.roster, slot).fd
    event.events = posix.EPOLLIN
    event.data.u64 = slot
    if posix.epoll_ctl(family.pidfds, posix.EPOLL_CTL_ADD, pidfd, &event) != 0:
        error = posix.errno
        send_signal(pidfd, posix.SIGKILL)
        reap(pidfd, 0)
        forget(family, slot)
        hold(&family.door, -1, error)


cdef void reap_ended(Family *family, int timeout_ms) noexcept nogil:
    """Reap the children that have ended: ours alone, each by its pidfd."""
    cdef posix.epoll_event events[EVENTS_MAX]
    cdef int i
    cdef Member *member
    cdef int count = posix.epoll_wait(family.pidfds, events, EVENTS_MAX, timeout_ms)
    for i in range(count):
        member = member_at(&family.roster, <uint32_t>events[i].data.u64)
        # Not taken: it was forgotten, and a copy of its pidfd keeps on reporting it.
        if member.taken and reap(member.fd, posix.WNOHANG):
            forget(family, member.slot)


cdef void forget(Family *family, uint32_t slot) noexcept nogil:
    cdef Member *member = member_at(&family.roster, slot)
    cdef Talk *talk = member.talk
    cdef int pidfd = member.fd
    cdef int reason
    cdef bint counted = False
    for reason in range(engine.CLOSE_REASONS):
        counted = counted or talk.counters.closed[reason] > 0
    if not counted:                 # it was killed
        reason = engine.CLOSED_STOPPED if talk.ending else engine.CLOSED_ERROR
        talk.counters.closed[reason] = 1
    # Not by close() alone: a copy of the pidfd, in the child of an application's fork, would keep
    # on reporting it (epoll(7), question 6).
    posix.epoll_ctl(family.pidfds, posix.EPOLL_CTL_DEL, pidfd, NULL)
    leave(&family.roster, slot, by_itself=False)
    posix.close(pidfd)
    dismiss(&family.roster, slot)
    end_rest(&family.door)


cdef void end_children(Family *family) noexcept nogil:
    """Tell all children to end, and kill who does not, because it was stopped, for example."""
    cdef int64_t now = clock.monotonic_ns()
    cdef int64_t kill_at = now + KILL_AFTER_NS
    signal_all(family, LAST_WORD)
    while family.roster.open and now < kill_at:
        reap_ended(family, <int>((kill_at - now) // 1000000) + 1)
        now = clock.monotonic_ns()
    signal_all(family, posix.SIGKILL)
    while family.roster.open:
        reap_ended(family, -1)


cdef void signal_all(Family *family, int number) noexcept nogil:
    cdef uint32_t slot
    cdef Member *member
    for slot in range(family.roster.slots):
        member = member_at(&family.roster, slot)
        if member.taken:
            atomic.store_int(&member.talk.ending, 1, atomic.SEQ_CST)
            send_signal(member.fd, number)


# --- in the child -------------------------------------------------------------------------------

cdef int own_fd
cdef Talk *own_talk


cdef void live(Family *family, int fd, Talk *talk) noexcept nogil:
    """The life of a child: it never returns."""
    global own_fd, own_talk
    # To the kernel the parent is the thread that cloned, so this also holds when that one ends
    # alone; it never does so before its children. It may have been too late for a dead parent.
    posix.prctl(posix.PR_SET_PDEATHSIG, posix.SIGKILL)
    # The listener, other connections and whatever the application has open: a copy kept here would
    # keep a port bound, and a peer waiting for an end that never comes.
    if posix.getppid() == family.pid and close_others(fd):
        own_fd, own_talk = fd, talk
        listen_to_parent()
        converse(fd, talk, family.buffer, family.context)
    posix._exit(0)


cdef void listen_to_parent() noexcept nogil:
    cdef posix.sigaction_t action
    cdef posix.sigset_t one
    action.sa_handler = on_last_word
    action.sa_flags = 0
    posix.sigfillset(&action.sa_mask)
    posix.sigaction(LAST_WORD, &action, NULL)
    posix.sigemptyset(&one)
    posix.sigaddset(&one, LAST_WORD)
    # If it was sent before, it has been pending, and comes now.
    posix.sigprocmask(posix.SIG_UNBLOCK, &one, NULL)


cdef void on_last_word(int number) noexcept nogil:
    # Shut down, the socket stays so: whether the signal came before, within or after a call that
    # blocks makes no difference.
    cdef int error = posix.errno
    end_talk(own_fd, own_talk)
    (&posix.errno)[0] = error
