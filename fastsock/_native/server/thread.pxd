# Native threads: how one is started, and how large its stack must be.
#
# The C library puts the static thread-local storage of every loaded library on a thread's stack,
# and refuses (EINVAL) a stack that has too little room beside it. The size of that storage depends
# on the process: what is preloaded and what else Python has imported.

from libc.stddef cimport size_t

cimport fastsock._native.posix as posix
from fastsock._native.posix cimport pthread_t

cdef enum:
    # Our own part: the engines and the handlers touch 8 KiB at most, thread-local storage included
    # (Rss of their stacks in /proc/PID/smaps, x86-64). A sanitizer's frames are larger.
    OWN_STACK_BYTES = 32 * 1024

ctypedef size_t (*MinimumOf)(const posix.pthread_attr_t *attributes) noexcept nogil


cdef inline size_t stack_bytes() noexcept nogil:
    """The size of a thread's stack: what the system takes for itself, and what we need."""
    cdef posix.pthread_attr_t attributes
    cdef long page = posix.sysconf(posix._SC_PAGESIZE)
    # Not the constant PTHREAD_STACK_MIN: it is 16 KiB on x86-64 and 128 KiB on AArch64, and where
    # the kernel saves large registers at a signal, more than that is needed (sysconf(3)).
    cdef long system = posix.sysconf(posix._SC_THREAD_STACK_MIN)
    # glibc alone puts thread-local storage inside the size that it is asked for, musl beside it.
    # This function of glibc has no header; Java, Rust and Go's cgo ask it too.
    cdef MinimumOf minimum_of = <MinimumOf>posix.dlsym(NULL, "__pthread_get_minstack")
    if minimum_of != NULL and posix.pthread_attr_init(&attributes) == 0:
        system = max(system, <long>minimum_of(&attributes))
        posix.pthread_attr_destroy(&attributes)
    return <size_t>((system + OWN_STACK_BYTES + page - 1) // page * page)


cdef inline int start(pthread_t *thread, size_t stack, int cpu,
                      void *(*main)(void *) noexcept nogil, void *argument) noexcept nogil:
    """pthread_create(3) with a stack of stack_bytes(); return its errno. A `cpu` of -1 is any."""
    cdef posix.pthread_attr_t attributes
    cdef posix.cpu_set_t cpus
    cdef int error = posix.pthread_attr_init(&attributes)
    if error:
        return error
    error = posix.pthread_attr_setstacksize(&attributes, stack)
    if not error and cpu >= 0:
        posix.CPU_ZERO(&cpus)
        posix.CPU_SET(cpu, &cpus)
        error = posix.pthread_attr_setaffinity_np(&attributes, sizeof(cpus), &cpus)
    if not error:
        error = posix.pthread_create(thread, &attributes, main, argument)
    posix.pthread_attr_destroy(&attributes)
    return error
