/* probe_float.c -- float multiply-adds from registers. Each sum is its own factor, so that no compiler
 * can take the product out of the loop. */
#include "bench/probe.h"

enum { LOOPS = 256 };

typedef float quad __attribute__((vector_size(16)));

double bench_float_portable(const bench_job *job) {
    enum { CHAINS = 8 };
    volatile float sink = 0.5f, start = sink;
    quad sum[CHAINS], half = sink - (quad){}, one = start + half;
    for (int i = 0; i < CHAINS; i++) sum[i] = half;
    for (int64_t r = 0; r < job->rounds * LOOPS; r++)
        BENCH_UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = sum[i] * half + one;
    for (int i = 0; i < CHAINS; i++) sink = sum[i][0];
    return (double)job->rounds * LOOPS * CHAINS * 4;
}

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx2,fma"))) double bench_float_avx2(const bench_job *job) {
    __m256 sum[BENCH_CHAINS], half = _mm256_set1_ps(0.5f), one = _mm256_set1_ps(1);
    for (int i = 0; i < BENCH_CHAINS; i++) sum[i] = half;
    for (int64_t r = 0; r < job->rounds * LOOPS; r++)
        BENCH_UNROLL for (int i = 0; i < BENCH_CHAINS; i++) sum[i] = _mm256_fmadd_ps(sum[i], half, one);
    for (int i = 0; i < BENCH_CHAINS; i++) __asm__ volatile("" : : "x"(sum[i]));
    return (double)job->rounds * LOOPS * BENCH_CHAINS * 8;
}

__attribute__((target("avx512f"))) double bench_float_avx512(const bench_job *job) {
    __m512 sum[BENCH_CHAINS], half = _mm512_set1_ps(0.5f), one = _mm512_set1_ps(1);
    for (int i = 0; i < BENCH_CHAINS; i++) sum[i] = half;
    for (int64_t r = 0; r < job->rounds * LOOPS; r++)
        BENCH_UNROLL for (int i = 0; i < BENCH_CHAINS; i++) sum[i] = _mm512_fmadd_ps(sum[i], half, one);
    for (int i = 0; i < BENCH_CHAINS; i++) __asm__ volatile("" : : "v"(sum[i]));
    return (double)job->rounds * LOOPS * BENCH_CHAINS * 16;
}
#endif
