/* random.h -- randomness as a function of (seed, position): no state, so that a draw is the same on
 * whatever node, in whatever order and after whatever failover it is made. */
#ifndef BATON_ENGINE_RANDOM_H
#define BATON_ENGINE_RANDOM_H

#include <stdint.h>

/* Philox4x32-10: ten rounds over a 128-bit counter under a 64-bit key (Salmon, Moraes, Dror, Shaw:
 * "Parallel random numbers: as easy as 1, 2, 3", 2011; the words are Random123's). */
void eng_random_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* Uniform in [0, 1), a multiple of 2^-53. */
double eng_random_uniform(uint64_t seed, uint64_t position);

#endif
