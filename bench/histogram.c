/* histogram.c -- counts times in buckets of equal relative width. */
#include "bench/histogram.h"
#include <assert.h>
#include <math.h>

enum { EXACT = 256, STEPS = 128, FIRST_POWER = 8, LAST_POWER = 40 };
static_assert(BENCH_HISTOGRAM_BUCKETS == EXACT + (LAST_POWER - FIRST_POWER + 1) * STEPS, "a bucket for each step");

static int bucket_of(int64_t us) {
    if (us < EXACT) return us < 0 ? 0 : (int)us;
    int power = 63 - __builtin_clzll((unsigned long long)us);
    if (power > LAST_POWER) return BENCH_HISTOGRAM_BUCKETS - 1;
    return EXACT + (power - FIRST_POWER) * STEPS + (int)(us >> (power - 7) & (STEPS - 1));
}

/* The largest value that falls into it. */
static int64_t bucket_end(int bucket) {
    if (bucket < EXACT) return bucket;
    int power = FIRST_POWER + (bucket - EXACT) / STEPS, step = (bucket - EXACT) % STEPS;
    return ((int64_t)(STEPS + step + 1) << (power - 7)) - 1;
}

void bench_histogram_add(bench_histogram *h, int64_t us) {
    if (us < 0) us = 0;
    h->buckets[bucket_of(us)]++;
    h->count++;
    h->sum_us += (double)us;
    if (us > h->max_us) h->max_us = us;
}

int64_t bench_histogram_at(const bench_histogram *h, double share) {
    int64_t wanted = (int64_t)ceil(share * (double)h->count), seen = 0;
    for (int i = 0; i < BENCH_HISTOGRAM_BUCKETS && h->count > 0; i++) {
        seen += h->buckets[i];
        if (seen == 0 || seen < wanted) continue;
        return bucket_end(i) < h->max_us ? bucket_end(i) : h->max_us;
    }
    return h->max_us;
}

double bench_histogram_mean(const bench_histogram *h) { return h->count ? h->sum_us / (double)h->count : 0; }
