"""The records of a server's connections, which its workers write and any thread reads."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc

cimport fastsock._native.posix as posix


cdef struct Copy:                   # of a record
    uint64_t number, bytes_in, bytes_out
    bint is_open
    posix.sockaddr_storage peer
    posix.socklen_t peer_size
    size_t received, sent           # bytes behind all copies, after those of the copies before


cdef class RecordTable:
    """Records of `size` bytes received and as many sent; connections are numbered from 0."""

    def __init__(self, size_t size):
        if size == 0:
            raise ValueError("size 0 would keep no byte")
        release(self.records)
        self.records = <Records *>calloc(1, sizeof(Records))
        if self.records == NULL:
            raise MemoryError
        self.records.references = 1
        self.records.size = size
        posix.pthread_mutex_init(&self.records.lock, NULL)

    def __dealloc__(self):
        release(self.records)

    def copied(self) -> list:
        """What the fields of ConnectionRecord are made of, for each connection, oldest first.

        They are those of one moment.
        """
        # Python objects are made without the lock: a garbage collection may run any code then.
        cdef size_t i, count = 0
        cdef Copy *copies
        cdef char *data
        cdef list result = []
        with nogil:
            copies = copy_all(self.records, &count)
        if copies == NULL:
            raise MemoryError
        try:
            data = <char *>(copies + count)
            for i in range(count):
                result.append((
                    copies[i].number,
                    PyBytes_FromStringAndSize(<char *>&copies[i].peer, copies[i].peer_size),
                    PyBytes_FromStringAndSize(data, copies[i].received),
                    PyBytes_FromStringAndSize(data + copies[i].received, copies[i].sent),
                    copies[i].bytes_in,
                    copies[i].bytes_out,
                    bool(copies[i].is_open),
                ))
                data += copies[i].received + copies[i].sent
            return result
        finally:
            free(copies)


cdef Copy *copy_all(Records *records, size_t *count) noexcept nogil:
    """Copy every record, to be freed by the caller; NULL without memory."""
    cdef Record *record
    cdef Copy *copies
    cdef Copy *one
    cdef char *data
    cdef size_t bytes_ = 0
    lock(records)
    record = records.first
    while record != NULL:
        count[0] += 1
        bytes_ += held(&record.received, records.size) + held(&record.sent, records.size)
        record = record.after
    copies = <Copy *>malloc(count[0] * sizeof(Copy) + bytes_ + 1)   # malloc(0) may be NULL
    if copies != NULL:
        one, data = copies, <char *>(copies + count[0])
        record = records.first
        while record != NULL:
            one.number, one.is_open = record.number, record.is_open
            one.peer, one.peer_size = record.peer, record.peer_size
            one.bytes_in, one.bytes_out = record.received.total, record.sent.total
            one.received = read(&record.received, records.size, data)
            data += one.received
            one.sent = read(&record.sent, records.size, data)
            data += one.sent
            one += 1
            record = record.after
    unlock(records)
    return copies
