/*
 * udp_echo HOST PORT: the plain UDP echo server of the textbooks, recvfrom and sendto in turn.
 *
 * It is the reference for datagrams: two system calls each, and nothing else. It answers whatever
 * comes, so it would join any loop: for measuring only.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static char buffer[65535];

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

int main(int argc, char **argv)
{
    struct sockaddr_in address = { .sin_family = AF_INET };
    socklen_t length = sizeof address;
    if (argc != 3 || inet_pton(AF_INET, argv[1], &address.sin_addr) != 1) {
        fprintf(stderr, "usage: udp_echo HOST PORT (numeric IPv4; port 0 picks one)\n");
        return 2;
    }
    address.sin_port = htons(atoi(argv[2]));
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);

    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    if (bind(fd, (struct sockaddr *)&address, length) < 0)
        die("bind");
    getsockname(fd, (struct sockaddr *)&address, &length);
    fprintf(stderr, "listening on udp://%s:%d (C recvfrom)\n", argv[1], ntohs(address.sin_port));

    for (;;) {
        struct sockaddr_storage client;
        socklen_t size = sizeof client;
        struct sockaddr *from = (struct sockaddr *)&client;
        ssize_t received = recvfrom(fd, buffer, sizeof buffer, 0, from, &size);
        /* An error concerns an earlier answer, or one client: the next datagram is answered. */
        if (received >= 0)
            sendto(fd, buffer, received, 0, from, size);
    }
}
