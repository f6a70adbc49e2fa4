/* Joins two TUN devices, and delays, loses, duplicates and reorders the packets between them.

   A kernel without netem cannot do that; and this program counts exactly what it did. Usage:

       link SERVER_TUN CLIENT_TUN SEED TO_SERVER TO_CLIENT

   The devices are descriptors, already open, non-blocking, in network namespaces of their own. Each
   direction is DELAY_US,LOSS,DUPLICATE,REORDER,EXTRA_US,UNTIL: three probabilities; EXTRA_US is
   added to the delay of a packet that the third one chooses; only the first UNTIL packets are
   lost, duplicated or given that (0: all are). Only TCP and UDP over IPv4 is impaired and counted.
   Other IPv4 packets (ICMP) are delayed too; IPv6, which a kernel sends unasked, is dropped.

   Prints {"pid": ...}, and its counters as a line of JSON for each line of standard input. At the
   end of that it ends: the kernel closes the pipe however the test ends. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/queue.h>
#include <time.h>
#include <unistd.h>

enum { TO_SERVER, TO_CLIENT, DIRECTIONS };

#define PACKET_MAX 65536
#define NEVER INT64_MAX
#define SPIN_NS 60000 /* a wake-up takes about so long; the last part of a wait polls */

struct packet {
    TAILQ_ENTRY(packet) next;
    int64_t read_at, due;
    uint64_t number; /* of the packets of this direction, from 1; 0: neither TCP nor UDP */
    uint16_t port;   /* the client's */
    bool copy;
    size_t size;
    unsigned char bytes[];
};

TAILQ_HEAD(queue, packet);

struct direction {
    int from, to;
    int64_t delay, extra; /* ns */
    double loss, duplicate, reorder;
    uint64_t until;
    uint64_t random;
    struct queue queue;      /* by `due` */
    uint64_t highest[65536]; /* number of the latest packet written, by the client's port */
    uint64_t packets, lost, duplicated, delayed, reordered, failed;
    int64_t *delays; /* ns, from read() to write(), of every packet that was written */
    size_t delay_count, delay_room;
};

static struct direction directions[DIRECTIONS];

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void *allocated(void *memory) {
    if (memory == NULL)
        fail("malloc");
    return memory;
}

/* True with that probability; splitmix64, so that a seed gives the same faults everywhere. */
static bool chance(struct direction *way, double probability) {
    uint64_t mixed = way->random += UINT64_C(0x9e3779b97f4a7c15);
    mixed = (mixed ^ mixed >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    mixed = (mixed ^ mixed >> 27) * UINT64_C(0x94d049bb133111eb);
    mixed ^= mixed >> 31;
    return (double)(mixed >> 11) * 0x1p-53 < probability;
}

/* The client's port of a TCP or UDP packet, 0 of any other. */
static uint16_t client_port(const struct direction *way, const unsigned char *bytes, size_t size) {
    size_t header = (size_t)(bytes[0] & 15) * 4;
    uint16_t ports[2];
    if (size < header + sizeof ports || (bytes[9] != IPPROTO_TCP && bytes[9] != IPPROTO_UDP))
        return 0;
    memcpy(ports, bytes + header, sizeof ports);
    return ntohs(ports[way == &directions[TO_CLIENT]]);
}

static void put(struct direction *way, const struct packet *model, const unsigned char *bytes) {
    struct packet *packet = allocated(malloc(sizeof *packet + model->size)), *before;
    *packet = *model;
    memcpy(packet->bytes, bytes, packet->size);
    TAILQ_FOREACH_REVERSE(before, &way->queue, queue, next) {
        if (before->due <= packet->due)
            break;
    }
    if (before == NULL)
        TAILQ_INSERT_HEAD(&way->queue, packet, next);
    else
        TAILQ_INSERT_AFTER(&way->queue, before, packet, next);
}

static void take(struct direction *way, const unsigned char *bytes, size_t size) {
    struct packet packet = {.read_at = now(), .size = size};
    bool lost, duplicated, delayed;
    if (bytes[0] >> 4 != 4)
        return;
    packet.due = packet.read_at + way->delay;
    packet.port = client_port(way, bytes, size);
    if (packet.port == 0) {
        put(way, &packet, bytes);
        return;
    }
    packet.number = ++way->packets;
    /* Three draws for each packet: what one fault does changes nothing for the others. */
    lost = chance(way, way->loss);
    duplicated = chance(way, way->duplicate);
    delayed = chance(way, way->reorder);
    if (packet.number > way->until)
        lost = duplicated = delayed = false;
    if (lost) {
        way->lost++;
        return;
    }
    if (delayed) {
        way->delayed++;
        packet.due += way->extra;
    }
    put(way, &packet, bytes);
    if (duplicated) {
        way->duplicated++;
        packet.copy = true;
        put(way, &packet, bytes);
    }
}

static void take_all(struct direction *way) {
    static unsigned char bytes[PACKET_MAX];
    ssize_t size;
    while ((size = read(way->from, bytes, sizeof bytes)) >= 20)
        take(way, bytes, (size_t)size);
    if (size < 0 && errno != EAGAIN && errno != EINTR)
        fail("read");
}

static void note_written(struct direction *way, const struct packet *packet) {
    if (packet->number == 0 || packet->copy)
        return;
    /* A packet is reordered if one sent later came before it (RFC 4737, section 3.3). */
    if (packet->number < way->highest[packet->port])
        way->reordered++;
    else
        way->highest[packet->port] = packet->number;
    if (way->delay_count == way->delay_room) {
        way->delay_room = way->delay_room ? 2 * way->delay_room : 4096;
        way->delays = allocated(realloc(way->delays, way->delay_room * sizeof *way->delays));
    }
    way->delays[way->delay_count++] = now() - packet->read_at;
}

static void write_due(struct direction *way) {
    struct packet *packet;
    while ((packet = TAILQ_FIRST(&way->queue)) != NULL && packet->due <= now()) {
        if (write(way->to, packet->bytes, packet->size) < 0)
            way->failed++;
        note_written(way, packet);
        TAILQ_REMOVE(&way->queue, packet, next);
        free(packet);
    }
}

static int64_t next_due(void) {
    int64_t due = NEVER;
    for (int i = 0; i < DIRECTIONS; i++) {
        struct packet *packet = TAILQ_FIRST(&directions[i].queue);
        if (packet != NULL && packet->due < due)
            due = packet->due;
    }
    return due;
}

static int by_size(const void *left, const void *right) {
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static void print_counters(struct direction *way, const char *name, const char *end) {
    static const struct { const char *name; double share; } PERCENTILES[] = {
        {"min", 0}, {"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"max", 1}};
    if (way->delay_count)
        qsort(way->delays, way->delay_count, sizeof *way->delays, by_size);
    printf("\"%s\": {\"packets\": %lu, \"lost\": %lu, \"duplicated\": %lu, \"delayed\": %lu, "
           "\"reordered\": %lu, \"failed\": %lu, \"delay_us\": {\"count\": %zu",
           name, way->packets, way->lost, way->duplicated, way->delayed, way->reordered,
           way->failed, way->delay_count);
    for (size_t i = 0; way->delay_count && i < sizeof PERCENTILES / sizeof *PERCENTILES; i++) {
        size_t place = (size_t)(PERCENTILES[i].share * (double)(way->delay_count - 1));
        printf(", \"%s\": %.1f", PERCENTILES[i].name, (double)way->delays[place] / 1e3);
    }
    printf("}}%s", end);
}

static void answer(void) {
    char line[64];
    if (read(STDIN_FILENO, line, sizeof line) <= 0)
        exit(0);
    printf("{");
    print_counters(&directions[TO_SERVER], "to_server", ", ");
    print_counters(&directions[TO_CLIENT], "to_client", "}\n");
    fflush(stdout);
}

static void open_direction(struct direction *way, int from, int to, const char *text,
                           uint64_t seed) {
    double delay, extra;
    if (sscanf(text, "%lf,%lf,%lf,%lf,%lf,%lu", &delay, &way->loss, &way->duplicate, &way->reorder,
               &extra, &way->until) != 6) {
        fprintf(stderr, "link: %s: expected six numbers\n", text);
        exit(2);
    }
    way->from = from;
    way->to = to;
    way->delay = (int64_t)(delay * 1e3);
    way->extra = (int64_t)(extra * 1e3);
    way->random = seed;
    if (way->until == 0)
        way->until = UINT64_MAX;
    TAILQ_INIT(&way->queue);
}

int main(int count, char **arguments) {
    int server, client;
    uint64_t seed;
    if (count != 6) {
        fprintf(stderr, "link SERVER_TUN CLIENT_TUN SEED TO_SERVER TO_CLIENT\n");
        return 2;
    }
    server = atoi(arguments[1]);
    client = atoi(arguments[2]);
    seed = strtoull(arguments[3], NULL, 10);
    open_direction(&directions[TO_SERVER], client, server, arguments[4], seed);
    open_direction(&directions[TO_CLIENT], server, client, arguments[5], ~seed);
    prctl(PR_SET_TIMERSLACK, 1UL); /* else a wait may be 50 us longer (prctl(2)) */
    printf("{\"pid\": %d}\n", getpid());
    fflush(stdout);
    for (;;) {
        struct pollfd ready[] = {
            {client, POLLIN, 0}, {server, POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
        int64_t due = next_due(), wait = due == NEVER ? 0 : due - now() - SPIN_NS;
        struct timespec timeout = {0, 0};
        if (wait > 0)
            timeout = (struct timespec){wait / 1000000000, wait % 1000000000};
        if (ppoll(ready, 3, due == NEVER ? NULL : &timeout, NULL) < 0 && errno != EINTR)
            fail("ppoll");
        for (int i = 0; i < DIRECTIONS; i++)
            take_all(&directions[i]);
        for (int i = 0; i < DIRECTIONS; i++)
            write_due(&directions[i]);
        if (ready[2].revents)
            answer();
    }
}
