/* random.c -- numbers nobody can guess: tickets, ids, seeds that a user did not give. Sampling has its own, which
 * depend on nothing but seed and position (engine/random.h). */
#include "base/base.h"
#include <assert.h>
#include <errno.h>
#include <sys/random.h>

uint64_t random_number(void) {
    uint64_t x = 0;
    ssize_t n;
    do n = getrandom(&x, sizeof x, 0);
    while (n < 0 && errno == EINTR);
    assert(n == sizeof x);
    return x;
}
