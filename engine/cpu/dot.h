/* dot.h -- sixteen 8-bit dot products of a block of 32 columns each, and the sum of such over a segment: the
 * things of the integer products that an instruction set has its own instructions for. All of them are
 * exact: the same integers everywhere. */
#ifndef BATON_ENGINE_CPU_DOT_H
#define BATON_ENGINE_CPU_DOT_H

#include "engine/cpu/lanes.h"

/* W*4 bytes of a line, and the sums of its outputs. */
typedef uint8_t cvec __attribute__((vector_size(W * 4), aligned(1), may_alias));
typedef struct line { cvec v[PARTS]; } line;
typedef struct ints { ivec v[PARTS]; } ints;
typedef uint32_t uvec __attribute__((vector_size(W * 4)));

#if defined(__AVX2__)                        /* its instructions take unsigned bytes times signed */
enum { WIDE_OFFSET = 128 };
#else
enum { WIDE_OFFSET = 0 };
#endif

INLINE line load_line(const uint8_t *p) {
    line a;
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] = *(const cvec *)(p + i * W * 4);
    return a;
}

INLINE line low_half(line a) {
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] &= 0x0f;
    return a;
}

INLINE line high_half(line a) {
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] = (cvec)((ivec)a.v[i] >> 4) & 0x0f;
    return a;
}

/* Signed bytes as dot_block() wants them. */
INLINE line wide_line(line a) {
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] ^= WIDE_OFFSET;
    return a;
}

INLINE ints spread_int(int32_t n) {
    ints a;
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] = n - (ivec){};
    return a;
}

/* 128 hi + lo, as floats: rounded once, when lo is added. */
INLINE lanes whole(ints hi, ints lo) {
    lanes a;
    UNROLL for (int i = 0; i < PARTS; i++)
        a.v[i] = __builtin_convertvector(hi.v[i], vec) * 128.f + __builtin_convertvector(lo.v[i], vec);
    return a;
}

/* y + ((128 hi + lo) * unit) * scale: what product.h says of a segment. */
INLINE lanes add_segment(lanes y, ints hi, ints lo, lanes unit, float scale) {
    lanes sum = whole(hi, lo);
    UNROLL for (int i = 0; i < PARTS; i++) sum.v[i] *= unit.v[i];
    return add_product(y, sum, spread(scale));
}

/* Sums wrap: what a NaN left in the planes of a row may be anything. */
INLINE ivec plus(ivec a, ivec b) { return (ivec)((uvec)a + (uvec)b); }
INLINE ivec product_of(ivec a, ivec b) { return (ivec)((uvec)a * (uvec)b); }

INLINE int32_t total_int(ints a) {
#if defined(__AVX512F__)
    __m512i x = (__m512i)a.v[0];
    __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
#elif defined(__AVX2__)
    __m256i half = (__m256i)plus(a.v[0], a.v[1]);
#endif
#if defined(__AVX2__)
    __m128i q = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
#else
    uint32_t sum = 0;
    for (int i = 0; i < PARTS; i++)
        for (int k = 0; k < W; k++) sum += (uint32_t)a.v[i][k];
    return (int32_t)sum;
#endif
}

/* dot_block: sum[n] = start + w[n][0..31] . x[0..31], w the eight lines of a block, x a plane of a row, so
 * |x| <= 64. Weights of 4 bits are unsigned, those of 8 bits WIDE_OFFSET more than they are.
 *
 * add_scaled: acc[n] + d[n] sum[n], with int16 d[16] as a panel has them; add_scaled_offset: for (d, m)[16],
 * + m[n] total, of a total 65536 times too large (act.h). With weights of 4 bits sum fits 16 bits. */
#if defined(__AVX512VNNI__)
INLINE ints dot_block(bool wide, const line w[8], const int8_t *x, int32_t start) {
    ints sum = spread_int(start);
    (void)wide;
    UNROLL for (int j = 0; j < 8; j++) {
        int32_t four;
        memcpy(&four, x + 4 * j, 4);
        sum.v[0] = (ivec)_mm512_dpbusd_epi32((__m512i)sum.v[0], (__m512i)w[j].v[0], _mm512_set1_epi32(four));
    }
    return sum;
}

INLINE ints add_scaled(bool wide, ints acc, ints sum, const uint8_t *d) {
    __m256i scale = _mm256_loadu_si256((const void *)d);
    if (wide) acc.v[0] = plus(acc.v[0], product_of((ivec)_mm512_cvtepi16_epi32(scale), sum.v[0]));
    else acc.v[0] = (ivec)_mm512_dpwssd_epi32((__m512i)acc.v[0], (__m512i)sum.v[0], _mm512_cvtepu16_epi32(scale));
    return acc;
}

INLINE ints add_scaled_offset(ints acc, ints sum, const uint8_t *dm, int32_t total) {
    __m512i both = _mm512_ternarylogic_epi32(_mm512_set1_epi32(0xffff), (__m512i)sum.v[0], _mm512_set1_epi32(total),
                                             0xca);      /* the low half of sum, the high half of total */
    acc.v[0] = (ivec)_mm512_dpwssd_epi32((__m512i)acc.v[0], both, _mm512_loadu_si512(dm));
    return acc;
}
#elif defined(__AVX2__)
INLINE ints dot_block(bool wide, const line w[8], const int8_t *x, int32_t start) {
    ints sum = spread_int(start);
    __m256i ones = _mm256_set1_epi16(1);
    UNROLL for (int i = 0; i < PARTS; i++) {
        __m256i pairs = _mm256_setzero_si256();
        UNROLL for (int j = 0; j < 8; j++) {
            int32_t four;
            memcpy(&four, x + 4 * j, 4);
            __m256i two = _mm256_maddubs_epi16((__m256i)w[j].v[i], _mm256_set1_epi32(four)); /* 255 * 64 * 2 fits */
            if (wide) sum.v[i] = plus(sum.v[i], (ivec)_mm256_madd_epi16(two, ones));
            else pairs = _mm256_add_epi16(pairs, two);                                       /* 8 * 15 * 64 * 2, too */
        }
        if (!wide) sum.v[i] = plus(sum.v[i], (ivec)_mm256_madd_epi16(pairs, ones));
    }
    return sum;
}

INLINE ints add_scaled(bool wide, ints acc, ints sum, const uint8_t *d) {
    UNROLL for (int i = 0; i < PARTS; i++) {
        __m128i part = _mm_loadu_si128((const void *)(d + 16 * i));
        if (wide) acc.v[i] = plus(acc.v[i], product_of((ivec)_mm256_cvtepi16_epi32(part), sum.v[i]));
        else acc.v[i] = plus(acc.v[i], (ivec)_mm256_madd_epi16((__m256i)sum.v[i], _mm256_cvtepu16_epi32(part)));
    }
    return acc;
}

INLINE ints add_scaled_offset(ints acc, ints sum, const uint8_t *dm, int32_t total) {
    UNROLL for (int i = 0; i < PARTS; i++) {
        __m256i both = _mm256_blend_epi16((__m256i)sum.v[i], _mm256_set1_epi32(total), 0xaa);
        acc.v[i] = plus(acc.v[i], (ivec)_mm256_madd_epi16(both, _mm256_loadu_si256((const void *)(dm + 32 * i))));
    }
    return acc;
}
#else
INLINE ints dot_block(bool wide, const line w[8], const int8_t *x, int32_t start) {
    ints sum = spread_int(start);
    (void)wide;                              /* 4 bits are as good signed */
    UNROLL for (int j = 0; j < 8; j++)
        UNROLL for (int i = 0; i < PARTS; i++) {
#if defined(__ARM_FEATURE_DOTPROD)
            int32_t four;
            memcpy(&four, x + 4 * j, 4);
            sum.v[i] = (ivec)vdotq_s32((int32x4_t)sum.v[i], (int8x16_t)w[j].v[i], vreinterpretq_s8_s32(vdupq_n_s32(four)));
#else
            for (int k = 0; k < 4; k++) {
                ivec column = (ivec)((uvec)w[j].v[i] << (24 - 8 * k));
                sum.v[i] += (column >> 24) * x[4 * j + k];
            }
#endif
        }
    return sum;
}

INLINE ints add_scaled(bool wide, ints acc, ints sum, const uint8_t *d) {
    typedef int16_t part __attribute__((vector_size(W * 2), aligned(1), may_alias));
    (void)wide;
    UNROLL for (int i = 0; i < PARTS; i++)
        acc.v[i] = plus(acc.v[i], product_of(__builtin_convertvector(*(const part *)(d + 2 * W * i), ivec), sum.v[i]));
    return acc;
}

INLINE ints add_scaled_offset(ints acc, ints sum, const uint8_t *dm, int32_t total) {
    typedef int32_t part __attribute__((vector_size(W * 4), aligned(1), may_alias));
    UNROLL for (int i = 0; i < PARTS; i++) {
        ivec both = (ivec)*(const part *)(dm + 4 * W * i);
        ivec scaled = product_of((ivec)((uvec)both << 16) >> 16, sum.v[i]);
        acc.v[i] = plus(acc.v[i], plus(scaled, product_of(both >> 16, (total >> 16) - (ivec){})));
    }
    return acc;
}
#endif

#endif
