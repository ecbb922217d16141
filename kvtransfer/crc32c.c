/* crc32c.c -- CRC32C (Castagnoli, reflected polynomial 0x82f63b78; RFC 3720 appendix B.4).
 *
 * Three ways to the same number, the best that the machine has chosen once at run time:
 *   table      eight bytes a step through eight tables (Kounavis and Berry, "slicing-by-8", 2005)
 *   crc32 op   SSE4.2, aarch64's CRC32; the instruction takes 3 cycles but may start every cycle, so three
 *              lanes of LANE bytes run side by side. A lane's CRC is moved over the LANE bytes behind it with
 *              one more table, the operator "append LANE zero bytes", which is linear over GF(2).
 *   folding    VPCLMULQDQ on AVX-512 (Gopal and others, "Fast CRC Computation for Generic Polynomials Using
 *              PCLMULQDQ", 2009): 256 bytes are kept as a polynomial and multiplied by the power of x that
 *              they stand before the next 256, modulo P, so that they may be added to them. What is left at
 *              the end has the CRC of the whole. Twice as fast as the crc32 op. */
#include "kvtransfer/internal.h"
#include <pthread.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#define HAS_OP 1
#define OP __attribute__((target("sse4.2")))
#define OP_8(crc, v) _mm_crc32_u64(crc, v)
#define OP_1(crc, v) _mm_crc32_u8((uint32_t)(crc), v)
typedef uint64_t op_crc;         /* as wide as the register, or the compiler clears its half at every step */
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#define HAS_OP 1
#define OP __attribute__((target("+crc")))
#define OP_8(crc, v) __crc32cd(crc, v)
#define OP_1(crc, v) __crc32cb(crc, v)
typedef uint32_t op_crc;
#else
#define HAS_OP 0
#endif

enum { LANE = 1024 };

static uint32_t slice[8][256];   /* slice[k][b]: byte b followed by k zero bytes */
static uint32_t append[4][256];  /* append[k][b]: byte k of a CRC is b, moved over LANE zero bytes */
static uint32_t (*update)(uint32_t crc, const unsigned char *p, size_t bytes);
static pthread_once_t once = PTHREAD_ONCE_INIT;

static uint32_t update_table(uint32_t crc, const unsigned char *p, size_t bytes) {
    for (; bytes >= 8; p += 8, bytes -= 8) {
        uint32_t lo = crc ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
                             (uint32_t)p[3] << 24);
        crc = slice[7][lo & 255] ^ slice[6][lo >> 8 & 255] ^ slice[5][lo >> 16 & 255] ^
              slice[4][lo >> 24] ^ slice[3][p[4]] ^ slice[2][p[5]] ^ slice[1][p[6]] ^ slice[0][p[7]];
    }
    for (; bytes; bytes--) crc = slice[0][(crc ^ *p++) & 255] ^ crc >> 8;
    return crc;
}

#if HAS_OP
static uint64_t load64(const unsigned char *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

static uint32_t over_lane(uint32_t crc) {
    return append[0][crc & 255] ^ append[1][crc >> 8 & 255] ^ append[2][crc >> 16 & 255] ^
           append[3][crc >> 24];
}

OP static uint32_t update_op(uint32_t crc, const unsigned char *p, size_t bytes) {
    op_crc a = crc;
    for (; bytes >= 3 * LANE; p += 3 * LANE, bytes -= 3 * LANE) {
        op_crc b = 0, c = 0;
        for (size_t i = 0; i < LANE; i += 8) {
            a = OP_8(a, load64(p + i));
            b = OP_8(b, load64(p + LANE + i));
            c = OP_8(c, load64(p + 2 * LANE + i));
        }
        a = over_lane(over_lane((uint32_t)a) ^ (uint32_t)b) ^ (uint32_t)c;
    }
    for (; bytes >= 8; p += 8, bytes -= 8) a = OP_8(a, load64(p));
    for (; bytes; bytes--) a = OP_1(a, *p++);
    return (uint32_t)a;
}

static bool has_op(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("sse4.2");
#else
    return getauxval(AT_HWCAP) & HWCAP_CRC32;
#endif
}
#endif

#if defined(__x86_64__)
static uint64_t fold_256[2], fold_64[2]; /* for a quadword's low and high half of 16 bytes; see power() */

/* x^n modulo P, its bits reflected and one place up: what a product of two reflected factors needs. */
static uint64_t power(int n) {
    uint32_t at = 0x80000000u; /* 1 */
    for (int i = 0; i < n; i++) at = at >> 1 ^ (at & 1 ? 0x82f63b78u : 0);
    return (uint64_t)at << 1;
}

#define FOLDS __attribute__((target("avx512f,vpclmulqdq,sse4.2")))

/* Each 16 bytes of x, moved over the bytes that k stands for, added to next. */
FOLDS static __m512i fold(__m512i x, __m512i k, __m512i next) {
    return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(x, k, 0x00), _mm512_clmulepi64_epi128(x, k, 0x11),
                                     next, 0x96);
}

FOLDS static __m512i constants(const uint64_t k[2]) {
    return _mm512_broadcast_i32x4(_mm_set_epi64x((long long)k[1], (long long)k[0]));
}

FOLDS static uint32_t update_folding(uint32_t crc, const unsigned char *p, size_t bytes) {
    if (bytes < 512) return update_op(crc, p, bytes);
    unsigned char left[64];
    __m512i x[4], k = constants(fold_256), k_last = constants(fold_64);
    for (int i = 0; i < 4; i++) x[i] = _mm512_loadu_si512(p + 64 * i);
    x[0] = _mm512_xor_si512(x[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    for (p += 256, bytes -= 256; bytes >= 256; p += 256, bytes -= 256)
        for (int i = 0; i < 4; i++) x[i] = fold(x[i], k, _mm512_loadu_si512(p + 64 * i));
    for (int i = 1; i < 4; i++) x[i] = fold(x[i - 1], k_last, x[i]);
    _mm512_storeu_si512(left, x[3]);
    return update_op(update_op(0, left, sizeof left), p, bytes);
}
#endif

static void setup(void) {
    static const unsigned char zeros[LANE];
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t crc = b;
        for (int i = 0; i < 8; i++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
        slice[0][b] = crc;
    }
    for (int k = 1; k < 8; k++)
        for (int b = 0; b < 256; b++)
            slice[k][b] = slice[0][slice[k - 1][b] & 255] ^ slice[k - 1][b] >> 8;
    for (int k = 0; k < 4; k++)
        for (uint32_t b = 0; b < 256; b++) append[k][b] = update_table(b << (8 * k), zeros, LANE);
    update = update_table;
#if HAS_OP
    if (has_op()) update = update_op;
#endif
#if defined(__x86_64__)
    fold_256[0] = power(256 * 8 + 32), fold_256[1] = power(256 * 8 - 32);
    fold_64[0] = power(64 * 8 + 32), fold_64[1] = power(64 * 8 - 32);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq") && update == update_op)
        update = update_folding;
#endif
}

uint32_t kvt_crc32c(uint32_t crc, const void *data, size_t bytes) {
    pthread_once(&once, setup);
    return ~update(~crc, data, bytes);
}

bool kvt_crc32c_way(int way, uint32_t crc, const void *data, size_t bytes, uint32_t *out) {
    pthread_once(&once, setup);
    uint32_t (*ways[])(uint32_t, const unsigned char *, size_t) = {
        update_table,
#if HAS_OP
        update != update_table ? update_op : NULL,
#endif
#if defined(__x86_64__)
        update == update_folding ? update_folding : NULL,
#endif
    };
    if (way < 0 || (size_t)way >= sizeof ways / sizeof *ways || !ways[way]) return false;
    *out = ~ways[way](~crc, data, bytes);
    return true;
}
