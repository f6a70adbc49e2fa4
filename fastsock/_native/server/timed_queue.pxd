# Answers that are sent later: a binary heap by the time of sending, then by the order of arrival.
#
# The queue is bounded, in datagrams and in bytes. A datagram that is held back, to be sent behind
# later ones of its client, is in the heap too, with the time at which it is sent in any case; a
# table finds it by its client. When it is sent is decided by what comes, not by what was sent: one
# client's order does not depend on how its datagrams are received.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix
from fastsock._native.ancillary cimport Control

cdef enum:
    DATAGRAMS_MAX = 65536
    BYTES_MAX = 64 << 20            # with what the queue keeps for each datagram
    CLIENT_PLACES = 1024            # of the table; a power of 2

cdef struct Answer:                 # the bytes of the datagram are behind it
    int64_t due                     # when it is sent, CLOCK_MONOTONIC ns
    uint64_t order                  # among those that are due at the same time
    uint32_t place                  # in the heap
    uint32_t copies                 # how often it is sent
    uint32_t behind                 # it is held back behind so many later ones; 0: it is not
    uint32_t overtaken              # by so many of those that came up to now
    uint32_t done                   # the faults, a bit of each kind
    Answer *next_held               # with the same place in the table
    size_t size
    posix.sockaddr_storage client
    posix.socklen_t client_size
    size_t control_size
    Control control                 # the address that was asked

cdef struct TimedQueue:             # all 0 before init()
    Answer **heap
    uint32_t count
    size_t bytes
    uint64_t next_order
    Answer *held[CLIENT_PLACES]


cdef inline bint init(TimedQueue *queue) noexcept nogil:
    # Pages of the heap that are not reached are not used.
    queue.heap = <Answer **>malloc(DATAGRAMS_MAX * sizeof(Answer *))
    return queue.heap != NULL


cdef inline Answer *add(TimedQueue *queue, const posix.msghdr *message, const char *data,
                        size_t size, int64_t due) noexcept nogil:
    """Add a copy of a datagram; `message` has its client and control messages. NULL: no room."""
    cdef size_t needed = sizeof(Answer) + size
    cdef Answer *answer
    if queue.count == DATAGRAMS_MAX or needed > BYTES_MAX - queue.bytes:
        return NULL
    answer = <Answer *>malloc(needed)
    if answer == NULL:
        return NULL
    memset(answer, 0, sizeof(Answer))
    answer.due = due
    answer.order = queue.next_order
    answer.copies = 1
    answer.size = size
    answer.client_size = message.msg_namelen
    memcpy(&answer.client, message.msg_name, message.msg_namelen)
    answer.control_size = message.msg_controllen
    memcpy(&answer.control, message.msg_control, message.msg_controllen)
    memcpy(answer + 1, data, size)
    queue.next_order += 1
    queue.bytes += needed
    queue.count += 1
    move_up(queue, answer, queue.count - 1)
    return answer


cdef inline int64_t next_due(const TimedQueue *queue) noexcept nogil:
    """When the first answer is to be sent; NEVER if there is none."""
    return queue.heap[0].due if queue.count else clock.NEVER


cdef inline Answer *take_first(TimedQueue *queue) noexcept nogil:
    """Take the first answer out; the caller gives it to release()."""
    cdef Answer *first = queue.heap[0]
    queue.count -= 1
    if queue.count:
        move_down(queue, queue.heap[queue.count], 0)
    if first.behind:
        forget_held(queue, first)
    return first


cdef inline void release(TimedQueue *queue, Answer *answer) noexcept nogil:
    queue.bytes -= sizeof(Answer) + answer.size
    free(answer)


cdef inline void clear(TimedQueue *queue) noexcept nogil:
    """Release all answers; the queue is used no more."""
    cdef uint32_t place
    for place in range(queue.count):
        release(queue, queue.heap[place])
    queue.count = 0


# --- the heap -----------------------------------------------------------------------------------

cdef inline bint is_before(const Answer *one, const Answer *other) noexcept nogil:
    return one.due < other.due or (one.due == other.due and one.order < other.order)


cdef inline void put(TimedQueue *queue, Answer *answer, uint32_t place) noexcept nogil:
    queue.heap[place] = answer
    answer.place = place


cdef inline void move_up(TimedQueue *queue, Answer *answer, uint32_t place) noexcept nogil:
    """Put it into `place`, which is free, or into one nearer to the first."""
    cdef uint32_t above
    while place:
        above = (place - 1) // 2
        if not is_before(answer, queue.heap[above]):
            break
        put(queue, queue.heap[above], place)
        place = above
    put(queue, answer, place)


cdef inline void move_down(TimedQueue *queue, Answer *answer, uint32_t place) noexcept nogil:
    """Put it into `place`, which is free, or into one nearer to the last."""
    cdef uint32_t below = 2 * place + 1
    while below < queue.count:
        if below + 1 < queue.count and is_before(queue.heap[below + 1], queue.heap[below]):
            below += 1
        if not is_before(queue.heap[below], answer):
            break
        put(queue, queue.heap[below], place)
        place = below
        below = 2 * place + 1
    put(queue, answer, place)


# --- what is held back --------------------------------------------------------------------------

cdef inline uint32_t table_place(const void *client, posix.socklen_t size) noexcept nogil:
    """FNV-1a (draft-eastlake-fnv) of the client's address."""
    cdef const unsigned char *bytes = <const unsigned char *>client
    cdef uint32_t value = <uint32_t>2166136261
    cdef posix.socklen_t i
    for i in range(size):
        value = (value ^ bytes[i]) * <uint32_t>16777619
    return (value ^ value >> 16) & (CLIENT_PLACES - 1)


cdef inline Answer *held_of(TimedQueue *queue, const void *client,
                            posix.socklen_t size) noexcept nogil:
    """The answer that is held back for this client, or NULL."""
    cdef Answer *answer = queue.held[table_place(client, size)]
    while answer != NULL and (answer.client_size != size
                              or memcmp(&answer.client, client, size) != 0):
        answer = answer.next_held
    return answer


cdef inline void hold(TimedQueue *queue, Answer *answer, uint32_t behind) noexcept nogil:
    """Send it behind so many later ones of its client; its `due` is the limit."""
    cdef uint32_t place = table_place(&answer.client, answer.client_size)
    answer.behind = behind
    answer.next_held = queue.held[place]
    queue.held[place] = answer


cdef inline void forget_held(TimedQueue *queue, Answer *answer) noexcept nogil:
    cdef Answer **link = &queue.held[table_place(&answer.client, answer.client_size)]
    while link[0] != answer:
        link = &link[0].next_held
    link[0] = answer.next_held


cdef inline void overtake(TimedQueue *queue, Answer *held, const Answer *later) noexcept nogil:
    """Note that `later` came; if no more are awaited, `held` is sent right behind it."""
    if later.due >= held.due:
        return                      # the limit comes before
    held.overtaken += 1
    if held.overtaken == held.behind:
        forget_held(queue, held)
        held.behind = 0
        held.due = later.due
        held.order = queue.next_order
        queue.next_order += 1
        move_up(queue, held, held.place)
