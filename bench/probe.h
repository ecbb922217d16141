/* probe.h -- what the probes share. Internal to bench/.
 *
 * A probe does nothing but the one thing whose speed it shows, from registers or from one buffer, and
 * says how much of it was done. Each is written for one instruction set by a target attribute and run
 * only where `supported` says so. */
#ifndef BATON_BENCH_PROBE_H
#define BATON_BENCH_PROBE_H

#include "bench/bench.h"

typedef struct bench_job {
    int64_t rounds;
    const char *buffer;          /* this thread's share; only the read probes look at it */
    size_t bytes;
} bench_job;

/* Each returns the multiply-adds done or bytes read. */
double bench_int8_portable(const bench_job *job);
double bench_float_portable(const bench_job *job);
double bench_read_1(const bench_job *job);
double bench_read_4(const bench_job *job);
double bench_read_8(const bench_job *job);
#if defined(__x86_64__)
double bench_int8_avx2(const bench_job *job);
double bench_int8_avx512(const bench_job *job);
double bench_int8_amx(const bench_job *job);
bool bench_int8_has_amx(void);
double bench_float_avx2(const bench_job *job);
double bench_float_avx512(const bench_job *job);
#endif

#define BENCH_UNROLL _Pragma("GCC unroll 16")
enum { BENCH_CHAINS = 12 };      /* sums that do not wait for each other: more than latency x units */

#endif
