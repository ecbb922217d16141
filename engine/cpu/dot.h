/* dot.h -- sixteen 8-bit dot products of four columns each: the one thing of the integer products that an
 * instruction set has its own instruction for. All of them are exact: the same integers everywhere. */
#ifndef BATON_ENGINE_CPU_DOT_H
#define BATON_ENGINE_CPU_DOT_H

#include "engine/cpu/lanes.h"

/* W*4 bytes of a line, and the sums of its outputs. */
typedef uint8_t cvec __attribute__((vector_size(W * 4), aligned(1), may_alias));
typedef struct line { cvec v[PARTS]; } line;
typedef struct ints { ivec v[PARTS]; } ints;

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

INLINE ints spread_int(int32_t n) {
    ints a;
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] = n - (ivec){};
    return a;
}

/* 16 hi + lo, as floats. */
INLINE lanes whole(ints hi, ints lo) {
    lanes a;
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] = __builtin_convertvector(hi.v[i] * 16 + lo.v[i], vec);
    return a;
}

/* sum[n] += w[n][0..3] . x[0..3]. Weights of 4 bits are unsigned; those of 8 bits are signed, and what
 * dot4_signed() leaves out is in dot_start(): where an instruction takes unsigned bytes only, it sees
 * w + 128, and 128 times the sum of x is subtracted at the start. */
#if defined(__AVX512VNNI__)
INLINE int32_t four(const int8_t *x) {
    int32_t v;
    memcpy(&v, x, 4);
    return v;
}
INLINE ints dot4(ints sum, line w, const int8_t *x) {
    sum.v[0] = (ivec)_mm512_dpbusd_epi32((__m512i)sum.v[0], (__m512i)w.v[0], _mm512_set1_epi32(four(x)));
    return sum;
}
INLINE line signed_line(line w) {
    w.v[0] ^= 0x80;
    return w;
}
INLINE ints dot4_signed(ints sum, line w, const int8_t *x) { return dot4(sum, w, x); }
INLINE ints dot_start(int32_t total) { return spread_int(-128 * total); }
#elif defined(__AVX2__)
INLINE __m256i four(const int8_t *x) {
    int32_t v;
    memcpy(&v, x, 4);
    return _mm256_set1_epi32(v);
}
INLINE ivec add_pairs(ivec sum, __m256i pairs) {
    return sum + (ivec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
INLINE ints dot4(ints sum, line w, const int8_t *x) { /* 15 * 127 * 2 fits 16 bits */
    UNROLL for (int i = 0; i < PARTS; i++) sum.v[i] = add_pairs(sum.v[i], _mm256_maddubs_epi16((__m256i)w.v[i], four(x)));
    return sum;
}
INLINE line signed_line(line w) { return w; }
INLINE ints dot4_signed(ints sum, line w, const int8_t *x) { /* 128 * 127 * 2 fits 16 bits */
    UNROLL for (int i = 0; i < PARTS; i++)
        sum.v[i] = add_pairs(sum.v[i], _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)w.v[i]),
                                                            _mm256_sign_epi8(four(x), (__m256i)w.v[i])));
    return sum;
}
INLINE ints dot_start(int32_t total) {
    (void)total;
    return spread_int(0);
}
#elif defined(__ARM_FEATURE_DOTPROD)
INLINE ints dot4_signed(ints sum, line w, const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    int8x16_t columns = vreinterpretq_s8_s32(vdupq_n_s32(four));
    UNROLL for (int i = 0; i < PARTS; i++) sum.v[i] = (ivec)vdotq_s32((int32x4_t)sum.v[i], (int8x16_t)w.v[i], columns);
    return sum;
}
INLINE line signed_line(line w) { return w; }
INLINE ints dot4(ints sum, line w, const int8_t *x) { return dot4_signed(sum, w, x); } /* 4 bits fit either way */
INLINE ints dot_start(int32_t total) {
    (void)total;
    return spread_int(0);
}
#else
INLINE ints dot4_signed(ints sum, line w, const int8_t *x) {
    UNROLL for (int i = 0; i < PARTS; i++)
        UNROLL for (int k = 0; k < 4; k++) {
            ivec column = (ivec)((uint32_t __attribute__((vector_size(W * 4))))w.v[i] << (24 - 8 * k));
            sum.v[i] += (column >> 24) * x[k];
        }
    return sum;
}
INLINE line signed_line(line w) { return w; }
INLINE ints dot4(ints sum, line w, const int8_t *x) { return dot4_signed(sum, w, x); }
INLINE ints dot_start(int32_t total) {
    (void)total;
    return spread_int(0);
}
#endif

#endif
