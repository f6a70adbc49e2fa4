cdef class Listener:
    cdef readonly int fd        # -1 once closed or handed to a worker
    cdef readonly str where     # the endpoint as the user wrote it, for messages
    cdef int family

    cdef int detach(self)
