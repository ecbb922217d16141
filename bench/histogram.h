/* histogram.h -- times in microseconds, counted in buckets: percentiles of any number of samples in fixed memory.
 *
 * Up to 255 us each value has its own bucket; above, each power of two has 128, so that what is said is at most 1/128
 * above the true value and never below it (as HdrHistogram does it). Count, sum and maximum are exact. */
#ifndef BATON_BENCH_HISTOGRAM_H
#define BATON_BENCH_HISTOGRAM_H

#include "base/base.h"

enum { BENCH_HISTOGRAM_BUCKETS = 256 + 33 * 128 };

typedef struct bench_histogram {
    int64_t count, max_us;
    double sum_us;
    uint32_t buckets[BENCH_HISTOGRAM_BUCKETS];
} bench_histogram;

/* Below 0 counts as 0, from 2^41 us (25 days) on as the last bucket. */
void bench_histogram_add(bench_histogram *h, int64_t us);
/* The least value that at least share (0 to 1) of the samples do not exceed; 0: no sample. */
int64_t bench_histogram_at(const bench_histogram *h, double share);
double bench_histogram_mean(const bench_histogram *h);

#endif
