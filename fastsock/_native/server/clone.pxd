# Child processes, by pidfd: made, signalled and reaped.
#
# Not fork(): that runs the handlers which any library in the process has registered with
# pthread_atfork(). And a child of clone() need not send SIGCHLD when it ends. So no handler of the
# application runs, no wait() or waitpid(-1) of the application finds our children (wait(2),
# "__WCLONE"), and they are not lost where SIGCHLD is ignored. A pidfd never means a later process.

cimport fastsock._native.posix as posix


cdef inline int clone_process(int *pidfd) noexcept nogil:
    """Copy this process with this thread alone, as fork(): 0 in the copy, its pid here, or -1."""
    # No stack of its own: the copy goes on with its copy of this one. No signal at its end.
    return <int>posix.syscall(posix.SYS_clone, posix.CLONE_PIDFD, NULL, pidfd, NULL, NULL)


cdef inline int send_signal(int pidfd, int number) noexcept nogil:
    """Where the call is allowed, it can only fail when the process has ended."""
    return <int>posix.syscall(posix.SYS_pidfd_send_signal, pidfd, number, NULL, 0)


cdef inline bint reap(int pidfd, int flags) noexcept nogil:
    """Reap a child that has ended; False if it has not, with WNOHANG in `flags`."""
    cdef posix.siginfo_t info
    info.si_pid = 0
    while posix.waitid(posix.WAIT_FOR_PIDFD, pidfd, &info,
                       posix.WEXITED | posix.ANY_CHILD | flags) != 0:
        if posix.errno != posix.EINTR:
            return True             # ECHILD: the application has reaped it, with __WALL
    return info.si_pid != 0


cdef inline bint close_others(int fd) noexcept nogil:
    """Close every descriptor but one."""
    return ((fd == 0 or close_range(0, fd - 1) == 0)
            and close_range(fd + 1, <unsigned int>-1) == 0)


cdef inline int close_range(unsigned int first, unsigned int last) noexcept nogil:
    return <int>posix.syscall(posix.SYS_close_range, first, last, 0)
