# Which errors of system calls can pass: the one list of them, with the reason of each.
#
# A call that fails with one of these is made again, at once or after a pause. Any other error, such
# as EINVAL, ENOSYS, EPERM, EBADF, ENOTSOCK and EFAULT, would come again for ever: the server ends
# with a message that names the call. EPERM and ENOSYS are what a seccomp filter answers.
#
# An error of recv() or send() on a connection ends that connection, whichever it is, and is not
# here.

cimport fastsock._native.posix as posix

cdef enum:                          # calls that can end or pause a loop
    ACCEPT
    CLONE
    EPOLL_CTL
    EPOLL_WAIT
    IO_URING_ENTER
    MALLOC
    POLL
    PTHREAD_CREATE
    RECVMMSG
    SENDMMSG


cdef inline str name_of(int call):
    return ("accept", "clone", "epoll_ctl", "epoll_wait", "io_uring_enter", "malloc", "poll",
            "pthread_create", "recvmmsg", "sendmmsg")[call]


cdef inline bint is_shortage(int error) noexcept nogil:
    """Of any call: something has run out, and comes back when something else ends."""
    return (error == posix.EMFILE           # descriptors of this process
            or error == posix.ENFILE        # open files of the system
            or error == posix.ENOBUFS       # memory for sockets
            or error == posix.ENOMEM
            or error == posix.EAGAIN        # threads or processes: clone(2), pthread_create(3)
            or error == posix.ENOSPC)       # descriptors that epoll may watch: epoll_ctl(2)


cdef inline bint is_of_network(int error) noexcept nogil:
    """Of accept4() and recvmmsg(): about one connection or one earlier answer.

    Linux passes an error of the new connection to accept(), and accept(2) asks to try the next one.
    On a datagram socket ICMP tells once of an answer that did not arrive: the errors that ICMP's
    codes are turned into (icmp_err_convert in the kernel, RFC 1122 4.1.3.3).
    """
    return (error == posix.ECONNABORTED     # the client reset it while it was in the queue
            or error == posix.ECONNRESET    # the same, on a Unix socket
            or error == posix.ETIMEDOUT     # the client has not acknowledged for too long
            or error == posix.ECONNREFUSED  # ICMP: port unreachable
            or error == posix.EHOSTUNREACH or error == posix.ENETUNREACH    # ICMP: no route
            or error == posix.EHOSTDOWN or error == posix.ENETDOWN or error == posix.ENONET
            or error == posix.ENOPROTOOPT   # ICMP: protocol unreachable
            or error == posix.EPROTO        # ICMPv6: a bad header
            or error == posix.EOPNOTSUPP    # ICMP: source route failed
            or error == posix.EMSGSIZE      # ICMP: too big for a route
            or error == posix.EACCES)       # ICMPv6: forbidden by an administrator


cdef inline bint can_pass(int error) noexcept nogil:
    """Of accept4() and recvmmsg()."""
    return error == posix.EINTR or is_of_network(error) or is_shortage(error)


cdef inline bint ends_one_answer(int error) noexcept nogil:
    """Of sendmmsg(): about the one answer, its address or its route.

    Of those there are many (a source port 0 is EINVAL, a firewall's rule EPERM). Only these are
    about the call itself.
    """
    return (error != posix.EBADF and error != posix.ENOTSOCK and error != posix.ENOSYS
            and error != posix.EFAULT)


cdef inline bint poll_can_pass(int error) noexcept nogil:
    return (error == posix.EINTR            # POSIX lets it come without a handler too
            or error == posix.ENOMEM        # for the kernel's copy of the list
            or error == posix.EINVAL)       # longer than RLIMIT_NOFILE, which was lowered


cdef inline bint epoll_wait_can_pass(int error) noexcept nogil:
    # SIGSTOP and SIGCONT cause it even where all signals are blocked (signal(7)).
    return error == posix.EINTR


cdef inline bint io_uring_enter_can_pass(int error) noexcept nogil:
    return (error == posix.EINTR or error == posix.ETIME
            or error == posix.EAGAIN        # no memory for a request now
            or error == posix.EBUSY)        # completions wait for room
