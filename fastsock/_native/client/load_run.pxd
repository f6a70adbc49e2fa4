# What every load loop has: its share of the connections, the schedule, the window, the wait, and
# what it saw in the window.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

cimport fastsock._native.wakeup as wakeup
cimport fastsock._native.clock as clock
cimport fastsock._native.atomic as atomic
cimport fastsock._native.posix as posix
from fastsock._native.busy_poll cimport BusyPoll, poll_again, begin_wait, end_wait
from fastsock._native.check cimport os_error
from fastsock._native.client.histogram cimport Histogram, Recorder, record
from fastsock._native.client.process_tree cimport Processes, cpu_ns, free_processes, list_processes
from fastsock._native.client.process_tree cimport newcomers_ns

cdef enum:
    EVENTS_MAX = 256
    WAKE = 0xFFFFFFFF               # token of the two descriptors that are not connections
    TIMER = 0xFFFFFFFE

cdef enum:                          # how far a run is
    RUNNING
    FINISHING                       # nothing new is due; what is owed is awaited
    ABORTED

cdef struct Frame:
    uint32_t count                  # connections of this thread
    uint32_t first, everyone        # number of the first of them, and of all threads' together
    double interval_ns              # between two messages of all connections; 0 in a closed loop
    uint64_t quota                  # messages of all connections; 0 without a limit
    uint64_t next_due               # open loop: number of the next message of this thread
    bint spin                       # never block
    BusyPoll busy_poll              # when not spinning
    int server_pid                  # whose CPU time is to be read; 0: nobody's
    Processes server
    int phase
    int cancelled                   # 1: finish now; 2: drop everything. Set by other threads
    int epfd, wake_fd, timer_fd
    int64_t begin_ns, window_start, window_end
    int64_t list_at                 # when the server's processes are listed
    int64_t idle_ns                 # time in the window with nothing to do
    int64_t cpu_start, cpu_end      # the server's CPU time at the ends of the window, ns
    posix.epoll_event *events
    # What was seen
    uint64_t messages               # answers inside the window; one way: messages completed in it
    int64_t last_answer             # or when the last one-way message was complete
    int64_t idle_till_last          # of `idle_ns`
    uint64_t corrupt                # bytes, over the whole run
    int other_errno                 # the last errno that has no kind of its own
    Recorder *from_intended         # NULL in a closed loop
    Recorder *from_send
    Recorder *send_delay            # how late messages were sent; NULL in a closed loop


cdef inline void set_share(Frame *frame, uint32_t first, uint32_t count, uint32_t everyone,
                           double rate, uint64_t messages) noexcept nogil:
    """What the thread does of the whole; `rate` and `messages` are those of all threads, or 0."""
    frame.first, frame.count, frame.everyone = first, count, everyone
    frame.interval_ns = 1e9 / rate if rate else 0
    frame.quota = messages


cdef inline void set_wait(Frame *frame, bint spin, int64_t busy_poll_us) noexcept nogil:
    """How to wait; `busy_poll_us` is the longest time spent asking before it blocks, or 0."""
    frame.spin = spin
    frame.busy_poll.cap_ns = busy_poll_us * 1000


cdef inline int open_frame(Frame *frame, int server_pid) except -1:
    cdef int error, clock
    frame.events = <posix.epoll_event *>calloc(EVENTS_MAX, sizeof(posix.epoll_event))
    if frame.events == NULL:
        raise MemoryError
    if server_pid:
        error = posix.clock_getcpuclockid(server_pid, &clock)
        if error:
            raise os_error(error, "clock_getcpuclockid", f"process {server_pid}")
        frame.server_pid = server_pid
    frame.epfd = posix.epoll_create1(posix.EPOLL_CLOEXEC)
    frame.wake_fd = posix.eventfd(0, posix.EFD_NONBLOCK | posix.EFD_CLOEXEC)
    # A timer of epoll_wait has whole milliseconds; a message may be due in microseconds.
    frame.timer_fd = posix.timerfd_create(
        posix.CLOCK_MONOTONIC, posix.TFD_NONBLOCK | posix.TFD_CLOEXEC)
    if frame.epfd < 0 or frame.wake_fd < 0 or frame.timer_fd < 0:
        raise os_error(posix.errno, "epoll_create1, eventfd or timerfd_create", "")
    if (watch(frame, posix.EPOLL_CTL_ADD, frame.wake_fd, posix.EPOLLIN, WAKE) < 0
            or watch(frame, posix.EPOLL_CTL_ADD, frame.timer_fd, posix.EPOLLIN, TIMER) < 0):
        raise os_error(posix.errno, "epoll_ctl", "")
    return 0


cdef inline void close_frame(Frame *frame) noexcept nogil:
    posix.close_once(&frame.epfd)
    posix.close_once(&frame.wake_fd)
    posix.close_once(&frame.timer_fd)
    free(frame.events)
    free_processes(&frame.server)


cdef inline int watch(Frame *frame, int operation, int fd, uint32_t events,
                      uint64_t token) noexcept nogil:
    cdef posix.epoll_event event
    event.events = events
    event.data.u64 = token
    return posix.epoll_ctl(frame.epfd, operation, fd, &event)


# --- the schedule -------------------------------------------------------------------------------

cdef inline uint64_t quota_of(Frame *frame, uint32_t i) noexcept nogil:
    return frame.quota // frame.everyone + (frame.first + i < frame.quota % frame.everyone)


cdef inline uint64_t quota_of_thread(Frame *frame) noexcept nogil:
    cdef uint64_t total = 0
    cdef uint32_t i
    for i in range(frame.count):
        total += quota_of(frame, i)
    return total


cdef inline int64_t intended_at(Frame *frame, uint32_t i, uint64_t message) noexcept nogil:
    """When a connection's message should be sent: the connections take turns."""
    cdef double number = <double>(message * frame.everyone + frame.first + i)
    return frame.begin_ns + <int64_t>(number * frame.interval_ns)


cdef inline int64_t due_at(Frame *frame, uint64_t number) noexcept nogil:
    """When this thread's message `number`, counted over its connections, should be sent."""
    return intended_at(frame, <uint32_t>(number % frame.count), number // frame.count)


cdef inline int64_t next_wake(Frame *frame, int64_t latest) noexcept nogil:
    """When there is something to do even if no event comes, ns.

    That is `latest`, or before: the end of the window, or the thread's next message.
    """
    if frame.phase != RUNNING:
        return latest
    latest = min(latest, frame.window_end)
    return min(latest, due_at(frame, frame.next_due)) if frame.interval_ns else latest


# --- the window and the wait --------------------------------------------------------------------

cdef inline void set_window(Frame *frame, int64_t begin_ns, int64_t warmup_ns,
                            int64_t window_ns) noexcept nogil:
    frame.begin_ns = begin_ns
    # By then every connection should have its process, if it gets one; and the time that the list
    # takes is not in the window.
    frame.list_at = begin_ns + warmup_ns // 2
    frame.window_start = begin_ns + warmup_ns
    frame.window_end = frame.window_start + window_ns if window_ns else clock.NEVER


cdef inline void cancel(Frame *frame, bint drop_everything) noexcept nogil:
    """From any thread."""
    atomic.store_int(&frame.cancelled, 2 if drop_everything else 1, atomic.RELEASE)
    wakeup.notify(frame.wake_fd)


cdef inline bint cancelled(Frame *frame) noexcept nogil:
    return atomic.load_int(&frame.cancelled, atomic.ACQUIRE) != 0


cdef inline bint is_over(Frame *frame, int64_t now) noexcept nogil:
    """Whether nothing more becomes due; of a quota in a closed loop the connections know more."""
    if now >= frame.window_end or cancelled(frame):
        return True
    return frame.quota and frame.interval_ns and frame.next_due >= quota_of_thread(frame)


cdef inline void note_time(Frame *frame, int64_t now) noexcept nogil:
    """List the server's processes in time, and read their CPU time when the window has begun."""
    if frame.server_pid == 0 or now < frame.list_at or frame.cpu_start:
        return
    if frame.server.count == 0:
        list_processes(&frame.server, frame.server_pid)
    if now >= frame.window_start:
        frame.cpu_start = cpu_ns(&frame.server)


cdef inline void end_window(Frame *frame, int64_t now) noexcept nogil:
    if frame.cpu_start and not frame.cpu_end:
        frame.cpu_end = cpu_ns(&frame.server)
        # A server that makes a process for each connection may still have been at it.
        frame.cpu_end += newcomers_ns(&frame.server)
    if frame.window_end > now and not frame.quota:
        frame.window_end = now      # earlier than was asked for


cdef inline void end_run(Frame *frame, int64_t now) noexcept nogil:
    """After the last answer, or when no connection, or no wish, was left."""
    if frame.phase != FINISHING:
        end_window(frame, now)
    if frame.quota:
        # What came after it, a server that is slow to close for one, is not of the window.
        frame.window_end = frame.last_answer
        frame.idle_ns = frame.idle_till_last


cdef inline object server_cpu_ns(Frame *frame):
    """None: not asked for, the window never began, or the process is gone."""
    return frame.cpu_end - frame.cpu_start if frame.cpu_start and frame.cpu_end else None


cdef inline int wait_for_events(Frame *frame, int64_t until) noexcept nogil:
    """Wait until `until` at the latest, or not at all when spinning; return how many events."""
    cdef int64_t began = clock.monotonic_ns(), now = began
    cdef int count
    begin_wait(&frame.busy_poll)
    while frame.spin or now >= until or poll_again(&frame.busy_poll):
        count = posix.epoll_wait(frame.epfd, frame.events, EVENTS_MAX, 0)
        if count == 0 or now > began:   # to ask once, and be answered, is no idle time
            now = clock.monotonic_ns()
        if count != 0 or frame.spin or now >= until:
            break
    else:
        set_timer(frame, until)
        count = posix.epoll_wait(frame.epfd, frame.events, EVENTS_MAX, -1)
        end_wait(&frame.busy_poll)
        now = clock.monotonic_ns()
    if frame.window_start <= began < frame.window_end:
        frame.idle_ns += now - began
    return count


cdef inline bint is_connection(Frame *frame, uint64_t token) noexcept nogil:
    """True for the token of a connection; a wake-up or the timer is dealt with here."""
    if token == WAKE:
        wakeup.clear(frame.wake_fd)
        if atomic.load_int(&frame.cancelled, atomic.ACQUIRE) == 2:
            frame.phase = ABORTED
    elif token == TIMER:
        wakeup.clear(frame.timer_fd)
    else:
        return True
    return False


cdef inline void set_timer(Frame *frame, int64_t until) noexcept nogil:
    cdef posix.itimerspec timer
    memset(&timer, 0, sizeof(timer))
    until = max(until, 1)           # zero would disarm it
    timer.it_value.tv_sec = until // 1000000000
    timer.it_value.tv_nsec = until % 1000000000
    posix.timerfd_settime(frame.timer_fd, posix.TFD_TIMER_ABSTIME, &timer, NULL)


# --- what was seen ------------------------------------------------------------------------------

cdef inline tuple open_histograms(Frame *frame):
    """Latency from the intended and from the actual send time, and the delay between the two.

    In a closed loop the first two are one, and the delay stays empty.
    """
    from_send, send_delay = Histogram(), Histogram()
    from_intended = Histogram() if frame.interval_ns else from_send
    frame.from_send = (<Histogram>from_send).recorder
    if frame.interval_ns:
        frame.from_intended = (<Histogram>from_intended).recorder
        frame.send_delay = (<Histogram>send_delay).recorder
    return from_intended, from_send, send_delay


cdef inline void note_delay(Frame *frame, uint32_t i, uint64_t message,
                            int64_t now) noexcept nogil:
    """A connection's message is sent now; note how long after its intended time."""
    if frame.send_delay != NULL and now >= frame.window_start:
        record(frame.send_delay, now - intended_at(frame, i, message))


cdef inline void note_last(Frame *frame, int64_t now) noexcept nogil:
    """A message is complete, the last one so far."""
    frame.last_answer = now
    frame.idle_till_last = frame.idle_ns


cdef inline void note_answer(Frame *frame, uint32_t i, uint64_t message, int64_t sent_at,
                             int64_t now) noexcept nogil:
    """A connection's message has come back; an answer after the window has a latency too."""
    note_last(frame, now)
    if now < frame.window_start:
        return
    record(frame.from_send, now - sent_at)
    if frame.from_intended != NULL:
        record(frame.from_intended, now - intended_at(frame, i, message))
    frame.messages += now < frame.window_end


cdef inline bint nobody_listens(int error) noexcept nogil:
    # ENOENT: of a Unix path where there is no socket.
    return error == posix.ECONNREFUSED or error == posix.ENOENT


cdef inline dict seen(Frame *frame):
    return {
        "messages": frame.messages,
        "window_start_ns": frame.window_start,
        "window_end_ns": frame.window_end,
        "last_answer_ns": frame.last_answer,
        "idle_ns": frame.idle_ns,
        "server_cpu_ns": server_cpu_ns(frame),
        "corrupt_bytes": frame.corrupt,
        "other_errno": frame.other_errno,
    }
