/* span.cuh -- attention of 16 queries to 64 positions of one kv head, by a warp on tensor cores.
 *
 * Floats on tensor cores, which multiply halves or bfloat16 and add in float: a float is cut into terms t0 + t1 (+ t2),
 * each the rest rounded to nearest. Products of two terms are exact; those of places i + j below the count are added,
 * the smallest first.
 *
 *     pages   multiplied as   terms of q and p   of k and v    left out, relative to sum |a b|
 *     F16     half            2                  1             2^-22      11 bits a term
 *     BF16    bfloat16        3                  1             2^-24      8 bits a term
 *     Q8_0    bfloat16        3                  1, an int8    2^-24      scales: of k by fmaf to s, of v into p
 *     F32     bfloat16        3                  3             2^-22      6 products of 9
 *
 * Halves are short of exponents: a query is divided by the power of two at its largest element, p is multiplied by 2^14.
 * Both are exact. The sums in float, whose order within an instruction is the hardware's, dominate all of this.
 *
 * Fragments (device.cuh, mma) leave open which dim or key an index stands for, as long as both sides agree. Dims and keys
 * are dealt so that every load is 8 or 16 bytes from where elements lie, lane 4g+t:
 *
 *     of k    key 16 i + 4 (g/2) + 2 j + g%2 is column g of tile 2 i + j;  dims 32 b + 8 t ..+8 are those of t
 *     of v    keys 16 i + 4 t ..+4 are rows 2t, 2t+1, 2t+8, 2t+9 of step i; dims 32 b + 4 g ..+4 are column g of 4 tiles
 *     of o    row g and g+8, dims 32 b + 8 t ..+8 */
#ifndef BATON_ENGINE_CUDA_SPAN_CUH
#define BATON_ENGINE_CUDA_SPAN_CUH

#include "engine/cuda/kernels.h"
#include "engine/cuda/pages.cuh"

enum { QUERIES = 16, SPAN = CUDA_SPLIT, TILES = SPAN / 8, STEPS = SPAN / 16, WARPS = 4 };
static const unsigned ALL = 0xffffffffu;
#define LOG2E 1.44269504f
#define WEIGHT_SCALE 0x1p14f

template <int TYPE> struct terms {
    enum { left = TYPE == ENG_KV_F16 ? 2 : 3, right = TYPE == ENG_KV_F32 ? 3 : 1, scaled = TYPE == ENG_KV_Q8_0 };
};

/* A warp's shared memory: what would else be too much for registers. A lane reads only what it wrote. */
template <int TYPE, int B> struct scratch {
    enum { warps = terms<TYPE>::left == 2 || B <= 2 ? 4 : 2 };       /* of a block: 48 KiB hold that many */
    enum { blocks = B <= 2 ? 2 : 1 };                                /* of a processor, at least: bounds registers */
    uint4 query[B * 2 * terms<TYPE>::left][32];          /* fragments: [block][step][term][lane] */
    float4 weight[TILES][32];                            /* of a tile: two keys of row g, two of g+8 */
};

/* ---- numbers ------------------------------------------------------------------------------------------------- */

/* 2^x for x <= 0, the same on every device: x = n + r, |r| <= 1/2, times 2^n a polynomial that is exact at 0, relative
 * error below 2^-22. What is below -126 counts as -126: nothing beside the largest weight, which is 1. A NaN stays one. */
DEVICE float power(float x) {
    x = x < -126 ? -126 : x;
    const float shifted = __fadd_rn(x, 12582912.f), r = x - __fsub_rn(shifted, 12582912.f);
    float p = fmaf(1.326472731e-3f, r, 9.671512991e-3f);
    p = fmaf(p, r, 5.550733581e-2f);
    p = fmaf(p, r, 2.402224243e-1f);
    p = fmaf(p, r, 6.931470037e-1f);
    p = fmaf(p, r, 1);
    return __fmul_rn(p, __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u));
}

/* Two floats as halves or bfloat16, a in the low half; and back. */
template <int TYPE> DEVICE unsigned pack(float a, float b) {
    unsigned word;
    if (TYPE == ENG_KV_F16) {
        const __half2 pair = __floats2half2_rn(a, b);
        memcpy(&word, &pair, 4);
    } else {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
        memcpy(&word, &pair, 4);
    }
    return word;
}

template <int TYPE> DEVICE float2 unpack(unsigned word) {
    if (TYPE != ENG_KV_F16) return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
    __half2 pair;
    memcpy((void *)&pair, &word, 4);
    return __half22float2(pair);
}

/* The terms of a and b, to register r of a fragment each. */
template <int TYPE, int COUNT, int REGISTERS>
DEVICE void cut(unsigned (&term)[COUNT][REGISTERS], int r, float a, float b) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        term[i][r] = pack<TYPE>(a, b);
        const float2 taken = unpack<TYPE>(term[i][r]);
        a = __fsub_rn(a, taken.x);
        b = __fsub_rn(b, taken.y);
    }
}

/* c (16,8) += a (16,16) b (16,8) */
template <int TYPE, int LEFT, int RIGHT>
DEVICE void multiply(float (&c)[4], const unsigned (&a)[LEFT][4], const unsigned (&b)[RIGHT][2]) {
#pragma unroll
    for (int place = LEFT - 1; place >= 0; place--)
#pragma unroll
        for (int j = 0; j < RIGHT && j <= place; j++)
            if (TYPE == ENG_KV_F16) mma_f16(c, a[place - j], b[j]);
            else mma_bf16(c, a[place - j], b[j]);
}

/* Over the four lanes that share rows g and g+8. */
DEVICE float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL, x, 2));
}
DEVICE float quad_sum(float x) {
    x = __fadd_rn(x, __shfl_xor_sync(ALL, x, 1));
    return __fadd_rn(x, __shfl_xor_sync(ALL, x, 2));
}

/* ---- queries --------------------------------------------------------------------------------------------------- */

/* Queries g and g+8 (NULL: none). back: what a product with them is to be multiplied with. */
template <int TYPE, int B>
DEVICE void load_queries(scratch<TYPE, B> &w, float back[2], const float *const q[2], float factor) {
    const int lane = threadIdx.x % 32, t = lane % 4;
    float x[2][B * 8], shrink[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float most = 0;
#pragma unroll
        for (int i = 0; i < B * 8; i++) {
            x[r][i] = q[r] ? __fmul_rn(q[r][i / 8 * KV_BLOCK + t * 8 + i % 8], factor) : 0;
            most = fmaxf(most, fabsf(x[r][i]));
        }
        const unsigned exponent = min(max(__float_as_uint(quad_max(most)) >> 23, 27u), 227u);
        back[r] = __uint_as_float(exponent << 23);
        shrink[r] = __uint_as_float((254 - exponent) << 23);
    }
#pragma unroll
    for (int n = 0; n < B * 2; n++) {
        unsigned a[terms<TYPE>::left][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int r = i % 2, d = n * 4 + i / 2 * 2;
            cut<TYPE>(a, i, __fmul_rn(x[r][d], shrink[r]), __fmul_rn(x[r][d + 1], shrink[r]));
        }
#pragma unroll
        for (int i = 0; i < terms<TYPE>::left; i++)
            w.query[n * terms<TYPE>::left + i][lane] = make_uint4(a[i][0], a[i][1], a[i][2], a[i][3]);
    }
}

/* ---- a span's K and V ---------------------------------------------------------------------------------------- */

/* The sequence's pages of one layer and kv head. */
struct head_pages {
    const char *k;                       /* of page 0 */
    size_t page_bytes;
    const int32_t *blocks;
    int P;
};

/* Lane i has the rows of K of keys i and i + 32, NULL after the last. */
struct span {
    const char *row[2];
};

template <int TYPE, int B> DEVICE span find_rows(const head_pages &kv, int first, int last) {
    span s;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int at = first + i * 32 + (int)(threadIdx.x % 32);
        s.row[i] = NULL;
        if (at <= last)
            s.row[i] = kv.k + (size_t)kv.blocks[at / kv.P] * kv.page_bytes +
                       (size_t)(at % kv.P) * kv_bytes(TYPE, B * KV_BLOCK);
    }
    return s;
}

/* Of key 32 half + lane. All lanes call it. */
DEVICE const char *row_of(const span &s, int half, int lane) {
    return (const char *)__shfl_sync(ALL, (unsigned long long)(half ? s.row[1] : s.row[0]), lane);
}

/* Of the 32 dims from d. */
DEVICE float scale_of(const char *row, size_t offset) {
    return row ? __half2float(*(const __half *)(row + offset)) : 0;
}

/* Four elements as floats, without their scale. */
template <int TYPE> DEVICE float4 four(const char *at) {
    if (TYPE == ENG_KV_F32) return *(const float4 *)at;
    const char2 a = *(const char2 *)at, b = *(const char2 *)(at + 2);
    return make_float4(a.x, a.y, b.x, b.y);
}

/* Dims 32 b + 8 t ..+8 of a row of K: two steps' fragments. */
template <int TYPE, int RIGHT>
DEVICE void load_k(unsigned (&k)[2][RIGHT][2], const char *row, int b, int t) {
    if (TYPE == ENG_KV_F16 || TYPE == ENG_KV_BF16) {
        const uint4 w = row ? ((const uint4 *)row)[b * 4 + t] : make_uint4(0, 0, 0, 0);
        k[0][0][0] = w.x, k[0][0][1] = w.y, k[1][0][0] = w.z, k[1][0][1] = w.w;
        return;
    }
    const char *const at = row + kv_bytes(TYPE, b * KV_BLOCK) + (TYPE == ENG_KV_F32 ? t * 32 : 2 + t * 8);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float4 x = row ? four<TYPE>(at + i * (TYPE == ENG_KV_F32 ? 16 : 4)) : make_float4(0, 0, 0, 0);
        cut<TYPE>(k[i], 0, x.x, x.y);
        cut<TYPE>(k[i], 1, x.z, x.w);
    }
}

/* Dims 32 b + 4 g ..+4 of four rows of V: four tiles' fragments. */
template <int TYPE, int RIGHT>
DEVICE void load_v(unsigned (&v)[4][RIGHT][2], const char *const row[4], int b, int g) {
    if (TYPE == ENG_KV_F16 || TYPE == ENG_KV_BF16) {
        uint2 w[4];
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = row[i] ? ((const uint2 *)row[i])[b * 8 + g] : make_uint2(0, 0);
#pragma unroll
        for (int i = 0; i < 2; i++) {    /* dims by twos in a word: low halves, then high ones */
            v[i][0][0] = __byte_perm(w[0].x, w[1].x, i ? 0x7632 : 0x5410);
            v[i][0][1] = __byte_perm(w[2].x, w[3].x, i ? 0x7632 : 0x5410);
            v[i + 2][0][0] = __byte_perm(w[0].y, w[1].y, i ? 0x7632 : 0x5410);
            v[i + 2][0][1] = __byte_perm(w[2].y, w[3].y, i ? 0x7632 : 0x5410);
        }
        return;
    }
    const size_t at = kv_bytes(TYPE, b * KV_BLOCK) + (size_t)(TYPE == ENG_KV_F32 ? g * 16 : 2 + g * 4);
    float4 x[4];
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] = row[i] ? four<TYPE>(row[i] + at) : make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        cut<TYPE>(v[0], i, x[2 * i].x, x[2 * i + 1].x);
        cut<TYPE>(v[1], i, x[2 * i].y, x[2 * i + 1].y);
        cut<TYPE>(v[2], i, x[2 * i].z, x[2 * i + 1].z);
        cut<TYPE>(v[3], i, x[2 * i].w, x[2 * i + 1].w);
    }
}

/* ---- a span --------------------------------------------------------------------------------------------------- */

/* s[n]: tile n of q k, not yet multiplied by back. */
template <int TYPE, int B> DEVICE void score(float (&s)[TILES][4], const scratch<TYPE, B> &w, const span &keys) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int n = 0; n < TILES; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) s[n][i] = 0;
    }
#pragma unroll 1                         /* unrolled, loads of all blocks begin at once: more than registers hold */
    for (int b = 0; b < B; b++) {
        unsigned a[2][terms<TYPE>::left][4];
#pragma unroll
        for (int i = 0; i < 2 * terms<TYPE>::left; i++) {
            const uint4 q = w.query[b * 2 * terms<TYPE>::left + i][lane];
            unsigned(&to)[4] = a[i / terms<TYPE>::left][i % terms<TYPE>::left];
            to[0] = q.x, to[1] = q.y, to[2] = q.z, to[3] = q.w;
        }
        float scale[2];
        if (terms<TYPE>::scaled)
            for (int i = 0; i < 2; i++) scale[i] = scale_of(keys.row[i], kv_bytes(TYPE, b * KV_BLOCK));
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            unsigned k[2][terms<TYPE>::right][2];
            load_k<TYPE>(k, row_of(keys, n / 4, n / 2 * 16 % 32 + g / 2 * 4 + n % 2 * 2 + g % 2), b, t);
            if (!terms<TYPE>::scaled) {
                multiply<TYPE>(s[n], a[0], k[0]);
                multiply<TYPE>(s[n], a[1], k[1]);
                continue;
            }
            float part[4] = {0, 0, 0, 0};
            multiply<TYPE>(part, a[0], k[0]);
            multiply<TYPE>(part, a[1], k[1]);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float of_key = __shfl_sync(ALL, scale[n / 4], n / 2 * 16 % 32 + t * 4 + n % 2 * 2 + i);
                s[n][i] = fmaf(part[i], of_key, s[n][i]);
                s[n][2 + i] = fmaf(part[2 + i], of_key, s[n][2 + i]);
            }
        }
    }
}

/* Scores become weights; their maximum and sum. Query r sees positions up to limit[r]. */
template <int TYPE, int B>
DEVICE void weigh(scratch<TYPE, B> &w, float (&s)[TILES][4], float max[2], float sum[2], const float back[2], int first,
                  const int limit[2]) {
    const int lane = threadIdx.x % 32, t = lane % 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float most = -INFINITY, all = 0;
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int at = first + n / 2 * 16 + t * 4 + n % 2 * 2 + i;
                float &x = s[n][2 * r + i];
                x = at <= limit[r] ? __fmul_rn(x, back[r]) : -INFINITY;
                most = fmaxf(most, x);
            }
        most = max[r] = quad_max(most);
        if (most == -INFINITY) most = 0;
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float &x = s[n][2 * r + i];
                x = x == -INFINITY ? 0 : power(__fsub_rn(x, most));
                all = __fadd_rn(all, x);
            }
        sum[r] = quad_sum(all);
    }
#pragma unroll
    for (int n = 0; n < TILES; n++) w.weight[n][lane] = make_float4(s[n][0], s[n][1], s[n][2], s[n][3]);
}

/* part (16,32): WEIGHT_SCALE times the weights times dims 32 b ..+32 of V. */
template <int TYPE, int B>
DEVICE void weighted_values(float (&part)[4][4], const scratch<TYPE, B> &w, const span &keys, size_t to_v, int b) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float scale[2];
    if (terms<TYPE>::scaled)
        for (int i = 0; i < 2; i++) scale[i] = scale_of(keys.row[i], to_v + kv_bytes(TYPE, b * KV_BLOCK));
#pragma unroll
    for (int i = 0; i < 16; i++) part[i / 4][i % 4] = 0;
#pragma unroll 1                         /* unrolled, it would begin more loads than registers hold */
    for (int step = 0; step < STEPS; step++) {
        const float4 p0 = w.weight[2 * step][lane], p1 = w.weight[2 * step + 1][lane];
        const char *row[4];
        float factor[4];
        unsigned a[terms<TYPE>::left][4], v[4][terms<TYPE>::right][2];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int owner = step * 16 % 32 + t * 4 + i;
            row[i] = row_of(keys, step / 2, owner);
            row[i] = row[i] ? row[i] + to_v : NULL;
            factor[i] = WEIGHT_SCALE;
            if (terms<TYPE>::scaled)
                factor[i] = __fmul_rn(factor[i], __shfl_sync(ALL, step < 2 ? scale[0] : scale[1], owner));
        }
        cut<TYPE>(a, 0, __fmul_rn(p0.x, factor[0]), __fmul_rn(p0.y, factor[1]));
        cut<TYPE>(a, 1, __fmul_rn(p0.z, factor[0]), __fmul_rn(p0.w, factor[1]));
        cut<TYPE>(a, 2, __fmul_rn(p1.x, factor[2]), __fmul_rn(p1.y, factor[3]));
        cut<TYPE>(a, 3, __fmul_rn(p1.z, factor[2]), __fmul_rn(p1.w, factor[3]));
        load_v<TYPE>(v, row, b, g);
#pragma unroll
        for (int i = 0; i < 4; i++) multiply<TYPE>(part[i], a, v[i]);
    }
}

#endif
