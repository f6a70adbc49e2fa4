# Memory for unsent bytes: what send() did not take, kept until the client reads again.
#
# Not malloc(), see pages.pxd: a server would keep for ever what its slow readers took at their
# worst. But mapping pages and faulting them in costs more than filling them, so a few blocks are
# kept for the next use while others are in use, and one when none is.

from libc.stdint cimport uint32_t

cimport fastsock._native.pages as pages

cdef enum:
    BLOCK_MAX = 65536
    SPARES_MAX = 4

cdef struct UnsentPool:             # of one loop
    size_t block_size               # bytes mapped for each block, more for one that is larger
    uint32_t used                   # blocks in use
    uint32_t spares                 # blocks mapped and not in use: at most max(used, 1)
    void *spare[SPARES_MAX]


cdef inline void init(UnsentPool *pool, size_t buffer_size) noexcept nogil:
    pool.block_size = min(buffer_size, <size_t>BLOCK_MAX)


cdef inline void free_spares(UnsentPool *pool) noexcept nogil:
    while pool.spares > 0:
        pool.spares -= 1
        pages.unmap(pool.spare[pool.spares], pool.block_size)


cdef inline char *take(UnsentPool *pool, size_t size) noexcept nogil:
    """A block for `size` bytes; NULL, with errno ENOMEM, without memory."""
    cdef void *memory
    if size <= pool.block_size and pool.spares > 0:
        pool.spares -= 1
        memory = pool.spare[pool.spares]
    else:
        # Populated if all of it will be written: one fault instead of many.
        memory = pages.map(max(size, pool.block_size), populate=size >= pool.block_size)
        if memory == NULL:
            return NULL
    pool.used += 1
    return <char *>memory


cdef inline void give_back(UnsentPool *pool, char *memory, size_t size) noexcept nogil:
    """`size` is the one that take() got."""
    pool.used -= 1
    if size <= pool.block_size and pool.spares < SPARES_MAX:
        pool.spare[pool.spares] = memory
        pool.spares += 1
    else:
        pages.unmap(memory, max(size, pool.block_size))
    while pool.spares > max(pool.used, <uint32_t>1):
        pool.spares -= 1
        pages.unmap(pool.spare[pool.spares], pool.block_size)
