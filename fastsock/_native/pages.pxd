# Memory in whole pages, from the kernel and back to it, for what comes and goes in large pieces.
#
# free() would keep much of that: the C library returns only what lies at the end of a heap, and
# only beyond a threshold, which grows with the blocks it has seen.

cimport fastsock._native.posix as posix


cdef inline void *map_pages(size_t size, bint at_once) noexcept nogil:
    """Zeroes; their pages are taken when they are touched, or at once. NULL without memory."""
    cdef int flags = posix.MAP_PRIVATE | posix.MAP_ANONYMOUS
    if at_once:
        flags |= posix.MAP_POPULATE
    cdef void *memory = posix.mmap(NULL, size, posix.PROT_READ | posix.PROT_WRITE, flags, -1, 0)
    return NULL if memory == posix.MAP_FAILED else memory


cdef inline void unmap_pages(void *memory, size_t size) noexcept nogil:
    # It fails where it would cut a mapping in two, and there are as many as may be (65,530 by
    # default, vm.max_map_count). Then the pages go, and only the addresses are lost.
    if posix.munmap(memory, size) != 0:
        posix.madvise(memory, size, posix.MADV_DONTNEED)
