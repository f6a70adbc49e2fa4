from fastsock._native.server.engine cimport Context, Counters
from fastsock._native.posix cimport pthread_t


cdef class Worker:
    cdef Context context
    cdef void *(*main)(void *) noexcept nogil   # the engine's loop; gets `argument`
    cdef void *argument
    cdef pthread_t thread
    cdef int cpu                                # where it runs; -1 is anywhere
    cdef bint running                           # a thread exists that was not joined

    cdef int prepare(self) except -1
    cdef void release(self) noexcept
    cdef void abandon(self) noexcept
    cdef void snapshot(self, Counters *total) noexcept
    cdef void _check_balance(self) noexcept
    cdef void _free(self) noexcept
