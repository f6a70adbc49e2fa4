# Memory for rests: what send() left of what a client is owed.
#
# Whole pages, from the kernel and back to it. free() would keep many of them: the C library returns
# only what lies at the end of its heap, and only beyond a threshold, which grows with the blocks it
# has seen. A server would hold on to what its slow readers took at their worst. To map and to fault
# pages in costs more than to copy them, so a few are kept for the next, and one when all is quiet.

from libc.stdint cimport uint32_t

from fastsock._native cimport posix

cdef enum:
    ROOM_MAX = 65536
    SPARES_MAX = 4

cdef struct Rests:                  # of one loop
    size_t room                     # bytes mapped for each that is no longer, so that any fits
    uint32_t count                  # how many there are
    uint32_t spares                 # mapped, and nobody's: one, or no more than there are rests
    void *spare[SPARES_MAX]


cdef inline void rests_init(Rests *rests, size_t buffer_size) noexcept nogil:
    rests.room = min(buffer_size, <size_t>ROOM_MAX)


cdef inline void rests_free(Rests *rests) noexcept nogil:
    while rests.spares > 0:
        rests.spares -= 1
        unmap_room(rests.spare[rests.spares], rests.room)


cdef inline char *take_room(Rests *rests, size_t size) noexcept nogil:
    """Memory for a rest of `size` bytes; NULL, with errno ENOMEM, if there is none."""
    cdef void *memory
    if size <= rests.room and rests.spares > 0:
        rests.spares -= 1
        memory = rests.spare[rests.spares]
    else:
        memory = map_room(max(size, rests.room), size)
        if memory == posix.MAP_FAILED:
            return NULL
    rests.count += 1
    return <char *>memory


cdef inline void give_back(Rests *rests, char *memory, size_t size) noexcept nogil:
    rests.count -= 1
    if size <= rests.room and rests.spares < SPARES_MAX:
        rests.spare[rests.spares] = memory
        rests.spares += 1
    else:
        unmap_room(memory, max(size, rests.room))
    while rests.spares > max(rests.count, <uint32_t>1):
        rests.spares -= 1
        unmap_room(rests.spare[rests.spares], rests.room)


cdef inline void *map_room(size_t room, size_t size) noexcept nogil:
    cdef int flags = posix.MAP_PRIVATE | posix.MAP_ANONYMOUS
    if size == room:
        flags |= posix.MAP_POPULATE     # all of it will be written: one fault instead of many
    return posix.mmap(NULL, room, posix.PROT_READ | posix.PROT_WRITE, flags, -1, 0)


cdef inline void unmap_room(void *memory, size_t room) noexcept nogil:
    # It fails where it would cut a mapping in two, and there are as many as may be (65,530 by
    # default, vm.max_map_count). Then the pages go, and only the addresses are lost.
    if posix.munmap(memory, room) != 0:
        posix.madvise(memory, room, posix.MADV_DONTNEED)
