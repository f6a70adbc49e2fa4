# Checks that hold when a loop has ended: all that was taken has been given back.
#
# Only in a build with -DFASTSOCK_CHECK, as the sanitizers' builds are: the process ends with the
# check that does not hold. A server in use should rather go on.

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
