"""The floor: what one echo costs in the kernel, without a server and a client around it."""

from libc.stdint cimport int64_t

cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix


def round_trips(int a, int b, size_t size, int64_t duration_ns) -> tuple:
    """Do ``send recv send recv`` over the connected pair `a`, `b` in this thread.

    Both are blocking sockets of this process; `size` is in bytes, at most 64 KiB. No call blocks,
    because the bytes to receive were sent just before. Returns (echoes, elapsed ns). Raises
    ConnectionError when a call fails.
    """
    cdef char buffer[65536]
    cdef int64_t start = clock.monotonic_ns(), now = start
    cdef unsigned long long echoes = 0
    cdef bint ok = True
    if not 0 < size <= sizeof(buffer):
        raise ValueError(f"size {size} is not between 1 and {sizeof(buffer)} bytes")
    with nogil:
        while ok and now - start < duration_ns:
            ok = transfer(a, b, buffer, size) and transfer(b, a, buffer, size)
            echoes += 1
            now = clock.monotonic_ns()
    if not ok:
        raise ConnectionError("the connected pair failed")
    return echoes, now - start


cdef inline bint transfer(int source, int target, char *buffer, size_t size) noexcept nogil:
    """Send `size` bytes from `source` and receive them all at `target`."""
    cdef ssize_t received
    cdef size_t left = size
    if posix.send(source, buffer, size, posix.MSG_NOSIGNAL) != <ssize_t>size:
        return False
    while left:
        received = posix.recv(target, buffer, left, 0)
        if received <= 0:
            return False
        left -= received
    return True
