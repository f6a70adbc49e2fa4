"""The threads engine: one native thread per connection, each as simple as can be.

The classic: accept, start a thread, and let it receive and send until the client has finished. The
calls block, so a slow client holds up its own thread only, and an echo costs two system calls. The
price is a thread for each client: its stack, its buffer, and a context switch for every echo.

The conversation is in conversation.pxd, accepting in door.pxd, and how the acceptor knows its
threads, what they count and how they are told to stop, in roster.pxd.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc

cimport fastsock._native.server.engine as engine
cimport fastsock._native.posix as posix
from fastsock._native.server.blocking cimport converse
from fastsock._native.server.door cimport OWN, Door, door_init, end_rest, finished, hold, let_go
from fastsock._native.server.door cimport list_init, next_client, wait_at
from fastsock._native.server.engine cimport Context, Counters
from fastsock._native.server.handlers cimport NO_SLOT, Member, Roster, add_up, close_copies, dismiss
from fastsock._native.server.handlers cimport end_talks, enlist, leave, member_at, next_ended
from fastsock._native.server.handlers cimport roster_free, roster_init
from fastsock._native.server.thread cimport spawn
from fastsock._native.server.worker cimport Worker

cdef enum:
    STACK_BYTES = 64 * 1024         # a conversation needs a few hundred; its buffer is elsewhere

cdef struct Crew:
    Context *context
    Door door
    posix.pollfd list[OWN]
    Roster roster


cdef class ThreadsWorker(Worker):
    """A worker that serves one listener with a thread for each connection."""

    cdef Crew crew

    def __cinit__(self):
        roster_init(&self.crew.roster, posix.MAP_PRIVATE)
        self.crew.door.held = -1

    cdef int prepare(self) except -1:
        self.crew.context = &self.context
        door_init(&self.crew.door, &self.context, 0, &self.crew.roster.open)
        list_init(&self.crew.door, self.crew.list)
        self.context.sweep_at = engine.NEVER    # the kernel watches the time, see conversation.pxd
        self.main = run
        self.argument = &self.crew
        return 0

    cdef void release(self) noexcept:
        roster_free(&self.crew.roster)

    cdef void abandon(self) noexcept:
        let_go(&self.crew.door)
        close_copies(&self.crew.roster)

    cdef void snapshot(self, Counters *total) noexcept:
        add_up(&self.crew.roster, &self.context, total)


cdef void *run(void *argument) noexcept nogil:
    cdef Crew *crew = <Crew *>argument
    cdef int fd
    while not finished(&crew.door, crew.roster.open > 0):
        wait_at(&crew.door, crew.list, OWN, for_clients=True)
        join_ended(crew)
        fd = next_client(&crew.door)
        while fd >= 0:
            start(crew, fd)
            fd = next_client(&crew.door)
    let_go(&crew.door)
    end_talks(&crew.roster)
    join_all(crew)
    engine.notify(crew.context.done_fd)
    return NULL


cdef void start(Crew *crew, int fd) noexcept nogil:
    """Give a new client its thread; without memory or threads accepting rests, and it waits."""
    cdef int error = posix.ENOMEM
    cdef Member *member
    cdef uint32_t slot
    slot = enlist(&crew.roster, fd)
    if slot != NO_SLOT:
        member = member_at(&crew.roster, slot)
        member.owner = crew
        member.buffer = <char *>malloc(crew.context.buffer_size)
        if member.buffer != NULL:
            # It inherits that all signals are blocked.
            error = spawn(&member.thread, STACK_BYTES, -1, serve, member)
        if not error:
            return
        free(member.buffer)
        leave(&crew.roster, slot, by_itself=False)
        dismiss(&crew.roster, slot)
    hold(&crew.door, fd, error)


cdef void *serve(void *argument) noexcept nogil:
    """The thread of one connection."""
    cdef Member *member = <Member *>argument
    cdef Crew *crew = <Crew *>member.owner
    cdef int fd = member.fd
    converse(fd, member.talk, member.buffer, crew.context)
    free(member.buffer)
    leave(&crew.roster, member.slot, by_itself=True)
    posix.close(fd)
    engine.notify(crew.context.wake_fd)
    return NULL


cdef void join_ended(Crew *crew) noexcept nogil:
    """Let go of the threads that have ended: until it is joined, a thread keeps its stack."""
    cdef uint32_t slot = next_ended(&crew.roster)
    while slot != NO_SLOT:
        join(crew, slot)
        end_rest(&crew.door)
        slot = next_ended(&crew.roster)


cdef void join_all(Crew *crew) noexcept nogil:
    """Nothing may run any more when the worker's memory goes, so not even detached threads."""
    cdef uint32_t slot
    for slot in range(crew.roster.slots):
        if member_at(&crew.roster, slot).taken:
            join(crew, slot)


cdef void join(Crew *crew, uint32_t slot) noexcept nogil:
    posix.pthread_join(member_at(&crew.roster, slot).thread, NULL)
    dismiss(&crew.roster, slot)
