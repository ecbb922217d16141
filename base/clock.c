/* clock.c -- the monotonic clock; a changed wall clock decides nothing in baton. */
#include "base/base.h"
#include <time.h>

int64_t clock_now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

int64_t clock_now_ms(void) { return clock_now_us() / 1000; }
