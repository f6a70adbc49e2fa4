/* Makes the Nth call of one function fail, or come short: preloaded into a server under test.
 *
 * Only calls out of watched code count, which the test says are the extension modules of fastsock:
 * its own clients, Python and libc go on as ever. What is set and counted lies in shared memory,
 * so that the processes of the fork engine are included. Besides, it counts what the watched code
 * has allocated and not freed. */

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
    DO(getsockname) DO(listen) DO(malloc) DO(mmap64) DO(poll) DO(pthread_create) DO(realloc)         \
    DO(recv) DO(recvmmsg) DO(send) DO(sendmmsg) DO(setsockopt) DO(socket)

enum {
#define MEMBER(name) NTH_##name,
    FUNCTIONS(MEMBER)
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
    long nth;        /* the call that goes wrong, 0: none */
    long part;       /* with `error` 0: how much of it is done */
    long clip;       /* no send takes more bytes than this, 0: no limit */
    int function;
    int error;
    int fired;
} *shared;

static uintptr_t ranges[RANGES_MAX][2];
static int ranges_count;

/* glibc's own names: dlsym() may itself allocate. */
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

/* The `nth` call of `name` fails with `error`, or if that is 0 does no more than `part`. */
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

/* No more failures; returns whether the one that was asked for has come. */
int nth_disarm(void) {
    shared->nth = shared->clip = 0;
    return shared->fired;
}

int nth_fired(void) { return shared->fired; }

long nth_calls(void) { return shared->calls[shared->function]; }

long nth_blocks(void) { return shared->blocks; }

/* --- whose call it is, and whether it is the one --------------------------------------------- */

static int watched(void *caller) {
    for (int i = 0; i < ranges_count; i++)
        if ((uintptr_t)caller >= ranges[i][0] && (uintptr_t)caller < ranges[i][1])
            return 1;
    return 0;
}

static int is_the_one(int function, void *caller) {
    if (!watched(caller))
        return 0;
    long number = __atomic_add_fetch(&shared->calls[function], 1, __ATOMIC_SEQ_CST);
    if (function != shared->function || number != shared->nth)
        return 0;
    shared->fired = 1;
    return 1;
}

/* EAGAIN is no answer of a call that may wait. */
static int can_fail_so(int fd, int flags) {
    return shared == NULL || shared->error != EAGAIN || flags & MSG_DONTWAIT ||
           fcntl(fd, F_GETFL) & O_NONBLOCK;
}

static void count_block(void *block, void *caller, long change) {
    if (block != NULL && watched(caller))
        __atomic_add_fetch(&shared->blocks, change, __ATOMIC_SEQ_CST);
}

#define FAIL_IF_THE_ONE(name, failure)                                                             \
    if (is_the_one(NTH_##name, CALLER)) {                                                          \
        errno = shared->error;                                                                     \
        return failure;                                                                            \
    }

/* --- calls that fail -------------------------------------------------------------------------- */

int socket(int domain, int type, int protocol) {
    REAL(socket);
    FAIL_IF_THE_ONE(socket, -1)
    return real(domain, type, protocol);
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t size) {
    REAL(setsockopt);
    FAIL_IF_THE_ONE(setsockopt, -1)
    return real(fd, level, name, value, size);
}

int bind(int fd, const struct sockaddr *address, socklen_t size) {
    REAL(bind);
    FAIL_IF_THE_ONE(bind, -1)
    return real(fd, address, size);
}

int listen(int fd, int backlog) {
    REAL(listen);
    FAIL_IF_THE_ONE(listen, -1)
    return real(fd, backlog);
}

int getsockname(int fd, struct sockaddr *address, socklen_t *size) {
    REAL(getsockname);
    FAIL_IF_THE_ONE(getsockname, -1)
    return real(fd, address, size);
}

int eventfd(unsigned int count, int flags) {
    REAL(eventfd);
    FAIL_IF_THE_ONE(eventfd, -1)
    return real(count, flags);
}

int epoll_create1(int flags) {
    REAL(epoll_create1);
    FAIL_IF_THE_ONE(epoll_create1, -1)
    return real(flags);
}

int epoll_ctl(int epfd, int operation, int fd, struct epoll_event *event) {
    REAL(epoll_ctl);
    FAIL_IF_THE_ONE(epoll_ctl, -1)
    return real(epfd, operation, fd, event);
}

int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags) {
    REAL(accept4);
    FAIL_IF_THE_ONE(accept4, -1)
    return real(fd, address, size, flags);
}

/* This one returns its error. */
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*main)(void *),
                   void *argument) {
    REAL(pthread_create);
    if (is_the_one(NTH_pthread_create, CALLER))
        return shared->error;
    return real(thread, attributes, main, argument);
}

/* --- calls that fail or come short ------------------------------------------------------------ */

ssize_t recv(int fd, void *buffer, size_t size, int flags) {
    REAL(recv);
    if (can_fail_so(fd, flags) && is_the_one(NTH_recv, CALLER)) {
        if ((errno = shared->error) != 0)
            return -1;
        size = (size_t)shared->part;
    }
    return real(fd, buffer, size, flags);
}

ssize_t send(int fd, const void *buffer, size_t size, int flags) {
    REAL(send);
    if (can_fail_so(fd, flags) && is_the_one(NTH_send, CALLER)) {
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
    if (is_the_one(NTH_recvmmsg, CALLER)) {
        if ((errno = shared->error) != 0)
            return -1;
        count = (unsigned int)shared->part;
    }
    return real(fd, list, count, flags, timeout);
}

int sendmmsg(int fd, struct mmsghdr *list, unsigned int count, int flags) {
    REAL(sendmmsg);
    if (is_the_one(NTH_sendmmsg, CALLER)) {
        if ((errno = shared->error) != 0)
            return -1;
        count = (unsigned int)shared->part;
    }
    return real(fd, list, count, flags);
}

/* Of these two short means: they have waited, and say that nothing is ready, or only one is. */

int epoll_wait(int epfd, struct epoll_event *events, int count, int timeout) {
    REAL(epoll_wait);
    if (is_the_one(NTH_epoll_wait, CALLER)) {
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
    if (is_the_one(NTH_poll, CALLER)) {
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
    FAIL_IF_THE_ONE(malloc, NULL)
    void *block = __libc_malloc(size);
    count_block(block, CALLER, 1);
    return block;
}

void *calloc(size_t count, size_t size) {
    FAIL_IF_THE_ONE(calloc, NULL)
    void *block = __libc_calloc(count, size);
    count_block(block, CALLER, 1);
    return block;
}

void *realloc(void *old, size_t size) {
    FAIL_IF_THE_ONE(realloc, NULL)
    void *block = __libc_realloc(old, size);
    if (old == NULL)
        count_block(block, CALLER, 1);
    return block;
}

void free(void *block) {
    count_block(block, CALLER, -1);
    __libc_free(block);
}

/* With 64-bit offsets, which Python's headers ask for, mmap() is called by this name. */
void *mmap64(void *address, size_t size, int protection, int flags, int fd, off64_t offset) {
    REAL(mmap64);
    FAIL_IF_THE_ONE(mmap64, MAP_FAILED)
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
