# The payload: a fixed stretch of pseudo-random bytes, repeated with a prime period.
#
# A connection's stream is the pattern from an offset of its own. A byte lost, doubled or moved
# shifts all that follows, and a byte of another connection stands at another place, so both show
# up in a comparison. The period is prime, and so no multiple of any buffer size: a buffer lost
# whole is a shift too. Messages need no copy: they are sent from where they stand in the table.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    PERIOD = 65537
    STRIDE = 40503                  # between connections; with a prime period none shares a place
    PIECE = 262144                  # most bytes that are sent, received or compared at once


cdef inline void fill(char *table) noexcept nogil:
    """Fill `table`, of PERIOD + PIECE bytes: any piece of the stream stands in it unbroken."""
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
