# The services: the three oldest of the Internet, and the line that ends an echo.
#
#   echo     RFC 862   what comes in goes back
#   discard  RFC 863   what comes in is thrown away
#   chargen  RFC 864   lines of 72 printable characters, each starting one character later

from libc.stdint cimport uint32_t
from libc.stdlib cimport malloc

cdef enum:
    ECHO
    DISCARD
    CHARGEN

cdef enum:
    FIRST_CHARACTER = 32            # the 95 printable characters of ASCII, space to tilde
    CHARACTERS = 95
    LINE_CHARACTERS = 72
    LINE_BYTES = LINE_CHARACTERS + 2    # with CR and LF
    PERIOD = CHARACTERS * LINE_BYTES    # after so many bytes the lines repeat
    NO_MATCH = 0xFFFFFFFF


cdef inline int by_name(str name) except -1:
    return ("echo", "discard", "chargen").index(name)


cdef inline char *chargen_table(size_t piece) noexcept nogil:
    """The lines, repeated until `piece` bytes from any place of the period are contiguous."""
    cdef size_t size = PERIOD + piece, i, line, column
    cdef char *table = <char *>malloc(size)
    if table == NULL:
        return NULL
    for i in range(size):
        line, column = i // LINE_BYTES % CHARACTERS, i % LINE_BYTES
        if column < LINE_CHARACTERS:
            table[i] = <char>(FIRST_CHARACTER + (line + column) % CHARACTERS)
        else:
            table[i] = 13 if column == LINE_CHARACTERS else 10
    return table


cdef inline size_t end_of_line(uint32_t *matched, const char *line, uint32_t line_size,
                               const char *data, size_t size) noexcept nogil:
    """Look for a line equal to `line` in a stream that comes in pieces.

    `matched` is how much of the current line has matched so far, kept between pieces; a CR before
    the LF belongs to the line's end. Returns the bytes of this piece up to and including the LF
    that ended such a line, or 0.
    """
    cdef size_t i
    cdef char byte
    for i in range(size):
        byte = data[i]
        if byte == 10:
            if matched[0] == line_size or matched[0] == line_size + 1:
                return i + 1
            matched[0] = 0
        elif matched[0] < line_size and byte == line[matched[0]]:
            matched[0] += 1
        elif matched[0] == line_size and byte == 13:
            matched[0] += 1
        else:
            matched[0] = NO_MATCH
    return 0
