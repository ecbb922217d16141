/* probe_read.c -- reading memory, as decode reads weights: every byte once, in order.
 *
 * One stream is what a plain loop gets. A processor follows several streams at once and keeps more
 * lines in flight for them, with software prefetches more still; which is best differs by machine. */
#include "bench/probe.h"

enum { LINE = 64 };

typedef uint64_t half_line __attribute__((vector_size(32), aligned(16), may_alias));

static inline __attribute__((always_inline)) double read_streams(const bench_job *job, int streams,
                                                                 size_t ahead) {
    /* An odd number of lines apart, so that streams do not fall into the same cache sets. */
    size_t lines = job->bytes / (size_t)streams / LINE, each = (lines - 1 - lines % 2) * LINE;
    half_line sum = {0};
    for (int64_t r = 0; r < job->rounds; r++)
        for (size_t at = 0; at < each; at += LINE)
            BENCH_UNROLL for (int s = 0; s < streams; s++) {
                const char *p = job->buffer + (size_t)s * each + at;
                if (ahead) __builtin_prefetch(p + ahead);
                sum ^= *(const half_line *)p ^ *(const half_line *)(p + LINE / 2);
            }
    volatile uint64_t sink = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
    (void)sink;
    return (double)job->rounds * (double)each * streams;
}

double bench_read_1(const bench_job *job) { return read_streams(job, 1, 0); }
double bench_read_4(const bench_job *job) { return read_streams(job, 4, 1024); }
double bench_read_8(const bench_job *job) { return read_streams(job, 8, 512); }
