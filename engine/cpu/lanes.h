/* lanes.h -- sixteen floats at a time, in GNU C vectors: the same sequence of operations whatever the
 * width of a register is.
 *
 * A sum over a row is taken in sixteen lanes: lane i adds up columns i, i+16, i+32 ... in rising order,
 * each with one fused multiply-add where the instruction set has it; then the lanes are added as a tree
 * (i and i+8, i+4, i+2, i+1). So AVX2, AVX-512 and NEON give the same bits.
 *
 * -ffp-contract=fast lets the compiler fuse a*b+c. Every such expression of the files that include this
 * one has exactly one product, so there is only one way to fuse it. */
#ifndef BATON_ENGINE_CPU_LANES_H
#define BATON_ENGINE_CPU_LANES_H

#include "engine/cpu/isa.h"
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
enum { W = 16 };                             /* floats of a register; there are 32 */
#elif defined(__AVX__)
enum { W = 8 };                              /* 16 registers */
#else
enum { W = 4 };                               /* 16 registers, on aarch64 32 */
#endif
enum { LANES = 16, PARTS = LANES / W, BLOCK = 32 };

#define INLINE static inline __attribute__((always_inline))
#if defined(__AVX2__) || defined(__aarch64__)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL                               /* short code that compiles in seconds; speed is elsewhere */
#endif

typedef float vec __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(W * 4)));
typedef struct lanes { vec v[PARTS]; } lanes;

INLINE lanes load(const float *p) {
    lanes a;
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] = *(const vec *)(p + i * W);
    return a;
}

INLINE void store(float *p, lanes a) {
    UNROLL for (int i = 0; i < PARTS; i++) *(vec *)(p + i * W) = a.v[i];
}

/* The first n of them. */
INLINE void store_some(float *p, lanes a, int n) {
    float all[LANES];
    if (n >= LANES) {
        store(p, a);
        return;
    }
    store(all, a);
    memcpy(p, all, (size_t)n * sizeof *p);
}

INLINE lanes spread(float f) {
    lanes a;
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] = f - (vec){};
    return a;
}

/* sum + a * b, fused where the instruction set can. */
INLINE lanes add_product(lanes sum, lanes a, lanes b) {
    UNROLL for (int i = 0; i < PARTS; i++) sum.v[i] = a.v[i] * b.v[i] + sum.v[i];
    return sum;
}

INLINE lanes add_lanes(lanes a, lanes b) {
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] += b.v[i];
    return a;
}

/* The tree: lane i and i+8, then i+4, i+2, i+1, whatever the width of a register. */
typedef float quad __attribute__((vector_size(16)));
typedef float oct __attribute__((vector_size(32)));

INLINE float total(lanes a) {
#if defined(__AVX512F__)
    oct o = __builtin_shufflevector(a.v[0], a.v[0], 0, 1, 2, 3, 4, 5, 6, 7) +
            __builtin_shufflevector(a.v[0], a.v[0], 8, 9, 10, 11, 12, 13, 14, 15);
#elif defined(__AVX__)
    oct o = a.v[0] + a.v[1];
#endif
#if defined(__AVX__)
    quad q = __builtin_shufflevector(o, o, 0, 1, 2, 3) + __builtin_shufflevector(o, o, 4, 5, 6, 7);
#else
    quad q = (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
#endif
    q = q + __builtin_shufflevector(q, q, 2, 3, 0, 1);
    return q[0] + q[1];
}

/* The greater of each lane, and of all of them (by the same tree; no NaN). */
#define GREATER(type, a, b) ((type)(((mask_of_##type)(a) & ((a) > (b))) | ((mask_of_##type)(b) & ~((a) > (b)))))
typedef int32_t mask_of_quad __attribute__((vector_size(16)));
typedef int32_t mask_of_oct __attribute__((vector_size(32)));
typedef ivec mask_of_vec;

INLINE lanes greater(lanes a, lanes b) {
#if defined(__AVX512F__)                         /* gcc does not find the instruction by itself */
    a.v[0] = (vec)_mm512_max_ps((__m512)a.v[0], (__m512)b.v[0]);
#elif defined(__AVX__)
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] = (vec)_mm256_max_ps((__m256)a.v[i], (__m256)b.v[i]);
#else
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] = GREATER(vec, a.v[i], b.v[i]);
#endif
    return a;
}

INLINE float greatest(lanes a) {
#if defined(__AVX512F__)
    oct o = __builtin_shufflevector(a.v[0], a.v[0], 0, 1, 2, 3, 4, 5, 6, 7);
    oct p = __builtin_shufflevector(a.v[0], a.v[0], 8, 9, 10, 11, 12, 13, 14, 15);
    o = GREATER(oct, o, p);
#elif defined(__AVX__)
    oct o = GREATER(vec, a.v[0], a.v[1]);
#endif
#if defined(__AVX__)
    quad q = __builtin_shufflevector(o, o, 0, 1, 2, 3), r = __builtin_shufflevector(o, o, 4, 5, 6, 7);
#else
    quad q = GREATER(vec, a.v[0], a.v[1]), r = GREATER(vec, a.v[2], a.v[3]);
#endif
    q = GREATER(quad, q, r);
    r = __builtin_shufflevector(q, q, 2, 3, 0, 1);
    q = GREATER(quad, q, r);
    return q[0] > q[1] ? q[0] : q[1];
}

/* |x|. */
INLINE lanes magnitude(lanes x) {
    UNROLL for (int i = 0; i < PARTS; i++) x.v[i] = (vec)((ivec)x.v[i] & 0x7fffffff);
    return x;
}

INLINE lanes times(lanes a, float d) {
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] *= d;
    return a;
}

/* eng_exp() of cpu.h, sixteen at a time: the same operations in the same order. */
INLINE lanes exp_lanes(lanes x) {
    UNROLL for (int i = 0; i < PARTS; i++) {
        vec least = -87.3f - (vec){}, most = 88.3f - (vec){};
        vec clamped = GREATER(vec, x.v[i], least);
        clamped = -GREATER(vec, -clamped, -most);
        vec shifted = clamped * 1.44269504f + 12582912.f, n = shifted - 12582912.f;
        vec r = clamped - n * 0.693359375f;
        r = r + n * 2.12194440e-4f;
        vec p = 1.9875691500e-4f - (vec){};
        p = p * r + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        p = p * (r * r) + (r + 1);
        vec power = (vec)(((ivec)shifted << 23) + 0x3f800000);
        x.v[i] = (vec)((ivec)(p * power) & (x.v[i] >= least));
    }
    return x;
}

INLINE float half_at(const void *p) {
#if defined(__aarch64__) || (defined(__F16C__) && !defined(__clang__)) /* clang 14 knows the type on aarch64 only; same value */
    _Float16 half;
    memcpy(&half, p, 2);
    return (float)half;
#else
    uint16_t half;
    memcpy(&half, p, 2);
    return eng_half_to_float(half);
#endif
}

/* W halves, W bfloat16 as floats: exact. */
INLINE vec from_halves(const void *p) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256(p));
#elif defined(__F16C__)
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128(p));
#elif defined(__aarch64__)
    return (vec)vcvt_f32_f16((float16x4_t)vld1_u8(p));
#else
    float f[W];
    for (int i = 0; i < W; i++) f[i] = half_at((const char *)p + 2 * i);
    return *(const vec *)f;
#endif
}

INLINE vec from_bf16(const void *p) {
    typedef uint16_t half __attribute__((vector_size(W * 2), aligned(1), may_alias));
    return (vec)(__builtin_convertvector(*(const half *)p, ivec) << 16);
}

INLINE lanes halves(const uint8_t *p) {
    lanes a;
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] = from_halves(p + i * W * 2);
    return a;
}

INLINE lanes bf16s(const uint8_t *p) {
    lanes a;
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] = from_bf16(p + i * W * 2);
    return a;
}

#endif
