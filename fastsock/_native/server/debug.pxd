# What must be even when a loop has ended: all that was taken has been given back.
#
# Looked at in a build with -DFASTSOCK_CHECK alone, as the sanitizers' are; there the process ends
# with the line that does not hold. A server in use should rather go on.

cdef extern from *:
    """
    #ifdef FASTSOCK_CHECK
    #undef NDEBUG
    #include <assert.h>
    #define must_hold(condition) assert(condition)
    #else
    #define must_hold(condition) ((void)0)
    #endif
    """
    void must_hold(bint condition) noexcept nogil
