# Memory for rests: what send() left of what a client is owed.
#
# Not malloc(), see pages.pxd: a server would hold on to what its slow readers took at their worst.
# But to map pages and fault them in costs more than to fill them, so a few are kept for the next
# rest while there are others, and one when all is quiet.

from libc.stdint cimport uint32_t

from fastsock._native.pages cimport map_pages, unmap_pages

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
        unmap_pages(rests.spare[rests.spares], rests.room)


cdef inline char *take_room(Rests *rests, size_t size) noexcept nogil:
    """Memory for a rest of `size` bytes; NULL, with errno ENOMEM, if there is none."""
    cdef void *memory
    if size <= rests.room and rests.spares > 0:
        rests.spares -= 1
        memory = rests.spare[rests.spares]
    else:
        # At once if all of it will be written: one fault instead of many.
        memory = map_pages(max(size, rests.room), at_once=size >= rests.room)
        if memory == NULL:
            return NULL
    rests.count += 1
    return <char *>memory


cdef inline void give_back(Rests *rests, char *memory, size_t size) noexcept nogil:
    rests.count -= 1
    if size <= rests.room and rests.spares < SPARES_MAX:
        rests.spare[rests.spares] = memory
        rests.spares += 1
    else:
        unmap_pages(memory, max(size, rests.room))
    while rests.spares > max(rests.count, <uint32_t>1):
        rests.spares -= 1
        unmap_pages(rests.spare[rests.spares], rests.room)
