from fastsock._native.listener cimport BoundSocket


cdef class DatagramSocket(BoundSocket):
    pass
