# Who serves which connection, in an engine that gives each one a thread or a process of its own.
#
# Each counts for itself, so that counting needs no locked instruction, and the worker's totals are
# the sum over those who are here and those who were. Members are kept in chunks that never move,
# so a descriptor is found also in the copy of the memory that a fork makes; the talks lie apart
# from them, in memory that a child process may share.

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

cimport fastsock._native.server.engine as engine
cimport fastsock._native.posix as posix
from fastsock._native.server.blocking cimport Talk, end_talk
from fastsock._native.server.engine cimport Context, Counters
from fastsock._native.posix cimport pthread_t

cdef enum:
    CHUNK_BITS = 8
    CHUNK_SLOTS = 1 << CHUNK_BITS
    CHUNKS_MAX = 1024
    NO_SLOT = 0xFFFFFFFF

cdef struct Member:
    int fd                          # the connection, or a pidfd; -1: none, or not any more
    uint32_t slot                   # its own number
    uint32_t next                   # in the list of those who are free, or have ended
    bint taken                      # has somebody who was not dismissed yet
    bint counting                   # `talk.counters` are not in `past` yet
    pthread_t thread
    char *buffer
    void *owner
    Talk *talk

cdef struct Roster:
    posix.pthread_mutex_t lock      # over what others than the acceptor look at or change
    Member *chunks[CHUNKS_MAX]
    Talk *talks[CHUNKS_MAX]
    int sharing                     # MAP_PRIVATE, or MAP_SHARED with children
    uint32_t slots                  # in all chunks
    uint32_t first_free
    uint32_t first_ended
    uint32_t open
    Counters past                   # of those who have ended


cdef inline void roster_init(Roster *roster, int sharing) noexcept:
    posix.pthread_mutex_init(&roster.lock, NULL)
    roster.sharing = sharing
    roster.first_free = roster.first_ended = NO_SLOT


cdef inline void roster_free(Roster *roster) noexcept:
    """Free the memory; the counters stay."""
    cdef uint32_t chunk
    posix.pthread_mutex_lock(&roster.lock)
    for chunk in range(roster.slots >> CHUNK_BITS):
        free(roster.chunks[chunk])
        posix.munmap(roster.talks[chunk], CHUNK_SLOTS * sizeof(Talk))
    roster.slots = 0
    posix.pthread_mutex_unlock(&roster.lock)


cdef inline Member *member_at(Roster *roster, uint32_t slot) noexcept nogil:
    return &roster.chunks[slot >> CHUNK_BITS][slot & (CHUNK_SLOTS - 1)]


cdef inline uint32_t enlist(Roster *roster, int fd) noexcept nogil:
    """Give somebody new a slot, with counters at 0; NO_SLOT without memory."""
    cdef uint32_t slot
    cdef Member *member
    if roster.first_free == NO_SLOT and not add_chunk(roster):
        return NO_SLOT
    slot = roster.first_free
    member = member_at(roster, slot)
    roster.first_free = member.next
    roster.open += 1
    memset(member.talk, 0, sizeof(Talk))
    posix.pthread_mutex_lock(&roster.lock)
    member.fd = fd
    member.taken = member.counting = True
    posix.pthread_mutex_unlock(&roster.lock)
    return slot


cdef inline void leave(Roster *roster, uint32_t slot, bint by_itself) noexcept nogil:
    """Somebody has ended: give up the descriptor, which the caller closes, and add the counters.

    `by_itself`: a thread leaves itself, and is found by next_ended(), to be dismissed.
    """
    cdef Member *member = member_at(roster, slot)
    posix.pthread_mutex_lock(&roster.lock)
    member.fd = -1                  # from here on nobody uses the number, which may be reused
    engine.add_counters(&roster.past, &member.talk.counters)
    member.counting = False
    if by_itself:
        member.next = roster.first_ended
        roster.first_ended = slot
    posix.pthread_mutex_unlock(&roster.lock)


cdef inline uint32_t next_ended(Roster *roster) noexcept nogil:
    """The slot of somebody who left by itself, or NO_SLOT."""
    cdef uint32_t slot
    posix.pthread_mutex_lock(&roster.lock)
    slot = roster.first_ended
    if slot != NO_SLOT:
        roster.first_ended = member_at(roster, slot).next
    posix.pthread_mutex_unlock(&roster.lock)
    return slot


cdef inline void dismiss(Roster *roster, uint32_t slot) noexcept nogil:
    """The slot is free again. Whoever had it is gone for good."""
    cdef Member *member = member_at(roster, slot)
    member.taken = False
    member.next = roster.first_free
    roster.first_free = slot
    roster.open -= 1


cdef inline void end_talks(Roster *roster) noexcept nogil:
    """End the conversations of all threads; under the lock, so that no number is a reused one."""
    cdef uint32_t slot
    cdef Member *member
    posix.pthread_mutex_lock(&roster.lock)
    for slot in range(roster.slots):
        member = member_at(roster, slot)
        if member.fd >= 0:
            end_talk(member.fd, member.talk)
    posix.pthread_mutex_unlock(&roster.lock)


cdef inline void add_up(Roster *roster, Context *context, Counters *total) noexcept nogil:
    """Add to `total` what everybody has counted, and the acceptor, whose beginnings come last."""
    cdef uint32_t slot
    posix.pthread_mutex_lock(&roster.lock)
    engine.add_counters(total, &roster.past)
    for slot in range(roster.slots):
        if member_at(roster, slot).counting:
            engine.add_counters(total, &member_at(roster, slot).talk.counters)
    engine.add_counters(total, &context.counters)
    posix.pthread_mutex_unlock(&roster.lock)


cdef inline void close_copies(Roster *roster) noexcept nogil:
    """In a forked child: close its copies of all descriptors."""
    cdef uint32_t slot
    # Whoever held the lock was not copied, and never lets go of it.
    posix.pthread_mutex_init(&roster.lock, NULL)
    for slot in range(roster.slots):
        if member_at(roster, slot).fd >= 0:
            posix.close(member_at(roster, slot).fd)


cdef inline bint add_chunk(Roster *roster) noexcept nogil:
    cdef uint32_t first = roster.slots, i
    cdef uint32_t chunk = first >> CHUNK_BITS
    cdef Member *members
    cdef void *talks
    if chunk == CHUNKS_MAX:
        return False
    members = <Member *>calloc(CHUNK_SLOTS, sizeof(Member))
    if members == NULL:
        return False
    talks = posix.mmap(NULL, CHUNK_SLOTS * sizeof(Talk), posix.PROT_READ | posix.PROT_WRITE,
                       roster.sharing | posix.MAP_ANONYMOUS, -1, 0)
    if talks == posix.MAP_FAILED:
        free(members)
        return False
    for i in range(<uint32_t>CHUNK_SLOTS):
        members[i].slot = first + i
        members[i].fd = -1
        members[i].talk = <Talk *>talks + i
        members[i].next = first + i + 1 if i + 1 < CHUNK_SLOTS else NO_SLOT
    posix.pthread_mutex_lock(&roster.lock)
    roster.chunks[chunk] = members
    roster.talks[chunk] = <Talk *>talks
    roster.slots += CHUNK_SLOTS
    posix.pthread_mutex_unlock(&roster.lock)
    roster.first_free = first
    return True
