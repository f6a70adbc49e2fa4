# What a server does wrong on request: the table of faults, and what is decided for a connection.
#
# Everything is decided from the seed and the number of the connection, never from a time: the same
# seed and the same clients give the same faults. A table never changes. Each connection that is
# served with it holds a reference, and keeps it when the server gets another table.

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free

cimport fastsock._native.atomic as atomic
cimport fastsock._native.server.counters as counters

cdef struct Fault:                  # of fastsock/server/faults.py, numbers()
    int kind                        # of counters.pxd
    double probability
    int64_t after                   # bytes, or NEVER
    int64_t after_ns                # or NEVER
    int64_t size
    int64_t delay_ns
    int64_t jitter_ns
    double rate                     # bytes per second

cdef struct Table:
    int references
    uint64_t seed
    uint64_t connections            # that have been numbered
    bint any_of[counters.FAULT_KINDS]
    int count
    Fault *faults                   # behind this struct, in the same memory

cdef struct Plan:                   # of one connection
    Table *table                    # a reference is held
    uint64_t key                    # of the connection: all its random numbers come from it
    Fault *chosen[counters.FAULT_KINDS]     # NULL: this connection has no such fault
    bint any                        # one of them acts on a stream that was accepted

cdef class FaultTable:
    cdef Table *table


cdef inline Table *acquire(Table *table) noexcept nogil:
    if table != NULL:
        atomic.add_int(&table.references, 1, atomic.RELAXED)
    return table


cdef inline void release(Table *table) noexcept nogil:
    # Acquire and release: what was read through one reference is read before the memory is freed.
    if table != NULL and atomic.add_int(&table.references, -1, atomic.ACQ_REL) == 0:
        free(table)


cdef inline uint64_t mixed(uint64_t x) noexcept nogil:
    """The output function of SplitMix64 (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


cdef inline uint64_t derived(uint64_t key, uint64_t number) noexcept nogil:
    """The output of SplitMix64, seeded with `key`, at that place."""
    return mixed(key + (number + 1) * <uint64_t>0x9E3779B97F4A7C15)


cdef inline double fraction(uint64_t random) noexcept nogil:
    """From 0 up to 1, without it."""
    return <double>(random >> 11) * (1.0 / 9007199254740992.0)


cdef inline bint is_by_block(int kind) noexcept nogil:
    return (kind == counters.FAULT_CORRUPT or kind == counters.FAULT_DUPLICATE
            or kind == counters.FAULT_DROP)


cdef inline void decide(Plan *plan, Table *table) noexcept nogil:
    """Number a new connection, and decide its faults; takes the reference over.

    Of several faults of one kind it has the first whose probability is met. Those by block are
    decided for each block, so the connection has the first one.
    """
    cdef int i
    cdef Fault *fault
    cdef uint64_t number = atomic.add_u64(&table.connections, 1, atomic.RELAXED) - 1
    plan.table = table
    plan.key = derived(table.seed, number)
    plan.any = False
    for i in range(counters.FAULT_KINDS):
        plan.chosen[i] = NULL
    for i in range(table.count):
        fault = &table.faults[i]
        if plan.chosen[fault.kind] == NULL and (
                is_by_block(fault.kind)
                or fraction(derived(plan.key, <uint64_t>i)) < fault.probability):
            plan.chosen[fault.kind] = fault
            plan.any = plan.any or fault.kind < counters.FAULT_ACCEPT_DELAY


cdef inline bint hits_block(Plan *plan, int kind, uint64_t block) noexcept nogil:
    """Whether a fault by block acts on that one."""
    cdef Fault *fault = plan.chosen[kind]
    if fault == NULL:
        return False
    return fraction(derived(plan.key ^ mixed(<uint64_t>kind + 1), block)) < fault.probability
