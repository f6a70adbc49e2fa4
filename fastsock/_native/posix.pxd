# C declarations, one block per header, only what is used.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "<errno.h>" nogil:
    int errno
    int EAGAIN, EINTR, EINVAL, EBADF, ENOTSOCK, EOPNOTSUPP, EINPROGRESS
    int EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC, EBUSY, ECANCELED, ETIME
    int ECONNRESET, ECONNREFUSED, ECONNABORTED, EPIPE, ETIMEDOUT, ENOENT, EPROTO, EFAULT
    int ENETDOWN, ENETUNREACH, EHOSTDOWN, EHOSTUNREACH, ENONET
    int EACCES, EADDRINUSE, EADDRNOTAVAIL, ENOSYS, ENOPROTOOPT, EIO, EMSGSIZE, EPERM

cdef extern from "<netinet/udp.h>" nogil:
    int SOL_UDP, UDP_GRO, UDP_SEGMENT

cdef extern from "<time.h>" nogil:
    int CLOCK_MONOTONIC
    int CLOCK_THREAD_CPUTIME_ID

    struct timespec:
        long tv_sec
        long tv_nsec

    int clock_gettime(int clock, timespec *now)
    int nanosleep(const timespec *time, timespec *left)
    int clock_getcpuclockid(int pid, int *clock)

cdef extern from "<sys/time.h>" nogil:
    struct timeval:
        long tv_sec
        long tv_usec

cdef extern from "<sys/types.h>" nogil:
    ctypedef unsigned int socklen_t
    ctypedef unsigned short sa_family_t

cdef extern from "<sys/socket.h>" nogil:
    int AF_INET, AF_INET6, AF_UNIX
    int SOCK_STREAM, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_CLOEXEC
    int SOL_SOCKET, SO_REUSEADDR, SO_REUSEPORT, SO_RCVBUF, SO_SNDBUF, SO_ERROR
    int SO_RCVTIMEO, SO_SNDTIMEO, SO_DOMAIN, SO_LINGER
    int MSG_NOSIGNAL, MSG_DONTWAIT, MSG_TRUNC, MSG_WAITFORONE
    int SHUT_RD, SHUT_WR, SHUT_RDWR

    ctypedef struct linger_t "struct linger":
        int l_onoff
        int l_linger

    struct sockaddr:
        sa_family_t sa_family

    struct sockaddr_storage:
        sa_family_t ss_family

    struct iovec:                   # sys/uio.h, which this header includes
        void *iov_base
        size_t iov_len

    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags

    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len

    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type

    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    cmsghdr *CMSG_NXTHDR(msghdr *message, cmsghdr *header)
    unsigned char *CMSG_DATA(cmsghdr *header)
    size_t CMSG_LEN(size_t size)
    size_t CMSG_SPACE(size_t size)

    int socket(int domain, int type, int protocol)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *size)
    int bind(int fd, const sockaddr *address, socklen_t size)
    int listen(int fd, int backlog)
    int accept4(int fd, sockaddr *address, socklen_t *size, int flags)
    int connect(int fd, const sockaddr *address, socklen_t size)
    int getsockname(int fd, sockaddr *address, socklen_t *size)
    int getpeername(int fd, sockaddr *address, socklen_t *size)
    int shutdown(int fd, int how)
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *buffer, size_t size, int flags)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    ssize_t recvmsg(int fd, msghdr *message, int flags)
    int recvmmsg(int fd, mmsghdr *list, unsigned int count, int flags, timespec *timeout)
    int sendmmsg(int fd, mmsghdr *list, unsigned int count, int flags)

cdef extern from * nogil:
    """
    #ifndef SO_PASSRIGHTS
    #define SO_PASSRIGHTS 83                /* asm-generic/socket.h, since Linux 6.16 */
    #endif
    """
    int SO_PASSRIGHTS

cdef extern from * nogil:
    """
    #ifndef SO_MEMINFO
    #define SO_MEMINFO 55                   /* asm-generic/socket.h, since Linux 4.12 */
    #endif
    """
    int SO_MEMINFO

cdef enum:                          # places in what SO_MEMINFO tells; linux/sock_diag.h
    SK_MEMINFO_WMEM_ALLOC = 2
    SK_MEMINFO_SNDBUF = 3
    SK_MEMINFO_WMEM_QUEUED = 5

cdef extern from "<sys/un.h>" nogil:
    struct sockaddr_un:
        sa_family_t sun_family
        char sun_path[108]

cdef extern from "<sys/stat.h>" nogil:
    int fchmod(int fd, unsigned int mode)

cdef extern from "<netinet/in.h>" nogil:
    int IPPROTO_IP, IPPROTO_TCP, IPPROTO_IPV6, IPV6_V6ONLY, IP_BIND_ADDRESS_NO_PORT
    int IP_TTL, IP_RECVTTL, IP_PKTINFO
    int IPV6_UNICAST_HOPS, IPV6_HOPLIMIT, IPV6_RECVHOPLIMIT, IPV6_PKTINFO, IPV6_RECVPKTINFO

    struct in_addr:
        uint32_t s_addr

    struct in6_addr:
        uint8_t s6_addr[16]

    struct sockaddr_in:
        sa_family_t sin_family
        uint16_t sin_port
        in_addr sin_addr

    struct sockaddr_in6:
        sa_family_t sin6_family
        uint16_t sin6_port
        in6_addr sin6_addr
        uint32_t sin6_scope_id

    struct in_pktinfo:
        int ipi_ifindex
        in_addr ipi_spec_dst
        in_addr ipi_addr

    struct in6_pktinfo:
        in6_addr ipi6_addr
        unsigned int ipi6_ifindex

    bint IN6_IS_ADDR_V4MAPPED(const in6_addr *address)
    bint IN6_IS_ADDR_LINKLOCAL(const in6_addr *address)
    bint IN6_IS_ADDR_MULTICAST(const in6_addr *address)

cdef extern from * nogil:
    """
    #ifndef IPV6_FREEBIND
    #define IPV6_FREEBIND 78                /* linux/in6.h, since Linux 4.15 */
    #endif
    """
    int IPV6_FREEBIND

cdef extern from "<netinet/tcp.h>" nogil:
    int TCP_NODELAY, TCP_INFO

    struct tcp_info:
        uint32_t tcpi_unacked

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t htons(uint16_t value)
    uint16_t ntohs(uint16_t value)
    uint32_t htonl(uint32_t value)
    uint32_t ntohl(uint32_t value)
    int inet_pton(int family, const char *text, void *address)

cdef extern from "<poll.h>" nogil:
    short POLLIN, POLLOUT, POLLERR, POLLHUP, POLLRDHUP
    ctypedef unsigned long nfds_t

    struct pollfd:
        int fd
        short events
        short revents

    int poll(pollfd *list, nfds_t count, int timeout_ms)
    int ppoll(pollfd *list, nfds_t count, const timespec *timeout, const void *mask)

cdef extern from "<sys/epoll.h>" nogil:
    unsigned int EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL

    union epoll_data:
        uint64_t u64

    struct epoll_event:
        uint32_t events
        epoll_data data

    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout_ms)

cdef extern from "<sys/eventfd.h>" nogil:
    int EFD_CLOEXEC, EFD_NONBLOCK
    int eventfd(unsigned int initial, int flags)

cdef extern from "<sys/timerfd.h>" nogil:
    int TFD_NONBLOCK, TFD_CLOEXEC, TFD_TIMER_ABSTIME

    struct itimerspec:
        timespec it_interval
        timespec it_value

    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec *new, itimerspec *old)

cdef extern from "<sys/resource.h>" nogil:
    int RLIMIT_NOFILE

    struct rlimit:
        unsigned long rlim_cur

    int getrlimit(int resource, rlimit *limit)

cdef extern from "<sys/mman.h>" nogil:
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_POPULATE
    int MADV_DONTNEED
    void *MAP_FAILED

    void *mmap(void *address, size_t size, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t size)
    int madvise(void *address, size_t size, int advice)

cdef extern from "<fcntl.h>" nogil:
    int O_RDONLY, O_CLOEXEC, O_NONBLOCK, F_GETFL, F_SETFL
    int fcntl(int fd, int command, ...)
    int open(const char *path, int flags)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t pread(int fd, void *buffer, size_t size, long offset)
    ssize_t read(int fd, void *buffer, size_t size)
    ssize_t write(int fd, const void *buffer, size_t size)
    int getpid()
    int getppid()
    void _exit(int status)
    long syscall(long number, ...)
    int _SC_CLK_TCK, _SC_PAGESIZE, _SC_THREAD_STACK_MIN
    long sysconf(int name)

cdef extern from "<dirent.h>" nogil:
    ctypedef struct DIR:
        pass

    struct dirent:
        char *d_name

    DIR *opendir(const char *name)
    dirent *readdir(DIR *directory)
    int closedir(DIR *directory)

# Newer than some C libraries, but with the same number on every architecture.
cdef extern from * nogil:
    """
    #include <sys/syscall.h>
    #ifndef SYS_pidfd_send_signal
    #define SYS_pidfd_send_signal 424
    #endif
    #ifndef SYS_close_range
    #define SYS_close_range 436
    #endif
    """
    long SYS_clone, SYS_pidfd_send_signal, SYS_close_range, SYS_io_uring_register

cdef extern from "<sched.h>" nogil:
    unsigned long CLONE_PIDFD

cdef extern from "<sys/prctl.h>" nogil:
    int PR_SET_PDEATHSIG
    int prctl(int option, ...)

cdef extern from "<sys/wait.h>" nogil:
    """
    #define WAIT_FOR_PIDFD ((idtype_t)3)    /* P_PIDFD, which glibc has since 2.36 */
    """
    ctypedef int idtype_t
    idtype_t WAIT_FOR_PIDFD
    int WEXITED, WNOHANG
    int ANY_CHILD "__WALL"

    ctypedef struct siginfo_t:
        int si_pid

    int waitid(idtype_t type, unsigned int id, siginfo_t *info, int options)

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass

    ctypedef struct sigaction_t "struct sigaction":
        void (*sa_handler)(int) noexcept nogil
        sigset_t sa_mask
        int sa_flags

    int SIG_SETMASK, SIG_UNBLOCK, SIGKILL, SIGUSR1
    int sigemptyset(sigset_t *set)
    int sigfillset(sigset_t *set)
    int sigaddset(sigset_t *set, int number)
    int sigprocmask(int how, const sigset_t *set, sigset_t *old)
    int sigaction(int number, const sigaction_t *action, sigaction_t *old)

cdef extern from "<sched.h>" nogil:
    int sched_yield()
    ctypedef struct cpu_set_t:
        pass

    void CPU_ZERO(cpu_set_t *set)
    void CPU_SET(int cpu, cpu_set_t *set)

cdef extern from "<sys/ioctl.h>" nogil:
    enum: TIOCOUTQ                  # SIOCOUTQ of tcp(7) and unix(7)

    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<dlfcn.h>" nogil:
    void *dlsym(void *handle, const char *name)     # handle NULL: RTLD_DEFAULT

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_attr_t:
        pass

    int pthread_attr_init(pthread_attr_t *attributes)
    int pthread_attr_setstacksize(pthread_attr_t *attributes, size_t size)
    int pthread_attr_setaffinity_np(pthread_attr_t *attributes, size_t size, const cpu_set_t *set)
    int pthread_attr_destroy(pthread_attr_t *attributes)
    int pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                       void *(*main)(void *) noexcept nogil, void *argument)
    int pthread_join(pthread_t thread, void **result)
    ctypedef struct pthread_mutex_t:
        pass

    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)


cdef inline void close_once(int *fd) noexcept nogil:
    """close() a descriptor that is still open; `fd` is -1 from then on."""
    cdef int open_fd = fd[0]
    fd[0] = -1                      # before close(): a forked child must not close a reused number
    if open_fd >= 0:
        close(open_fd)
