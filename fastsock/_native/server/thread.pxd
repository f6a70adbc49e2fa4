# Native threads: how one is started.

cimport fastsock._native.posix as posix
from fastsock._native.posix cimport pthread_t


cdef inline int start(pthread_t *thread, size_t stack_bytes, int cpu,
                      void *(*main)(void *) noexcept nogil, void *argument) noexcept nogil:
    """pthread_create(3) with a stack of its own size; return its errno. A `cpu` of -1 is any."""
    cdef posix.pthread_attr_t attributes
    cdef posix.cpu_set_t cpus
    cdef int error = posix.pthread_attr_init(&attributes)
    if error:
        return error
    error = posix.pthread_attr_setstacksize(&attributes, stack_bytes)
    if not error and cpu >= 0:
        posix.CPU_ZERO(&cpus)
        posix.CPU_SET(cpu, &cpus)
        error = posix.pthread_attr_setaffinity_np(&attributes, sizeof(cpus), &cpus)
    if not error:
        error = posix.pthread_create(thread, &attributes, main, argument)
    posix.pthread_attr_destroy(&attributes)
    return error
