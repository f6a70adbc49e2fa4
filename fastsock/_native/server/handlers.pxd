# The handlers of one loop: the thread or the process of each connection.
#
# Each handler counts for itself, so that counting needs no locked instruction; the worker's totals
# are the sum over the handlers that run and those that have ended. The records are kept in chunks
# that never move, so that a descriptor is found also in the copy of the memory that a fork makes.
# The states lie apart from them, in memory that a child process can share.

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

cimport fastsock._native.posix as posix
cimport fastsock._native.server.blocking as blocking
cimport fastsock._native.server.counters as counters
from fastsock._native.posix cimport pthread_t
from fastsock._native.server.blocking cimport HandlerState
from fastsock._native.server.context cimport Context
from fastsock._native.server.counters cimport Counters

cdef enum:
    CHUNK_BITS = 8
    CHUNK_SLOTS = 1 << CHUNK_BITS
    CHUNKS_MAX = 1024
    NO_SLOT = 0xFFFFFFFF

cdef struct Handler:
    int fd                          # the connection, or the pidfd of a process; -1: none any more
    uint32_t slot                   # the record's own number
    uint32_t next                   # in the list of free or of ended handlers
    bint in_use                     # from add() to remove()
    bint counting                   # `state.counters` are not in `past` yet
    pthread_t thread
    char *buffer
    void *faulty                    # of faulty.pxd; NULL: without faults and record
    void *loop
    HandlerState *state

cdef struct Handlers:
    posix.pthread_mutex_t lock      # over what threads other than the loop read or change
    Handler *chunks[CHUNKS_MAX]
    HandlerState *states[CHUNKS_MAX]
    int sharing                     # MAP_PRIVATE, or MAP_SHARED with child processes
    uint32_t slots                  # in all chunks
    uint32_t first_free
    uint32_t first_ended
    uint32_t open
    Counters past                   # of the handlers that have ended


cdef inline void init(Handlers *handlers, int sharing) noexcept:
    posix.pthread_mutex_init(&handlers.lock, NULL)
    handlers.sharing = sharing
    handlers.first_free = handlers.first_ended = NO_SLOT


cdef inline void free_chunks(Handlers *handlers) noexcept:
    """The counters stay."""
    cdef uint32_t chunk
    posix.pthread_mutex_lock(&handlers.lock)
    for chunk in range(handlers.slots >> CHUNK_BITS):
        free(handlers.chunks[chunk])
        posix.munmap(handlers.states[chunk], CHUNK_SLOTS * sizeof(HandlerState))
    handlers.slots = 0
    posix.pthread_mutex_unlock(&handlers.lock)


cdef inline Handler *at(Handlers *handlers, uint32_t slot) noexcept nogil:
    return &handlers.chunks[slot >> CHUNK_BITS][slot & (CHUNK_SLOTS - 1)]


cdef inline uint32_t add(Handlers *handlers, int fd) noexcept nogil:
    """Take a slot for a new handler, with counters at 0; NO_SLOT without memory."""
    cdef uint32_t slot
    cdef Handler *handler
    if handlers.first_free == NO_SLOT and not add_chunk(handlers):
        return NO_SLOT
    slot = handlers.first_free
    handler = at(handlers, slot)
    handlers.first_free = handler.next
    handlers.open += 1
    memset(handler.state, 0, sizeof(HandlerState))
    posix.pthread_mutex_lock(&handlers.lock)
    handler.fd = fd
    handler.in_use = handler.counting = True
    posix.pthread_mutex_unlock(&handlers.lock)
    return slot


cdef inline void note_end(Handlers *handlers, uint32_t slot, bint by_itself) noexcept nogil:
    """Add the counters of a handler that has ended; its descriptor is the caller's to close.

    `by_itself`: a thread calls this for itself, and next_ended() finds it, to be joined.
    """
    cdef Handler *handler = at(handlers, slot)
    posix.pthread_mutex_lock(&handlers.lock)
    handler.fd = -1                 # the number may be reused from here on
    counters.add(&handlers.past, &handler.state.counters)
    handler.counting = False
    if by_itself:
        handler.next = handlers.first_ended
        handlers.first_ended = slot
    posix.pthread_mutex_unlock(&handlers.lock)


cdef inline uint32_t next_ended(Handlers *handlers) noexcept nogil:
    """The slot of a thread that has ended by itself, or NO_SLOT."""
    cdef uint32_t slot
    posix.pthread_mutex_lock(&handlers.lock)
    slot = handlers.first_ended
    if slot != NO_SLOT:
        handlers.first_ended = at(handlers, slot).next
    posix.pthread_mutex_unlock(&handlers.lock)
    return slot


cdef inline void remove(Handlers *handlers, uint32_t slot) noexcept nogil:
    """Free the slot of a handler that was joined or reaped."""
    cdef Handler *handler = at(handlers, slot)
    handler.in_use = False
    handler.next = handlers.first_free
    handlers.first_free = slot
    handlers.open -= 1


cdef inline void end_threads(Handlers *handlers) noexcept nogil:
    """End the connections of all threads; under the lock, so that no number is a reused one."""
    cdef uint32_t slot
    cdef Handler *handler
    posix.pthread_mutex_lock(&handlers.lock)
    for slot in range(handlers.slots):
        handler = at(handlers, slot)
        if handler.fd >= 0:
            blocking.end(handler.fd, handler.state)
    posix.pthread_mutex_unlock(&handlers.lock)


cdef inline void add_counters(Handlers *handlers, Context *context,
                              Counters *total) noexcept nogil:
    """Add up the counters of all handlers, and last of the loop, which counts `accepted`."""
    cdef uint32_t slot
    posix.pthread_mutex_lock(&handlers.lock)
    counters.add(total, &handlers.past)
    for slot in range(handlers.slots):
        if at(handlers, slot).counting:
            counters.add(total, &at(handlers, slot).state.counters)
    counters.add(total, &context.counters)
    posix.pthread_mutex_unlock(&handlers.lock)


cdef inline void close_copies(Handlers *handlers) noexcept nogil:
    """In a forked child: close its copies of all descriptors."""
    cdef uint32_t slot
    # The thread that held the lock was not copied, and never unlocks it.
    posix.pthread_mutex_init(&handlers.lock, NULL)
    for slot in range(handlers.slots):
        if at(handlers, slot).fd >= 0:
            posix.close(at(handlers, slot).fd)


cdef inline bint add_chunk(Handlers *handlers) noexcept nogil:
    cdef uint32_t first = handlers.slots, i
    cdef uint32_t chunk = first >> CHUNK_BITS
    cdef Handler *records
    cdef void *states
    if chunk == CHUNKS_MAX:
        return False
    records = <Handler *>calloc(CHUNK_SLOTS, sizeof(Handler))
    if records == NULL:
        return False
    states = posix.mmap(NULL, CHUNK_SLOTS * sizeof(HandlerState),
                        posix.PROT_READ | posix.PROT_WRITE,
                        handlers.sharing | posix.MAP_ANONYMOUS, -1, 0)
    if states == posix.MAP_FAILED:
        free(records)
        return False
    for i in range(<uint32_t>CHUNK_SLOTS):
        records[i].slot = first + i
        records[i].fd = -1
        records[i].state = <HandlerState *>states + i
        records[i].next = first + i + 1 if i + 1 < CHUNK_SLOTS else NO_SLOT
    posix.pthread_mutex_lock(&handlers.lock)
    handlers.chunks[chunk] = records
    handlers.states[chunk] = <HandlerState *>states
    handlers.slots += CHUNK_SLOTS
    posix.pthread_mutex_unlock(&handlers.lock)
    handlers.first_free = first
    return True
