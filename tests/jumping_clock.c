/*
 * For LD_PRELOAD: the wall clock is one hour early or late, at random, each time that it is read.
 *
 * CLOCK_MONOTONIC and the other clocks are not changed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <sys/time.h>
#include <time.h>

static time_t jump(void)
{
    static atomic_uint readings;
    unsigned bits = atomic_fetch_add(&readings, 1) * 2654435761u; /* a hash of the count */
    return bits >> 31 ? 3600 : -3600;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += jump();
    return result;
}

time_t time(time_t *now)
{
    struct timespec reading;
    clock_gettime(CLOCK_REALTIME, &reading);
    if (now)
        *now = reading.tv_sec;
    return reading.tv_sec;
}

int gettimeofday(struct timeval *now, void *zone)
{
    struct timespec reading;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &reading);
    now->tv_sec = reading.tv_sec;
    now->tv_usec = reading.tv_nsec / 1000;
    return 0;
}
