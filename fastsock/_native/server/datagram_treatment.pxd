# Faults of datagrams: what is done to each, decided by the seed and the number of the datagram.
#
# Each fault has two random numbers for each datagram, whether they are needed or not, so that one
# seed gives the same faults however long the datagrams are. Every socket counts from 0: a client
# meets the same faults at whichever worker the kernel takes it to.

from libc.stdint cimport int64_t, uint32_t, uint64_t

cimport fastsock._native.server.counters as counters
cimport fastsock._native.server.faults as faults
from fastsock._native.server.faults cimport Fault, Table

cdef struct Treatment:              # of one datagram
    bint lost
    size_t size                     # what is left of it
    uint32_t copies
    int64_t delay                   # ns, not negative
    uint32_t behind                 # so many later datagrams; 0: it is not held back
    int64_t hold                    # for so many ns at most
    uint32_t done                   # a bit of each kind that has acted


cdef inline void treat(const Table *table, uint64_t number, char *data, size_t size,
                       Treatment *treatment) noexcept nogil:
    """Decide on the datagram `number`, from 0, of a socket; `data` may be changed.

    Of several faults of one kind the first acts whose probability is met.
    """
    cdef uint64_t key = faults.derived(table.seed, number)
    cdef uint64_t value
    cdef const Fault *fault
    treatment.lost = chosen(table, counters.FAULT_LOSS, key, &value) != NULL
    treatment.size = size
    treatment.copies = 1
    treatment.delay = treatment.hold = 0
    treatment.behind = treatment.done = 0
    if treatment.lost:
        note(treatment, counters.FAULT_LOSS)
        return
    fault = chosen(table, counters.FAULT_TRUNCATE, key, &value)
    if fault != NULL and size > <size_t>fault.size:
        treatment.size = fault.size
        note(treatment, counters.FAULT_TRUNCATE)
    # After truncate: the bit is one that is sent.
    fault = chosen(table, counters.FAULT_CORRUPT, key, &value)
    if fault != NULL and treatment.size:
        data[(value >> 3) % treatment.size] ^= 1 << (value & 7)
        note(treatment, counters.FAULT_CORRUPT)
    if chosen(table, counters.FAULT_DUPLICATE, key, &value) != NULL:
        treatment.copies = 2
        note(treatment, counters.FAULT_DUPLICATE)
    fault = chosen(table, counters.FAULT_LATENCY, key, &value)
    if fault != NULL:
        treatment.delay = fault.delay_ns + jitter(fault, value)
        note(treatment, counters.FAULT_LATENCY)
    fault = chosen(table, counters.FAULT_REORDER, key, &value)
    if fault != NULL:
        treatment.behind = <uint32_t>fault.size
        treatment.hold = fault.delay_ns


cdef inline const Fault *chosen(const Table *table, int kind, uint64_t key,
                                uint64_t *value) noexcept nogil:
    """The fault of this kind that acts, and a random number for it; or NULL."""
    cdef int i
    if table.any_of[kind]:
        for i in range(table.count):
            if (table.faults[i].kind == kind
                    and faults.fraction(faults.derived(key, 2 * i)) < table.faults[i].probability):
                value[0] = faults.derived(key, 2 * i + 1)
                return &table.faults[i]
    return NULL


cdef inline int64_t jitter(const Fault *fault, uint64_t value) noexcept nogil:
    """From -jitter to +jitter, each ns as likely."""
    cdef uint64_t spread = <uint64_t>fault.jitter_ns
    return <int64_t>(value % (2 * spread + 1)) - fault.jitter_ns


cdef inline void note(Treatment *treatment, int kind) noexcept nogil:
    treatment.done |= <uint32_t>1 << kind
