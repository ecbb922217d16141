/* act.cuh -- activation rows: what the products read, and how the other kernels write it.
 *
 * A row holds C columns (a multiple of 32, B = C/32 blocks) as floats and as 14-bit integers X with a scale a block:
 *
 *     x ~ scale * X,   X = 128 hi + lo,   |X| <= 8191,   -64 <= hi <= 64,   -64 <= lo <= 63
 *
 * so that a product with integer weights is 128 * sum(w*hi) + sum(w*lo): two sums of 8-bit products, exact in any
 * order (engine/cpu/act.h says why 14 bits). Offsets in a row, which begins at a multiple of 16:
 *
 *     0            float x[C]
 *     4 C          a block: 4 groups of 8 columns: int8 hi[8], lo[8]       one 16-byte load is what a lane multiplies
 *     4 C + 64 B   a block: float scale, total                            total = scale * sum(X)
 *
 * A block whose largest magnitude is below ACT_LEAST has X = 0; one with a NaN or an infinity has X = 0 and that as its
 * scale, so that what is computed from it is NaN. */
#ifndef BATON_ENGINE_CUDA_ACT_CUH
#define BATON_ENGINE_CUDA_ACT_CUH

#include "engine/cuda/device.cuh"

enum { ACT_BLOCK = 32, ACT_BLOCK_BYTES = 64, ACT_LARGEST = 8191 };
#define ACT_LEAST 0x1p-100f

static __host__ __device__ __forceinline__ size_t act_planes_at(int C) { return (size_t)C * 4; }
static __host__ __device__ __forceinline__ size_t act_scales_at(int C) { return (size_t)C * 6; }
static __host__ __device__ __forceinline__ size_t act_row_bytes(int C) {
    return (act_scales_at(C) + (size_t)C / ACT_BLOCK * 8 + 15) & ~(size_t)15;
}

/* ---- a block in parts: for kernels whose lanes hold its columns in an order of their own ------------------- */

/* A magnitude as an integer that orders as magnitudes do, NaN last. The largest of a block decides its scale. */
DEVICE unsigned act_magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

DEVICE float act_scale(unsigned most) { return __uint_as_float(most) / ACT_LARGEST; }

/* 1 / scale, or 0: the integers are 0. */
DEVICE float act_inverse(unsigned most) {
    const float largest = __uint_as_float(most);
    return largest >= ACT_LEAST && largest < INFINITY ? ACT_LARGEST / largest : 0;
}

template <int V> struct act_vector; /* V columns: their floats, and a byte of each */
template <> struct act_vector<1> { typedef float floats; typedef uint8_t bytes; };
template <> struct act_vector<4> { typedef float4 floats; typedef uint32_t bytes; };

/* V (1 or 4) columns from `column`, a multiple of V: their floats and integers. Returns the integers' sum. */
template <int V> DEVICE int act_put(char *row, int C, int column, const float x[V], float inverse) {
    typedef typename act_vector<V>::floats floats;
    typedef typename act_vector<V>::bytes bytes;
    unsigned high = 0, low = 0;
    int sum = 0;
#pragma unroll
    for (int i = 0; i < V; i++) {
        const int X = inverse > 0 ? __float2int_rn(__fmul_rn(x[i], inverse)) : 0, hi = (X + 64) >> 7;
        high |= (unsigned)(hi & 255) << 8 * i;
        low |= (unsigned)((X - 128 * hi) & 255) << 8 * i;
        sum += X;
    }
    char *const group = row + act_planes_at(C) + (size_t)(column / 8) * 16 + column % 8;
    floats all;
    memcpy(&all, x, sizeof all);
    *(floats *)(row + (size_t)column * 4) = all;
    *(bytes *)group = (bytes)high;
    *(bytes *)(group + 8) = (bytes)low;
    return sum;
}

/* By one lane, when all columns of the block are put: sum is that of its integers. */
DEVICE void act_finish(char *row, int C, int block, unsigned most, int sum) {
    const float scale = act_scale(most);
    ((float2 *)(row + act_scales_at(C)))[block] = make_float2(scale, __fmul_rn(scale, (float)sum));
}

/* ---- a whole warp, lane after lane V columns further: 32/V lanes a block ------------------------------------ */

/* Every lane of the warp calls it; lanes of blocks that do not exist are not live. */
template <int V> DEVICE void act_store(char *row, int C, int column, const float x[V], bool live) {
    unsigned most = 0;
#pragma unroll
    for (int i = 0; i < V; i++) most = max(most, act_magnitude(x[i]));
#pragma unroll
    for (int o = 1; o < ACT_BLOCK / V; o *= 2) most = max(most, __shfl_xor_sync(0xffffffffu, most, o));
    int sum = live ? act_put<V>(row, C, column, x, act_inverse(most)) : 0;
#pragma unroll
    for (int o = 1; o < ACT_BLOCK / V; o *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, o);
    if (live && column % ACT_BLOCK == 0) act_finish(row, C, column / ACT_BLOCK, most, sum);
}

#endif
