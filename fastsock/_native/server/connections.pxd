# The connections of one loop, by slot number.
#
# Records come in chunks that never move, so a record's address holds for good, also in the copy of
# the memory that a fork makes. A slot is known outside by a token, which holds its generation too:
# an event that was reported for one owner never reaches the next, not even within one batch.

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

cimport fastsock._native.posix as posix
from fastsock._native.server.connection cimport Connection, first_awaits, forget_rest
from fastsock._native.server.engine cimport Context

cdef enum:
    CHUNK_BITS = 10
    CHUNK_SLOTS = 1 << CHUNK_BITS   # records are allocated so many at a time
    CHUNKS_MAX = 1024
    NO_SLOT = 0xFFFFFFFF
    # Tokens that no slot has: for descriptors in the same event list that are not connections.
    LISTENER = 0xFFFFFFFF
    WAKE = 0xFFFFFFFE

cdef struct Table:
    Connection *chunks[CHUNKS_MAX]
    uint32_t slots                  # in all chunks
    uint32_t first_free
    uint32_t open


cdef inline void table_init(Table *table) noexcept nogil:
    table.slots = table.open = 0
    table.first_free = NO_SLOT


cdef inline void table_free(Table *table) noexcept nogil:
    cdef uint32_t chunk
    for chunk in range(table.slots >> CHUNK_BITS):
        free(table.chunks[chunk])


cdef inline Connection *connection_at(Table *table, uint32_t slot) noexcept nogil:
    return &table.chunks[slot >> CHUNK_BITS][slot & (CHUNK_SLOTS - 1)]


cdef inline uint64_t token_of(Connection *connection, uint32_t slot) noexcept nogil:
    return <uint64_t>connection.generation << 32 | slot


cdef inline Connection *owner_of(Table *table, uint64_t token) noexcept nogil:
    """The connection that `token` was made for, or NULL if it is gone."""
    cdef Connection *connection = connection_at(table, <uint32_t>token)
    if connection.fd >= 0 and connection.generation == <uint32_t>(token >> 32):
        return connection
    return NULL


cdef inline uint32_t add_connection(Table *table, Context *context, int fd) noexcept nogil:
    """Give `fd` a slot; NO_SLOT without memory."""
    cdef uint32_t slot
    cdef Connection *connection
    if table.first_free == NO_SLOT and not add_chunk(table):
        return NO_SLOT
    slot = table.first_free
    connection = connection_at(table, slot)
    table.first_free = connection.next_free
    connection.generation += 1
    connection.awaits = first_awaits(context)
    connection.active_at = context.now
    connection.line_matched = 0
    connection.rest_start = 0
    connection.streaming = connection.closing = False
    connection.fd = fd
    table.open += 1
    return slot


cdef inline void remove_connection(Table *table, Context *context, uint32_t slot) noexcept nogil:
    """Step 8: close it and free its slot."""
    cdef int fd = connection_at(table, slot).fd
    vacate(table, context, slot)    # before close(): a forked child must not close a reused number
    posix.close(fd)


cdef inline void vacate(Table *table, Context *context, uint32_t slot) noexcept nogil:
    """Free a slot; its descriptor is the caller's again."""
    cdef Connection *connection = connection_at(table, slot)
    connection.fd = -1
    forget_rest(connection, context)
    connection.next_free = table.first_free
    table.first_free = slot
    table.open -= 1


cdef inline void close_copies(Table *table) noexcept nogil:
    """In a forked child: close its copies of all descriptors."""
    cdef uint32_t slot
    for slot in range(table.slots):
        if connection_at(table, slot).fd >= 0:
            posix.close(connection_at(table, slot).fd)


cdef inline bint add_chunk(Table *table) noexcept nogil:
    cdef uint32_t first = table.slots, i
    cdef Connection *chunk
    if first >> CHUNK_BITS == CHUNKS_MAX:
        return False
    chunk = <Connection *>calloc(CHUNK_SLOTS, sizeof(Connection))
    if chunk == NULL:
        return False
    for i in range(<uint32_t>CHUNK_SLOTS):
        chunk[i].fd = -1
        chunk[i].next_free = first + i + 1 if i + 1 < CHUNK_SLOTS else NO_SLOT
    table.chunks[first >> CHUNK_BITS] = chunk
    table.slots += CHUNK_SLOTS
    table.first_free = first
    return True
