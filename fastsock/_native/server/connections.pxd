# The connections of one loop, by slot number.
#
# Records come in chunks that never move, so the address of a record holds for good, also in the
# copy of the memory that a fork makes. The kernel is given a token, which holds the record's
# generation too: an event for a connection that has closed never reaches the next in its slot.

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

cimport fastsock._native.posix as posix
cimport fastsock._native.server.connection as connection
from fastsock._native.server.connection cimport Connection
from fastsock._native.server.context cimport Context

cdef enum:
    CHUNK_BITS = 10
    CHUNK_SLOTS = 1 << CHUNK_BITS   # records are allocated in chunks of so many
    CHUNKS_MAX = 1024
    NO_SLOT = 0xFFFFFFFF
    # Tokens that no slot has: of descriptors that are not connections.
    LISTENER = 0xFFFFFFFF
    WAKE = 0xFFFFFFFE

cdef struct Connections:
    Connection *chunks[CHUNKS_MAX]
    uint32_t slots                  # in all chunks
    uint32_t first_free
    uint32_t open


cdef inline void init(Connections *connections) noexcept nogil:
    connections.slots = connections.open = 0
    connections.first_free = NO_SLOT


cdef inline void free_chunks(Connections *connections) noexcept nogil:
    cdef uint32_t chunk
    for chunk in range(connections.slots >> CHUNK_BITS):
        free(connections.chunks[chunk])


cdef inline Connection *at(Connections *connections, uint32_t slot) noexcept nogil:
    return &connections.chunks[slot >> CHUNK_BITS][slot & (CHUNK_SLOTS - 1)]


cdef inline uint64_t token_of(Connection *conn, uint32_t slot) noexcept nogil:
    return <uint64_t>conn.generation << 32 | slot


cdef inline Connection *at_token(Connections *connections, uint64_t token) noexcept nogil:
    """The connection that `token` was made for, or NULL if it has closed."""
    cdef Connection *conn = at(connections, <uint32_t>token)
    if conn.fd >= 0 and conn.generation == <uint32_t>(token >> 32):
        return conn
    return NULL


cdef inline uint32_t add(Connections *connections, Context *context, int fd) noexcept nogil:
    """Give `fd` a slot; NO_SLOT without memory."""
    cdef uint32_t slot
    cdef Connection *conn
    if connections.first_free == NO_SLOT and not add_chunk(connections):
        return NO_SLOT
    slot = connections.first_free
    conn = at(connections, slot)
    connections.first_free = conn.next_free
    connection.init(conn, context, fd)
    connections.open += 1
    return slot


cdef inline void remove(Connections *connections, Context *context,
                        uint32_t slot) noexcept nogil:
    """Step 8: close the connection and free its slot."""
    cdef int fd = at(connections, slot).fd
    # Before close(): a forked child must not close a number that was reused meanwhile.
    free_slot(connections, context, slot)
    posix.close(fd)


cdef inline void free_slot(Connections *connections, Context *context,
                           uint32_t slot) noexcept nogil:
    """Free a slot; its descriptor is the caller's again."""
    cdef Connection *conn = at(connections, slot)
    conn.fd = -1
    connection.free_unsent(conn, context)
    conn.next_free = connections.first_free
    connections.first_free = slot
    connections.open -= 1


cdef inline void close_copies(Connections *connections) noexcept nogil:
    """In a forked child: close its copies of all descriptors."""
    cdef uint32_t slot
    for slot in range(connections.slots):
        if at(connections, slot).fd >= 0:
            posix.close(at(connections, slot).fd)


cdef inline bint add_chunk(Connections *connections) noexcept nogil:
    cdef uint32_t first = connections.slots, i
    cdef Connection *chunk
    if first >> CHUNK_BITS == CHUNKS_MAX:
        return False
    chunk = <Connection *>calloc(CHUNK_SLOTS, sizeof(Connection))
    if chunk == NULL:
        return False
    for i in range(<uint32_t>CHUNK_SLOTS):
        chunk[i].fd = -1
        chunk[i].next_free = first + i + 1 if i + 1 < CHUNK_SLOTS else NO_SLOT
    connections.chunks[first >> CHUNK_BITS] = chunk
    connections.slots += CHUNK_SLOTS
    connections.first_free = first
    return True
