# What a loop waits for (epoll(7) calls it the interest list): watched by epoll, or by poll.
#
# epoll costs nothing for a descriptor that is not ready. A place in the list that poll(2) is given
# costs about a third of an event of epoll, but at every turn. So a descriptor that is ready at most
# turns is cheaper in the poll list, and any other one in epoll, whose own descriptor heads the poll
# list. Each descriptor has a credit, in nanoseconds: an event adds what epoll takes for it, a turn
# takes away what a place costs. With enough credit to pay for moving there and back, a descriptor
# moves to the poll list; without any it moves back.
#
# Both are level-triggered, so that moving loses nothing, and Linux has the same bits for their
# events.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, getenv, realloc
from libc.string cimport strcmp

cimport fastsock._native.posix as posix

cdef enum:
    # ns, between those of two x86-64 machines with Linux 6.18, measured with C programs on TCP
    # sockets: 220 and 40, 120 and 60.
    EVENT_NS = 150                  # an event of epoll_wait()
    PLACE_NS = 50                   # a place in the poll list, where poll() need not wait
    BLOCKED_PLACE_NS = 250          # and where it waits, and enters the queue of every socket
    MOVE_NS = 2000                  # there and back: epoll_ctl() twice
    CREDIT_MAX = 2 * MOVE_NS        # so that a pause of some turns does not move it
    EVENTS_MAX = 1024               # of one epoll_wait()
    PLACES_START = 64
    FAILED_MS = 10                  # a pause where neither poll() nor epoll can take a descriptor
    HEAD = 0                        # the place of epoll's descriptor
    IN_EPOLL = 0                    # `place` of a descriptor that is not in the poll list

cdef struct Interest:               # of one descriptor; its memory never moves
    uint32_t place                  # in the poll list, or IN_EPOLL
    int64_t paid_until              # the credit reaches up to this value of `place_cost`

cdef struct Costs:
    int64_t event, place, blocked_place, move, credit_max

cdef struct Owner:                  # of a place in the poll list
    uint64_t token
    Interest *interest

cdef struct InterestList:
    int epfd
    posix.epoll_event *events       # what the last wait has found
    uint32_t places                 # allocated; `events` has EVENTS_MAX more
    uint32_t count                  # used, with the head
    posix.pollfd *list              # what poll() is given
    Owner *owners
    int64_t place_cost              # of one place at all turns so far
    Costs costs


cdef inline int open_list(InterestList *interest_list) noexcept nogil:
    """Prepare an empty list; return an errno or 0. The memory is zero, but `epfd` is -1."""
    interest_list.epfd = posix.epoll_create1(posix.EPOLL_CLOEXEC)
    if interest_list.epfd < 0:
        return posix.errno
    if not grow(interest_list):
        return posix.ENOMEM
    interest_list.list[HEAD].fd = interest_list.epfd
    interest_list.list[HEAD].events = posix.POLLIN
    interest_list.count = 1
    set_costs(interest_list, getenv("FASTSOCK_TEST_WATCH"))
    return 0


cdef inline void set_costs(InterestList *interest_list, const char *forced) noexcept nogil:
    """`forced` is for tests: watch with "epoll" or with "poll", or "alternate" at every turn."""
    cdef Costs *costs = &interest_list.costs
    costs.event, costs.place, costs.blocked_place = EVENT_NS, PLACE_NS, BLOCKED_PLACE_NS
    costs.move, costs.credit_max = MOVE_NS, CREDIT_MAX
    if forced == NULL:
        return
    if strcmp(forced, "epoll") == 0:
        costs.move = CREDIT_MAX + 1
    elif strcmp(forced, "poll") == 0:
        costs.move = costs.place = costs.blocked_place = 0
    elif strcmp(forced, "alternate") == 0:
        costs.move = costs.event = 0


cdef inline void close_list(InterestList *interest_list) noexcept nogil:
    posix.close_once(&interest_list.epfd)
    free(interest_list.events)
    free(interest_list.list)
    free(interest_list.owners)


cdef inline void abandon(InterestList *interest_list) noexcept nogil:
    """In a forked child: leave the memory, which the parent's loop may have been reallocating."""
    interest_list.events = NULL
    interest_list.list = NULL
    interest_list.owners = NULL


# --- the descriptors ----------------------------------------------------------------------------

cdef inline int control(InterestList *interest_list, int operation, int fd, uint32_t events,
                        uint64_t token) noexcept nogil:
    """epoll_ctl(2), for a descriptor that stays with epoll."""
    cdef posix.epoll_event event
    event.events = events
    event.data.u64 = token
    return posix.epoll_ctl(interest_list.epfd, operation, fd, &event)


cdef inline int add(InterestList *interest_list, Interest *interest, int fd, uint32_t events,
                    uint64_t token) noexcept nogil:
    """Watch a descriptor for `events`, which are those of epoll(7); -1 with errno if it fails."""
    interest.place = IN_EPOLL
    interest.paid_until = interest_list.place_cost
    return control(interest_list, posix.EPOLL_CTL_ADD, fd, events, token)


cdef inline int change(InterestList *interest_list, Interest *interest, int fd, uint32_t events,
                       uint64_t token) noexcept nogil:
    """Watch it for other events; -1 with errno if it fails."""
    if interest.place == IN_EPOLL:
        return control(interest_list, posix.EPOLL_CTL_MOD, fd, events, token)
    interest_list.list[interest.place].events = <short>events
    return 0


cdef inline void remove(InterestList *interest_list, Interest *interest, int fd) noexcept nogil:
    """Watch it no more; before it is closed.

    close() alone removes a descriptor from epoll only if no fork or dup holds a copy of it
    (epoll(7), question 6); a copy would keep reporting an event that nothing can take away.
    """
    if interest.place == IN_EPOLL:
        control(interest_list, posix.EPOLL_CTL_DEL, fd, 0, 0)
    else:
        free_place(interest_list, interest.place)


cdef inline void remove_before_close(InterestList *interest_list,
                                     Interest *interest) noexcept nogil:
    """As remove(), for a descriptor of which there is no copy: close() takes it out of epoll."""
    if interest.place != IN_EPOLL:
        free_place(interest_list, interest.place)


# --- moving -------------------------------------------------------------------------------------

cdef inline void note_event(InterestList *interest_list, Interest *interest, int fd,
                            uint32_t events, uint64_t token) noexcept nogil:
    """After an event of a descriptor that stays, watched for `events`: move it where that pays."""
    cdef int64_t credit = interest.paid_until - interest_list.place_cost
    if interest.place == IN_EPOLL:
        credit = max(credit, <int64_t>0)
    credit = min(credit + interest_list.costs.event, interest_list.costs.credit_max)
    interest.paid_until = interest_list.place_cost + credit
    if interest.place == IN_EPOLL:
        if credit >= interest_list.costs.move:
            move_to_poll(interest_list, interest, fd, events, token)
    elif credit < 0:
        move_to_epoll(interest_list, interest.place)


cdef inline void move_to_poll(InterestList *interest_list, Interest *interest, int fd,
                              uint32_t events, uint64_t token) noexcept nogil:
    """Without memory it stays with epoll."""
    cdef uint32_t place = interest_list.count
    if place == interest_list.places and not grow(interest_list):
        return
    if control(interest_list, posix.EPOLL_CTL_DEL, fd, 0, 0) != 0:
        return
    interest_list.list[place].fd = fd
    interest_list.list[place].events = <short>events
    interest_list.list[place].revents = 0
    interest_list.owners[place].token = token
    interest_list.owners[place].interest = interest
    interest_list.count += 1
    interest.place = place


cdef inline bint move_to_epoll(InterestList *interest_list, uint32_t place) noexcept nogil:
    """False, and nothing has changed, if the kernel has no memory for it."""
    if control(interest_list, posix.EPOLL_CTL_ADD, interest_list.list[place].fd,
               <uint32_t>interest_list.list[place].events, interest_list.owners[place].token) != 0:
        return False
    interest_list.owners[place].interest.paid_until = interest_list.place_cost
    free_place(interest_list, place)
    return True


cdef inline void free_place(InterestList *interest_list, uint32_t place) noexcept nogil:
    cdef uint32_t last = interest_list.count - 1
    interest_list.owners[place].interest.place = IN_EPOLL
    if place != last:
        interest_list.list[place] = interest_list.list[last]
        interest_list.owners[place] = interest_list.owners[last]
        interest_list.owners[place].interest.place = place
    interest_list.count = last


cdef inline bint grow(InterestList *interest_list) noexcept nogil:
    """Allocate twice as many places; False without memory, with what there was."""
    cdef uint32_t places = max(interest_list.places * 2, <uint32_t>PLACES_START)
    cdef void *memory = realloc(interest_list.list, places * sizeof(posix.pollfd))
    if memory == NULL:
        return False
    interest_list.list = <posix.pollfd *>memory
    memory = realloc(interest_list.owners, places * sizeof(Owner))
    if memory == NULL:
        return False
    interest_list.owners = <Owner *>memory
    memory = realloc(interest_list.events, (places + EVENTS_MAX) * sizeof(posix.epoll_event))
    if memory == NULL:
        return False
    interest_list.events = <posix.epoll_event *>memory
    interest_list.places = places
    return True


# --- waiting ------------------------------------------------------------------------------------

cdef inline int wait(InterestList *interest_list, int timeout_ms) noexcept nogil:
    """Fill `events`, and return how many there are; -1 with errno if it fails."""
    cdef int count
    if interest_list.count == 1:
        count = posix.epoll_wait(interest_list.epfd, interest_list.events, EVENTS_MAX, timeout_ms)
    else:
        count = wait_with_poll(interest_list, timeout_ms)
    if count == 1 and timeout_ms != 0:      # most of the waits that find one event have blocked
        interest_list.place_cost += interest_list.costs.blocked_place
    elif count > 1:
        interest_list.place_cost += interest_list.costs.place
    return count


cdef inline int wait_with_poll(InterestList *interest_list, int timeout_ms) noexcept nogil:
    cdef int found = 0, ready = posix.poll(interest_list.list, interest_list.count, timeout_ms)
    if ready < 0:
        return poll_failed(interest_list)
    if ready == 0:
        return 0
    found = collect(interest_list)
    if interest_list.list[HEAD].revents:
        ready = posix.epoll_wait(interest_list.epfd, interest_list.events + found, EVENTS_MAX, 0)
        if ready < 0 and (found == 0 or posix.errno != posix.EINTR):
            return -1               # what poll() has found is found again
        found += max(ready, 0)
    return found


cdef inline int collect(InterestList *interest_list) noexcept nogil:
    """Turn what poll() has found into events, and give places that do not pay back to epoll."""
    cdef int found = 0
    cdef uint32_t place
    # Backwards: the last place, which was looked at already, moves into a gap.
    for place in range(interest_list.count - 1, <uint32_t>HEAD, -1):
        if interest_list.list[place].revents:
            interest_list.events[found].events = <uint32_t>interest_list.list[place].revents
            interest_list.events[found].data.u64 = interest_list.owners[place].token
            found += 1
        elif interest_list.owners[place].interest.paid_until < interest_list.place_cost:
            move_to_epoll(interest_list, place)
    return found


cdef inline int poll_failed(InterestList *interest_list) noexcept nogil:
    """After poll() failed: what epoll has found, or -1 with errno.

    Without memory for the list (ENOMEM), or if it is longer than RLIMIT_NOFILE, which was lowered
    (EINVAL), all is given back to epoll.
    """
    cdef uint32_t place
    if posix.errno == posix.EINTR:
        return -1
    for place in range(interest_list.count - 1, <uint32_t>HEAD, -1):
        move_to_epoll(interest_list, place)
    return posix.epoll_wait(interest_list.epfd, interest_list.events, EVENTS_MAX,
                            0 if interest_list.count == 1 else FAILED_MS)
