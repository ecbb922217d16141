/* probe_int8.c -- int8 multiply-adds from registers: u8 x s8 summed into int32, as quantised products
 * are computed. */
#include "bench/probe.h"
#include <assert.h>
#include <string.h>

/* Whatever the compiler makes of a plain loop: the figure of a machine that no other probe knows. */
double bench_int8_portable(const bench_job *job) {
    enum { N = 2048 };
    static const int8_t zero[N];
    volatile int32_t sink = 0;
    int8_t a[N], b[N];
    memcpy(a, zero, N);
    memset(b, 3, N);
    for (int64_t r = 0; r < job->rounds; r++) {
        int32_t sum = 0;
        a[r % N] ^= 1; /* no two rounds are the same */
        for (int i = 0; i < N; i++) sum += a[i] * b[i];
        sink = sink + sum;
    }
    return (double)job->rounds * N;
}

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { LOOPS = 256 }; /* of one round */

/* Without VNNI it takes three instructions: pairs to int16, pairs of those to int32, add. */
__attribute__((target("avx2"))) double bench_int8_avx2(const bench_job *job) {
    __m256i sum[BENCH_CHAINS], a = _mm256_set1_epi8(1), b = a, ones = _mm256_set1_epi16(1);
    for (int i = 0; i < BENCH_CHAINS; i++) sum[i] = _mm256_setzero_si256();
    for (int64_t r = 0; r < job->rounds * LOOPS; r++) {
        BENCH_UNROLL for (int i = 0; i < BENCH_CHAINS; i++) {
            __asm__ volatile("" : "+x"(a)); /* else the product would leave the loop */
            __m256i pairs = _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones);
            sum[i] = _mm256_add_epi32(sum[i], pairs);
        }
    }
    for (int i = 0; i < BENCH_CHAINS; i++) __asm__ volatile("" : : "x"(sum[i]));
    return (double)job->rounds * LOOPS * BENCH_CHAINS * 32;
}

__attribute__((target("avx512f,avx512vnni"))) double bench_int8_avx512(const bench_job *job) {
    __m512i sum[BENCH_CHAINS], a = _mm512_set1_epi32(0x01010101), b = a;
    for (int i = 0; i < BENCH_CHAINS; i++) sum[i] = _mm512_setzero_si512();
    for (int64_t r = 0; r < job->rounds * LOOPS; r++) {
        BENCH_UNROLL for (int i = 0; i < BENCH_CHAINS; i++) {
            __asm__ volatile("" : "+v"(a));
            sum[i] = _mm512_dpbusd_epi32(sum[i], a, b);
        }
    }
    for (int i = 0; i < BENCH_CHAINS; i++) __asm__ volatile("" : : "v"(sum[i]));
    return (double)job->rounds * LOOPS * BENCH_CHAINS * 64;
}

/* The processor has tiles (CPUID 7.0: EDX bit 24 AMX-TILE, 25 AMX-INT8) and Linux lets the process use
 * their 8 KiB of state, which it grants on request only (Documentation/arch/x86/xstate.rst). */
bool bench_int8_has_amx(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    unsigned a, b, c, d = 0;
    bool has = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 3) == 3;
    return has && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* Four sums (tmm0-3) of two left (tmm4, 5) and two right tiles (tmm6, 7), 16 x 16 x 64 each. In
 * assembly, whose operand is the whole configuration: gcc 12's intrinsic names only its first bytes. */
double bench_int8_amx(const bench_job *job) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    static_assert(sizeof config == 64, "what LDTILECFG reads");
    for (int i = 0; i < 8; i++) config.row_bytes[i] = 64, config.rows[i] = 16;
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
    __asm__ volatile("tilezero %tmm0\n\t tilezero %tmm1\n\t tilezero %tmm2\n\t tilezero %tmm3\n\t"
                     "tilezero %tmm4\n\t tilezero %tmm5\n\t tilezero %tmm6\n\t tilezero %tmm7");
    for (int64_t r = 0; r < job->rounds * LOOPS; r++)
        __asm__ volatile("tdpbusd %tmm6, %tmm4, %tmm0\n\t tdpbusd %tmm7, %tmm4, %tmm1\n\t"
                         "tdpbusd %tmm6, %tmm5, %tmm2\n\t tdpbusd %tmm7, %tmm5, %tmm3");
    __asm__ volatile("tilerelease");
    return (double)job->rounds * LOOPS * 4 * 16 * 16 * 64;
}
#endif
