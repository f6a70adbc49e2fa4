# A ring of io_uring, and the buffers that the kernel receives into.
#
# The kernel picks a buffer when data has come, not before, so a few buffers serve any number of
# connections. A buffer is in use from the completion that brings its number until recycle(); when
# none is available a receive ends with ENOBUFS.

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

cimport fastsock._native.pages as pages
cimport fastsock._native.posix as posix
cimport fastsock._native.server.transient as transient
cimport fastsock._native.server.uring.liburing as liburing

cdef enum:
    BUFFER_BYTES = 4096             # a longer piece is of a stream, which readiness serves faster
    STAGGER = 64                    # one cache line: else all buffers would begin in one cache set
    NO_BUFFER = 0xFFFF
    BATCH = 256                     # completions looked at in one go

cdef struct Buffer:                 # one that is in use
    uint32_t size                   # of the data in it
    uint16_t next                   # in its connection's queue

cdef struct Ring:
    liburing.io_uring io_uring
    bint open
    bint failed                     # the kernel takes nothing more from it
    liburing.io_uring_sqe unused_entry      # what is prepared after a failure goes here
    liburing.io_uring_buf_ring *available_ring  # shared with the kernel: the available buffers
    size_t available_ring_bytes
    char *memory
    Buffer *buffers
    uint32_t count, available       # of buffers
    uint32_t buffer_size
    liburing.io_uring_cqe *batch[BATCH]


cdef inline int open_ring(Ring *ring, uint32_t entries, uint32_t results) noexcept nogil:
    """io_uring_setup(2), disabled: the thread that enables it will be its only user.

    So a failure is known to the caller of `start()`, though the ring belongs to the loop's thread.
    Returns 0 or a negative errno.
    """
    cdef liburing.io_uring_params params
    cdef int result
    memset(&params, 0, sizeof(params))
    params.flags = (liburing.IORING_SETUP_R_DISABLED | liburing.IORING_SETUP_SINGLE_ISSUER
                    | liburing.IORING_SETUP_DEFER_TASKRUN | liburing.IORING_SETUP_SUBMIT_ALL
                    | liburing.IORING_SETUP_CQSIZE)
    params.cq_entries = results
    result = liburing.io_uring_queue_init_params(entries, &ring.io_uring, &params)
    ring.open = result == 0
    return result


cdef inline int enable(Ring *ring) noexcept nogil:
    """Called by the thread that will use the ring; 0 or a negative errno."""
    # Not io_uring_enable_rings(): the shared library of liburing 2.3 does not export it.
    cdef long result = posix.syscall(posix.SYS_io_uring_register, ring.io_uring.ring_fd,
                                     liburing.IORING_REGISTER_ENABLE_RINGS, NULL, 0)
    return -posix.errno if result < 0 else 0


cdef inline int add_buffers(Ring *ring, uint32_t count, uint32_t size) noexcept nogil:
    """Give the ring `count` buffers, a power of two; 0 or a negative errno."""
    cdef liburing.io_uring_buf_reg registration
    cdef uint32_t number
    ring.count = count
    ring.buffer_size = size
    ring.available_ring_bytes = count * sizeof(liburing.io_uring_buf)
    # Populated, so that no receive has to wait for a page.
    ring.available_ring = <liburing.io_uring_buf_ring *>pages.map(ring.available_ring_bytes,
                                                                  populate=True)
    ring.memory = <char *>pages.map(<size_t>count * (size + STAGGER), populate=True)
    ring.buffers = <Buffer *>calloc(count, sizeof(Buffer))
    if ring.available_ring == NULL or ring.memory == NULL or ring.buffers == NULL:
        return -posix.ENOMEM
    memset(&registration, 0, sizeof(registration))
    registration.ring_addr = <uint64_t>ring.available_ring
    registration.ring_entries = count
    liburing.io_uring_buf_ring_init(ring.available_ring)
    for number in range(count):
        recycle(ring, <uint16_t>number)
    return liburing.io_uring_register_buf_ring(&ring.io_uring, &registration, 0)


cdef inline void close_ring(Ring *ring) noexcept nogil:
    """Also in a forked child, where it gives up the copies."""
    if ring.open:
        liburing.io_uring_queue_exit(&ring.io_uring)
        ring.open = False
    if ring.available_ring != NULL:
        pages.unmap(ring.available_ring, ring.available_ring_bytes)
    if ring.memory != NULL:
        pages.unmap(ring.memory, <size_t>ring.count * (ring.buffer_size + STAGGER))
    free(ring.buffers)


# --- buffers ------------------------------------------------------------------------------------

cdef inline char *buffer_at(Ring *ring, uint16_t number) noexcept nogil:
    return ring.memory + <size_t>number * (ring.buffer_size + STAGGER)


cdef inline uint16_t buffer_of(uint32_t flags) noexcept nogil:
    """The number of the buffer that came with a completion, or NO_BUFFER."""
    if flags & liburing.IORING_CQE_F_BUFFER == 0:
        return NO_BUFFER
    return <uint16_t>(flags >> liburing.IORING_CQE_BUFFER_SHIFT)


cdef inline void recycle(Ring *ring, uint16_t number) noexcept nogil:
    """Make a buffer available again."""
    liburing.io_uring_buf_ring_add(ring.available_ring, buffer_at(ring, number), ring.buffer_size,
                                   number, liburing.io_uring_buf_ring_mask(ring.count), 0)
    liburing.io_uring_buf_ring_advance(ring.available_ring, 1)
    ring.available += 1


# --- submissions and completions ----------------------------------------------------------------

cdef inline liburing.io_uring_sqe *new_entry(Ring *ring) noexcept nogil:
    """An entry to prepare. When all are taken, those before it are submitted now."""
    cdef liburing.io_uring_sqe *entry = liburing.io_uring_get_sqe(&ring.io_uring)
    while entry == NULL and not ring.failed:
        check_result(ring, liburing.io_uring_submit(&ring.io_uring))
        entry = liburing.io_uring_get_sqe(&ring.io_uring)
    return entry if entry != NULL else &ring.unused_entry


cdef inline int check_result(Ring *ring, int result) noexcept nogil:
    """What io_uring_enter() returned; its negative errno if the ring can be used no more."""
    if result >= 0:
        return 0
    if not transient.io_uring_enter_can_pass(-result):
        ring.failed = True
        return result
    if result == -posix.EAGAIN or result == -posix.EBUSY:
        posix.poll(NULL, 0, 1)      # never a spin
    return 0


cdef inline int submit_and_wait(Ring *ring, int timeout_ms) noexcept nogil:
    """The one call of a turn: submit what was prepared, and wait for a completion."""
    cdef liburing.kernel_timespec timeout
    cdef liburing.io_uring_cqe *first
    if ready(ring):
        # Also get the others: liburing would ask for no more than the one that is there, and what
        # the kernel puts off (IORING_SETUP_DEFER_TASKRUN) comes only when it is asked for.
        return check_result(ring, liburing.io_uring_submit_and_get_events(&ring.io_uring))
    if timeout_ms < 0:
        return check_result(ring, liburing.io_uring_submit_and_wait(&ring.io_uring, 1))
    timeout.tv_sec = timeout_ms // 1000
    timeout.tv_nsec = timeout_ms % 1000 * 1000000
    return check_result(ring, liburing.io_uring_submit_and_wait_timeout(
        &ring.io_uring, &first, 1, &timeout, NULL))


cdef inline int submit_and_peek(Ring *ring, bint *found) noexcept nogil:
    """The same without waiting; `found` is whether a completion has come in."""
    cdef int result = check_result(ring, liburing.io_uring_submit_and_get_events(&ring.io_uring))
    found[0] = ready(ring) > 0
    return result


cdef inline uint32_t ready(Ring *ring) noexcept nogil:
    """How many completions have come in."""
    return liburing.io_uring_cq_ready(&ring.io_uring)


cdef inline uint32_t peek_batch(Ring *ring, uint32_t most) noexcept nogil:
    """Fill `batch` with some of the completions that are ready; release() gives them back."""
    return liburing.io_uring_peek_batch_cqe(&ring.io_uring, ring.batch, min(most, <uint32_t>BATCH))


cdef inline void release(Ring *ring, uint32_t count) noexcept nogil:
    liburing.io_uring_cq_advance(&ring.io_uring, count)
