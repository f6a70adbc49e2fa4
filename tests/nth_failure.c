/* Makes the Nth call of one function fail or come short; preloaded into a server under test.
 *
 * Only calls from the watched code count, the extension modules of fastsock: the test's clients,
 * Python and libc are not affected. The state lies in shared memory, so that the processes of the
 * fork engine are included. It also counts the blocks that the watched code has allocated and not
 * freed. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define FUNCTIONS(DO)                                                                              \
    DO(accept4) DO(bind) DO(calloc) DO(epoll_create1) DO(epoll_ctl) DO(epoll_wait) DO(eventfd)     \
    DO(getsockname) DO(listen) DO(malloc) DO(mmap64) DO(poll) DO(pthread_create) DO(realloc)       \
    DO(recv) DO(recvmmsg) DO(send) DO(sendmmsg) DO(setsockopt) DO(socket)

enum {
#define NUMBER(name) NTH_##name,
    FUNCTIONS(NUMBER)
    FUNCTIONS_COUNT
};

static const char *const names[] = {
#define NAME(name) #name,
    FUNCTIONS(NAME)
};

enum { RANGES_MAX = 64 };

static struct {
    long calls[FUNCTIONS_COUNT];
    long blocks;     /* allocated and not freed */
    long nth;        /* the call that fails, 0: none */
    long part;       /* with `error` 0: how much the call does */
    long clip;       /* no send takes more bytes than this, 0: no limit */
    int function;
    int error;
    int fired;
} *shared;

static uintptr_t ranges[RANGES_MAX][2];
static int ranges_count;

/* glibc's own names: dlsym() may allocate, and would call malloc() below. */
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void __libc_free(void *);

#define REAL(name)                                                                                 \
    static __typeof__(name) *real;                                                                 \
    if (real == NULL)                                                                              \
        real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define CALLER __builtin_return_address(0)

/* --- what the test calls --------------------------------------------------------------------- */

int nth_watch(uintptr_t low, uintptr_t high) {
    if (shared == NULL) {
        void *memory = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            return -1;
        shared = memory;
    }
    if (ranges_count == RANGES_MAX)
        return -1;
    ranges[ranges_count][0] = low;
    ranges[ranges_count++][1] = high;
    return 0;
}

/* The `nth` call of `name` fails with `error`; with `error` 0 it does no more than `part`. */
int nth_arm(const char *name, long nth, int error, long part, long clip) {
    memset(shared->calls, 0, sizeof shared->calls);
    shared->fired = 0;
    shared->error = error;
    shared->part = part;
    shared->clip = clip;
    for (shared->function = 0; shared->function < FUNCTIONS_COUNT; shared->function++)
        if (strcmp(names[shared->function], name) == 0) {
            shared->nth = nth;
            return 0;
        }
    return -1;
}

/* No more failures; returns whether the call has failed. */
int nth_disarm(void) {
    shared->nth = shared->clip = 0;
    return shared->fired;
}

int nth_fired(void) { return shared->fired; }

long nth_calls(void) { return shared->calls[shared->function]; }

long nth_blocks(void) { return shared->blocks; }

/* --- which call fails ------------------------------------------------------------------------ */

static int watched(void *caller) {
    for (int i = 0; i < ranges_count; i++)
        if ((uintptr_t)caller >= ranges[i][0] && (uintptr_t)caller < ranges[i][1])
            return 1;
    return 0;
}

static int must_fail(int function, void *caller) {
    if (!watched(caller))
        return 0;
    long number = __atomic_add_fetch(&shared->calls[function], 1, __ATOMIC_SEQ_CST);
    if (function != shared->function || number != shared->nth)
        return 0;
    shared->fired = 1;
    return 1;
}

/* A call that may block never returns EAGAIN. */
static int error_is_possible(int fd, int flags) {
    return shared == NULL || shared->error != EAGAIN || flags & MSG_DONTWAIT ||
           fcntl(fd, F_GETFL) & O_NONBLOCK;
}

static void count_block(void *block, void *caller, long change) {
    if (block != NULL && watched(caller))
        __atomic_add_fetch(&shared->blocks, change, __ATOMIC_SEQ_CST);
}

#define FAIL_IF_CHOSEN(name, failure)                                                              \
    if (must_fail(NTH_##name, CALLER)) {                                                           \
        errno = shared->error;                                                                     \
        return failure;                                                                            \
    }

/* --- calls that fail -------------------------------------------------------------------------- */

int socket(int domain, int type, int protocol) {
    REAL(socket);
    FAIL_IF_CHOSEN(socket, -1)
    return real(domain, type, protocol);
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t size) {
    REAL(setsockopt);
    FAIL_IF_CHOSEN(setsockopt, -1)
    return real(fd, level, name, value, size);
}

int bind(int fd, const struct sockaddr *address, socklen_t size) {
    REAL(bind);
    FAIL_IF_CHOSEN(bind, -1)
    return real(fd, address, size);
}

int listen(int fd, int backlog) {
    REAL(listen);
    FAIL_IF_CHOSEN(listen, -1)
    return real(fd, backlog);
}

int getsockname(int fd, struct sockaddr *address, socklen_t *size) {
    REAL(getsockname);
    FAIL_IF_CHOSEN(getsockname, -1)
    return real(fd, address, size);
}

int eventfd(unsigned int count, int flags) {
    REAL(eventfd);
    FAIL_IF_CHOSEN(eventfd, -1)
    return real(count, flags);
}

int epoll_create1(int flags) {
    REAL(epoll_create1);
    FAIL_IF_CHOSEN(epoll_create1, -1)
    return real(flags);
}

int epoll_ctl(int epfd, int operation, int fd, struct epoll_event *event) {
    REAL(epoll_ctl);
    FAIL_IF_CHOSEN(epoll_ctl, -1)
    return real(epfd, operation, fd, event);
}

int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags) {
    REAL(accept4);
    FAIL_IF_CHOSEN(accept4, -1)
    return real(fd, address, size, flags);
}

/* Returns its error, and does not set errno. */
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*main)(void *),
                   void *argument) {
    REAL(pthread_create);
    if (must_fail(NTH_pthread_create, CALLER))
        return shared->error;
    return real(thread, attributes, main, argument);
}

/* --- calls that fail or come short ------------------------------------------------------------ */

ssize_t recv(int fd, void *buffer, size_t size, int flags) {
    REAL(recv);
    if (error_is_possible(fd, flags) && must_fail(NTH_recv, CALLER)) {
        if ((errno = shared->error) != 0)
            return -1;
        size = (size_t)shared->part;
    }
    return real(fd, buffer, size, flags);
}

ssize_t send(int fd, const void *buffer, size_t size, int flags) {
    REAL(send);
    if (error_is_possible(fd, flags) && must_fail(NTH_send, CALLER)) {
        if ((errno = shared->error) != 0)
            return -1;
        size = (size_t)shared->part;
    }
    if (watched(CALLER) && shared->clip != 0 && size > (size_t)shared->clip)
        size = (size_t)shared->clip;
    return real(fd, buffer, size, flags);
}

int recvmmsg(int fd, struct mmsghdr *list, unsigned int count, int flags,
             struct timespec *timeout) {
    REAL(recvmmsg);
    if (must_fail(NTH_recvmmsg, CALLER)) {
        if ((errno = shared->error) != 0)
            return -1;
        if (count > (unsigned int)shared->part)
            count = (unsigned int)shared->part;
    }
    return real(fd, list, count, flags, timeout);
}

int sendmmsg(int fd, struct mmsghdr *list, unsigned int count, int flags) {
    REAL(sendmmsg);
    if (must_fail(NTH_sendmmsg, CALLER)) {
        if ((errno = shared->error) != 0)
            return -1;
        if (count > (unsigned int)shared->part)
            count = (unsigned int)shared->part;
    }
    return real(fd, list, count, flags);
}

/* A short result of these two: nothing is ready, or (epoll_wait) one descriptor only. */

int epoll_wait(int epfd, struct epoll_event *events, int count, int timeout) {
    REAL(epoll_wait);
    if (must_fail(NTH_epoll_wait, CALLER)) {
        if ((errno = shared->error) != 0)
            return -1;
        if (shared->part == 0)
            return 0;
        count = (int)shared->part;
    }
    return real(epfd, events, count, timeout);
}

int poll(struct pollfd *list, nfds_t count, int timeout) {
    REAL(poll);
    if (must_fail(NTH_poll, CALLER)) {
        if ((errno = shared->error) != 0)
            return -1;
        for (nfds_t i = 0; i < count; i++)
            list[i].revents = 0;
        return 0;
    }
    return real(list, count, timeout);
}

/* --- memory ----------------------------------------------------------------------------------- */

void *malloc(size_t size) {
    FAIL_IF_CHOSEN(malloc, NULL)
    void *block = __libc_malloc(size);
    count_block(block, CALLER, 1);
    return block;
}

void *calloc(size_t count, size_t size) {
    FAIL_IF_CHOSEN(calloc, NULL)
    void *block = __libc_calloc(count, size);
    count_block(block, CALLER, 1);
    return block;
}

void *realloc(void *old, size_t size) {
    FAIL_IF_CHOSEN(realloc, NULL)
    void *block = __libc_realloc(old, size);
    if (old == NULL)
        count_block(block, CALLER, 1);
    return block;
}

void free(void *block) {
    count_block(block, CALLER, -1);
    __libc_free(block);
}

/* Python's headers ask for 64-bit offsets, which make mmap() a call of mmap64(). */
void *mmap64(void *address, size_t size, int protection, int flags, int fd, off64_t offset) {
    REAL(mmap64);
    FAIL_IF_CHOSEN(mmap64, MAP_FAILED)
    void *block = real(address, size, protection, flags, fd, offset);
    if (block != MAP_FAILED)
        count_block(block, CALLER, 1);
    return block;
}

int munmap(void *block, size_t size) {
    REAL(munmap);
    count_block(block, CALLER, -1);
    return real(block, size);
}
