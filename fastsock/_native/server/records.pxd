# The last bytes of each connection: the option `record`, for tests that fail.
#
# One lock per server is over all of it. It is held while bytes are sent, so that a client which has
# an answer finds it recorded; those calls of send() do not wait. Nothing here is for speed.

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

cimport fastsock._native.atomic as atomic
cimport fastsock._native.posix as posix

cdef enum:
    ENDED_MAX = 64                  # ended connections whose records are kept

cdef struct Ring:                   # of Records.size bytes, behind the record
    char *start
    uint64_t total                  # bytes that were written to it; the next is at `total % size`

cdef struct Record:                 # of one connection
    Records *records
    Record *before                  # in the order of the numbers
    Record *after
    Record *ended_after             # in the order of the ends
    uint64_t number
    bint is_open
    posix.sockaddr_storage peer
    posix.socklen_t peer_size       # 0: not known
    Ring received
    Ring sent

cdef struct Records:                # of one server
    int references
    posix.pthread_mutex_t lock
    size_t size                     # bytes that are kept in each direction
    uint64_t numbered               # connections
    Record *first
    Record *last
    Record *first_ended
    Record *last_ended
    int ended

cdef class RecordTable:
    cdef Records *records


cdef inline Records *acquire(Records *records) noexcept nogil:
    if records != NULL:
        atomic.add_int(&records.references, 1, atomic.RELAXED)
    return records


cdef inline void release(Records *records) noexcept nogil:
    """With the last reference all records are freed; no handler runs any more then."""
    cdef Record *record
    if records != NULL and atomic.add_int(&records.references, -1, atomic.ACQ_REL) == 0:
        while records.first != NULL:
            record = records.first
            records.first = record.after
            free(record)
        free(records)


cdef inline void lock(Records *records) noexcept nogil:
    posix.pthread_mutex_lock(&records.lock)


cdef inline void unlock(Records *records) noexcept nogil:
    posix.pthread_mutex_unlock(&records.lock)


# --- one connection -----------------------------------------------------------------------------

cdef inline Record *begin(Records *records, int fd) noexcept nogil:
    """The record of a new connection; NULL without memory."""
    cdef Record *record = <Record *>malloc(sizeof(Record) + 2 * records.size)
    if record == NULL:
        return NULL
    memset(record, 0, sizeof(Record))
    record.records = records
    record.is_open = True
    record.received.start = <char *>(record + 1)
    record.sent.start = record.received.start + records.size
    record.peer_size = sizeof(record.peer)
    # ENOTCONN: the client has reset the connection already.
    if posix.getpeername(fd, <posix.sockaddr *>&record.peer, &record.peer_size) != 0:
        record.peer_size = 0
    lock(records)
    record.number = records.numbered
    records.numbered += 1
    record.before = records.last
    if records.last != NULL:
        records.last.after = record
    else:
        records.first = record
    records.last = record
    unlock(records)
    return record


cdef inline void undo_begin(Record *record) noexcept nogil:
    """The connection got no thread, and is tried again later."""
    cdef Records *records
    if record == NULL:
        return
    records = record.records
    lock(records)
    if record.number + 1 == records.numbered:   # if not, another worker has given out the next
        records.numbered -= 1
    remove(record)
    unlock(records)


cdef inline void note_end(Record *record) noexcept nogil:
    """The connection has ended; the record may be freed from here on."""
    cdef Records *records
    cdef Record *oldest
    if record == NULL:
        return
    records = record.records
    lock(records)
    record.is_open = False
    if records.last_ended != NULL:
        records.last_ended.ended_after = record
    else:
        records.first_ended = record
    records.last_ended = record
    records.ended += 1
    if records.ended > ENDED_MAX:
        oldest = records.first_ended
        records.first_ended = oldest.ended_after
        records.ended -= 1
        remove(oldest)
    unlock(records)


cdef inline void remove(Record *record) noexcept nogil:
    """Free a record; the lock is held."""
    cdef Records *records = record.records
    if record.before != NULL:
        record.before.after = record.after
    else:
        records.first = record.after
    if record.after != NULL:
        record.after.before = record.before
    else:
        records.last = record.before
    free(record)


cdef inline void note_received(Record *record, const char *data, size_t size) noexcept nogil:
    if record != NULL:
        lock(record.records)
        write(&record.received, record.records.size, data, size)
        unlock(record.records)


cdef inline ssize_t send(Record *record, int fd, const char *data, size_t size) noexcept nogil:
    """send() without waiting, and record what it took."""
    cdef ssize_t sent
    cdef int flags = posix.MSG_NOSIGNAL | posix.MSG_DONTWAIT
    if record == NULL:
        return posix.send(fd, data, size, flags)
    lock(record.records)
    sent = posix.send(fd, data, size, flags)
    if sent > 0:
        write(&record.sent, record.records.size, data, sent)
    unlock(record.records)          # leaves errno as it is
    return sent


# --- the rings ----------------------------------------------------------------------------------

cdef inline void write(Ring *ring, size_t size, const char *data, size_t length) noexcept nogil:
    cdef size_t at, until_end
    if length > size:               # only the last bytes of it would stay
        ring.total += length - size
        data += length - size
        length = size
    at = ring.total % size
    until_end = min(length, size - at)
    memcpy(ring.start + at, data, until_end)
    memcpy(ring.start, data + until_end, length - until_end)
    ring.total += length


cdef inline size_t held(const Ring *ring, size_t size) noexcept nogil:
    return <size_t>min(ring.total, <uint64_t>size)


cdef inline size_t read(const Ring *ring, size_t size, char *target) noexcept nogil:
    """Copy what the ring holds, the oldest byte first; return how much that is."""
    cdef size_t at = ring.total % size
    if ring.total < size:
        memcpy(target, ring.start, at)
        return at
    memcpy(target, ring.start + at, size - at)
    memcpy(target + size - at, ring.start, at)
    return size
