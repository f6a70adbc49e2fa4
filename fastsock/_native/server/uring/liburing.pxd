# C declarations of liburing 2.3 and later, only what is used; see io_uring(7) and its pages.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "<liburing.h>" nogil:
    unsigned int IORING_SETUP_CQSIZE, IORING_SETUP_R_DISABLED
    unsigned int IORING_SETUP_SUBMIT_ALL, IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_DEFER_TASKRUN
    unsigned int IORING_CQE_F_BUFFER, IORING_CQE_F_MORE, IORING_CQE_BUFFER_SHIFT
    unsigned int IORING_REGISTER_ENABLE_RINGS
    uint8_t IOSQE_BUFFER_SELECT

    struct io_uring_params:
        uint32_t flags
        uint32_t cq_entries

    struct io_uring_sqe:
        uint8_t flags
        uint16_t buf_group
        uint32_t file_index
        uint64_t user_data

    struct io_uring_cqe:
        uint64_t user_data
        int32_t res
        uint32_t flags

    struct io_uring:
        int ring_fd

    struct io_uring_buf:
        uint64_t addr

    struct io_uring_buf_ring:
        uint16_t tail

    struct io_uring_buf_reg:
        uint64_t ring_addr
        uint32_t ring_entries
        uint16_t bgid

    struct kernel_timespec "__kernel_timespec":
        long long tv_sec
        long long tv_nsec

    # These return a negative errno.
    int io_uring_queue_init_params(unsigned int entries, io_uring *ring, io_uring_params *params)
    int io_uring_register_buf_ring(io_uring *ring, io_uring_buf_reg *reg, unsigned int flags)
    int io_uring_submit(io_uring *ring)
    int io_uring_submit_and_get_events(io_uring *ring)
    int io_uring_submit_and_wait(io_uring *ring, unsigned int count)
    int io_uring_submit_and_wait_timeout(io_uring *ring, io_uring_cqe **cqe, unsigned int count,
                                         kernel_timespec *timeout, void *mask)
    void io_uring_queue_exit(io_uring *ring)

    io_uring_sqe *io_uring_get_sqe(io_uring *ring)
    unsigned int io_uring_cq_ready(io_uring *ring)
    unsigned int io_uring_peek_batch_cqe(io_uring *ring, io_uring_cqe **cqes, unsigned int count)
    void io_uring_cq_advance(io_uring *ring, unsigned int count)

    void io_uring_prep_multishot_accept(io_uring_sqe *sqe, int fd, void *address, void *size,
                                        int flags)
    void io_uring_prep_recv_multishot(io_uring_sqe *sqe, int fd, void *buffer, size_t size,
                                      int flags)
    void io_uring_prep_recv(io_uring_sqe *sqe, int fd, void *buffer, size_t size, int flags)
    void io_uring_prep_send(io_uring_sqe *sqe, int fd, const void *buffer, size_t size, int flags)
    void io_uring_prep_poll_add(io_uring_sqe *sqe, int fd, unsigned int events)
    void io_uring_prep_poll_multishot(io_uring_sqe *sqe, int fd, unsigned int events)
    void io_uring_prep_cancel64(io_uring_sqe *sqe, uint64_t user_data, int flags)

    void io_uring_buf_ring_init(io_uring_buf_ring *buffers)
    void io_uring_buf_ring_add(io_uring_buf_ring *buffers, void *address, unsigned int size,
                               unsigned short number, int mask, int offset)
    void io_uring_buf_ring_advance(io_uring_buf_ring *buffers, int count)
    int io_uring_buf_ring_mask(uint32_t entries)
