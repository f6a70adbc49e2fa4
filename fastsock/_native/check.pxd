# errno to OSError, in one place.

cimport fastsock._native.posix as posix

cdef inline object os_error(int error, str step, str where, str hint=""):
    """The OSError subclass that `error` picks; its text names the step and the address."""
    import os
    text = f"{step} {where}: {os.strerror(error)}" if where else f"{step}: {os.strerror(error)}"
    return OSError(error, f"{text} ({hint})" if hint else text)


cdef inline str forbidden(int error):
    """The hint for a call that every kernel in use has, and that a sandbox may refuse."""
    if error == posix.ENOSYS or error == posix.EPERM:
        return "a seccomp filter may forbid it"
    return ""
