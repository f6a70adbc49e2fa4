# The processes of a server, itself and all that descend from it, and the CPU time that they use.

from libc.stdint cimport int64_t
from libc.stdio cimport FILE, fclose, fopen, fread, fscanf, snprintf, sscanf
from libc.stdlib cimport free, realloc
from libc.string cimport strrchr

cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix

cdef extern from *:
    """
    #define FOUR_FIELDS " %*s %*s %*s %*s"
    /* State, and twelve more fields, before the two that are asked for. */
    #define REAPED ") %*s" FOUR_FIELDS FOUR_FIELDS FOUR_FIELDS " %ld %ld"
    """
    const char *REAPED

cdef enum:
    PATH_ROOM = 300                 # "/proc/PID/task/" and a name of dirent, 256 bytes
    STAT_ROOM = 1024                # 52 numbers and a short name

cdef struct Process:
    int pid
    int clock                       # of its CPU time

cdef struct Processes:
    Process *list                   # parents before their children; the first is the server itself
    int count, room


cdef inline void list_processes(Processes *tree, int pid) noexcept nogil:
    """List `pid` and what descends from it at this moment; for want of memory not all."""
    cdef int i = 0
    tree.count = 0
    add_process(tree, pid)
    while i < tree.count:
        add_children(tree, tree.list[i].pid)
        i += 1


cdef inline void free_processes(Processes *tree) noexcept nogil:
    free(tree.list)
    tree.list = NULL
    tree.count = tree.room = 0


cdef inline void add_process(Processes *tree, int pid) noexcept nogil:
    cdef int room = 2 * tree.room or 8
    cdef Process *longer
    if tree.count == tree.room:
        longer = <Process *>realloc(tree.list, room * sizeof(Process))
        if longer == NULL:
            return
        tree.list, tree.room = longer, room
    tree.list[tree.count].pid = pid
    if posix.clock_getcpuclockid(pid, &tree.list[tree.count].clock) == 0:
        tree.count += 1


cdef inline void add_children(Processes *tree, int pid) noexcept nogil:
    """The kernel lists children by the thread that made them, proc_pid_task(5)."""
    cdef char path[PATH_ROOM]
    cdef posix.dirent *thread
    cdef posix.DIR *threads
    cdef FILE *children
    cdef int child
    snprintf(path, PATH_ROOM, "/proc/%d/task", pid)
    threads = posix.opendir(path)
    if threads == NULL:
        return                      # it has ended
    thread = posix.readdir(threads)
    while thread != NULL:
        snprintf(path, PATH_ROOM, "/proc/%d/task/%s/children", pid, thread.d_name)
        children = fopen(path, "re")
        while children != NULL and fscanf(children, "%d", &child) == 1:
            add_process(tree, child)
        if children != NULL:
            fclose(children)
        thread = posix.readdir(threads)
    posix.closedir(threads)


cdef inline int64_t cpu_ns(Processes *tree) noexcept nogil:
    """CPU time of those listed and of the server's children that have ended; 0: it has too."""
    cdef int64_t total
    cdef int i
    if tree.count == 0 or clock.read_ns(tree.list[0].clock) == 0:
        return 0
    total = reaped_ns(tree.list[0].pid)
    for i in range(tree.count):
        total += clock.read_ns(tree.list[i].clock)
    return total


cdef inline int64_t newcomers_ns(Processes *known) noexcept nogil:
    """CPU time of what descends from the server now and was not listed then."""
    cdef Processes now
    cdef int64_t total = 0
    cdef int i
    now.list = NULL
    now.count = now.room = 0
    if known.count:
        list_processes(&now, known.list[0].pid)
    for i in range(now.count):
        if not is_listed(known, now.list[i].pid):
            total += clock.read_ns(now.list[i].clock)
    free_processes(&now)
    return total


cdef inline bint is_listed(Processes *tree, int pid) noexcept nogil:
    cdef int i
    for i in range(tree.count):
        if tree.list[i].pid == pid:
            return True
    return False


cdef inline int64_t reaped_ns(int pid) noexcept nogil:
    """CPU time of the children that a process has waited for, in whole ticks (proc_pid_stat(5))."""
    cdef char text[STAT_ROOM]
    cdef char *rest
    cdef FILE *stat
    cdef size_t size
    cdef long user = 0, kernel = 0
    snprintf(text, STAT_ROOM, "/proc/%d/stat", pid)
    stat = fopen(text, "re")
    if stat == NULL:
        return 0
    size = fread(text, 1, STAT_ROOM - 1, stat)
    fclose(stat)
    text[size] = 0
    rest = strrchr(text, b")")      # ends the program's name, which may hold anything before it
    if rest != NULL:
        sscanf(rest, REAPED, &user, &kernel)
    return <int64_t>(user + kernel) * 1000000000 // posix.sysconf(posix._SC_CLK_TCK)
