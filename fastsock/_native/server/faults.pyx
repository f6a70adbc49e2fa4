"""The table of faults that workers are given: an immutable copy of what a server was asked for."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc

cimport fastsock._native.server.counters as counters


cdef class FaultTable:
    """Faults, each as Fault.numbers() gives it, and the seed; connections are numbered from 0."""

    def __init__(self, list faults not None, uint64_t seed):
        cdef int i
        cdef Fault *fault
        release(self.table)
        self.table = <Table *>calloc(1, sizeof(Table) + len(faults) * sizeof(Fault))
        if self.table == NULL:
            raise MemoryError
        self.table.references = 1
        self.table.seed = seed
        self.table.count = <int>len(faults)
        self.table.faults = <Fault *>(self.table + 1)
        for i in range(self.table.count):
            fault = &self.table.faults[i]
            (fault.kind, fault.probability, fault.after, fault.after_ns, fault.size,
             fault.delay_ns, fault.jitter_ns, fault.rate) = faults[i]
            if not 0 <= fault.kind < counters.FAULT_KINDS:
                raise ValueError(f"there is no fault {fault.kind}")
            self.table.any_of[fault.kind] = True

    def __dealloc__(self):
        release(self.table)
