/*
 * epoll_client HOST PORT CONNECTIONS SIZE SECONDS: a plain load client for a TCP echo server.
 *
 * Closed loop, one message of SIZE bytes in flight per connection, one thread that never sleeps
 * (epoll_wait with timeout 0). Every byte of every answer is compared. Prints one line of JSON;
 * exits 1 when an answer was wrong, none came, or a connection was lost.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

enum { PERIOD = 65537, MAX_SIZE = 64 * 1024, BATCH = 256, MAX_CONNECTIONS = 65536 };
static const int64_t WARM_UP_NS = 300 * 1000 * 1000;

/* The byte at position p of connection c's stream is table[(start(c) + p) % PERIOD]. The table's
 * tail repeats its head, so that any message is one contiguous piece of it. The period is prime:
 * whatever the size, a connection walks through every offset, and a lost, doubled or swapped
 * piece shows. */
static unsigned char table[PERIOD + MAX_SIZE];

struct connection {
    int fd;
    size_t offset;     /* of the current message in the table */
    size_t sent, got;  /* bytes of the current message and of its answer */
    int wrong;         /* part of this answer already differed */
    int waits_to_send; /* EPOLLOUT is asked for */
    int64_t started;
};

static struct connection *connections;
static unsigned char answer[MAX_SIZE];
static size_t size;
static int loop;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* Log-linear histogram of nanoseconds: 64 buckets for each doubling, so within 1.6 %. */
enum { STEPS = 64, BUCKETS = 59 * STEPS };
static uint64_t histogram[BUCKETS];

static void record(uint64_t ns)
{
    int shift = ns < 2 * STEPS ? 0 : 57 - __builtin_clzll(ns); /* leaves 64 <= ns >> shift < 128 */

    histogram[shift * STEPS + (ns >> shift)]++;
}

static double percentile_us(double share, uint64_t count)
{
    uint64_t seen = 0;
    for (int i = 0; i < BUCKETS; i++) {
        seen += histogram[i];
        if (seen && seen >= share * count) {
            int shift = i < 2 * STEPS ? 0 : i / STEPS - 1;
            double low = (double)((uint64_t)(i - shift * STEPS) << shift);
            return (low + (double)(UINT64_C(1) << shift) / 2) / 1000;
        }
    }
    return 0;
}

static void watch(int operation, struct connection *c, uint32_t events)
{
    struct epoll_event event = { .events = events, .data.ptr = c };
    if (epoll_ctl(loop, operation, c->fd, &event) < 0)
        die("epoll_ctl");
}

static void send_rest(struct connection *c)
{
    ssize_t n = send(c->fd, table + c->offset + c->sent, size - c->sent, MSG_NOSIGNAL);

    if (n < 0 && errno != EAGAIN && errno != EINTR)
        die("send");
    if (n > 0)
        c->sent += n;
    if ((c->sent < size) != c->waits_to_send) {
        c->waits_to_send = !c->waits_to_send;
        watch(EPOLL_CTL_MOD, c, c->waits_to_send ? EPOLLIN | EPOLLOUT : EPOLLIN);
    }
}

/* Returns whether the answer is complete. */
static int receive(struct connection *c)
{
    ssize_t n = recv(c->fd, answer, size - c->got, 0);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n == 0)
        errno = ECONNRESET; /* a server has no reason to hang up on us */
    if (n <= 0)
        die("recv");
    if (memcmp(answer, table + c->offset + c->got, n) != 0)
        c->wrong = 1;
    c->got += n;
    return c->got == size;
}

static void open_connection(struct connection *c, const struct sockaddr_in *server)
{
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (const struct sockaddr *)server, sizeof *server) < 0)
        die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    c->offset = (size_t)(c - connections) * 7919 % PERIOD;
    watch(EPOLL_CTL_ADD, c, EPOLLIN);
}

int main(int argc, char **argv)
{
    struct sockaddr_in server = { .sin_family = AF_INET };
    struct epoll_event events[BATCH];
    long count = argc == 6 ? atol(argv[3]) : 0, bytes = argc == 6 ? atol(argv[4]) : 0;
    double seconds = argc == 6 ? atof(argv[5]) : 0;

    if (count < 1 || count > MAX_CONNECTIONS || bytes < 1 || bytes > MAX_SIZE || !(seconds > 0)
        || inet_pton(AF_INET, argv[1], &server.sin_addr) != 1) {
        fprintf(stderr, "usage: epoll_client HOST PORT CONNECTIONS SIZE SECONDS "
                        "(numeric IPv4; up to %d bytes)\n", MAX_SIZE);
        return 2;
    }
    server.sin_port = htons(atoi(argv[2]));
    size = bytes;

    uint32_t x = 2463534242u; /* xorshift32: the same noise in every run */
    for (int i = 0; i < PERIOD; i++) {
        x ^= x << 13, x ^= x >> 17, x ^= x << 5;
        table[i] = x >> 24;
    }
    memcpy(table + PERIOD, table, MAX_SIZE);

    loop = epoll_create1(EPOLL_CLOEXEC);
    connections = calloc(count, sizeof *connections);
    if (loop < 0 || !connections)
        die("setup");
    for (long i = 0; i < count; i++)
        open_connection(&connections[i], &server);

    int64_t time = now(), begin = time + WARM_UP_NS, end = begin + (int64_t)(seconds * 1e9);
    uint64_t messages = 0, mismatches = 0; /* a wrong answer counts in the warm-up too */
    for (long i = 0; i < count; i++) {
        connections[i].started = now();
        send_rest(&connections[i]);
    }
    while (time < end) {
        int ready = epoll_wait(loop, events, BATCH, 0);
        if (ready <= 0)
            time = now(); /* so that a silent server cannot keep us here */
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;

            if (c->sent < size)
                send_rest(c);
            if (!(events[i].events & ~EPOLLOUT) || !receive(c))
                continue;
            /* The one clock reading ends this round trip and starts the next. */
            time = now();
            mismatches += c->wrong;
            if (time >= begin && time < end && !c->wrong) {
                messages++;
                record(time - c->started);
            }
            c->offset = (c->offset + size) % PERIOD;
            c->sent = c->got = c->wrong = 0;
            c->started = time;
            send_rest(c);
        }
    }
    double duration = (double)(end - begin) / 1e9;
    printf("{\"messages\": %llu, \"duration_s\": %.6f, \"messages_per_s\": %.1f, "
           "\"mismatches\": %llu, \"p50_us\": %.3f, \"p99_us\": %.3f}\n",
           (unsigned long long)messages, duration, messages / duration,
           (unsigned long long)mismatches, percentile_us(0.50, messages),
           percentile_us(0.99, messages));
    return mismatches > 0 || messages == 0;
}
