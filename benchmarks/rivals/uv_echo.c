/*
 * uv_echo HOST PORT: a TCP echo server on libuv, one thread, one loop.
 *
 * What is read into one shared buffer is written at once as far as the socket takes it. The unsent
 * bytes are copied and given to libuv's queue, and the connection is not read until they are sent:
 * one buffer is the bound, and TCP's own flow control makes the client wait. Built with libuv.
 */
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

enum { BUFFER_SIZE = 64 * 1024, BACKLOG = 4096 };

struct connection {
    uv_tcp_t tcp; /* first, so that the handle's address is the connection's */
    uv_write_t write;
    char *unsent; /* the bytes of that write; NULL: the connection is read */
};

static char buffer[BUFFER_SIZE];

static void die(const char *what, int error)
{
    fprintf(stderr, "%s: %s\n", what, uv_strerror(error));
    exit(1);
}

static void on_signal(int number)
{
    (void)number;
    _exit(0);
}

static void on_closed(uv_handle_t *handle)
{
    struct connection *connection = (struct connection *)handle;
    free(connection->unsent);
    free(connection);
}

static void close_connection(struct connection *connection)
{
    uv_close((uv_handle_t *)&connection->tcp, on_closed);
}

/* Used before the next read of any connection, so that all can share it. */
static void provide(uv_handle_t *handle, size_t suggested, uv_buf_t *out)
{
    (void)handle, (void)suggested;
    *out = uv_buf_init(buffer, sizeof buffer);
}

static void on_read(uv_stream_t *stream, ssize_t size, const uv_buf_t *read);

static void start_reading(struct connection *connection)
{
    int error = uv_read_start((uv_stream_t *)&connection->tcp, provide, on_read);
    if (error)
        die("uv_read_start", error);
}

static void on_written(uv_write_t *write, int error)
{
    struct connection *connection = (struct connection *)write->handle;
    free(connection->unsent);
    connection->unsent = NULL;
    if (error)
        close_connection(connection); /* the client has reset */
    else
        start_reading(connection);
}

/* A slow reader: it is not read until these bytes are sent. */
static void write_later(struct connection *connection, const char *bytes, size_t size)
{
    uv_stream_t *stream = (uv_stream_t *)&connection->tcp;
    if (!(connection->unsent = malloc(size)))
        die("malloc", UV_ENOMEM);
    memcpy(connection->unsent, bytes, size);
    uv_buf_t kept = uv_buf_init(connection->unsent, size);
    uv_read_stop(stream);
    if (uv_write(&connection->write, stream, &kept, 1, on_written) < 0)
        close_connection(connection);
}

static void on_read(uv_stream_t *stream, ssize_t size, const uv_buf_t *read)
{
    struct connection *connection = (struct connection *)stream;
    if (size == 0) /* EAGAIN */
        return;
    /* At end of file nothing is unsent: the connection would not be read. So closing loses nothing,
     * and the client that shut down its sending half gets its whole echo, then our FIN. */
    if (size < 0) {
        close_connection(connection);
        return;
    }
    uv_buf_t bytes = uv_buf_init(read->base, size);
    ssize_t sent = uv_try_write(stream, &bytes, 1);
    if (sent == UV_EAGAIN)
        sent = 0;
    if (sent < 0)
        close_connection(connection);
    else if (sent < size)
        write_later(connection, read->base + sent, size - sent);
}

static void on_connection(uv_stream_t *listener, int error)
{
    struct connection *connection;
    /* Such as no descriptors left, which would spoil the measurement: better to stop than to be
     * compared. libuv does not report a client that reset before it was accepted. */
    if (error)
        die("accept", error);
    if (!(connection = malloc(sizeof *connection)))
        die("malloc", UV_ENOMEM);
    connection->unsent = NULL;
    uv_tcp_init(listener->loop, &connection->tcp);
    if ((error = uv_accept(listener, (uv_stream_t *)&connection->tcp)))
        die("uv_accept", error);
    uv_tcp_nodelay(&connection->tcp, 1);
    start_reading(connection);
}

int main(int argc, char **argv)
{
    struct sockaddr_in address;
    int length = sizeof address, error;
    uv_loop_t *loop = uv_default_loop();
    uv_tcp_t listener;
    if (argc != 3 || uv_ip4_addr(argv[1], atoi(argv[2]), &address)) {
        fprintf(stderr, "usage: uv_echo HOST PORT (numeric IPv4; port 0 picks one)\n");
        return 2;
    }
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    signal(SIGPIPE, SIG_IGN); /* libuv may write() to a socket that was reset */

    uv_tcp_init(loop, &listener);
    if ((error = uv_tcp_bind(&listener, (struct sockaddr *)&address, 0))
        || (error = uv_listen((uv_stream_t *)&listener, BACKLOG, on_connection)))
        die("listen", error);
    uv_tcp_getsockname(&listener, (struct sockaddr *)&address, &length);
    fprintf(stderr, "listening on tcp://%s:%d (libuv %s)\n", argv[1], ntohs(address.sin_port),
            uv_version_string());
    return uv_run(loop, UV_RUN_DEFAULT);
}
