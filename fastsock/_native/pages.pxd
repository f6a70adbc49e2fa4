# Memory in whole pages, from the kernel and back to it, for large blocks that come and go.
#
# free() would keep much of it: the C library returns only what lies at the end of a heap, and only
# beyond a threshold that grows with the blocks it has seen.

cimport fastsock._native.posix as posix


cdef inline void *map(size_t size, bint populate) noexcept nogil:
    """Zeroed memory, or NULL. Pages are taken when they are touched, or now with `populate`."""
    cdef int flags = posix.MAP_PRIVATE | posix.MAP_ANONYMOUS
    if populate:
        flags |= posix.MAP_POPULATE
    cdef void *memory = posix.mmap(NULL, size, posix.PROT_READ | posix.PROT_WRITE, flags, -1, 0)
    return NULL if memory == posix.MAP_FAILED else memory


cdef inline void unmap(void *memory, size_t size) noexcept nogil:
    # munmap() fails where it would cut a mapping in two while the process has as many mappings as
    # it may (vm.max_map_count, 65,530 by default). Then only the addresses are lost.
    if posix.munmap(memory, size) != 0:
        posix.madvise(memory, size, posix.MADV_DONTNEED)
