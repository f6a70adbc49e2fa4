# The payload: a fixed stretch of pseudo-random bytes, repeated with a prime period.
#
# The stream of each connection is the pattern from a different offset. A lost, doubled or moved
# byte shifts all bytes after it, and a byte of another connection has another place in the
# pattern: a comparison detects both. The period is prime, so it is no multiple of a buffer's size:
# the loss of a whole buffer is a shift too. Messages are sent from the table, without a copy.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    PERIOD = 65537
    STRIDE = 40503                  # between connections; as the period is prime, offsets differ
    PIECE = 262144                  # bytes; the most that one call sends, receives or compares


cdef inline void fill(char *table) noexcept nogil:
    """Fill `table`, PERIOD + PIECE bytes: it holds a whole piece from any offset on."""
    cdef uint64_t state = 0x9E3779B97F4A7C15u
    cdef uint32_t i
    for i in range(<uint32_t>PERIOD):
        state ^= state << 13        # xorshift64 (Marsaglia 2003)
        state ^= state >> 7
        state ^= state << 17
        table[i] = <char>(state >> 32)
    for i in range(<uint32_t>PIECE):
        table[PERIOD + i] = table[i]


cdef inline uint32_t offset_of(uint32_t connection) noexcept nogil:
    return <uint32_t>(<uint64_t>connection * STRIDE % PERIOD)


cdef inline uint32_t advance(uint32_t offset, size_t size) noexcept nogil:
    offset += <uint32_t>size
    while offset >= PERIOD:
        offset -= PERIOD
    return offset
