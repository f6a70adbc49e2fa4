# Descriptors that end a wait of another thread: eventfd(2), and timerfd_create(2).

from libc.stdint cimport uint64_t

cimport fastsock._native.check as check
cimport fastsock._native.posix as posix


cdef inline int new_eventfd() except -1:
    cdef int fd = posix.eventfd(0, posix.EFD_NONBLOCK | posix.EFD_CLOEXEC)
    if fd < 0:
        raise check.os_error(posix.errno, "eventfd", "")
    return fd


cdef inline void notify(int fd) noexcept nogil:
    """Make an eventfd readable; write() can only fail when it is readable already."""
    cdef uint64_t one = 1
    posix.write(fd, &one, sizeof(one))


cdef inline void clear(int fd) noexcept nogil:
    """Make an eventfd or a timerfd unreadable again."""
    cdef uint64_t count
    posix.read(fd, &count, sizeof(count))
