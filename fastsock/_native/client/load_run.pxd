# One thread's part of a load run, the same for streams and datagrams: its share of the
# connections, the schedule of the messages, the measured window, the wait and the counters.
# "Connections" stands for sockets too where the load is datagrams.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cimport fastsock._native.atomic as atomic
cimport fastsock._native.busy_poll as busy_poll
cimport fastsock._native.check as check
cimport fastsock._native.client.arrivals as arrivals
cimport fastsock._native.client.away as away
cimport fastsock._native.client.histogram as histogram
cimport fastsock._native.client.intervals as intervals
cimport fastsock._native.client.process_tree as process_tree
cimport fastsock._native.client.schedule as schedule
cimport fastsock._native.clock as clock
cimport fastsock._native.interest_list as interest_list
cimport fastsock._native.posix as posix
cimport fastsock._native.wakeup as wakeup
from fastsock._native.busy_poll cimport BusyPoll
from fastsock._native.client.arrivals cimport Arrivals, DueTimes
from fastsock._native.client.away cimport Away, AwaySums
from fastsock._native.client.histogram cimport Histogram, Recorder
from fastsock._native.client.intervals cimport Chunk, Intervals
from fastsock._native.client.process_tree cimport ProcessTree
from fastsock._native.client.schedule cimport Schedule
from fastsock._native.interest_list cimport InterestList

cdef enum:
    WAKE_TOKEN = 0xFFFFFFFF         # above every connection's token, which is its index
    TIMER_TOKEN = 0xFFFFFFFE
    TREND_PARTS = 16                # of a stage: enough for a trend, few enough for their means

cdef enum:                          # phase of a run
    RUNNING
    FINISHING                       # no new message becomes due; outstanding ones are awaited
    ABORTED

cdef enum:                          # what another thread asked for
    NOT_CANCELLED
    END_WINDOW                      # finish now
    DROP_EVERYTHING                 # and do not wait for outstanding messages

cdef struct StageFigures:           # of an open loop's messages, by intended send time
    int64_t start, end              # one stage is the whole window
    uint64_t offered, messages
    uint64_t counts[TREND_PARTS]    # messages by part of the stage
    double sums[TREND_PARTS]        # of their latencies without the client's part, ns
    Recorder *latencies             # NULL where no stages were asked for

cdef struct LoadRun:
    uint32_t count                  # connections of this thread
    uint32_t first                  # number of this thread's first connection
    uint32_t total_connections      # of all threads
    bint open_loop
    Schedule schedule
    uint64_t quota                  # messages of all connections; 0: unlimited
    uint64_t next_due               # open loop: number of this thread's next message
    Arrivals arrivals
    bint spin                       # never block
    BusyPoll busy_poll              # when not spinning
    int server_pid                  # process to read the CPU time of; 0: none
    ProcessTree server
    int phase
    int cancel_request              # set by other threads
    InterestList interest_list
    int wake_fd, timer_fd
    int64_t begin_ns, window_start, window_end
    int64_t list_at                 # when the server's processes are listed
    int64_t idle_ns                 # time in the window with nothing to do
    int64_t cpu_start, cpu_end      # server's CPU time at both ends of the window, ns; 0: not read
    Away away
    Intervals intervals
    int64_t outstanding             # messages sent and not answered, where there are answers
    # Results
    uint64_t messages               # open loop: of the window, complete; else complete inside it
    uint64_t offered                # open loop: messages of the window
    uint64_t in_window              # messages complete inside the window
    uint64_t recorded               # messages in the histograms; one way, those of `messages`
    uint64_t errors                 # connections that failed
    int stage_count                 # 0 in a closed loop
    int stage                       # that was looked up last
    StageFigures *stages
    int64_t last_complete           # when the last message was complete
    int64_t idle_at_last_complete   # `idle_ns` at that time
    AwaySums away_at_last_complete
    uint64_t corrupt                # bytes, over the whole run
    int other_errno                 # the last errno that counted as "other"
    Recorder *from_intended         # NULL in a closed loop
    Recorder *from_send
    Recorder *send_delay            # NULL in a closed loop
    Recorder *connects              # from connect() to connected
    Recorder *moved_from            # latencies that have a client's part
    Recorder *moved_to              # the same without it


cdef inline int open_run(LoadRun *run, object options, uint32_t first, uint32_t count,
                         const uint64_t *received) except -1:
    """Read the options that streams and datagrams share, and open the descriptors.

    The thread has the connections `first` to `first + count`. The thread of connection 0 also
    reads the server's CPU time. `received` counts what it receives. Raises OSError or MemoryError.
    """
    cdef int error
    run.first, run.count, run.total_connections = first, count, options.connections
    schedule.make_schedule(&run.schedule, options)
    run.open_loop = run.schedule.count > 0
    run.stage_count = len(options.stages or (None,)) if run.open_loop else 0
    run.stages = <StageFigures *>calloc(max(run.stage_count, 1), sizeof(StageFigures))
    if run.stages == NULL:
        raise MemoryError
    run.quota = options.messages or 0
    if options.arrivals == "poisson":
        run.arrivals.gap = run.total_connections / <double>count
        arrivals.seed(&run.arrivals, options.seed, first)
    away.allocate(&run.away)
    intervals.allocate(&run.intervals, int((options.interval or 0) * 1e9), run.open_loop)
    run.spin = options.wait == "spin"
    busy_poll.init(&run.busy_poll, "auto" if options.wait == "auto" else 0, received)
    if first == 0 and options.server_pid:
        run.server_pid = options.server_pid
        check_process(run.server_pid)
    error = interest_list.open_list(&run.interest_list)
    if error == posix.ENOMEM:
        raise MemoryError
    if error:
        raise check.os_error(error, "epoll_create1", "")
    run.wake_fd = posix.eventfd(0, posix.EFD_NONBLOCK | posix.EFD_CLOEXEC)
    # The timeout of epoll_wait(2) is in milliseconds; messages can be microseconds apart.
    run.timer_fd = posix.timerfd_create(
        posix.CLOCK_MONOTONIC, posix.TFD_NONBLOCK | posix.TFD_CLOEXEC)
    if run.wake_fd < 0 or run.timer_fd < 0:
        raise check.os_error(posix.errno, "eventfd or timerfd_create", "")
    if (interest_list.control(&run.interest_list, posix.EPOLL_CTL_ADD, run.wake_fd, posix.EPOLLIN,
                              WAKE_TOKEN) < 0
            or interest_list.control(&run.interest_list, posix.EPOLL_CTL_ADD, run.timer_fd,
                                     posix.EPOLLIN, TIMER_TOKEN) < 0):
        raise check.os_error(posix.errno, "epoll_ctl", "")
    return 0


cdef inline int check_process(int pid) except -1:
    """Raise OSError if there is no such process."""
    cdef int clock_id
    cdef int error = posix.clock_getcpuclockid(pid, &clock_id)
    if error:
        raise check.os_error(error, "clock_getcpuclockid", f"process {pid}")
    return 0


cdef inline void close_run(LoadRun *run) noexcept nogil:
    interest_list.close_list(&run.interest_list)
    posix.close_once(&run.wake_fd)
    posix.close_once(&run.timer_fd)
    away.release(&run.away)
    intervals.release(&run.intervals)
    schedule.free_schedule(&run.schedule)
    free(run.stages)
    run.stages = NULL
    process_tree.free_processes(&run.server)


# --- the schedule -------------------------------------------------------------------------------

cdef inline uint64_t quota_of(LoadRun *run, uint32_t i) noexcept nogil:
    """How many messages of the quota connection `i` of this thread sends."""
    return (run.quota // run.total_connections
            + (run.first + i < run.quota % run.total_connections))


cdef inline uint64_t quota_of_thread(LoadRun *run) noexcept nogil:
    cdef uint64_t total = 0
    cdef uint32_t i
    for i in range(run.count):
        total += quota_of(run, i)
    return total


cdef inline int64_t uniform_at(LoadRun *run, uint32_t i, uint64_t message) noexcept nogil:
    """When connection `i` should send its message number `message`: connections take turns."""
    cdef double number = <double>(message * run.total_connections + run.first + i)
    return run.begin_ns + schedule.due_after(&run.schedule, number)


cdef inline int64_t intended_at(LoadRun *run, DueTimes *due, uint32_t i,
                                uint64_t message) noexcept nogil:
    """When connection `i` should send its message number `message`; `due` is its own."""
    if run.arrivals.gap:
        return due.times[message & due.mask]
    return uniform_at(run, i, message)


cdef inline int64_t next_due_at(LoadRun *run) noexcept nogil:
    """When this thread's next message is due."""
    if run.arrivals.gap:
        return run.begin_ns + schedule.due_after(&run.schedule, run.arrivals.at)
    return uniform_at(run, <uint32_t>(run.next_due % run.count), run.next_due // run.count)


cdef inline bint take_next(LoadRun *run, DueTimes *due, uint64_t oldest,
                           uint64_t message) noexcept nogil:
    """The next message becomes due, as `message` of the connection whose turn it is.

    False, and nothing is done, where there is no place for its time. The connection has answers
    for all messages before `oldest`.
    """
    cdef int64_t at = next_due_at(run)
    if run.arrivals.gap:
        if not arrivals.remember(due, oldest, message, at):
            return False
        arrivals.advance(&run.arrivals)
    run.next_due += 1
    note_offered(run, at)
    return True


cdef inline void note_offered(LoadRun *run, int64_t at) noexcept nogil:
    if is_in_window(run, at):
        run.offered += 1
        stage_at(run, at).offered += 1


cdef inline StageFigures *stage_at(LoadRun *run, int64_t intended) noexcept nogil:
    """The stage of a time in the window."""
    cdef int i = run.stage
    while i + 1 < run.stage_count and intended >= run.stages[i + 1].start:
        i += 1
    while i > 0 and intended < run.stages[i].start:
        i -= 1
    run.stage = i
    return &run.stages[i]


cdef inline void count_rest(LoadRun *run) noexcept nogil:
    """At the end: count the random messages of the window for which there was no place."""
    while run.arrivals.gap and next_due_at(run) < run.window_end:
        note_offered(run, next_due_at(run))
        run.next_due += 1
        arrivals.advance(&run.arrivals)


cdef inline bint is_in_window(LoadRun *run, int64_t time) noexcept nogil:
    return run.window_start <= time < run.window_end


cdef inline int64_t next_wake(LoadRun *run, int64_t latest) noexcept nogil:
    """When the wait must end even without an event, ns.

    That is `latest`, the end of the window or the thread's next message, the first of them.
    """
    if run.phase != RUNNING:
        return latest
    latest = min(latest, run.window_end)
    return min(latest, next_due_at(run)) if run.open_loop else latest


# --- the window and the wait --------------------------------------------------------------------

cdef inline int64_t read_clock(LoadRun *run) noexcept nogil:
    """The time. The loop reads it so that no millisecond passes unseen while it works."""
    cdef int64_t now = clock.monotonic_ns()
    away.see(&run.away, now)
    if now >= run.intervals.ends_at:
        next_interval(run, now)
    return now


cdef inline void next_interval(LoadRun *run, int64_t now) noexcept nogil:
    if run.phase == FINISHING and run.quota and not run.open_loop and run.outstanding == 0:
        run.intervals.ends_at = clock.NEVER     # the window has ended with the last message
        return
    intervals.go_on(&run.intervals, run.window_start, run.window_end, now)
    if intervals.hand_over(&run.intervals, run.recorded, run.errors, run.outstanding):
        record_in_chunk(run)


cdef inline void end_intervals(LoadRun *run) noexcept nogil:
    intervals.end(&run.intervals, run.recorded, run.errors, run.outstanding)


cdef inline void record_in_chunk(LoadRun *run) noexcept nogil:
    cdef Chunk *chunk = &run.intervals.chunks[run.intervals.recording]
    run.from_send = chunk.recorders[intervals.SENT]
    run.connects = chunk.recorders[intervals.CONNECTS]
    if run.open_loop:
        run.from_intended = chunk.recorders[intervals.INTENDED]


cdef inline void set_window(LoadRun *run, int64_t begin_ns, int64_t warmup_ns,
                            int64_t window_ns) noexcept nogil:
    cdef int i
    run.begin_ns = begin_ns
    # Before the window, so that the time to list the processes is not measured; late enough for a
    # server that makes a process for each connection.
    run.list_at = begin_ns + warmup_ns // 2
    run.window_start = run.away.start = begin_ns + warmup_ns
    if run.open_loop and run.quota:
        window_ns = schedule.due_after(&run.schedule, <double>run.quota)
    run.window_end = run.window_start + window_ns if window_ns else clock.NEVER
    run.away.stop = run.window_end
    for i in range(run.stage_count):
        run.stages[i].start = run.window_start
        if run.schedule.count > 1:
            # The warm-up, if there is any, is the first stage of the schedule and not of these.
            run.stages[i].start = begin_ns + <int64_t>(
                run.schedule.stages[run.schedule.count - run.stage_count + i].begins_at)
        run.stages[i].end = run.window_end
        if i > 0:
            run.stages[i - 1].end = run.stages[i].start


cdef inline void cancel(LoadRun *run, bint drop_everything) noexcept nogil:
    """End the run; for any thread to call."""
    atomic.store_int(&run.cancel_request, DROP_EVERYTHING if drop_everything else END_WINDOW,
                     atomic.RELEASE)
    wakeup.notify(run.wake_fd)


cdef inline bint is_cancelled(LoadRun *run) noexcept nogil:
    return atomic.load_int(&run.cancel_request, atomic.ACQUIRE) != NOT_CANCELLED


cdef inline bint nothing_more_due(LoadRun *run, int64_t now) noexcept nogil:
    """Whether the schedule has ended. In a closed loop with a quota, the connections know."""
    if now >= run.window_end or is_cancelled(run):
        return True
    return run.quota and run.open_loop and run.next_due >= quota_of_thread(run)


cdef inline void note_server_cpu(LoadRun *run, int64_t now) noexcept nogil:
    """List the server's processes in time, and read their CPU time when the window begins."""
    if run.server_pid == 0 or now < run.list_at or run.cpu_start:
        return
    if run.server.count == 0:
        process_tree.list_processes(&run.server, run.server_pid)
    if now >= run.window_start:
        run.cpu_start = process_tree.cpu_ns(&run.server)


cdef inline void end_window(LoadRun *run, int64_t now) noexcept nogil:
    if run.cpu_start and not run.cpu_end:
        run.cpu_end = process_tree.cpu_ns(&run.server)
        # A server that makes a process for each connection may have made some after the listing.
        run.cpu_end += process_tree.unlisted_cpu_ns(&run.server)
    if run.window_end > now and (not run.quota or run.open_loop and is_cancelled(run)):
        run.window_end = run.away.stop = now    # earlier than was asked for
        if run.intervals.length:
            run.intervals.ends_at = min(run.intervals.ends_at, now)


cdef inline void end_run(LoadRun *run, int64_t now) noexcept nogil:
    """After the loop: set the end of the window, if it is not set yet."""
    if run.phase != FINISHING:
        end_window(run, now)
    if run.open_loop:
        # A schedule ends with its last message, a window an interval later.
        run.idle_ns += max(run.window_end - max(now, run.window_start), <int64_t>0)
    elif run.quota:
        # The time after the last message, as with a server that closes slowly, does not count.
        run.window_end = run.last_complete
        run.idle_ns = run.idle_at_last_complete
        run.away.sums = run.away_at_last_complete
    end_intervals(run)


cdef inline object server_cpu_ns(LoadRun *run):
    """None: not asked for, the window never began, or the process has ended."""
    return run.cpu_end - run.cpu_start if run.cpu_start and run.cpu_end else None


cdef inline int wait_for_events(LoadRun *run, int64_t until) noexcept nogil:
    """Wait until `until` at the latest, or poll until then; return the number of events."""
    cdef int64_t began = read_clock(run), now = began
    cdef int count
    until = min(until, began + away.LONGEST_WAIT_NS)
    busy_poll.begin_wait(&run.busy_poll)
    while run.spin or now >= until or busy_poll.poll_again(&run.busy_poll):
        count = interest_list.wait(&run.interest_list, 0)
        if count == 0 or now > began:   # events at the first poll: no time was idle
            now = read_clock(run)
        if count != 0 or now >= until:
            busy_poll.found(&run.busy_poll, count)
            break
    else:
        set_timer(run, until)
        count = interest_list.wait(&run.interest_list, -1)
        busy_poll.end_wait(&run.busy_poll, count)
        now = clock.monotonic_ns()
        away.see_end_of_wait(&run.away, until, now)
    run.idle_ns += max(
        min(now, run.window_end) - max(began, run.window_start), <int64_t>0)
    return count


cdef inline bint handle_wakeup(LoadRun *run, uint64_t token) noexcept nogil:
    """Handle the event of the wake-up or of the timer; False for a connection's token."""
    if token == WAKE_TOKEN:
        wakeup.clear(run.wake_fd)
        if atomic.load_int(&run.cancel_request, atomic.ACQUIRE) == DROP_EVERYTHING:
            run.phase = ABORTED
    elif token == TIMER_TOKEN:
        wakeup.clear(run.timer_fd)
    else:
        return False
    return True


cdef inline void set_timer(LoadRun *run, int64_t until) noexcept nogil:
    cdef posix.itimerspec timer
    memset(&timer, 0, sizeof(timer))
    until = max(until, 1)           # zero would disarm the timer
    timer.it_value.tv_sec = until // 1000000000
    timer.it_value.tv_nsec = until % 1000000000
    posix.timerfd_settime(run.timer_fd, posix.TFD_TIMER_ABSTIME, &timer, NULL)


# --- the results --------------------------------------------------------------------------------

cdef inline dict open_histograms(LoadRun *run, bint with_stages):
    """The histograms of a run by name; those that it does not have stay empty.

    In a closed loop a message is intended when it is sent, so the first two are one.
    """
    cdef int i
    opened = {name: Histogram() for name in
              ("from_send", "send_delay", "connects", "moved_from", "moved_to")}
    opened["from_intended"] = Histogram() if run.open_loop else opened["from_send"]
    run.from_send = (<Histogram>opened["from_send"]).recorder
    if run.open_loop:
        run.from_intended = (<Histogram>opened["from_intended"]).recorder
        run.send_delay = (<Histogram>opened["send_delay"]).recorder
    run.moved_from = (<Histogram>opened["moved_from"]).recorder
    run.moved_to = (<Histogram>opened["moved_to"]).recorder
    run.connects = (<Histogram>opened["connects"]).recorder
    for i in range(run.stage_count if with_stages else 0):
        opened[f"stage {i}"] = Histogram()
        run.stages[i].latencies = (<Histogram>opened[f"stage {i}"]).recorder
    if run.intervals.length:
        record_in_chunk(run)
    return opened


cdef inline list take_chunks(LoadRun *run, dict whole, bint last):
    """What is there for the reader, oldest first; it is added to the histograms of the run."""
    cdef Intervals *each = &run.intervals
    cdef bint has_ended = atomic.load_int(&each.has_ended, atomic.ACQUIRE)
    taken = []
    if each.length == 0:
        return taken                # everything was taken
    if last and not has_ended:      # the run was ended before its loop began
        end_intervals(run)
        has_ended = True
    if atomic.load_int(&each.is_full, atomic.ACQUIRE):
        taken.append(chunk_dict(&each.chunks[each.full], whole))
        atomic.store_int(&each.is_full, False, atomic.RELEASE)
    if has_ended:
        taken.append(chunk_dict(&each.chunks[each.last], whole))
        if intervals.is_window_over(each):
            taken.append(chunk_dict(&each.chunks[intervals.AFTER_WINDOW], whole)
                         | {"after_window": True})
        each.length = 0
    return taken


cdef inline dict chunk_dict(Chunk *chunk, dict whole):
    """A chunk as Python has it; the recorders are empty then."""
    cdef Histogram copy
    cdef int tag
    histograms = {}
    for tag, name in enumerate(("from_intended", "from_send", "connects")):
        if chunk.recorders[tag] == NULL:
            continue
        copy = Histogram()
        memcpy(copy.recorder, chunk.recorders[tag], sizeof(Recorder))
        memset(chunk.recorders[tag], 0, sizeof(Recorder))
        (<Histogram>whole[name]).add(copy)
        histograms[name] = copy
    return {
        "first": chunk.first,
        "last": chunk.last,
        "messages": chunk.messages,
        "errors": chunk.errors,
        "outstanding": chunk.outstanding,
        "histograms": histograms,
    }


cdef inline void note_send(LoadRun *run, int64_t intended, int64_t room_since,
                           int64_t now) noexcept nogil:
    """A message of an open loop is sent now; since `room_since` its socket would have taken it."""
    if is_in_window(run, intended):
        histogram.record(run.send_delay, now - intended)
    away.on_late_send(&run.away, max(intended, room_since), now)


cdef inline void note_complete(LoadRun *run, int64_t now) noexcept nogil:
    """A message is complete: it is the last one until the next call."""
    run.last_complete = now
    run.idle_at_last_complete = run.idle_ns
    if run.window_end == clock.NEVER:
        run.away_at_last_complete = run.away.sums       # the window ends with the last message


cdef inline void note_scheduled(LoadRun *run, int64_t intended,
                                int64_t latency) noexcept nogil:
    """A message of an open loop's window is complete; `latency` is without the client's part."""
    cdef StageFigures *stage = stage_at(run, intended)
    cdef int part = <int>(<double>(intended - stage.start) * TREND_PARTS
                          / <double>(stage.end - stage.start))
    run.messages += 1
    run.recorded += 1
    stage.messages += 1
    stage.counts[part] += 1
    stage.sums[part] += <double>latency


cdef inline void note_answer(LoadRun *run, int64_t intended, int64_t sent_at,
                             int64_t now) noexcept nogil:
    """A message that was sent at `sent_at` has come back. `intended` is 0 in a closed loop.

    In a closed loop an answer after the window is still recorded, but not counted.
    """
    cdef int64_t client_part, begin = intended or sent_at
    note_complete(run, now)
    run.in_window += is_in_window(run, now)
    if not is_in_window(run, intended) if intended else now < run.window_start:
        return
    client_part = away.part_of(&run.away, begin, now)
    if client_part:
        histogram.record(run.moved_from, now - begin)
        histogram.record(run.moved_to, now - begin - client_part)
    histogram.record(run.from_send, now - sent_at)
    if intended:
        histogram.record(run.from_intended, now - intended)
        if stage_at(run, intended).latencies != NULL:
            histogram.record(stage_at(run, intended).latencies, now - intended)
        note_scheduled(run, intended, now - intended - client_part)
    else:
        run.messages += now < run.window_end
        run.recorded += 1


cdef inline bint is_refusal(int error) noexcept nogil:
    """Whether the errno means that no server listens there."""
    # ENOENT: the path of a Unix socket does not exist.
    return error == posix.ECONNREFUSED or error == posix.ENOENT


cdef inline dict results(LoadRun *run):
    return {
        "messages": run.messages,
        "offered": run.offered,
        "in_window": run.in_window,
        "away_by_cause_ns": [run.away.sums.by_cause[i] for i in range(away.CAUSES)],
        "longest_away_ns": run.away.sums.longest,
        "schedstat": run.away.schedstat_fd >= 0,
        "stages": [stage_dict(&run.stages[i]) for i in range(run.stage_count)],
        "window_start_ns": run.window_start,
        "window_end_ns": run.window_end,
        "idle_ns": run.idle_ns,
        "server_cpu_ns": server_cpu_ns(run),
        "corrupt_bytes": run.corrupt,
        "other_errno": run.other_errno,
    }


cdef inline dict stage_dict(StageFigures *stage):
    return {
        "offered": stage.offered,
        "messages": stage.messages,
        "trend": [(stage.counts[i], stage.sums[i]) for i in range(TREND_PARTS)],
    }
