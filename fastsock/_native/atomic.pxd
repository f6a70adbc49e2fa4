# Compiler built-ins for what two threads share: one side writes, the other may look at any time.
# Relaxed 64-bit loads and stores are plain moves on x86-64 and AArch64, so counting costs nothing.

from libc.stdint cimport int64_t, uint64_t

cdef extern from * nogil:
    int RELAXED "__ATOMIC_RELAXED"
    int ACQUIRE "__ATOMIC_ACQUIRE"
    int RELEASE "__ATOMIC_RELEASE"
    int ACQ_REL "__ATOMIC_ACQ_REL"
    int SEQ_CST "__ATOMIC_SEQ_CST"

    int load_int "__atomic_load_n"(const int *source, int order)
    void store_int "__atomic_store_n"(int *target, int value, int order)
    int add_int "__atomic_add_fetch"(int *target, int amount, int order)
    int64_t load_i64 "__atomic_load_n"(const int64_t *source, int order)
    void store_i64 "__atomic_store_n"(int64_t *target, int64_t value, int order)
    uint64_t load_u64 "__atomic_load_n"(const uint64_t *source, int order)
    uint64_t add_u64 "__atomic_add_fetch"(uint64_t *target, uint64_t amount, int order)
    void store_u64 "__atomic_store_n"(uint64_t *target, uint64_t value, int order)
    void *swap_pointer "__atomic_exchange_n"(void **target, void *value, int order)
    bint swap_i64 "__atomic_compare_exchange_n"(int64_t *target, int64_t *expected, int64_t value,
                                                bint weak, int success, int failure)


cdef inline void count(uint64_t *counter, uint64_t amount) noexcept nogil:
    """Add to a counter that only this thread writes: no locked instruction is needed."""
    store_u64(counter, load_u64(counter, RELAXED) + amount, RELAXED)


cdef inline void lower_i64(int64_t *target, int64_t value) noexcept nogil:
    """target = min(target, value), safe against other threads doing the same."""
    cdef int64_t seen = load_i64(target, RELAXED)
    while value < seen:
        if swap_i64(target, &seen, value, False, RELEASE, RELAXED):
            return
