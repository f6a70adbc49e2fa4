# A ring of io_uring and the buffers that the kernel receives into.
#
# The kernel picks a buffer when data has come, not before, so the few that there are serve any
# number of connections. A buffer is away from the moment its number comes with a completion until
# `recycle()`; without one at home a receive ends with ENOBUFS.

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

cimport fastsock._native.server.uring.liburing as liburing
cimport fastsock._native.posix as posix
from fastsock._native.pages cimport map_pages, unmap_pages

cdef enum:
    BUFFER_BYTES = 4096             # what is longer is a stream, and epoll's way is faster for it
    STAGGER = 64                    # one cache line: else all buffers would begin in one cache set
    NO_BUFFER = 0xFFFF
    BATCH = 256                     # completions looked at in one go

cdef struct Buffer:                 # one that is away
    uint32_t size                   # of the data in it
    uint16_t next                   # in its connection's queue

cdef struct Ring:
    liburing.io_uring ring
    bint open
    bint failed                     # the kernel takes nothing more from it
    liburing.io_uring_sqe nowhere   # what is prepared then
    liburing.io_uring_buf_ring *shelf       # shared with the kernel: the buffers that are at home
    size_t shelf_bytes
    char *memory
    Buffer *buffers
    uint32_t count, home            # of buffers
    uint32_t buffer_size
    liburing.io_uring_cqe *batch[BATCH]


cdef inline int ring_open(Ring *ring, uint32_t entries, uint32_t results) noexcept nogil:
    """io_uring_setup(2), still disabled: the thread that enables it will be its only user.

    So a failure is known to the caller of `start()`, though the ring belongs to the loop's thread.
    0, or a negative errno.
    """
    cdef liburing.io_uring_params params
    cdef int result
    memset(&params, 0, sizeof(params))
    params.flags = (liburing.IORING_SETUP_R_DISABLED | liburing.IORING_SETUP_SINGLE_ISSUER
                    | liburing.IORING_SETUP_DEFER_TASKRUN | liburing.IORING_SETUP_SUBMIT_ALL
                    | liburing.IORING_SETUP_CQSIZE)
    params.cq_entries = results
    result = liburing.io_uring_queue_init_params(entries, &ring.ring, &params)
    ring.open = result == 0
    return result


cdef inline int ring_enable(Ring *ring) noexcept nogil:
    """From the thread that will use it; 0, or a negative errno."""
    # Not io_uring_enable_rings(): the shared library of liburing 2.3 forgot to export it.
    cdef long result = posix.syscall(posix.SYS_io_uring_register, ring.ring.ring_fd,
                                     liburing.IORING_REGISTER_ENABLE_RINGS, NULL, 0)
    return -posix.errno if result < 0 else 0


cdef inline int ring_add_buffers(Ring *ring, uint32_t count, uint32_t size) noexcept nogil:
    """Give the ring `count` buffers, a power of two; 0, or a negative errno."""
    cdef liburing.io_uring_buf_reg registration
    cdef uint32_t number
    ring.count = count
    ring.buffer_size = size
    ring.shelf_bytes = count * sizeof(liburing.io_uring_buf)
    # At once, so that no receive has to wait for a page.
    ring.shelf = <liburing.io_uring_buf_ring *>map_pages(ring.shelf_bytes, at_once=True)
    ring.memory = <char *>map_pages(<size_t>count * (size + STAGGER), at_once=True)
    ring.buffers = <Buffer *>calloc(count, sizeof(Buffer))
    if ring.shelf == NULL or ring.memory == NULL or ring.buffers == NULL:
        return -posix.ENOMEM
    memset(&registration, 0, sizeof(registration))
    registration.ring_addr = <uint64_t>ring.shelf
    registration.ring_entries = count
    liburing.io_uring_buf_ring_init(ring.shelf)
    for number in range(count):
        recycle(ring, <uint16_t>number)
    return liburing.io_uring_register_buf_ring(&ring.ring, &registration, 0)


cdef inline void ring_close(Ring *ring) noexcept nogil:
    """Also in a forked child, where it gives up the copies."""
    if ring.open:
        liburing.io_uring_queue_exit(&ring.ring)
        ring.open = False
    if ring.shelf != NULL:
        unmap_pages(ring.shelf, ring.shelf_bytes)
    if ring.memory != NULL:
        unmap_pages(ring.memory, <size_t>ring.count * (ring.buffer_size + STAGGER))
    free(ring.buffers)


cdef inline char *buffer_at(Ring *ring, uint16_t number) noexcept nogil:
    return ring.memory + <size_t>number * (ring.buffer_size + STAGGER)


cdef inline uint16_t buffer_of(uint32_t flags) noexcept nogil:
    """The number of the buffer that came with a completion, or NO_BUFFER."""
    if flags & liburing.IORING_CQE_F_BUFFER == 0:
        return NO_BUFFER
    return <uint16_t>(flags >> liburing.IORING_CQE_BUFFER_SHIFT)


cdef inline void recycle(Ring *ring, uint16_t number) noexcept nogil:
    liburing.io_uring_buf_ring_add(ring.shelf, buffer_at(ring, number), ring.buffer_size, number,
                                   liburing.io_uring_buf_ring_mask(ring.count), 0)
    liburing.io_uring_buf_ring_advance(ring.shelf, 1)
    ring.home += 1


cdef inline liburing.io_uring_sqe *new_entry(Ring *ring) noexcept nogil:
    """An entry to prepare. When all are taken, those before it are handed to the kernel now."""
    cdef liburing.io_uring_sqe *entry = liburing.io_uring_get_sqe(&ring.ring)
    while entry == NULL and not ring.failed:
        note_result(ring, liburing.io_uring_submit(&ring.ring))
        entry = liburing.io_uring_get_sqe(&ring.ring)
    return entry if entry != NULL else &ring.nowhere


cdef inline int note_result(Ring *ring, int result) noexcept nogil:
    """What io_uring_enter() returned; its negative errno if the ring can be used no more."""
    if result >= 0 or result == -posix.ETIME or result == -posix.EINTR:
        return 0
    # EAGAIN: no memory for a request now. EBUSY: completions wait for room, which there will be.
    if result == -posix.EAGAIN or result == -posix.EBUSY:
        posix.poll(NULL, 0, 1)      # never a spin
        return 0
    ring.failed = True
    return result


cdef inline int submit_and_wait(Ring *ring, int timeout_ms) noexcept nogil:
    """The one call of a turn: hand over what was prepared, and wait for a completion."""
    cdef liburing.kernel_timespec timeout
    cdef liburing.io_uring_cqe *first
    if ready(ring):
        # The others too: liburing would ask for no more than the one that is there already, and
        # what the kernel puts off (IORING_SETUP_DEFER_TASKRUN) comes to who asks alone.
        return note_result(ring, liburing.io_uring_submit_and_get_events(&ring.ring))
    if timeout_ms < 0:
        return note_result(ring, liburing.io_uring_submit_and_wait(&ring.ring, 1))
    timeout.tv_sec = timeout_ms // 1000
    timeout.tv_nsec = timeout_ms % 1000 * 1000000
    return note_result(ring, liburing.io_uring_submit_and_wait_timeout(
        &ring.ring, &first, 1, &timeout, NULL))


cdef inline int submit_and_look(Ring *ring, bint *found) noexcept nogil:
    """The same without waiting: whether a completion has come in."""
    cdef int result = note_result(ring, liburing.io_uring_submit_and_get_events(&ring.ring))
    found[0] = ready(ring) > 0
    return result


cdef inline uint32_t ready(Ring *ring) noexcept nogil:
    """How many completions have come in."""
    return liburing.io_uring_cq_ready(&ring.ring)


cdef inline uint32_t completions(Ring *ring, uint32_t most) noexcept nogil:
    """Fill `batch` with some of those that are ready; to be given back with `seen()`."""
    return liburing.io_uring_peek_batch_cqe(&ring.ring, ring.batch, min(most, <uint32_t>BATCH))


cdef inline void seen(Ring *ring, uint32_t count) noexcept nogil:
    liburing.io_uring_cq_advance(&ring.ring, count)
