from fastsock._native.posix cimport pthread_t
from fastsock._native.server.context cimport Context
from fastsock._native.server.counters cimport Counters
from fastsock._native.server.faults cimport Table
from fastsock._native.server.records cimport Records


cdef class Worker:
    cdef Context context
    cdef void *(*main)(void *) noexcept nogil   # the engine's loop; gets `argument`
    cdef void *argument
    cdef pthread_t thread
    cdef int cpu                                # the thread runs on it; -1 is any
    cdef bint running                           # a thread exists that was not joined

    cdef int prepare(self) except -1
    cdef void take_faults(self, Table *table) noexcept
    cdef void take_records(self, Records *records) noexcept
    cdef void wake(self) noexcept
    cdef void release(self) noexcept
    cdef void abandon(self) noexcept
    cdef void snapshot(self, Counters *total) noexcept
    cdef void _check_balance(self) noexcept
    cdef void _free(self) noexcept
