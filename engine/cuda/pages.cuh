/* pages.cuh -- where a row of K or V stands in a page, and what its elements are.
 *
 *     [layer][kv head][K then V][token][dim]
 *
 * A row is what it is on the wire (engine.h, eng_kv_box): h floats, halves or bfloat16, or for each 32 dims a half, the
 * scale, and 32 int8. The bytes written are those of eng_quantize_row(), but for the payload of a NaN. Head widths are
 * multiples of 32: a warp takes 32 dims of a row, a lane each. */
#ifndef BATON_ENGINE_CUDA_PAGES_CUH
#define BATON_ENGINE_CUDA_PAGES_CUH

#include "engine/cuda/device.cuh"
#include "engine/engine.h"

enum { KV_BLOCK = 32, KV_SCALED_BYTES = 34 };        /* Q8_0: dims that share a scale, their bytes */

/* Of `dims` (a multiple of 32) elements. */
static __host__ __device__ __forceinline__ size_t kv_bytes(int type, int dims) {
    const int block = type == ENG_KV_F32 ? 128 : type == ENG_KV_Q8_0 ? KV_SCALED_BYTES : 64;
    return (size_t)(dims / KV_BLOCK) * (size_t)block;
}

/* From a page's beginning to token 0 of K or V of a layer and head. */
static __host__ __device__ __forceinline__ size_t kv_at(int type, int h, int P, int K, int l, int head, int is_v) {
    return (((size_t)l * (size_t)K + (size_t)head) * 2 + (size_t)is_v) * (size_t)P * kv_bytes(type, h);
}

/* Element d of a row. */
DEVICE float kv_load(int type, const char *row, int d) {
    switch (type) {
    case ENG_KV_F32: return ((const float *)row)[d];
    case ENG_KV_F16: return __half2float(((const __half *)row)[d]);
    case ENG_KV_BF16: return __bfloat162float(((const __nv_bfloat16 *)row)[d]);
    }
    row += kv_bytes(type, d / KV_BLOCK * KV_BLOCK);
    return __fmul_rn(__half2float(*(const __half *)row), (float)((const int8_t *)row)[2 + d % KV_BLOCK]);
}

/* 32 elements by the 32 lanes of a warp, each rounded to the nearest; a scale is the largest magnitude / 127, a NaN
 * is not counted. */
DEVICE void kv_store_scaled(char *block, int lane, float x) {
    float most = fabsf(x) > 0 ? fabsf(x) : 0;
#pragma unroll
    for (int o = 16; o; o /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, o));
    const float scale = most / 127, inverse = scale != 0 ? 1 / scale : 0, q = roundf(__fmul_rn(x, inverse));
    if (lane == 0) *(__half *)block = __float2half_rn(scale);
    ((int8_t *)block)[2 + lane] = (int8_t)(!(q > -128) ? -128 : q < 127 ? (int)q : 127);
}

/* Element d of a row, a multiple of 32 + lane: all lanes of the warp together. */
DEVICE void kv_store(int type, char *row, int d, float x) {
    switch (type) {
    case ENG_KV_F32: ((float *)row)[d] = x; return;
    case ENG_KV_F16: ((__half *)row)[d] = __float2half_rn(x); return;
    case ENG_KV_BF16: ((__nv_bfloat16 *)row)[d] = __float2bfloat16_rn(x); return;
    }
    kv_store_scaled(row + kv_bytes(type, d / KV_BLOCK * KV_BLOCK), d % KV_BLOCK, x);
}

/* The same between two rows of one type, as it is. */
DEVICE void kv_move(int type, char *to, const char *from, int d) {
    if (type == ENG_KV_F32) ((uint32_t *)to)[d] = ((const uint32_t *)from)[d];
    else if (type != ENG_KV_Q8_0) ((uint16_t *)to)[d] = ((const uint16_t *)from)[d];
    else {
        const size_t block = kv_bytes(type, d / KV_BLOCK * KV_BLOCK);
        if (d % KV_BLOCK == 0) *(uint16_t *)(to + block) = *(const uint16_t *)(from + block);
        to[block + 2 + d % KV_BLOCK] = from[block + 2 + d % KV_BLOCK];
    }
}

#endif
