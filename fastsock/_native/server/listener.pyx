"""Steps 1 to 4 and 9 of a stream server: create, options, bind, listen, and close.

BoundSocket has the steps that a datagram server needs too.

Every return value is checked; a failure is the OSError subclass of its errno, and its text names
the step and the endpoint: ``bind tcp://127.0.0.1:80: Permission denied``. Nothing stays open then.
"""

cimport fastsock._native.address as address
cimport fastsock._native.check as check
cimport fastsock._native.posix as posix


cdef class BoundSocket:
    """A socket with an address, non-blocking and close-on-exec: what a worker takes over."""

    def __cinit__(self):
        self.fd = -1

    def __dealloc__(self):
        if self.fd >= 0:
            posix.close(self.fd)

    @property
    def port(self) -> int:
        """The bound port: the real one when port 0 was asked for."""
        cdef posix.sockaddr_in6 name
        cdef posix.socklen_t size = sizeof(name)
        if posix.getsockname(self.fd, <posix.sockaddr *>&name, &size) != 0:
            raise check.os_error(posix.errno, "getsockname", self.where)
        # sin_port and sin6_port lie at the same offset.
        return posix.ntohs(name.sin6_port)

    def close(self) -> None:
        """Step 9. The port is free at once."""
        cdef int fd = self.detach()
        if fd >= 0:
            posix.close(fd)

    def share_port(self) -> None:
        """Let further sockets of this user bind the same port, SO_REUSEPORT.

        A socket that is bound only shares its port with those that ask for it, from now on.
        """
        self._set("SO_REUSEPORT", posix.SOL_SOCKET, posix.SO_REUSEPORT, 1)

    cdef int detach(self):
        """Give the descriptor to the caller, which closes it."""
        cdef int fd = self.fd
        self.fd = -1
        return fd

    cdef int _create(self, int kind) except -1:
        self.fd = posix.socket(self.family, kind | posix.SOCK_NONBLOCK | posix.SOCK_CLOEXEC, 0)
        if self.fd < 0:
            raise check.os_error(posix.errno, "socket", self.where)
        return 0

    cdef int _set_options(self, bint reuse_port, bint dual_stack, int rcvbuf,
                          int sndbuf) except -1:
        if reuse_port:
            self.share_port()
        if self.family == posix.AF_INET6:
            # Set either way: the default is a sysctl, net.ipv6.bindv6only (ipv6(7)).
            self._set("IPV6_V6ONLY", posix.IPPROTO_IPV6, posix.IPV6_V6ONLY, not dual_stack)
        if rcvbuf:
            self._set("SO_RCVBUF", posix.SOL_SOCKET, posix.SO_RCVBUF, rcvbuf)
        if sndbuf:
            self._set("SO_SNDBUF", posix.SOL_SOCKET, posix.SO_SNDBUF, sndbuf)
        return 0

    cdef int _set(self, str name, int level, int option, int value) except -1:
        if posix.setsockopt(self.fd, level, option, &value, sizeof(value)) != 0:
            raise check.os_error(posix.errno, f"setsockopt {name}", self.where)
        return 0

    cdef int _bind(self, str host, int port, unsigned int scope_id) except -1:
        cdef posix.sockaddr_storage storage
        cdef posix.socklen_t size = address.fill_address(
            &storage, self.family, host, port, scope_id)
        if posix.bind(self.fd, <posix.sockaddr *>&storage, size) != 0:
            raise check.os_error(posix.errno, "bind", self.where)
        return 0

    cdef int _bind_unix(self, str path, int mode) except -1:
        """Bind to a file that is not there yet, with the rights `mode` less the umask."""
        self._refuse_descriptors()
        # bind() makes the file with the mode of the socket's own inode, 0777 unless it is set
        # first. The umask would do it too, but belongs to all threads of the process.
        if posix.fchmod(self.fd, mode) != 0:
            raise check.os_error(posix.errno, "fchmod", self.where)
        return self._bind(path, 0, 0)

    cdef int _refuse_descriptors(self) except -1:
        # A client may send open files along (SCM_RIGHTS). The server takes none, so the kernel
        # closes them in the call that receives the bytes. If that is the last close of a socket
        # that lingers (SO_LINGER), the call lasts as long as the client likes. Linux 6.16 and later
        # can refuse them, here and on the sockets that are accepted.
        cdef int off = 0
        if (posix.setsockopt(self.fd, posix.SOL_SOCKET, posix.SO_PASSRIGHTS,
                             &off, sizeof(off)) != 0
                and posix.errno != posix.ENOPROTOOPT):
            raise check.os_error(posix.errno, "setsockopt SO_PASSRIGHTS", self.where)
        return 0


cdef class Listener(BoundSocket):
    """A listening TCP socket.

    `family` is AF_INET or AF_INET6, `host` a numeric address of it, `where` the endpoint for
    messages. `rcvbuf` and `sndbuf` are bytes (the kernel doubles them, socket(7)); 0 leaves the
    kernel's autotuning on.
    """

    def __init__(self, int family, str host, int port, unsigned int scope_id, str where, *,
                 int backlog, bint reuse_port=False, bint dual_stack=False, bint nodelay=True,
                 int rcvbuf=0, int sndbuf=0):
        self.where = where
        self.family = family
        try:
            self._create(posix.SOCK_STREAM)
            # Without it a restart fails while old connections sit in TIME_WAIT (socket(7)).
            self._set("SO_REUSEADDR", posix.SOL_SOCKET, posix.SO_REUSEADDR, 1)
            # Linux copies TCP_NODELAY and the buffer sizes to every accepted socket, which saves
            # a call per connection. The sizes must be set before listen() to count in the window
            # scale (tcp(7)).
            if nodelay:
                self._set("TCP_NODELAY", posix.IPPROTO_TCP, posix.TCP_NODELAY, 1)
            self._set_options(reuse_port, dual_stack, rcvbuf, sndbuf)
            self._bind(host, port, scope_id)
            self._listen(backlog)
        except BaseException:
            self.close()
            raise

    def _listen(self, int backlog):
        if posix.listen(self.fd, backlog) != 0:
            # Two sockets may bind one port with SO_REUSEADDR; only the first may listen.
            raise check.os_error(posix.errno, "listen", self.where)


cdef class UnixListener(Listener):
    """A listening Unix stream socket, non-blocking and close-on-exec.

    `path` is a file that is not there yet, or "@name". The file gets the rights `mode` less the
    umask; it is not removed at the end. There are no other options: an accepted Unix socket gets
    none from its listener, not even the buffer sizes.
    """

    def __init__(self, str path, str where, *, int mode, int backlog):
        self.where = where
        self.family = posix.AF_UNIX
        try:
            self._create(posix.SOCK_STREAM)
            self._bind_unix(path, mode)
            self._listen(backlog)
        except BaseException:
            self.close()
            raise


cdef class InheritedListener(Listener):
    """A listening stream socket that another program has made; takes `fd`, non-blocking, over.

    Its options stay as they are, except for `nodelay`, which accepted sockets get from it.
    """

    def __init__(self, int fd, int family, str where, *, bint nodelay):
        self.where = where
        self.family = family
        self.inherited = True
        self.fd = fd
        if family == posix.AF_UNIX:
            self._refuse_descriptors()
        elif nodelay:
            self._set("TCP_NODELAY", posix.IPPROTO_TCP, posix.TCP_NODELAY, 1)
