/*
 * epoll_echo HOST PORT: a plain TCP echo server, one thread, one level-triggered epoll loop.
 *
 * It is the reference: about the least a correct server can do with readiness events. A ready
 * connection costs one recv and one send; everything else below is off that path.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER_SIZE = 64 * 1024, MAX_FDS = 65536, BATCH = 256 };

/* What a send did not take, by connection. The kernel hands out the lowest free descriptor, so the
 * descriptor itself is a dense index. */
static struct unsent { char *bytes; size_t size; } unsent_of[MAX_FDS];
static char buffer[BUFFER_SIZE];
static int loop;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void on_signal(int number)
{
    (void)number;
    _exit(0);
}

static void watch(int operation, int fd, uint32_t events)
{
    struct epoll_event event = { .events = events, .data.fd = fd };
    if (epoll_ctl(loop, operation, fd, &event) < 0)
        die("epoll_ctl");
}

static void close_connection(int fd)
{
    free(unsent_of[fd].bytes);
    unsent_of[fd].bytes = NULL;
    close(fd); /* also takes it out of the epoll set */
}

/* Sends these bytes: fresh ones in the shared buffer, or the unsent ones of the connection. */
static void send_bytes(int fd, const char *bytes, size_t size)
{
    struct unsent *unsent = &unsent_of[fd];
    ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        close_connection(fd);
        return;
    }
    size_t left = size - (sent < 0 ? 0 : sent);
    if (left == 0 && !unsent->bytes)
        return; /* the usual case */
    if (left == 0) {
        free(unsent->bytes);
        unsent->bytes = NULL;
        watch(EPOLL_CTL_MOD, fd, EPOLLIN);
        return;
    }
    /* A slow reader. Keep the unsent bytes, and stop reading until they are sent: one buffer is the
     * bound, and TCP's own flow control makes the client wait. */
    if (!unsent->bytes) {
        if (!(unsent->bytes = malloc(left)))
            die("malloc");
        watch(EPOLL_CTL_MOD, fd, EPOLLOUT);
    }
    memmove(unsent->bytes, bytes + size - left, left);
    unsent->size = left;
}

static void echo(int fd)
{
    ssize_t size = recv(fd, buffer, sizeof buffer, 0);
    /* At end of file nothing is unsent: the connection would not be read. So closing loses nothing,
     * and the client that shut down its sending half gets its whole echo, then our FIN. */
    if (size > 0)
        send_bytes(fd, buffer, size);
    else if (size == 0 || errno != EAGAIN)
        close_connection(fd);
}

static void accept_all(int listener)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd < MAX_FDS)
            watch(EPOLL_CTL_ADD, fd, EPOLLIN);
        else
            close(fd);
    }
    /* A client may reset before it is accepted. Anything else, such as no descriptors left, would
     * spoil the measurement: better to stop than to be compared. */
    if (errno != EAGAIN && errno != ECONNABORTED)
        die("accept4");
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = { .sin_family = AF_INET };
    socklen_t length = sizeof address;
    struct epoll_event events[BATCH];
    int on = 1;
    if (argc != 3 || inet_pton(AF_INET, argv[1], &address.sin_addr) != 1) {
        fprintf(stderr, "usage: epoll_echo HOST PORT (numeric IPv4; port 0 picks one)\n");
        return 2;
    }
    address.sin_port = htons(atoi(argv[2]));
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0)
        die("socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    /* On Linux accepted sockets inherit it: no system call per connection. */
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, length) < 0 || listen(listener, SOMAXCONN) < 0)
        die("bind");
    getsockname(listener, (struct sockaddr *)&address, &length);
    loop = epoll_create1(EPOLL_CLOEXEC);
    watch(EPOLL_CTL_ADD, listener, EPOLLIN);
    fprintf(stderr, "listening on tcp://%s:%d (C epoll)\n", argv[1], ntohs(address.sin_port));

    for (;;) {
        int count = epoll_wait(loop, events, BATCH, -1); /* -1 after a SIGCONT: wait again */
        /* Only a connection's own event closes it, and it has one per batch, so no event here can
         * belong to the previous owner of a reused descriptor. */
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener)
                accept_all(listener);
            else if (unsent_of[fd].bytes)
                send_bytes(fd, unsent_of[fd].bytes, unsent_of[fd].size);
            else
                echo(fd);
        }
    }
}
