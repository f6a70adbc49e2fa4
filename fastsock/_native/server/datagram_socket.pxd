from fastsock._native.server.listener cimport BoundSocket


cdef class DatagramSocket(BoundSocket):
    pass
