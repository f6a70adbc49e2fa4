/*
 * uring_echo HOST PORT: a plain TCP echo server, one thread, one io_uring.
 *
 * The reference for completions: one system call a turn submits what is to be done and waits for
 * what was. Accepting is multishot; a connection has one receive or one send in flight, into and
 * out of a buffer of its own, so nothing is read before all is sent, and nothing can be
 * reordered. Built with liburing.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <liburing.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER_SIZE = 64 * 1024, ENTRIES = 1024, COMPLETIONS = 8192 };

/* Nothing but this record's own operation is in flight when it is freed, so no completion can
 * come for one that is freed. */
struct connection {
    int fd;
    int to_send;  /* bytes of the buffer to send; 0: a receive is in flight */
    int sent;  /* of these */
    char buffer[BUFFER_SIZE];
};

static struct io_uring ring;
static int listener;

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

static struct io_uring_sqe *next_entry(void)
{
    struct io_uring_sqe *entry = io_uring_get_sqe(&ring);
    if (!entry) { /* all are used: hand them over and take one */
        io_uring_submit(&ring);
        entry = io_uring_get_sqe(&ring);
    }
    return entry;
}

static void start_accepting(void)
{
    struct io_uring_sqe *entry = next_entry();
    io_uring_prep_multishot_accept(entry, listener, NULL, NULL, SOCK_CLOEXEC);
    io_uring_sqe_set_data(entry, NULL);
}

static void start_next(struct connection *connection)
{
    struct io_uring_sqe *entry = next_entry();
    if (connection->to_send)
        io_uring_prep_send(entry, connection->fd, connection->buffer + connection->sent,
                           connection->to_send - connection->sent, MSG_NOSIGNAL);
    else
        io_uring_prep_recv(entry, connection->fd, connection->buffer, BUFFER_SIZE, 0);
    io_uring_sqe_set_data(entry, connection);
}

static void close_connection(struct connection *connection)
{
    close(connection->fd);
    free(connection);
}

static void on_accepted(int fd, unsigned flags)
{
    /* A client may reset before it is accepted. Anything else would spoil the measurement. */
    if (fd < 0 && fd != -ECONNABORTED) {
        errno = -fd;
        die("accept");
    }
    if (fd >= 0) {
        struct connection *connection = malloc(sizeof *connection);
        if (!connection)
            die("malloc");
        connection->fd = fd;
        connection->to_send = connection->sent = 0;
        start_next(connection);
    }
    if (!(flags & IORING_CQE_F_MORE))
        start_accepting();
}

static void on_done(struct connection *connection, int result)
{
    if (result == -EAGAIN || result == -EINTR) {
        start_next(connection);
    } else if (connection->to_send == 0) {
        if (result <= 0) { /* end of file: everything before it has been sent back */
            close_connection(connection);
            return;
        }
        connection->to_send = result;
        connection->sent = 0;
        start_next(connection);
    } else {
        if (result < 0) {
            close_connection(connection);
            return;
        }
        connection->sent += result;
        if (connection->sent == connection->to_send)
            connection->to_send = 0;
        start_next(connection);
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = { .sin_family = AF_INET };
    socklen_t length = sizeof address;
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE
                 | IORING_SETUP_SUBMIT_ALL,
        .cq_entries = COMPLETIONS,
    };
    int on = 1;
    if (argc != 3 || inet_pton(AF_INET, argv[1], &address.sin_addr) != 1) {
        fprintf(stderr, "usage: uring_echo HOST PORT (numeric IPv4; port 0 picks one)\n");
        return 2;
    }
    address.sin_port = htons(atoi(argv[2]));
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);

    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0)
        die("socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, length) < 0 || listen(listener, SOMAXCONN) < 0)
        die("bind");
    getsockname(listener, (struct sockaddr *)&address, &length);
    errno = -io_uring_queue_init_params(ENTRIES, &ring, &params);
    if (errno)
        die("io_uring_setup");
    start_accepting();
    fprintf(stderr, "listening on tcp://%s:%d (C io_uring)\n", argv[1], ntohs(address.sin_port));

    for (;;) {
        struct io_uring_cqe *done;
        unsigned head, count = 0;
        int error = io_uring_submit_and_wait(&ring, 1);
        if (error < 0 && error != -EINTR && error != -EBUSY) {
            errno = -error;
            die("io_uring_enter");
        }
        io_uring_for_each_cqe(&ring, head, done) {
            struct connection *connection = io_uring_cqe_get_data(done);
            if (connection)
                on_done(connection, done->res);
            else
                on_accepted(done->res, done->flags);
            count++;
        }
        io_uring_cq_advance(&ring, count);
    }
}
