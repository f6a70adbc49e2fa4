cdef class BoundSocket:
    cdef readonly int fd        # -1 once closed or handed to a worker
    cdef readonly str where     # the endpoint as the user wrote it, for messages
    cdef readonly bint inherited    # another process has it too, and goes on when we stop
    cdef int family

    cdef int detach(self)
    cdef int _create(self, int kind) except -1
    cdef int _set_options(self, bint reuse_port, bint dual_stack, int rcvbuf,
                          int sndbuf) except -1
    cdef int _set(self, str name, int level, int option, int value) except -1
    cdef int _bind(self, str host, int port, unsigned int scope_id) except -1
    cdef int _bind_unix(self, str path, int mode) except -1
    cdef int _refuse_descriptors(self) except -1


cdef class Listener(BoundSocket):
    pass
