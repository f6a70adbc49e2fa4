# The CPU time of a server: of its process and of all processes that descend from it.

from libc.stdint cimport int64_t
from libc.stdio cimport FILE, fclose, fopen, fread, fscanf, snprintf, sscanf
from libc.stdlib cimport free, realloc
from libc.string cimport strrchr

cimport fastsock._native.clock as clock
cimport fastsock._native.posix as posix

cdef extern from *:
    """
    #define FOUR_FIELDS " %*s %*s %*s %*s"
    /* After the name: the state and twelve more fields, then the two that are read. */
    #define REAPED ") %*s" FOUR_FIELDS FOUR_FIELDS FOUR_FIELDS " %ld %ld"
    """
    const char *REAPED

cdef enum:
    PATH_BYTES = 300                # "/proc/PID/task/" and a name of dirent, 256 bytes
    STAT_BYTES = 1024               # 52 numbers and a short name

cdef struct Process:
    int pid
    int clock_id                    # of its CPU time

cdef struct ProcessTree:
    Process *list                   # parents before their children; the first is the server's
    int count, capacity


cdef inline void list_processes(ProcessTree *tree, int pid) noexcept nogil:
    """List `pid` and the processes that descend from it now; without memory, not all of them."""
    cdef int i = 0
    tree.count = 0
    add_process(tree, pid)
    while i < tree.count:
        add_children(tree, tree.list[i].pid)
        i += 1


cdef inline void free_processes(ProcessTree *tree) noexcept nogil:
    free(tree.list)
    tree.list = NULL
    tree.count = tree.capacity = 0


cdef inline void add_process(ProcessTree *tree, int pid) noexcept nogil:
    cdef int capacity = 2 * tree.capacity or 8
    cdef Process *larger
    if tree.count == tree.capacity:
        larger = <Process *>realloc(tree.list, capacity * sizeof(Process))
        if larger == NULL:
            return
        tree.list, tree.capacity = larger, capacity
    tree.list[tree.count].pid = pid
    if posix.clock_getcpuclockid(pid, &tree.list[tree.count].clock_id) == 0:
        tree.count += 1


cdef inline void add_children(ProcessTree *tree, int pid) noexcept nogil:
    """Add the children of `pid`: the kernel lists them by parent thread (proc_pid_task(5))."""
    cdef char path[PATH_BYTES]
    cdef posix.dirent *thread
    cdef posix.DIR *threads
    cdef FILE *children
    cdef int child
    snprintf(path, PATH_BYTES, "/proc/%d/task", pid)
    threads = posix.opendir(path)
    if threads == NULL:
        return                      # the process has ended
    thread = posix.readdir(threads)
    while thread != NULL:
        snprintf(path, PATH_BYTES, "/proc/%d/task/%s/children", pid, thread.d_name)
        children = fopen(path, "re")
        while children != NULL and fscanf(children, "%d", &child) == 1:
            add_process(tree, child)
        if children != NULL:
            fclose(children)
        thread = posix.readdir(threads)
    posix.closedir(threads)


cdef inline int64_t cpu_ns(ProcessTree *tree) noexcept nogil:
    """CPU time of the listed processes and of the server's reaped children; 0: the server ended."""
    cdef int64_t total
    cdef int i
    if tree.count == 0 or clock.read_ns(tree.list[0].clock_id) == 0:
        return 0
    total = reaped_cpu_ns(tree.list[0].pid)
    for i in range(tree.count):
        total += clock.read_ns(tree.list[i].clock_id)
    return total


cdef inline int64_t unlisted_cpu_ns(ProcessTree *listed) noexcept nogil:
    """CPU time of the processes that descend from the server now and are not listed."""
    cdef ProcessTree now
    cdef int64_t total = 0
    cdef int i
    now.list = NULL
    now.count = now.capacity = 0
    if listed.count:
        list_processes(&now, listed.list[0].pid)
    for i in range(now.count):
        if not is_listed(listed, now.list[i].pid):
            total += clock.read_ns(now.list[i].clock_id)
    free_processes(&now)
    return total


cdef inline bint is_listed(ProcessTree *tree, int pid) noexcept nogil:
    cdef int i
    for i in range(tree.count):
        if tree.list[i].pid == pid:
            return True
    return False


cdef inline int64_t reaped_cpu_ns(int pid) noexcept nogil:
    """CPU time of the children that a process has waited for, in whole ticks (proc_pid_stat(5))."""
    cdef char text[STAT_BYTES]
    cdef char *fields
    cdef FILE *stat
    cdef size_t size
    cdef long user = 0, kernel = 0
    snprintf(text, STAT_BYTES, "/proc/%d/stat", pid)
    stat = fopen(text, "re")
    if stat == NULL:
        return 0
    size = fread(text, 1, STAT_BYTES - 1, stat)
    fclose(stat)
    text[size] = 0
    fields = strrchr(text, b")")    # the last one ends the program's name, which may contain one
    if fields != NULL:
        sscanf(fields, REAPED, &user, &kernel)
    return <int64_t>(user + kernel) * 1000000000 // posix.sysconf(posix._SC_CLK_TCK)
