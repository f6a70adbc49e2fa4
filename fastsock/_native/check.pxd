# errno to OSError, in one place.

cdef inline object os_error(int error, str step, str where, str hint=""):
    """The OSError subclass that `error` picks; its text names the step and the address."""
    import os
    text = f"{step} {where}: {os.strerror(error)}" if where else f"{step}: {os.strerror(error)}"
    return OSError(error, f"{text} ({hint})" if hint else text)
